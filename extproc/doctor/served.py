# SPDX-License-Identifier: Apache-2.0
"""Who served? A client cannot see it: Envoy's counters and our server's endpoints say it together, or an engine's refusal."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from extproc.doctor.admin import Admin
from extproc.doctor.dump import at, items
from extproc.doctor.exchange import Answer, Site, UnreachableError
from extproc.doctor.findings import Check, Finding, error, ok, skipped
from extproc.doctor.probes import Probes
from extproc.envoy import names

REQUESTS: Final = 4
"""How many requests each model and owner gets."""
PAIRS: Final = 8
"""How many models and owners get any."""

_TRIES: Final = 3
"""How often a model and owner are asked for again, where other clients' requests hide who served ours."""
_COUNTER: Final = "rq_total"
_OK: Final = range(200, 300)
_NOT_FOUND: Final = 404


@dataclass
class _Tally:
    """What is known of the requests that were sent: how many were counted, and how many of them went astray, by owner."""

    counted: int = 0
    astray: dict[str, int] = field(default_factory=dict)
    hidden: int = 0
    statuses: set[int] = field(default_factory=set)


async def by_counters(probes: Probes, envoy: Site, admin: Admin, forwarded: bool | None) -> Finding:  # noqa: FBT001 - a fact
    """Send a few requests for each model and owner, and look at which endpoints' counters rise meanwhile.

    `forwarded` is whether the dump says that the EPP sees our list, None if it says nothing. Raises UnreachableError.
    """
    pairs = (probes.listed or [])[:PAIRS]
    known = {each.destination for each in admin.endpoints}
    if not known & (await _counters(envoy)).keys():
        return skipped(
            Check.SERVED, "none of our server's endpoints is in that Envoy's clusters: is it that gateway's?"
        )
    tally = _Tally()
    for model, owner in pairs:
        await _count(probes, envoy, known, admin.of(model, owner), (model, owner), tally)
    if tally.astray:
        whose = ", ".join(f"`{owner}` ({count})" for owner, count in tally.astray.items())
        what = f"of {tally.counted} requests some were served by endpoints of others than they asked for: {whose}"
        return error(Check.SERVED, what, fix=_cause(forwarded))
    if tally.statuses:
        return skipped(Check.SERVED, f"requests for models that are listed are answered with {_listed(tally.statuses)}")
    if tally.hidden:
        return skipped(Check.SERVED, "other clients' requests, or another Envoy, hide who served ours")
    return ok(Check.SERVED, f"all {tally.counted} requests were served by endpoints of the owner that they named")


async def by_refusals(probes: Probes, forwarded: bool | None) -> Finding:  # noqa: FBT001 - as above
    """Send a few requests for each model and owner: who does not serve a model says so. Raises UnreachableError."""
    listed = probes.listed or []
    everybody = {owner for _, owner in listed}
    exclusive = {model for model, _ in listed if {by for each, by in listed if each == model} != everybody}
    if len({model for model, _ in listed}) < 2:  # noqa: PLR2004 - one model is served by all
        return skipped(Check.SERVED, "every endpoint serves the same model, and a client cannot see which did", _GIVE)
    sent = 0
    for model, owner in listed[:PAIRS]:
        for answer in await _send(probes, model, owner):
            sent += 1
            if answer.status == _NOT_FOUND and names.REASON not in answer.headers:
                what = f"a request for `{model}` of `{owner}` was served by an endpoint that does not have it"
                return error(Check.SERVED, what, fix=_cause(forwarded))
            if answer.status not in _OK:
                return skipped(Check.SERVED, f"requests for `{model}` are answered with {answer.status}", _GIVE)
    if not exclusive:
        return skipped(
            Check.SERVED, f"{sent} requests were answered, by whom among those of their model is not seen", _GIVE
        )
    what = f"all {sent} requests were served by endpoints that have the model, which not every owner has"
    return ok(Check.SERVED, what)


_GIVE: Final = "give --envoy and --admin"


def _cause(forwarded: bool | None) -> str:  # noqa: FBT001 - as above
    if forwarded is None:
        return "either the EPP does not see our list, or it ignores it: give --config-dump or --envoy"
    if forwarded:
        return "the EPP ignores our list: is it one that reads it, and without --disable-endpoint-subset-filter?"
    return "the EPP does not see our list: see `hint`"


async def _count(  # noqa: PLR0913, PLR0917 - what a comparison is made of
    probes: Probes, envoy: Site, known: Collection[str], allowed: Collection[str], pair: tuple[str, str], tally: _Tally
) -> None:
    """Send the requests of a model and owner, again if other clients' hide them, and enter what became of them."""
    model, owner = pair
    for _ in range(_TRIES):
        before = await _counters(envoy)
        answers = await _send(probes, model, owner)
        after = await _counters(envoy)
        failed = {answer.status for answer in answers if answer.status not in _OK}
        rises = {each: after.get(each, 0) - before.get(each, 0) for each in known}
        total = sum(rises.values())
        outside = total - sum(rises[each] for each in allowed)
        if total and (not outside or total <= REQUESTS):
            tally.counted += total if outside else min(total, REQUESTS)
            if outside:
                tally.astray[owner] = tally.astray.get(owner, 0) + outside
            break
        if failed:
            break
    else:
        tally.hidden += 1
    tally.statuses |= failed


async def _send(probes: Probes, model: str, owner: str) -> list[Answer]:
    return [await probes.ask_for(model, owner) for _ in range(REQUESTS)]


async def _counters(envoy: Site) -> dict[str, int]:
    """How many requests each endpoint got so far, of all clusters (envoy.admin.v3.Clusters)."""
    answer = await envoy.ask("/clusters?format=json")
    document = answer.json()
    if answer.status not in _OK or not isinstance(document, dict):
        raise UnreachableError(f"status {answer.status} at /clusters, and no JSON: is it Envoy's admin port?")
    found: dict[str, int] = {}
    for cluster in items(document, "cluster_statuses"):
        for host in items(cluster, "host_statuses"):
            socket = at(host, "address", "socket_address")
            address, port = str(socket.get("address", "")), socket.get("port_value", 0)
            key = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            found[key] = found.get(key, 0) + sum(_value(each) for each in items(host, "stats"))
    return found


def _value(stat: dict[str, Any]) -> int:
    """Its value if it counts requests: Envoy leaves noughts out, and writes 64 bits as a text."""
    value = str(stat.get("value", 0))
    return int(value) if stat.get("name") == _COUNTER and value.isdecimal() else 0


def _listed(statuses: Collection[int]) -> str:
    return ", ".join(map(str, sorted(statuses)))
