# SPDX-License-Identifier: Apache-2.0
"""What our server says of itself at its admin port: whether it is well, whose its endpoints are, who may serve what."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from extproc.doctor.dump import at
from extproc.doctor.exchange import Site, UnreachableError
from extproc.doctor.findings import Check, Finding, error, ok, skipped, warning
from extproc.policy.candidates import Candidates, label_engine, probed_engine
from extproc.policy.config import Duration, PolicyConfig
from extproc.policy.rules import route_of
from extproc.policy.types import Endpoint

_SHOWN: Final = 5
_OK: Final = 200


class Admin:
    """What our server's admin port says: its policy and its endpoints."""

    def __init__(
        self, policy: PolicyConfig, endpoints: list[Endpoint], status: Mapping[str, Any], default_pool: str = ""
    ) -> None:
        """As `read` has read them; `default_pool` is the one that a filter means which names none, "" if there is none."""
        self.default_pool = default_pool
        self.policy = policy
        self.endpoints = endpoints
        self.status = status
        # Who is not ready now may be by the time that it is asked.
        self._candidates = Candidates((msgspec.structs.replace(each, ready=True) for each in endpoints), policy)

    def of(self, model: str, owner: str) -> set[str]:
        """The destinations that may answer for a model and an owner, as the server itself finds them."""
        route = route_of(self.policy, (model,), owner)
        return {each.destination for each in self._candidates.group(owner, (model,), route).ready}


async def read(site: Site) -> Admin:
    """Ask our server's admin port. Raises UnreachableError, with a text to be shown, if it does not say it."""
    pages = ("/configz", "/endpointz", "/statusz", "/flagz")
    config, listed, status, flags = [await _page(site, path) for path in pages]
    try:
        policy = msgspec.convert(config["policy"], PolicyConfig, dec_hook=_duration)
        pools = msgspec.convert(listed["pools"], dict[str, list[Endpoint]])
    except (msgspec.ValidationError, KeyError, TypeError) as problem:
        raise UnreachableError("it is not the admin port of this version") from problem
    named = str(flags.get("--pool-name") or "")
    default = named or (next(iter(pools)) if len(pools) == 1 else "")
    return Admin(policy, [each for members in pools.values() for each in members], status, default)


async def _page(site: Site, path: str) -> dict[str, Any]:
    answer = await site.ask(path)
    if answer.status in (401, 403):
        raise UnreachableError(
            f"status {answer.status} at {path}: --admin-token-file, or a name of --admin-hosts, is needed"
        )
    document = answer.json()
    if answer.status != _OK or not isinstance(document, dict):
        raise UnreachableError(f"status {answer.status} at {path}, and no JSON object")
    return document


def _duration(kind: type, value: object) -> object:
    """Pages have times in seconds."""
    if kind is Duration and isinstance(value, int | float):
        return Duration(value)
    raise ValueError("expected a time in seconds")


def server(admin: Admin) -> list[Finding]:
    """How our server is, by its own word."""
    waiting = [str(name) for name, well in at(admin.status, "components").items() if not well]
    if not admin.status.get("ready") or waiting:
        what = f"it is not ready: {', '.join(waiting) or 'it does not serve'}"
        return [error(Check.SERVER, what, fix="look at `sources` of its /statusz")]
    return [
        ok(
            Check.SERVER,
            f"it is ready, and knows {len(admin.endpoints)} endpoint{'' if len(admin.endpoints) == 1 else 's'}",
        )
    ]


def labels(admin: Admin | None, listed: list[tuple[str, str]] | None) -> list[Finding]:
    """Whether the endpoints say whose they are."""
    if admin is None:
        owners = {owner for _, owner in listed or ()}
        if len(owners) == 1:
            what = f"everything is `{owners.pop()}`'s: a pod without a label counts as one of `unlabeledAs`"
            return [
                warning(Check.LABELS, what, fix="if other engines are there, label their pods llm-d.ai/engine-type")
            ]
        return [skipped(Check.LABELS, "only our server knows the labels", "give --admin")]
    policy = admin.policy
    label = policy.match.owned_by_labels[0] if policy.match.owned_by_labels else "a label of match.ownedByLabels"
    said = {each.destination: (label_engine(each, policy), probed_engine(each, policy)) for each in admin.endpoints}
    assumed = [each for each in admin.endpoints if not any(said[each.destination]) or not _counted(each, policy)]
    differing = [
        each for each in admin.endpoints if all(said[each.destination]) and len(set(said[each.destination])) > 1
    ]
    found: list[Finding] = []
    if assumed:
        whose = policy.normal(policy.match.unlabeled_as)
        what = f"{_names(assumed)} say nothing of their engine and count as {f'`{whose}`' if whose else 'nobody'}'s"
        found.append(warning(Check.LABELS, what, fix=f"label the pods `{label}`"))
    for each in differing[:_SHOWN]:
        labelled, probed = said[each.destination]
        what = f"`{each.name}` is labelled `{labelled}` and says itself that it is `{probed}`"
        found.append(warning(Check.LABELS, what, fix=f"mend its label `{label}`"))
    return found or [ok(Check.LABELS, "every endpoint says whose it is")]


def _counted(endpoint: Endpoint, policy: PolicyConfig) -> bool:
    """Whether something that counts says whose it is."""
    by = {"label": label_engine(endpoint, policy), "probe": probed_engine(endpoint, policy)}
    return any(by[source] for source in policy.match.engine_from)


def _names(endpoints: list[Endpoint]) -> str:
    shown = ", ".join(f"`{each.name}`" for each in endpoints[:_SHOWN])
    return shown if len(endpoints) <= _SHOWN else f"{shown} and {len(endpoints) - _SHOWN} more"
