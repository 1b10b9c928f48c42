# SPDX-License-Identifier: Apache-2.0
"""Envoy's config dump -> the chains that it holds: listeners, their filters, their routes, and the clusters they lead to.

The dump is what `/config_dump` of Envoy's admin interface answers (envoy.admin.v3.ConfigDump as JSON), static or dynamic,
with the endpoints (`?include_eds`) or without. What is not understood is left out: a dump has much that is not about us.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import msgspec

from extproc.envoy import names
from extproc.envoy.binding import Attachment
from extproc.envoy.metadata import pool_of_cluster

Json = dict[str, Any]

EPP_FILTER: Final = "envoy.filters.http.ext_proc"
"""What Istio and the llm-d charts call the EPP's filter (facts/gateways.md 1.2)."""

_MANAGER: Final = "HttpConnectionManager"
_PROCESSOR: Final = "ext_proc.v3.ExternalProcessor"
_OURS: Final = re.compile(r"(?:^|[^a-z0-9])owned[-_]by(?:[^a-z0-9]|$)")
_BUFFER_LIMITS: Final = ("request_body_buffer_limit", "per_request_buffer_limit_bytes")
"""Fields of a route or a virtual host that count for more than the listener's limit (facts/envoy.md 2.2)."""
_DUPLEX: Final = "FULL_DUPLEX_STREAMED"


class DumpError(Exception):
    """It is no config dump; the text says why."""


class Role(StrEnum):
    """Whose a processor is."""

    OURS = "ours"
    EPP = "epp"
    OTHER = "other"


@dataclass(frozen=True)
class Processor:
    """An ext_proc filter: where it stands in its chain, what it says, and whether routes must enable it.

    `conditional` says that a matcher decides for each request whether it runs.
    """

    name: str
    position: int
    config: Json
    disabled: bool = False
    conditional: bool = False

    @property
    def cluster(self) -> str:
        """The cluster of its server, "" for google_grpc."""
        return str(at(self.config, "grpc_service", "envoy_grpc").get("cluster_name", ""))

    @property
    def said(self) -> Mapping[str, str]:
        """Its gRPC initial metadata."""
        pairs = items(at(self.config, "grpc_service"), "initial_metadata")
        return {str(pair.get("key", "")).lower(): str(pair.get("value", "")) for pair in pairs}

    @property
    def mode(self) -> Json:
        """Its processing mode."""
        return at(self.config, "processing_mode")

    def namespaces(self, kind: str) -> tuple[str, ...]:
        """The untyped namespaces that it may see (`forwarding`) or write (`receiving`)."""
        return words(at(self.config, "metadata_options", f"{kind}_namespaces"), "untyped")

    @cached_property
    def role(self) -> Role:
        """Whose it is, by what it says first and by how it is called last: gateways give names of their own."""
        writes = self.namespaces("receiving")
        if any(key in self.said for key in (names.ATTACHMENT, names.POOL, names.BODY)) or self.name.startswith(
            "owned-by"
        ):
            return Role.OURS
        picks = names.DESTINATION_NAMESPACE in writes and self.mode.get("request_body_mode") == _DUPLEX
        if is_ours(self.cluster) or is_ours(self.name):
            # Envoy Gateway calls every processor of a policy by the policy's name, the EPP's too.
            return Role.EPP if picks and names.SUBSET_NAMESPACE not in writes else Role.OURS
        if self.name == EPP_FILTER or "endpointpicker" in self.name or picks or re.search(r"\bepp\b", self.cluster):
            return Role.EPP
        return Role.OTHER

    @property
    def attachment(self) -> Attachment:
        """Where a filter of ours sits, as it says or as its name does; else by what it may write."""
        for word in (self.said.get(names.ATTACHMENT, ""), self.name.rpartition(".")[2]):
            if word in list(Attachment):
                return Attachment(word)
        return Attachment.BEFORE if names.SUBSET_NAMESPACE in self.namespaces("receiving") else Attachment.HEADER

    def on(self, route: "Route") -> "Processor | None":
        """The processor as it is on a route, None if it does not run there."""
        said = route.overrides.get(self.name, ())
        if said[-1].get("disabled", False) if said else self.disabled:
            return None
        config = dict(self.config)
        for each in said:
            changes = at(each, "overrides")
            config |= {key: value for key, value in changes.items() if key != "grpc_initial_metadata"}
            if more := items(changes, "grpc_initial_metadata"):
                service = at(config, "grpc_service")
                config["grpc_service"] = service | {"initial_metadata": [*items(service, "initial_metadata"), *more]}
        return replace(self, config=config)


@dataclass(frozen=True)
class Route:
    """A route that leads to clusters.

    `overrides` are what it says of filters by their names, the most specific last. `buffer_limit` is how many bytes of a
    body it lets be held, None if the listener says that.
    """

    where: str
    clusters: tuple[str, ...]
    overrides: Mapping[str, tuple[Json, ...]] = field(default_factory=dict)
    retries: int = 0
    buffer_limit: int | None = None


@dataclass(frozen=True)
class Chain:
    """An HTTP connection manager: its listener, the names of its filters in order, and its routes.

    `complete` says that the dump has its routes: they may come from somewhere that is not read.
    """

    listener: str
    filters: tuple[str, ...]
    processors: tuple[Processor, ...]
    routes: tuple[Route, ...]
    manager: Json
    buffer_limit: int | None = None
    complete: bool = True

    def all(self, role: Role) -> list[Processor]:
        """Its processors of a role, in order."""
        return [each for each in self.processors if each.role is role]


@dataclass(frozen=True)
class Dump:
    """What one Envoy runs with.

    `version` is its own, None if the dump does not say it. `clusters` is None without that part. `members` are how many
    endpoints a cluster has, as far as the dump says. `refused` is what Envoy did not accept: what it was, and why.
    """

    version: tuple[int, int, int] | None
    chains: tuple[Chain, ...]
    clusters: Mapping[str, Json] | None
    members: Mapping[str, int]
    refused: tuple[tuple[str, str], ...]

    @property
    def is_conditional(self) -> bool:
        """Whether a matcher lets some requests go past a filter of ours."""
        return any(each.conditional for chain in self.chains for each in chain.all(Role.OURS))

    def is_pool(self, chain: Chain, route: Route) -> bool:
        """Whether a route leads to a pool: by the cluster's name or its balancing, or since it says who the EPP is."""
        return any(map(self._pool, route.clusters)) or any(
            "overrides" in said for epp in chain.all(Role.EPP) for said in route.overrides.get(epp.name, ())
        )

    def _pool(self, cluster: str) -> bool:
        if pool_of_cluster(cluster, ()) is not None:
            return True
        found = (self.clusters or {}).get(cluster, {})
        return bool(override_host(found)) or bool(original_destination(found))


def parse(text: bytes) -> Dump:
    """Read a dump. Raises DumpError if it is none."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise DumpError(f"it is not JSON: {problem}") from problem
    if not isinstance(document, dict) or not isinstance(document.get("configs"), list):
        raise DumpError("it is no config dump of Envoy's: it has no list `configs`")
    parts: dict[str, Json] = {}
    for part in items(document, "configs"):
        parts.setdefault(str(part.get("@type", "")).rpartition(".")[2], part)
    if "ListenersConfigDump" not in parts:
        raise DumpError("the dump has no listeners: it must be a whole one, as /config_dump answers")
    refused: list[tuple[str, str]] = []
    routes = {
        str(config.get("name", "")): config
        for each in _entries(parts.get("RoutesConfigDump", {}), "route_configs", refused)
        for config in [at(each, "route_config")]
    }
    chains = [
        chain
        for each in _entries(parts["ListenersConfigDump"], "listeners", refused)
        for chain in _chains(
            str(each.get("name", "")), at(each, "listener") or at(each, "active_state", "listener"), routes
        )
    ]
    clusters = None
    if "ClustersConfigDump" in parts:
        found = [at(each, "cluster") for each in _entries(parts["ClustersConfigDump"], "clusters", refused)]
        clusters = {str(each.get("name", "")): each for each in found}
    endpoints = parts.get("EndpointsConfigDump", {})
    loads = [at(each, "endpoint_config") for each in _entries(endpoints, "endpoint_configs", refused)]
    loads += [at(each, "load_assignment") for each in (clusters or {}).values() if "load_assignment" in each]
    members = {str(each.get("cluster_name", "")): sum(1 for _ in _members(each)) for each in loads}
    for each in (clusters or {}).values():  # static ones may leave the name out
        if "load_assignment" in each:
            members[str(each.get("name", ""))] = sum(1 for _ in _members(each["load_assignment"]))
        elif (service := at(each, "eds_cluster_config").get("service_name")) in members:
            members[str(each.get("name", ""))] = members[service]
    return Dump(_version(parts), tuple(chains), clusters, members, tuple(refused))


def at(value: Any, *path: str) -> Json:
    """The object at a path of keys, an empty one if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def items(value: Any, key: str) -> list[Json]:
    """The objects of the list at a key."""
    found = value.get(key) if isinstance(value, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def words(value: Any, key: str) -> tuple[str, ...]:
    """The texts of the list at a key."""
    found = value.get(key) if isinstance(value, dict) else None
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def is_ours(name: str) -> bool:
    """Whether a filter's or cluster's name is one that our manifests give."""
    return _OURS.search(name) is not None


def override_host(cluster: Json) -> Json:
    """The cluster's policy `override_host`, empty if it has none."""
    for policy in items(at(cluster, "load_balancing_policy"), "policies"):
        config = _typed(at(policy, "typed_extension_config"))
        if str(config.get("@type", "")).endswith("OverrideHost"):
            return config
    return {}


def original_destination(cluster: Json) -> Json:
    """How an ORIGINAL_DST cluster is told where to go by a request, empty if it is not."""
    config = at(cluster, "original_dst_lb_config")
    told = config.get("use_http_header") or config.get("metadata_key")
    return config if cluster.get("type") == "ORIGINAL_DST" and told else {}


def _version(parts: Mapping[str, Json]) -> tuple[int, int, int] | None:
    said = at(parts.get("BootstrapConfigDump"), "bootstrap", "node", "user_agent_build_version", "version")
    numbers = tuple(said.get(f"{part}_number", said.get(part, 0)) for part in ("major", "minor", "patch"))
    match numbers:
        case (int(major), int(minor), int(patch)) if said:
            return major, minor, patch
    return None


def _entries(part: Json, kind: str, refused: list[tuple[str, str]]) -> Iterator[Json]:
    """The static and dynamic entries of a part; what was refused of them is added to `refused`."""
    for prefix in ("static_", "dynamic_", "dynamic_active_", "dynamic_warming_"):
        for each in items(part, prefix + kind):
            if details := at(each, "error_state").get("details"):
                name = each.get("name") or at(each, "error_state", "failed_configuration").get("name", "")
                refused.append((f"{kind.removesuffix('s').replace('_', ' ')} `{name}`", str(details)))
            yield each


def _chains(name: str, listener: Json, routes: Mapping[str, Json]) -> Iterator[Chain]:
    name = str(listener.get("name") or name)
    limit = listener.get("per_connection_buffer_limit_bytes")
    for chain in (*items(listener, "filter_chains"), at(listener, "default_filter_chain")):
        for each in items(chain, "filters"):
            manager = _typed(each)
            if not str(manager.get("@type", "")).endswith(_MANAGER):
                continue
            filters = items(manager, "http_filters")
            config = at(manager, "route_config") or routes.get(str(at(manager, "rds").get("route_config_name", "")))
            yield Chain(
                name,
                tuple(str(one.get("name", "")) for one in filters),
                tuple(_processors(filters)),
                tuple(_routes(config or {})),
                manager,
                limit if isinstance(limit, int) else None,
                config is not None,
            )


def _processors(filters: list[Json]) -> Iterator[Processor]:
    for position, each in enumerate(filters):
        config, conditional = _typed(each), False
        if str(config.get("@type", "")).endswith("ExtensionWithMatcher"):
            inner = _typed(at(config, "extension_config"))
            # kgateway turns processors off by a matcher of its own; any other lets some requests go past the filter.
            conditional = not str(inner.get("@type", "")).endswith("Composite")
            config = inner if conditional else _inside(config)
        if str(config.get("@type", "")).endswith(_PROCESSOR):
            yield Processor(str(each.get("name", "")), position, config, each.get("disabled") is True, conditional)


def _inside(value: Any) -> Json:
    """The first processor that stands anywhere in a matcher's actions, empty if there is none."""
    todo = [value]
    while todo:
        match todo.pop():
            case dict(found):
                if str(found.get("@type", "")).endswith(_PROCESSOR):
                    return found
                todo += found.values()
            case list(found):
                todo += found
    return {}


def _typed(extension: Json) -> Json:
    """The typed config of an extension, out of a TypedStruct where it is in one."""
    config = at(extension, "typed_config")
    if str(config.get("@type", "")).endswith("TypedStruct"):
        return {"@type": config.get("type_url", "")} | at(config, "value")
    return config


def _routes(config: Json) -> Iterator[Route]:
    for host in items(config, "virtual_hosts"):
        for number, route in enumerate(items(host, "routes")):
            action = at(route, "route")
            weighted = items(at(action, "weighted_clusters"), "clusters")
            clusters = [action["cluster"]] if isinstance(action.get("cluster"), str) else []
            clusters += [str(each.get("name", "")) for each in weighted]
            if not clusters:
                continue
            name = route.get("name")
            where = f"route `{name}`" if name else f"route {number} of virtual host `{host.get('name', '')}`"
            levels = [at(each, "typed_per_filter_config") for each in (config, host, route, *weighted)]
            overrides: dict[str, tuple[Json, ...]] = {}
            for level in levels:
                for key, value in level.items():
                    overrides[key] = (*overrides.get(key, ()), _override(value))
            retry = at(action, "retry_policy") or at(host, "retry_policy")
            retries = retry.get("num_retries", 1) if retry else 0
            held = [each.get(key) for each in (route, host) for key in _BUFFER_LIMITS]
            limit = next(
                (int(str(each)) for each in held if str(each).isdecimal()), None
            )  # 64 bits are written as a text
            yield Route(where, tuple(clusters), overrides, retries if isinstance(retries, int) else 0, limit)


def _override(value: Any) -> Json:
    """What a route says of a filter, out of a FilterConfig where it is in one."""
    found: Json = value if isinstance(value, dict) else {}
    if str(found.get("@type", "")).endswith("route.v3.FilterConfig") and not found.get("disabled"):
        return at(found, "config")
    return found


def _members(load: Json) -> Iterator[Json]:
    for locality in items(load, "endpoints"):
        yield from items(locality, "lb_endpoints")
