# SPDX-License-Identifier: Apache-2.0
"""A gateway's Envoy configuration as a pure function of a plan: `owned-by.before`, then the EPP's place, then the pool.

It is the configuration of facts/envoy.md section 9, on free ports of 127.0.0.1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from extproc.demo.client import LOOPBACK
from extproc.envoy import names
from extproc.envoy.responses import Attachment
from extproc.policy.config import default_policy
from extproc.policy.extract import header_names

Json = dict[str, Any]

LISTENER: Final = "gateway"
"""The listener's name, as the admin interface lists it."""
BEFORE_FILTER: Final = "owned-by.before"
PICKER_FILTER: Final = "envoy.filters.http.ext_proc"

MUTABLE: Final = "x-(gateway|owned-by|prefiller|encoder|data-p|kv-c).*|content-(length|type)|retry-after|test-epp.*"
"""The headers that `before` may set and remove. Prefixes, because Envoy refuses a regex with a program above 100."""

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_PLENTY: Final = {
    "max_connections": 100_000,
    "max_pending_requests": 100_000,
    "max_requests": 100_000,
    "max_retries": 100_000,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one Envoy shall be.

    `endpoints` is the pool. A processor whose port is None has no filter. `forward_hint` is whether the EPP's place sees
    the hint; durations are Envoy's (`2s`). `retries` of 0 is no retry policy. `access_log` is a file's path.
    """

    endpoints: tuple[tuple[str, int], ...]
    before_port: int | None = None
    picker_port: int | None = None
    pool: str = "default/chat"
    forward_hint: bool = True
    before_failure_mode_allow: bool = False
    picker_failure_mode_allow: bool = False
    message_timeout: str = "2s"
    buffer_limit: int = 1_048_576
    retries: int = 0
    access_log: str | None = None


def bootstrap(plan: Plan) -> Json:
    """The bootstrap of a plan, ready for `json.dumps`: the listener and the admin interface have free ports."""
    filters, clusters = [], [_pool(plan)]
    if plan.before_port is not None:
        filters.append(_before(plan))
        clusters.append(_processor("owned_by", plan.before_port))
    if plan.picker_port is not None:
        filters.append(_picker(plan))
        clusters.append(_processor("epp", plan.picker_port))
    filters.append({"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")})
    runtime = {"envoy.reloadable_features.ext_proc_graceful_grpc_close": True}
    return {
        "static_resources": {"listeners": [_listener(plan, filters)], "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
        "admin": {"address": _address(LOOPBACK, 0)},
    }


def _listener(plan: Plan, filters: list[Json]) -> Json:
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER,
        # Never 0: it alone bounds a FULL_DUPLEX_STREAMED processor that does not answer.
        stream_idle_timeout="300s",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        http_protocol_options={"enable_trailers": True},
        http_filters=filters,
        route_config={
            "name": "pool",
            "virtual_hosts": [{"name": "pool", "domains": ["*"], "routes": [_route(plan)]}],
        },
    )
    if plan.access_log:
        manager["access_log"] = [_access_log(plan.access_log)]
    return {
        "name": LISTENER,
        "address": _address(LOOPBACK, 0),
        "per_connection_buffer_limit_bytes": plan.buffer_limit,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _route(plan: Plan) -> Json:
    action: Json = {"cluster": "pool", "timeout": "300s"}
    if plan.retries:
        action["retry_policy"] = {"retry_on": "reset,connect-failure", "num_retries": plan.retries}
    return {"match": {"prefix": "/"}, "route": action}


def _access_log(path: str) -> Json:
    said = [f"%DYNAMIC_METADATA({names.NAMESPACE}:{key})%" for key in ("reason", "owner")]
    line = " ".join(["%RESPONSE_CODE%", "%RESPONSE_CODE_DETAILS%", *said, "%UPSTREAM_HOST%"])
    config = _typed(
        "access_loggers.file.v3.FileAccessLog",
        path=path,
        log_format={"text_format_source": {"inline_string": line + "\n"}},
    )
    return {"name": "envoy.access_loggers.file", "typed_config": config}


def _before(plan: Plan) -> Json:
    """Our filter: it asks for a body only when it needs one, and takes no part in the answer."""
    skipped = {"response_header_mode": "SKIP"}
    forwarded = {*header_names(default_policy()), *names.SPOOFABLE, names.REQUEST_ID, "content-length"}
    config = _typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="owned_by",
        grpc_service={
            "envoy_grpc": {"cluster_name": "owned_by"},
            "timeout": plan.message_timeout,
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,unavailable,reset",
                "num_retries": 2,
                "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.05s"},
            },
            "initial_metadata": [
                {"key": names.ATTACHMENT, "value": Attachment.BEFORE.value},
                {"key": names.POOL, "value": plan.pool},
            ],
        },
        failure_mode_allow=plan.before_failure_mode_allow,
        status_on_error={"code": "ServiceUnavailable"},
        message_timeout=plan.message_timeout,
        processing_mode=skipped
        | {"request_header_mode": "SEND", "request_body_mode": "NONE", "response_body_mode": "NONE"},
        allow_mode_override=True,
        allowed_override_modes=[
            skipped | {"request_body_mode": "BUFFERED_PARTIAL"},
            skipped | {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"},
        ],
        route_cache_action="RETAIN",
        mutation_rules={"disallow_all": True, "allow_expression": {"regex": MUTABLE}},
        forward_rules={"allowed_headers": {"patterns": [{"exact": name} for name in sorted(forwarded)]}},
        metadata_options={
            "receiving_namespaces": {"untyped": [names.SUBSET_NAMESPACE, names.DESTINATION_NAMESPACE, names.NAMESPACE]}
        },
        request_attributes=["xds.route_name", "xds.cluster_name"],
    )
    return {"name": BEFORE_FILTER, "typed_config": config}


def _picker(plan: Plan) -> Json:
    """The EPP's filter as gateways emit it: everything in both directions, full duplex."""
    forwarded = [names.DESTINATION_NAMESPACE, *([names.SUBSET_NAMESPACE] if plan.forward_hint else [])]
    both = ("request", "response")
    mode = {f"{way}_{part}_mode": "SEND" for way in both for part in ("header", "trailer")}
    config = _typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="epp",
        grpc_service={"envoy_grpc": {"cluster_name": "epp"}, "timeout": "10s"},
        failure_mode_allow=plan.picker_failure_mode_allow,
        message_timeout="30s",
        processing_mode=mode | {f"{way}_body_mode": "FULL_DUPLEX_STREAMED" for way in both},
        metadata_options={
            "forwarding_namespaces": {"untyped": forwarded},
            "receiving_namespaces": {"untyped": [names.DESTINATION_NAMESPACE]},
        },
    )
    return {"name": PICKER_FILTER, "typed_config": config}


def _processor(name: str, port: int) -> Json:
    return _cluster(name, [(LOOPBACK, port)], {"http2_protocol_options": {}})


def _pool(plan: Plan) -> Json:
    """The pool: the destination that the metadata names, else any endpoint, as in Istio."""
    fallback = _policy("round_robin", "RoundRobin")
    source = {"metadata": {"key": names.DESTINATION_NAMESPACE, "path": [{"key": names.DESTINATION}]}}
    override = _policy(
        "override_host",
        "OverrideHost",
        override_host_sources=[source],
        fallback_policy={"policies": [fallback]},
    )
    cluster = _cluster("pool", plan.endpoints, {"http_protocol_options": {"enable_trailers": True}})
    return cluster | {"load_balancing_policy": {"policies": [override]}}


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


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(kind: str, **fields: Any) -> Json:
    return {"@type": f"{_EXTENSIONS}.{kind}", **fields}
