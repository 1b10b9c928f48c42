# SPDX-License-Identifier: Apache-2.0
"""A gateway's Envoy configuration as a pure function of a plan: our filters around the EPP's place, then the pools.

It is the configuration of facts/envoy.md section 9, and its differences for the other modes, on free ports of 127.0.0.1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from extproc.demo.client import LOOPBACK
from extproc.envoy import names
from extproc.envoy.binding import Attachment
from extproc.policy.config import default_policy
from extproc.policy.extract import header_names

Json = dict[str, Any]
Endpoints = tuple[tuple[str, int], ...]

LISTENER: Final = "gateway"
"""The listener's name, as the admin interface lists it."""
HEADER_FILTER: Final = "owned-by.header"
BEFORE_FILTER: Final = "owned-by.before"
PICKER_FILTER: Final = "envoy.filters.http.ext_proc"
AFTER_FILTER: Final = "owned-by.after"
POOL: Final = "pool"
COLLECTOR: Final = "collector"
SERVER_NAME: Final = "owned-by"
"""Whom a server's certificate must be for, where it is verified."""

MUTABLE: Final = "(x-(gateway|owned-by|prefiller|encoder|data-p|kv-c)|test-epp).*|content-(length|type)|retry-after"
"""The headers that we may set and remove. Envoy refuses a regex whose program is above 100, and 1.36 to 1.38 count more
than 1.40 does: hence prefixes, and one `.*` for them all."""

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_PLENTY: Final = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 100_000)


class Bodies(StrEnum):
    """How a filter of ours gets request bodies (design section 2).

    PARTIAL: not at all until our answer asks for what fits into the buffer. STREAM: the same, but we are told to ask for
    all of it as a stream, which Envoy 1.40 is the first to grant. DUPLEX: always streamed, and we hand it back.
    """

    PARTIAL = "partial"
    STREAM = "stream"
    DUPLEX = "duplex"


@dataclass(frozen=True)
class Route:
    """A route that is tried before the plan's own, and its cluster; `headers` must all be there with just these values.

    The request attribute xds.cluster_name shows `cluster`: `outbound|54321||chat-ip-1a2b3c4d.default.svc.cluster.local`
    is what Istio calls a pool.
    """

    cluster: str
    endpoints: Endpoints
    prefix: str = "/"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one Envoy shall be.

    `endpoints` is the pool, the cluster `pool`. A processor whose port is None has no filter. `pool` is what our filters
    are told that it is (None: nothing), `bodies` how they get bodies. The EPP's place is configured as Istio emits it;
    with `picker_bodies` it is ours, on a gateway that configures the request side only, and `picker_response_headers`
    shows it the response's headers. `picker_empty` leaves that place without an endpoint, whatever its port, and
    `forward_hint` is whether it sees the hint. `report_served` writes the endpoint that served into `envoy.lb` (Envoy
    1.38 and newer). Durations are Envoy's (`2s`). `retries` of 0 is no retry policy. `access_log` is a file's path.
    `collector_port` is where Envoy's spans go, by OTLP over HTTP; None makes none. `secure` dials our servers by TLS, whoever
    they are; with `ca_file` only one with a certificate for `owned-by` that it vouches for.
    """

    endpoints: Endpoints
    routes: tuple[Route, ...] = ()
    header_port: int | None = None
    before_port: int | None = None
    picker_port: int | None = None
    after_port: int | None = None
    pool: str | None = "default/chat"
    bodies: Bodies = Bodies.PARTIAL
    picker_bodies: Bodies | None = None
    picker_response_headers: bool = False
    picker_empty: bool = False
    forward_hint: bool = True
    report_served: bool = False
    before_failure_mode_allow: bool = False
    picker_failure_mode_allow: bool = False
    message_timeout: str = "2s"
    buffer_limit: int = 1_048_576
    retries: int = 0
    access_log: str | None = None
    collector_port: int | None = None
    secure: bool = False
    ca_file: str | None = None


@dataclass(frozen=True)
class _Place:
    """A place in the chain, its processor's cluster (also the stat prefix), and the metadata that it sees and writes.

    No `endpoints`: the chain has no such filter. No `bodies`: an EPP's. `lenient`: a failure lets the request go on.
    """

    name: str
    attachment: Attachment
    cluster: str
    endpoints: Endpoints | None
    bodies: Bodies | None
    receiving: tuple[str, ...]
    forwarding: tuple[str, ...] = ()
    lenient: bool = False
    response_headers: bool = False


def bootstrap(plan: Plan) -> Json:
    """The bootstrap of a plan, ready for `json.dumps`: the listener and the admin interface have free ports.

    Raises ValueError if routes disagree about a cluster.
    """
    filters, clusters = [], _pools(plan)
    for place in _places(plan):
        if place.endpoints is not None:
            filters.append(_epp(place) if place.bodies is None else _ours(plan, place, place.bodies))
            ours = _tls(plan) if plan.secure and place.bodies else {}
            clusters.append(_cluster(place.cluster, place.endpoints, {"http2_protocol_options": {}}) | ours)
    filters.append({"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")})
    runtime: Json = {"envoy.reloadable_features.ext_proc_graceful_grpc_close": True}
    if plan.collector_port is not None:
        clusters.append(_cluster(COLLECTOR, ((LOOPBACK, plan.collector_port),), {"http_protocol_options": {}}))
        runtime["tracing.opentelemetry.min_flush_spans"] = 1  # each as it ends, and not five together
    return {
        "static_resources": {"listeners": [_listener(plan, filters)], "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
        "admin": {"address": _address(LOOPBACK, 0)},
    }


def _listener(plan: Plan, filters: list[Json]) -> Json:
    routes = [_route(plan, route) for route in (*plan.routes, Route(POOL, plan.endpoints))]
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER,
        # Never 0: it alone bounds a FULL_DUPLEX_STREAMED processor that does not answer.
        stream_idle_timeout="300s",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        http_protocol_options={"enable_trailers": True},
        http_filters=filters,
        route_config={"name": "pool", "virtual_hosts": [{"name": "pool", "domains": ["*"], "routes": routes}]},
        access_log=[_access_log(plan.access_log)] if plan.access_log else [],
        **({} if plan.collector_port is None else {"tracing": _tracing(plan.collector_port)}),
    )
    connections = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": LISTENER,
        "address": _address(LOOPBACK, 0),
        "per_connection_buffer_limit_bytes": plan.buffer_limit,
        "filter_chains": [{"filters": [connections]}],
    }


def _route(plan: Plan, route: Route) -> Json:
    headers = [{"name": name, "string_match": {"exact": value}} for name, value in route.headers]
    action: Json = {"cluster": route.cluster, "timeout": "300s"}
    if plan.retries:
        action["retry_policy"] = {"retry_on": "reset,connect-failure", "num_retries": plan.retries}
    return {"match": {"prefix": route.prefix, "headers": headers}, "route": action}


def _access_log(path: str) -> Json:
    said = [f"%DYNAMIC_METADATA({names.NAMESPACE}:{key})%" for key in ("reason", "owner")]
    line = " ".join(["%RESPONSE_CODE%", "%RESPONSE_CODE_DETAILS%", *said, "%UPSTREAM_HOST%"])
    form = {"text_format_source": {"inline_string": line + "\n"}}
    config = _typed("access_loggers.file.v3.FileAccessLog", path=path, log_format=form)
    return {"name": "envoy.access_loggers.file", "typed_config": config}


def _tracing(port: int) -> Json:
    """Spans of every request, to a collector on this machine."""
    uri = {"uri": f"http://{LOOPBACK}:{port}/v1/traces", "cluster": COLLECTOR, "timeout": "1s"}
    config = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "http_service": {"http_uri": uri},
        "service_name": LISTENER,
    }
    return {
        "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": config},
        "random_sampling": {"value": 100},
    }


def _places(plan: Plan) -> tuple[_Place, ...]:
    """The chain in its order."""
    lb, hint, own = names.DESTINATION_NAMESPACE, names.SUBSET_NAMESPACE, names.NAMESPACE
    bodies, before = plan.bodies, _at(plan.before_port)
    return (
        # It picks nothing, a route does: our own namespace is all that it writes.
        _Place(HEADER_FILTER, Attachment.HEADER, "owned_by_header", _at(plan.header_port), bodies, (own,)),
        _Place(
            BEFORE_FILTER,
            Attachment.BEFORE,
            "owned_by",
            before,
            bodies,
            (hint, lb, own),
            lenient=plan.before_failure_mode_allow,
        ),
        _Place(
            PICKER_FILTER,
            Attachment.PICKER,
            "epp",
            () if plan.picker_empty else _at(plan.picker_port),
            plan.picker_bodies,
            receiving=(lb,) if plan.picker_bodies is None else (lb, own),
            forwarding=(lb, hint) if plan.forward_hint else (lb,),
            lenient=plan.picker_failure_mode_allow,
            response_headers=plan.picker_response_headers,
        ),
        _Place(
            AFTER_FILTER, Attachment.AFTER, "owned_by_after", _at(plan.after_port), bodies, (lb, own), (lb, hint, own)
        ),
    )


def _ours(plan: Plan, place: _Place, bodies: Bodies) -> Json:
    """A filter of ours: of the answer it sees the headers at most, and never its body."""
    answer = {"response_header_mode": "SEND" if place.response_headers else "SKIP"}
    streamed = answer | {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
    mode = answer | {"request_body_mode": "NONE"}
    asking: Json = {
        "allow_mode_override": True,
        # An entry must equal the mode that results, the response's too (facts/envoy.md 2.1).
        "allowed_override_modes": [answer | {"request_body_mode": "BUFFERED_PARTIAL"}, streamed],
    }
    if bodies is Bodies.DUPLEX:
        mode, asking = streamed, {}
    streaming = bodies.value if bodies is Bodies.STREAM else None
    said = {names.ATTACHMENT: place.attachment, names.POOL: plan.pool, names.BODY: streaming}
    retry_policy = {
        "retry_on": "connect-failure,refused-stream,unavailable,reset",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.05s"},
    }
    forwarded = {*header_names(default_policy()), *names.SPOOFABLE, names.REQUEST_ID, "content-length"}
    service: Json = {"timeout": plan.message_timeout, "retry_policy": retry_policy}
    service["initial_metadata"] = [{"key": key, "value": value} for key, value in said.items() if value is not None]
    return _filter(
        place,
        service,
        status_on_error={"code": "ServiceUnavailable"},
        message_timeout=plan.message_timeout,
        processing_mode=mode | {"request_header_mode": "SEND", "response_body_mode": "NONE"},
        # No route_cache_action: by default the route is chosen again when our answer says so and only then, which
        # `header` and `promote.reroute` need and RETAIN forbids. The EPP has it chosen again anyway (facts/epp.md 1.2).
        mutation_rules={"disallow_all": True, "allow_expression": {"regex": MUTABLE}},
        forward_rules={"allowed_headers": {"patterns": [{"exact": name} for name in sorted(forwarded)]}},
        request_attributes=["xds.route_name", "xds.cluster_name"],
        **asking,
    )


def _epp(place: _Place) -> Json:
    """The EPP's filter as gateways emit it: everything in both directions, full duplex."""
    both = ("request", "response")
    mode = {f"{way}_{part}_mode": "SEND" for way in both for part in ("header", "trailer")}
    mode |= {f"{way}_body_mode": "FULL_DUPLEX_STREAMED" for way in both}
    return _filter(place, {"timeout": "10s"}, message_timeout="30s", processing_mode=mode)


def _filter(place: _Place, service: Json, **fields: Any) -> Json:
    seen, written = ({"untyped": [*namespaces]} for namespaces in (place.forwarding, place.receiving))
    config = _typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix=place.cluster,
        grpc_service={"envoy_grpc": {"cluster_name": place.cluster}, **service},
        failure_mode_allow=place.lenient,
        metadata_options={"forwarding_namespaces": seen, "receiving_namespaces": written},
        **fields,
    )
    return {"name": place.name, "typed_config": config}


def _pools(plan: Plan) -> list[Json]:
    """A cluster for each that a route names. The destination that the metadata names, else any endpoint, as in Istio."""
    members = {POOL: plan.endpoints}
    for route in plan.routes:
        if members.setdefault(route.cluster, route.endpoints) != route.endpoints:
            raise ValueError(f"the cluster `{route.cluster}` has two lists of endpoints")
    lb = names.DESTINATION_NAMESPACE
    picked, served = ({"key": lb, "path": [{"key": key}]} for key in (names.DESTINATION, names.SERVED))
    override: Json = {
        "override_host_sources": [{"metadata": picked}],
        "fallback_policy": {"policies": [_policy("round_robin", "RoundRobin")]},
    }
    if plan.report_served:
        override["selected_host_key"] = served
    balancing = {"policies": [_policy("override_host", "OverrideHost", **override)]}
    protocol = {"http_protocol_options": {"enable_trailers": True}}
    return [_cluster(name, hosts, protocol) | {"load_balancing_policy": balancing} for name, hosts in members.items()]


def _policy(name: str, kind: str, **fields: Any) -> Json:
    config = _typed(f"load_balancing_policies.{name}.v3.{kind}", **fields)
    return {"typed_extension_config": {"name": f"envoy.load_balancing_policies.{name}", "typed_config": config}}


def _cluster(name: str, endpoints: Iterable[tuple[str, int]], protocol: Json) -> Json:
    options = _typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol)
    members = [{"endpoint": {"address": _address(host, port)}} for host, port in endpoints]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "circuit_breakers": {"thresholds": [_PLENTY]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
    }


def _tls(plan: Plan) -> Json:
    """A cluster's TLS, as Istio emits it for a DestinationRule of the mode SIMPLE (facts/gateways.md 2.5)."""
    checks: Json = {}
    if plan.ca_file:
        names_it = {"san_type": "DNS", "matcher": {"exact": SERVER_NAME}}
        checks = {"trusted_ca": {"filename": plan.ca_file}, "match_typed_subject_alt_names": [names_it]}
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "validation_context": checks,
    }
    config = _typed("transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=context, sni=SERVER_NAME)
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": config}}


def _at(port: int | None) -> Endpoints | None:
    return None if port is None else ((LOOPBACK, port),)


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(kind: str, **fields: Any) -> Json:
    return {"@type": f"{_EXTENSIONS}.{kind}", **fields}
