# SPDX-License-Identifier: Apache-2.0
"""Whether the filters of a dump stand where they must: anchor, filter, order, routes, the EPP, and Envoy's version."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from extproc.doctor import clusters, filters
from extproc.doctor.dump import EPP_FILTER, Chain, Dump, Processor, Role, Route, is_ours
from extproc.doctor.findings import Check, Finding, error, ok, skipped, warning
from extproc.envoy import names
from extproc.envoy.binding import Attachment
from extproc.policy.config import PolicyConfig, default_policy

_BESIDE: Final = (Attachment.BEFORE, Attachment.AFTER)
_CHAINED: Final = (1, 38, 0)
"""The Envoy from which two processors of a chain leave bodies whole (facts/envoy.md, version facts; PR 43572)."""
_STREAMED: Final = (1, 40, 0)
"""The Envoy that is the first to grant what `x-owned-by-body: stream` asks for (facts/envoy.md 2.3)."""
_NO_POOL: Final = (
    "let the HTTPRoute's backendRefs name an InferencePool (group and kind), not a Service; "
    "on Istio, istiod needs ENABLE_GATEWAY_API_INFERENCE_EXTENSION=true"
)
_INSTALL: Final = (
    "install the component for this gateway; on Istio its EnvoyFilter must be in the Gateway's namespace, have the context "
    "GATEWAY and select the Gateway's pods"
)


@dataclass(frozen=True)
class _Concerned:
    """A chain that is about inference, and those of its routes that lead to pools."""

    chain: Chain
    routes: tuple[Route, ...]
    ours: tuple[Processor, ...]
    epps: tuple[Processor, ...]

    @property
    def where(self) -> str:
        return f"listener `{self.chain.listener}`"

    @property
    def beside(self) -> list[Processor]:
        """Our filters that need an EPP beside them."""
        return [each for each in self.ours if each.attachment in _BESIDE]

    def at(self, route: Route) -> str:
        return f"{self.where}, {route.where}"

    def is_picked_by_us(self, route: Route) -> bool:
        """Whether our server is in the EPP's place."""
        return any((on := each.on(route)) is not None and is_ours(on.cluster) for each in self.epps)


def examine(dump: Dump, policy: PolicyConfig | None = None, pool: str = "") -> list[Finding]:
    """Everything that a dump shows to be well or not.

    `policy` is our server's (None: it is not known, and taken to be the default one), `pool` the one that it means where a
    filter names none, "" if there is none such.
    """
    concerned = list(_concerned(dump))
    found = list(_envoy(dump, concerned))
    found += _placed(dump, concerned)
    for each in concerned:
        guarded = any(clusters.reads_metadata(dump, route) for route in each.routes)
        for where, processor in _effective(each):
            found += filters.examine(processor, where, policy or default_policy(), pool, guarded=guarded)
            found += clusters.server(dump, processor, where)
        found += _failures(each, policy)
        found += _buffer(each)
    well = _well(concerned, pool)
    told = {each.check for each in found}
    return [*found, *(ok(check, what) for check, what in well.items() if check not in told)]


def _concerned(dump: Dump) -> Iterator[_Concerned]:
    for chain in dump.chains:
        routes = tuple(route for route in chain.routes if dump.is_pool(chain, route))
        ours, epps = tuple(chain.all(Role.OURS)), tuple(chain.all(Role.EPP))
        if routes or ours or epps:
            yield _Concerned(chain, routes, ours, epps)


def _envoy(dump: Dump, concerned: Iterable[_Concerned]) -> Iterator[Finding]:
    for what, why in dump.refused:
        yield error(
            Check.ENVOY, f"Envoy refused its newest configuration: {why}", what, "the last good one is in force"
        )
    if dump.version is None:
        yield skipped(Check.ENVOY, "the dump does not say which Envoy it is of")
        return
    version = ".".join(map(str, dump.version))
    well = True
    for each in concerned:
        for one in each.ours:
            where = f"{each.where}, filter `{one.name}`"
            if one.attachment is Attachment.AFTER and dump.version < _CHAINED:
                well = False
                fix = "use `before` alone, or an Envoy of 1.38 or newer"
                yield error(
                    Check.ENVOY, f"Envoy {version} may cut bodies where two processors follow each other", where, fix
                )
            if one.said.get(names.BODY) == "stream" and dump.version < _STREAMED:
                well = False
                fix = f"leave `{names.BODY}` out"
                yield error(
                    Check.ENVOY, f"Envoy {version} does not grant what `{names.BODY}: stream` asks for", where, fix
                )
    if well and not dump.refused:
        yield ok(Check.ENVOY, f"Envoy {version} has accepted its configuration")


def _placed(dump: Dump, concerned: list[_Concerned]) -> Iterator[Finding]:
    """Where everything stands; what is missing is told where it is missing, if anything says where that is."""
    ours = [processor for each in concerned for processor in each.ours]
    alone = {each.attachment for each in ours} & {Attachment.HEADER, Attachment.PICKER}
    beside = any(each.beside for each in concerned)
    if not any(each.epps for each in concerned) and not alone and not any(each.routes for each in concerned):
        yield error(Check.ANCHOR, f"no listener has the EPP's filter, `{EPP_FILTER}`", fix=_NO_POOL)
    elif not all(each.chain.complete for each in concerned):
        yield skipped(Check.ROUTES, "the dump does not have all routes", "take a whole one, as /config_dump answers")
    elif (beside or not alone) and not any(each.routes for each in concerned) and dump.clusters is None:
        yield skipped(Check.ROUTES, "the dump has no clusters", "take a whole one, as /config_dump answers")
    elif (beside or not alone) and not any(each.routes for each in concerned):
        yield error(Check.ROUTES, "no route leads to a pool", fix=_NO_POOL)
    if not concerned:
        yield error(
            Check.FILTER, "no listener has a filter of ours", fix=f"is it that gateway's Envoy? Then {_INSTALL}"
        )
    for each in concerned:
        yield from _filters(each)
        yield from _order(each)
        yield from _routes(each)
        yield from _epp(dump, each)


def _filters(each: _Concerned) -> Iterator[Finding]:
    if not each.epps and each.routes and (each.beside or not each.ours):
        yield error(Check.ANCHOR, f"there is no EPP's filter, `{EPP_FILTER}`", each.where, _NO_POOL)
    here = [route for route in each.routes if not each.is_picked_by_us(route)]
    if here and not each.ours:
        yield error(Check.FILTER, "none of its filters is ours", each.where, _INSTALL)
    for one in each.beside:
        if one.name == EPP_FILTER:
            what = f"`{one.attachment}` is called like the EPP's filter: a route's word for the EPP holds for it, too"
            yield error(Check.FILTER, what, each.where, f"call it owned-by.{one.attachment}")
    for attachment in _BESIDE:
        if sum(one.attachment is attachment for one in each.ours) > 1:
            yield error(Check.FILTER, f"`{attachment}` is there more than once", each.where, "insert it once")


def _order(each: _Concerned) -> Iterator[Finding]:
    for epp in each.epps:
        for one in each.beside:
            where = f"{each.where}, filter `{one.name}`"
            if one.attachment is Attachment.BEFORE and one.position > epp.position:
                what = f"it stands behind `{epp.name}`, where no hint reaches the EPP any more"
                yield error(Check.ORDER, what, where, f"INSERT_BEFORE `{epp.name}`")
            if one.attachment is Attachment.AFTER and one.position < epp.position:
                what = f"it stands in front of `{epp.name}`, where there is no pick to hold to the engine"
                yield error(Check.ORDER, what, where, f"INSERT_AFTER `{epp.name}`")


def _routes(each: _Concerned) -> Iterator[Finding]:
    for one in each.ours:
        if one.attachment is Attachment.HEADER:
            if each.chain.routes and not any(one.on(route) for route in each.chain.routes):
                what = f"`{one.name}` is disabled on every route"
                yield error(Check.ROUTES, what, each.where, "enable it on the routes that choose by its headers")
            continue
        for route in each.routes:
            if one.on(route) is None:
                what = f"`{one.name}` is disabled here"
                yield error(
                    Check.ROUTES,
                    what,
                    each.at(route),
                    "enable it (component istio-before: owned-by-routes names routes)",
                )
        if one.conditional:
            what = f"`{one.name}` is skipped for some requests by a matcher: what they name in the body is not seen"
            yield warning(Check.ROUTES, what, each.where)


def _epp(dump: Dump, each: _Concerned) -> Iterator[Finding]:
    for route in each.routes:
        for epp in each.epps:
            on = epp.on(route)
            if on is None:
                yield error(Check.EPP, f"`{epp.name}` is disabled here", each.at(route), "enable it")
            elif on.mode.get("request_header_mode") == "SKIP":
                erased = [name for name in route.overrides if name.rpartition(".")[2] in ("cors", "fault")]
                what = f"nothing says here who the EPP is: `{epp.name}` lets every request pass"
                if erased:
                    what += f", and Istio drops that where a route has `{erased[0]}`"
                fix = (
                    "take CORS and fault injection off this route" if erased else "let the route name an InferencePool"
                )
                yield error(Check.EPP, what, each.at(route), fix)
            else:
                yield from clusters.epp(dump, on, each.at(route))
        pools = {cluster for cluster in route.clusters if "-ip-" in cluster}
        if len(pools) > 1:
            what = "it leads to two pools, and Istio asks the last one's EPP for both"
            yield warning(Check.EPP, what, each.at(route), "give each pool a rule of its own")
        yield from clusters.destination(
            dump, route, each.at(route), [one.attachment for one in each.ours if one.on(route)]
        )
        yield from _hint(each, route)


def _hint(each: _Concerned, route: Route) -> Iterator[Finding]:
    """Whether what `before` writes is shown to the EPP."""
    if not any(one.attachment is Attachment.BEFORE for one in each.ours):
        return
    for epp in each.epps:
        on = epp.on(route)
        if on is not None and names.SUBSET_NAMESPACE not in on.namespaces("forwarding"):
            what = f"it does not forward `{names.SUBSET_NAMESPACE}`: the EPP never sees our list and picks from the whole pool"
            fix = f"add it to metadata_options.forwarding_namespaces of `{epp.name}` (component istio-before)"
            yield error(Check.HINT, what, f"{each.where}, filter `{epp.name}`", fix)


def _effective(each: _Concerned) -> Iterator[tuple[str, Processor]]:
    """Our filters as they are on the routes that they are for, or as they stand if they run on none."""
    for one in each.ours:
        here = each.chain.routes if one.attachment is Attachment.HEADER else each.routes
        where = f"{each.where}, filter `{one.name}`"
        mistaken = one.name == EPP_FILTER and one.attachment in _BESIDE  # what a route says is not meant for it
        seen = [] if mistaken else [(route, on) for route in here if (on := one.on(route)) is not None]
        if not seen:
            yield where, one
        for route, on in seen:
            yield (where if on.config == one.config else f"{where}, {route.where}"), on


def _failures(each: _Concerned, policy: PolicyConfig | None) -> Iterator[Finding]:
    """What the chain does with requests that fail."""
    destinations, default = (policy or default_policy()).destinations, "" if policy else " by default"
    for route in each.routes:
        attachments = {one.attachment for one in each.ours if one.on(route) is not None}
        if Attachment.AFTER in attachments and route.retries >= destinations:
            what = f"it has {route.retries} retries, our list has {destinations} entries{default}: later ones reach any engine"
            yield warning(
                Check.FAILURES, what, each.at(route), f"let the policy say `destinations: {route.retries + 1}`"
            )
        elif Attachment.BEFORE in attachments and Attachment.AFTER not in attachments and route.retries:
            what = f"its retries ({route.retries}) may reach any engine: the EPP's pick has replaced our list by then"
            yield warning(
                Check.FAILURES, what, each.at(route), "add `after` (component istio-strict) or take retries off"
            )
    duplex = any(
        on is not None and on.mode.get("request_body_mode") == "FULL_DUPLEX_STREAMED"
        for one in (*each.ours, *each.epps)
        for on in (one.on(route) for route in each.routes)
    )
    if duplex and filters.seconds(each.chain.manager.get("stream_idle_timeout")) == 0:
        what = "stream_idle_timeout is 0: a processor that does not answer holds a request for ever"
        yield warning(Check.FAILURES, what, each.where, "set it, to 300s for example")


def _buffer(each: _Concerned) -> Iterator[Finding]:
    """How much of a body can be seen."""
    asks = any(
        one.mode.get("request_body_mode", "NONE") != "FULL_DUPLEX_STREAMED" and one.said.get(names.BODY) != "stream"
        for one in each.ours
        if one.attachment is not Attachment.PICKER
    )
    fix = "raise per_connection_buffer_limit_bytes (Envoy Gateway: bufferLimit of a ClientTrafficPolicy)"
    for route in each.routes if asks else ():
        limit, where = route.buffer_limit, each.at(route)
        if limit is None:
            limit, where = each.chain.buffer_limit, each.where
        if limit is not None and limit <= filters.FAR_TOO_SMALL:
            what = f"Envoy holds {limit} bytes of a body: an owner that stands behind them is not seen"
            yield error(Check.BODY_LIMIT, what, where, fix)


def _well(concerned: list[_Concerned], pool: str) -> dict[Check, str]:
    """What is said of a check of which nothing bad was found, if it was of any concern."""
    ours = [processor for each in concerned for processor in each.ours]
    routes = [(each, route) for each in concerned for route in each.routes]
    said: dict[Check, str] = {}
    if ours:
        there = ", ".join(dict.fromkeys(f"`{each.name}`" for each in ours))
        said[Check.FILTER] = f"{there}: there, under a name of its own"
        said[Check.ROUTES] = "our filters run on every route that they are for"
        said[Check.METADATA] = "our filters may write and see what they need"
        said[Check.MODES] = "our filters see requests, may ask for the body, and leave the answer alone"
        said[Check.HEADERS] = "our filters see, set and remove the headers that they must"
        told = all(map(filters.says_pool, ours))
        said[Check.POOL] = (
            "our filters are told which pool a route leads to"
            if told
            else f"filters that do not say their pool mean `{pool}`"
        )
        said[Check.CLUSTER] = "our server's cluster is there, speaks HTTP/2 and has an endpoint"
        said[Check.FAILURES] = "requests fail closed and in time, and no retry is known to leave the engine"
    elif any(each.is_picked_by_us(route) for each, route in routes):
        said[Check.FILTER] = "our server is in the EPP's place"
    if any(each.epps for each, _ in routes):
        said[Check.ANCHOR] = "the EPP's filter is there"
        said[Check.EPP] = "the EPP is called, and its cluster has an endpoint"
        if any(each.beside for each in concerned):
            said[Check.ORDER] = "our filters and the EPP's follow each other as they must"
    if routes:
        said[Check.DESTINATION] = "the pool's cluster goes where the destination says"
    if any(one.attachment is Attachment.BEFORE for one in ours):
        said[Check.HINT] = f"the EPP's filter forwards `{names.SUBSET_NAMESPACE}`"
    return said
