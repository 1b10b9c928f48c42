# SPDX-License-Identifier: Apache-2.0
"""What Istio makes of EnvoyFilters and DestinationRules: a Gateway's Envoy as istiod sends it (facts/gateways.md 2).

Only what our objects use is known; anything else is a ValueError, as is what istiod would refuse or ignore silently.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tests.manifests.istiod import MANAGER, Gateway, Json, emitted, http_filters, routes_of

MAPS: Final = frozenset({"typed_per_filter_config"})
"""The fields of our merges that are maps: an entry replaces one of its key, where messages are merged."""
ANYS: Final = frozenset({"typed_config", "config"})


def placed(gateway: Gateway, documents: Sequence[Json]) -> Json:
    """The gateway's bootstrap with everything that the documents say of it."""
    config = emitted(gateway, documents)
    _apply_filters(config, gateway, [each for each in documents if each["kind"] == "EnvoyFilter"])
    _apply_rules(config, gateway, [each for each in documents if each["kind"] == "DestinationRule"])
    return config


def _apply_filters(config: Json, gateway: Gateway, documents: Iterable[Json]) -> None:
    """By priority, then the root namespace's first; the API server's creation times are the documents' order here.

    All inserts of HTTP filters come before all their merges.
    """
    chosen = sorted(
        (each for each in documents if _selects(each, gateway)),
        key=lambda each: (each["spec"].get("priority", 0), each["metadata"]["namespace"] != gateway.root_namespace),
    )
    patches = [patch for each in chosen for patch in each["spec"]["configPatches"] if _for_gateways(patch)]
    for patch in patches:
        _typed_anys(patch["patch"]["value"])
    of_filters = [patch for patch in patches if patch["applyTo"] == "HTTP_FILTER"]
    for patch in of_filters:
        if patch["patch"]["operation"] != "MERGE":
            _insert(http_filters(config), patch)
    for patch in of_filters:
        if patch["patch"]["operation"] == "MERGE":
            _merge_filters(http_filters(config), patch)
    for patch in patches:
        if patch["applyTo"] == "HTTP_ROUTE":
            _merge_routes(routes_of(config), patch)


def _selects(document: Json, gateway: Gateway) -> bool:
    """Whether it is the gateway's: in its namespace or the root one, with labels that its pods have."""
    _only(document["spec"], {"priority", "workloadSelector", "configPatches"})
    _only(document["spec"]["workloadSelector"], {"labels"})
    near = document["metadata"]["namespace"] in {gateway.namespace, gateway.root_namespace}
    return near and document["spec"]["workloadSelector"]["labels"].items() <= gateway.pod_labels.items()


def _for_gateways(patch: Json) -> bool:
    _only(patch, {"applyTo", "match", "patch"})
    _only(patch["patch"], {"operation", "value"})
    _only(patch["match"], {"context", "listener", "routeConfiguration"})
    if patch["applyTo"] not in {"HTTP_FILTER", "HTTP_ROUTE"}:
        raise ValueError(f"not known here: applyTo {patch['applyTo']}")
    if patch["match"]["context"] not in {"GATEWAY", "ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND"}:
        raise ValueError(f"no such context: {patch['match']['context']}")
    return patch["match"]["context"] in {"GATEWAY", "ANY"}


def _insert(filters: list[Json], patch: Json) -> None:
    """Next to the first filter of the anchor's name; where there is none nothing is inserted."""
    operation, anchor = patch["patch"]["operation"], _anchor(patch)
    offset = {"INSERT_BEFORE": 0, "INSERT_AFTER": 1}.get(operation)
    if offset is None:
        raise ValueError(f"not known here: {operation} of an HTTP_FILTER")
    names = [each["name"] for each in filters]
    if anchor in names:
        filters.insert(names.index(anchor) + offset, copy.deepcopy(patch["patch"]["value"]))


def _merge_filters(filters: list[Json], patch: Json) -> None:
    """Into every filter of the name. Istio swaps the type of another Any and hopes; that is refused here."""
    value = patch["patch"]["value"]
    for index, each in enumerate(filters):
        if each["name"] == _anchor(patch):
            if value["typed_config"]["@type"] != each["typed_config"]["@type"]:
                raise ValueError(f"another type than the one of {each['name']}: {value['typed_config']['@type']}")
            filters[index] = merged(each, value)


def _anchor(patch: Json) -> str:
    _only(patch["match"], {"context", "listener"})
    chain = patch["match"]["listener"]
    _only(chain, {"filterChain"})
    _only(chain["filterChain"], {"filter"})
    _only(chain["filterChain"]["filter"], {"name", "subFilter"})
    _only(chain["filterChain"]["filter"]["subFilter"], {"name"})
    if chain["filterChain"]["filter"]["name"] != MANAGER:
        raise ValueError(f"HTTP filters are the {MANAGER}'s")
    return str(chain["filterChain"]["filter"]["subFilter"]["name"])


def _merge_routes(routes: list[Json], patch: Json) -> None:
    """Into the routes of just this name."""
    if patch["patch"]["operation"] != "MERGE":
        raise ValueError(f"not known here: {patch['patch']['operation']} of an HTTP_ROUTE")
    _only(patch["match"], {"context", "routeConfiguration"})
    _only(patch["match"]["routeConfiguration"], {"vhost"})
    _only(patch["match"]["routeConfiguration"]["vhost"], {"route"})
    _only(patch["match"]["routeConfiguration"]["vhost"]["route"], {"name"})
    name = patch["match"]["routeConfiguration"]["vhost"]["route"]["name"]
    for index, route in enumerate(routes):
        if route["name"] == name:
            routes[index] = merged(route, patch["patch"]["value"])


def merged(into: Json, value: Json) -> Json:
    """A message with another one merged in as Istio does it (pkg/proto/merge): lists grow, maps take entries by key.

    Raises ValueError for a value that proto3 takes for none (false, 0, ""), and for the kinds of two values that differ.
    """
    result = copy.deepcopy(into)
    for key, new in value.items():
        old = result.get(key)
        if new in (False, 0, ""):
            raise ValueError(f"`{key}: {new!r}` is not set at all, and is not merged")
        if old is not None and type(old) is not type(new):
            raise ValueError(f"`{key}` is of another kind: {old!r}")
        if key in MAPS:
            result[key] = (old or {}) | copy.deepcopy(new)
        elif isinstance(new, dict):
            result[key] = merged(old or {}, new)
        elif isinstance(new, list):
            result[key] = (old or []) + copy.deepcopy(new)
        else:
            result[key] = new
    return result


def _typed_anys(value: Any) -> None:
    """Raises ValueError where istiod's JSON reader does: an Any must have a type, also an empty one."""
    if isinstance(value, list):
        for each in value:
            _typed_anys(each)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        anys = [inner] if key in ANYS else inner.values() if key in MAPS else ()
        for each in anys:
            if "@type" not in each:
                raise ValueError(f"Any JSON doesn't have '@type': {key}")
        _typed_anys(inner)


def _apply_rules(config: Json, gateway: Gateway, rules: Sequence[Json]) -> None:
    """For each cluster of a rule's host; of two rules for one host Istio takes one, which is an error here."""
    clusters = {each["name"]: each for each in config["static_resources"]["clusters"]}
    hosts = [rule["spec"]["host"] for rule in rules]
    if len(set(hosts)) < len(hosts):
        raise ValueError(f"more than one rule for a host: {hosts}")
    for rule in rules:
        _only(rule["spec"], {"host", "trafficPolicy"})
        home = rule["spec"]["host"].split(".")[1]
        if rule["metadata"]["namespace"] in {gateway.namespace, home, gateway.root_namespace}:
            for name, cluster in clusters.items():
                if name.rpartition("|")[2] == rule["spec"]["host"]:
                    _apply_policy(cluster, rule["spec"]["host"], rule["spec"]["trafficPolicy"])


def _apply_policy(cluster: Json, host: str, policy: Json) -> None:
    _only(policy, {"tls", "connectionPool", "outlierDetection"})
    if "connectionPool" in policy:
        _apply_pool(cluster, policy["connectionPool"])
    if "outlierDetection" in policy:
        _apply_outlier(cluster, policy["outlierDetection"])
    if "tls" in policy:
        _apply_tls(cluster, host, policy["tls"])


def _apply_pool(cluster: Json, pool: Json) -> None:
    _only(pool, {"tcp", "http"})
    tcp, http = pool.get("tcp", {}), pool.get("http", {})
    _only(tcp, {"connectTimeout", "maxConnections"})
    _only(http, {"http1MaxPendingRequests", "http2MaxRequests"})
    (limits,) = cluster["circuit_breakers"]["thresholds"]
    limits.update(_renamed(tcp, {"maxConnections": "max_connections"}))
    renamed = {"http1MaxPendingRequests": "max_pending_requests", "http2MaxRequests": "max_requests"}
    limits.update(_renamed(http, renamed))
    cluster.update(_renamed(tcp, {"connectTimeout": "connect_timeout"}))


def _apply_outlier(cluster: Json, outlier: Json) -> None:
    """Istio enforces in full what is counted, and nothing by rates of success; panic is off but for minHealthPercent."""
    copied = {
        "interval": "interval",
        "baseEjectionTime": "base_ejection_time",
        "maxEjectionPercent": "max_ejection_percent",
    }
    counted = {"consecutive5xxErrors", "splitExternalLocalOriginErrors", "consecutiveLocalOriginFailures"}
    _only(outlier, {*copied, *counted, "minHealthPercent"})
    made: Json = {"enforcing_success_rate": 0, **_renamed(outlier, copied)}
    if (errors := outlier.get("consecutive5xxErrors")) is not None:
        made |= {"consecutive_5xx": errors, "enforcing_consecutive_5xx": 100 if errors else 0}
    if outlier.get("splitExternalLocalOriginErrors"):
        made |= {"split_external_local_origin_errors": True, "enforcing_local_origin_success_rate": 0}
        if failures := outlier.get("consecutiveLocalOriginFailures"):
            made["consecutive_local_origin_failure"] = failures
            made["enforcing_consecutive_local_origin_failure"] = 100
    cluster["outlier_detection"] = made
    cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": outlier.get("minHealthPercent", 0)}}


def _apply_tls(cluster: Json, host: str, tls: Json) -> None:
    """DISABLE is plain text, SIMPLE with insecureSkipVerify a TLS whose certificate nobody looks at."""
    _only(tls, {"mode", "insecureSkipVerify"})
    if tls["mode"] == "DISABLE":
        return
    if tls != {"mode": "SIMPLE", "insecureSkipVerify": True}:
        raise ValueError(f"not known here: tls {tls}")
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2"]} if "typed_extension_protocol_options" in cluster else {},
        "sni": host,
    }
    cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> Json:
    return {new: fields[old] for old, new in names.items() if old in fields}


def _only(fields: Mapping[str, Any], known: set[str]) -> None:
    if unknown := fields.keys() - known:
        raise ValueError(f"not known here: {', '.join(sorted(unknown))}")
