# SPDX-License-Identifier: Apache-2.0
"""What Envoy Gateway makes of its policies and an HTTPRoute: the Envoy that its translator would write.

Its words are those of Envoy Gateway's `internal/xds/translator` (extproc.go, cluster.go, listener.go) and of the
translator's own expected outputs (`ext-proc.listeners.yaml`): a filter for each external processor of a policy, in their
order, disabled, and enabled by the routes that the policy targets; metadata namespaces that are accessible are forwarded,
writable ones received; the endpoint override is Envoy's `override_host`; buffers are of 32 KiB.
"""

from collections.abc import Mapping
from typing import Final

from tests.manifests.proxy import Endpoints, Json, bootstrap, cluster, only, quantity, route_matches, typed

BUFFER: Final = 32_768
"""Bytes of a buffer where no ClientTrafficPolicy says else."""
_BODIES: Final = {
    "Streamed": "STREAMED",
    "Buffered": "BUFFERED",
    "BufferedPartial": "BUFFERED_PARTIAL",
    "FullDuplexStreamed": "FULL_DUPLEX_STREAMED",
}
_LIMITS: Final = {
    "maxConnections": "max_connections",
    "maxPendingRequests": "max_pending_requests",
    "maxParallelRequests": "max_requests",
}
_BALANCERS: Final = {"RoundRobin": "round_robin", "LeastRequest": "least_request", "Random": "random"}


def translated(documents: list[Json], services: Mapping[str, Endpoints], *, gateway: str) -> Json:
    """The Envoy of a Gateway to which the only HTTPRoute is attached.

    `services` are the endpoints of the Services that are named, by `name:port`. Raises ValueError for a field that is not
    translated here or a policy that the API would refuse, KeyError for a name that leads nowhere.
    """
    (route,) = (each for each in documents if each["kind"] == "HTTPRoute")
    namespace, name = route["metadata"]["namespace"], route["metadata"]["name"]
    extension = _policy(documents, "EnvoyExtensionPolicy", "HTTPRoute", name)
    backend = _policy(documents, "BackendTrafficPolicy", "HTTPRoute", name)
    client = _policy(documents, "ClientTrafficPolicy", "Gateway", gateway)
    filters, clusters, enabled = [], [], {}
    for index, processor in enumerate(only(extension, "targetRefs", "extProc").get("extProc", [])):
        policy = f"envoyextensionpolicy/{namespace}/owned-by/extproc/{index}"
        (service,) = processor["backendRefs"]
        config = _filter(processor, policy, f"{service['name']}.{namespace}:{service['port']}")
        filters.append({"name": f"envoy.filters.http.ext_proc/{policy}", "disabled": True, "typed_config": config})
        clusters.append(
            cluster(
                policy,
                services[f"{service['name']}:{service['port']}"],
                http2=True,
                per_connection_buffer_limit_bytes=BUFFER,
                **_breakers(only(processor.get("backendSettings", {}), "circuitBreaker")),
            )
        )
        enabled[f"envoy.filters.http.ext_proc/{policy}"] = typed("config.route.v3.FilterConfig", config={})
    only(backend, "targetRefs", "loadBalancer", "circuitBreaker", "timeout")
    routes = []
    for index, (match, rule) in enumerate(route_matches(only(route["spec"], "parentRefs", "rules")["rules"])):
        only(rule, "matches", "backendRefs")
        (service,) = rule["backendRefs"]
        called = f"httproute/{namespace}/{name}/rule/{index}"
        members = services[f"{service['name']}:{service['port']}"]
        balancing = _balancing(backend.get("loadBalancer", {"type": "LeastRequest"}))
        clusters.append(
            cluster(called, members, per_connection_buffer_limit_bytes=BUFFER, **balancing, **_breakers(backend))
        )
        action = {"cluster": called, "upgrade_configs": [{"upgrade_type": "websocket"}], **_timeout(backend)}
        routes.append({"match": match, "route": action, "typed_per_filter_config": enabled})
    limit = only(only(client, "targetRefs", "connection").get("connection", {}), "bufferLimit").get(
        "bufferLimit", BUFFER
    )
    return bootstrap(filters, routes, clusters, per_connection_buffer_limit_bytes=quantity(str(limit)))


def _policy(documents: list[Json], kind: str, target: str, name: str) -> Json:
    """What the only policy of a kind says for a target, nothing if there is none."""
    reference = {"group": "gateway.networking.k8s.io", "kind": target, "name": name}
    policies = [each["spec"] for each in documents if each["kind"] == kind and reference in each["spec"]["targetRefs"]]
    if len(policies) > 1:
        raise ValueError(f"{target} {name} has several policies of the kind {kind}")
    return policies[0] if policies else {}


def _filter(processor: Json, target: str, authority: str) -> Json:
    only(processor, "backendRefs", "backendSettings", "failOpen", "messageTimeout", "processingMode", "metadata")
    mode = only(processor.get("processingMode", {}), "request", "response", "allowModeOverride")
    metadata = only(processor.get("metadata", {}), "accessibleNamespaces", "writableNamespaces")
    modes: Json = {}
    for way in ("request", "response"):
        said = mode.get(way)
        body = _BODIES[only(said, "body")["body"]] if said else "NONE"
        modes[f"{way}_header_mode"] = "SKIP" if said is None else "SEND"
        modes[f"{way}_body_mode"] = body
        modes[f"{way}_trailer_mode"] = "SEND" if body == "FULL_DUPLEX_STREAMED" else "SKIP"
    lenient = processor.get("failOpen", False)
    if lenient and "FULL_DUPLEX_STREAMED" in modes.values():
        raise ValueError("failOpen must be false beside FullDuplexStreamed")
    options = {
        f"{word}_namespaces": {"untyped": metadata[key]}
        for word, key in (("forwarding", "accessibleNamespaces"), ("receiving", "writableNamespaces"))
        if key in metadata
    }
    return typed(
        "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": target, "authority": authority}, "timeout": "10s"},
        failure_mode_allow=lenient,
        message_timeout=_duration(processor.get("messageTimeout", "200ms")),
        processing_mode=modes,
        allow_mode_override=mode.get("allowModeOverride", False),
        metadata_options=options,
    )


def _balancing(said: Json) -> Json:
    only(said, "type", "endpointOverride")
    word = _BALANCERS[said["type"]]
    plain = _balancer(word, "".join(part.title() for part in word.split("_")))
    if "endpointOverride" not in said:
        return {"load_balancing_policy": {"policies": [plain]}}
    sources = [
        {"header": only(each, "header")["header"]}
        for each in only(said["endpointOverride"], "extractFrom")["extractFrom"]
    ]
    override = _balancer(
        "override_host", "OverrideHost", override_host_sources=sources, fallback_policy={"policies": [plain]}
    )
    return {"load_balancing_policy": {"policies": [override]}}


def _balancer(name: str, kind: str, **fields: object) -> Json:
    config = typed(f"extensions.load_balancing_policies.{name}.v3.{kind}", **fields)
    return {"typed_extension_config": {"name": f"envoy.load_balancing_policies.{name}", "typed_config": config}}


def _breakers(said: Json) -> Json:
    """The limits of a cluster, Envoy's own where nothing is said."""
    limits = only(said.get("circuitBreaker", {}), *_LIMITS)
    return {"circuit_breakers": {"thresholds": [{_LIMITS[name]: value for name, value in limits.items()}]}}


def _timeout(backend: Json) -> Json:
    http = only(only(backend.get("timeout", {}), "http").get("http", {}), "requestTimeout")
    return {"timeout": http["requestTimeout"]} if http else {}


def _duration(text: str) -> str:
    return f"{int(text[:-2]) / 1000:g}s" if text.endswith("ms") else text
