# SPDX-License-Identifier: Apache-2.0
"""An Envoy as istiod configures a Gateway's, from the objects of Gateway API and of the Inference Extension.

The shapes are those of facts/gateways.md 1.2 to 1.4: the EPP's filter inert at the listener and led to an EPP by the routes
of pools, the pool's cluster with the destination from metadata alone, two retries. Left out is what the Envoy wheel has
not (istio.alpn, istio.stats, metadata exchange). Clusters are those of `services`, on this machine.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from extproc.demo.bootstrap import LISTENER
from extproc.demo.client import LOOPBACK

Json = dict[str, Any]
Addresses = Sequence[tuple[str, int]]

EPP: Final = "envoy.filters.http.ext_proc"
"""What Istio calls the EPP's filter, and the key of a route's override of it."""
MANAGER: Final = "envoy.filters.network.http_connection_manager"
UNLIMITED: Final = 4_294_967_295
"""Istio's circuit breakers, where no DestinationRule says otherwise."""

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_EXT_PROC: Final = f"{_EXTENSIONS}.filters.http.ext_proc.v3"
_DOMAIN: Final = "svc.cluster.local"
_POOL_PORT: Final = 54_321
_GROUP: Final = "inference.networking.k8s.io"


@dataclass(frozen=True)
class Service:
    """A Service's endpoints; `h2c` is what its port's `appProtocol: kubernetes.io/h2c` comes to."""

    endpoints: Addresses
    h2c: bool = False


@dataclass(frozen=True)
class Gateway:
    """A Gateway, and what stands around it.

    `services` are those of the cluster by `name.namespace:port`, `pools` the addresses of an InferencePool's pods by
    `name.namespace`. With `access_log` Envoy writes a line for each request: status, details, the reason that we gave.
    """

    services: Mapping[str, Service]
    pools: Mapping[str, Addresses]
    namespace: str = "llm-d"
    name: str = "llm-d-inference-gateway"
    root_namespace: str = "istio-system"
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def pod_labels(self) -> dict[str, str]:
        """Those that a workloadSelector is compared with."""
        return {"gateway.networking.k8s.io/gateway-name": self.name, **self.labels}


def emitted(gateway: Gateway, documents: Sequence[Json]) -> Json:
    """The bootstrap, before any EnvoyFilter and DestinationRule; of the documents HTTPRoutes and InferencePools count.

    Routes stand in the order of their rules, which Istio would sort. Raises ValueError for a backend that is not there.
    """
    pools = {name_of(pool): pool for pool in documents if pool["kind"] == "InferencePool"}
    routes = [
        route
        for document in documents
        if document["kind"] == "HTTPRoute"
        for route in _routes(document, pools, gateway)
    ]
    inference = any("typed_per_filter_config" in route for route in routes)
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER,
        stream_idle_timeout="0s",
        use_remote_address=True,
        normalize_path=True,
        server_name="istio-envoy",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        http_filters=_filters(inference=inference),
        route_config={
            "name": "http.80",
            "virtual_hosts": [{"name": "*:80", "domains": ["*"], "routes": routes}],
        },
    )
    chain = {"filters": [{"name": MANAGER, "typed_config": manager}]}
    listener = {"name": LISTENER, "address": _address(LOOPBACK, 0), "filter_chains": [chain]}
    return {
        "static_resources": {"listeners": [listener], "clusters": [*_clusters(gateway, pools.values())]},
        "admin": {"address": _address(LOOPBACK, 0)},
    }


def name_of(document: Json) -> str:
    """`name.namespace` of an object."""
    return f"{document['metadata']['name']}.{document['metadata']['namespace']}"


def http_filters(config: Json) -> list[Json]:
    """The gateway's HTTP filters, to be read or changed."""
    return manager_of(config)["http_filters"]


def routes_of(config: Json) -> list[Json]:
    """The gateway's routes, to be read or changed."""
    (host,) = manager_of(config)["route_config"]["virtual_hosts"]
    return host["routes"]


def manager_of(config: Json) -> Json:
    """The gateway's HTTP connection manager."""
    (listener,) = config["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def pool_cluster(pool: str, namespace: str) -> str:
    """What Istio calls the cluster of an InferencePool."""
    digest = hashlib.sha256(pool.encode()).hexdigest()[:8]
    return f"outbound|{_POOL_PORT}||{pool[:51]}-ip-{digest}.{namespace}.{_DOMAIN}"


def service_cluster(name: str, namespace: str, port: int) -> str:
    """What Istio calls the cluster of a Service's port."""
    return f"outbound|{port}||{name}.{namespace}.{_DOMAIN}"


def _filters(*, inference: bool) -> list[Json]:
    """The chain. The EPP's filter is in it if any route leads to a pool."""
    epp = {
        "@type": f"{_EXT_PROC}.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "dummy"}, "timeout": "10s"},
        "failure_mode_allow": True,
        "processing_mode": {"request_header_mode": "SKIP", "response_header_mode": "SKIP"},
        "message_timeout": "1000s",
        "metadata_options": {
            "forwarding_namespaces": {"untyped": ["envoy.lb"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    }
    return [
        {"name": "envoy.filters.http.rbac", "typed_config": _typed("filters.http.rbac.v3.RBAC")},
        *([{"name": EPP, "typed_config": epp}] if inference else []),
        {"name": "envoy.filters.http.grpc_stats", "typed_config": _typed("filters.http.grpc_stats.v3.FilterConfig")},
        {"name": "envoy.filters.http.fault", "typed_config": _typed("filters.http.fault.v3.HTTPFault")},
        {"name": "envoy.filters.http.cors", "typed_config": _typed("filters.http.cors.v3.Cors")},
        {"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")},
    ]


def _routes(document: Json, pools: Mapping[str, Json], gateway: Gateway) -> Iterable[Json]:
    """A route for each rule of an HTTPRoute: one path prefix, one backend, a pool of the same namespace or a Service."""
    namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
    for number, rule in enumerate(document["spec"]["rules"]):
        (match,) = rule.get("matches", [{"path": {"type": "PathPrefix", "value": "/"}}])
        (backend,) = rule["backendRefs"]
        route: Json = {
            "name": rule.get("name", f"{namespace}.{name}.{number}"),
            "match": {"prefix": match["path"]["value"]},
        }
        if (backend.get("group", ""), backend.get("kind", "Service")) == (_GROUP, "InferencePool"):
            if (pool := pools.get(f"{backend['name']}.{namespace}")) is None:
                raise ValueError(f"the HTTPRoute `{name}` leads to a pool that is not there: {backend['name']}")
            cluster = pool_cluster(backend["name"], namespace)
            route["typed_per_filter_config"] = {EPP: _override(pool)}
        else:
            cluster = service_cluster(backend["name"], namespace, backend["port"])
            if f"{backend['name']}.{namespace}:{backend['port']}" not in gateway.services:
                raise ValueError(f"the HTTPRoute `{name}` leads to a Service that is not there: {backend['name']}")
        route["route"] = {"cluster": cluster, "timeout": "0s", "retry_policy": _retries()}
        yield route


def _override(pool: Json) -> Json:
    """What leads a pool's routes to its EPP: host, failure mode, and everything both ways."""
    picker = pool["spec"]["endpointPickerRef"]
    cluster = service_cluster(picker["name"], pool["metadata"]["namespace"], picker["port"]["number"])
    both = ("request", "response")
    mode = {f"{way}_{part}_mode": "SEND" for way in both for part in ("header", "trailer")}
    mode |= {f"{way}_body_mode": "FULL_DUPLEX_STREAMED" for way in both}
    return {
        "@type": f"{_EXT_PROC}.ExtProcPerRoute",
        "overrides": {
            "failure_mode_allow": picker.get("failureMode", "FailClose") == "FailOpen",
            "grpc_service": {"envoy_grpc": {"cluster_name": cluster}},
            "processing_mode": mode,
        },
    }


def _retries() -> Json:
    previous = "envoy.retry_host_predicates.previous_hosts"
    kind = "retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "num_retries": 2,
        "retry_host_predicate": [{"name": previous, "typed_config": _typed(kind)}],
        "host_selection_retry_max_attempts": 5,
    }


def _clusters(gateway: Gateway, pools: Iterable[Json]) -> Iterable[Json]:
    for key, service in gateway.services.items():
        host, _, port = key.rpartition(":")
        name, _, namespace = host.partition(".")
        yield _cluster(service_cluster(name, namespace, int(port)), service)
    for pool in pools:
        name, namespace = pool["metadata"]["name"], pool["metadata"]["namespace"]
        yield _cluster(pool_cluster(name, namespace), Service(gateway.pools[name_of(pool)])) | _overridden()


def _overridden() -> Json:
    """The destination that the metadata names, else any pod of the pool. There is no source in a header."""
    override = _policy(
        "override_host",
        "OverrideHost",
        override_host_sources=[{"metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}}],
        fallback_policy={"policies": [_policy("round_robin", "RoundRobin")]},
    )
    return {"load_balancing_policy": {"policies": [override]}}


def _policy(name: str, kind: str, **fields: Any) -> Json:
    config = _typed(f"load_balancing_policies.{name}.v3.{kind}", **fields)
    return {"typed_extension_config": {"name": f"envoy.load_balancing_policies.{name}", "typed_config": config}}


def _cluster(name: str, service: Service) -> Json:
    members = [{"endpoint": {"address": _address(host, port)}} for host, port in service.endpoints]
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, UNLIMITED)]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
    }
    if service.h2c:
        options = _typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    return cluster


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(kind: str, **fields: Any) -> Json:
    return {"@type": f"{_EXTENSIONS}.{kind}", **fields}
