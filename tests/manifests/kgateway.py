# SPDX-License-Identifier: Apache-2.0
"""What kgateway makes of a GatewayExtension, a TrafficPolicy and an HTTPRoute: the Envoy that its translator would write.

Its words are those of kgateway's `pkg/kgateway/extensions2/plugins/trafficpolicy` (extproc_policy.go,
gateway_extension.go) and of the translator's own expected outputs (`traffic-policy/extproc-full-config.yaml`): a filter
for each extension, called `ext_proc/<namespace>/<name>`, inside a composite filter which another filter can turn off;
disabled, and enabled by the routes that a policy targets. There are no receiving namespaces in it.
"""

from collections.abc import Mapping
from typing import Final

from tests.manifests.kustomize import one
from tests.manifests.proxy import Endpoints, Json, bootstrap, cluster, only, route_matches, typed

_CACHE: Final = {"FromResponse": "DEFAULT", "Clear": "CLEAR", "Retain": "RETAIN"}
_OFF: Final = "dev.kgateway.disable_ext_proc"
_MODES: Final = {
    "requestHeaderMode": "SEND",
    "responseHeaderMode": "SEND",
    "requestBodyMode": "NONE",
    "responseBodyMode": "NONE",
    "requestTrailerMode": "SKIP",
    "responseTrailerMode": "SKIP",
}
"""A mode's fields and what the CRD says where one is left out."""


def translated(documents: list[Json], services: Mapping[str, Endpoints], *, buffer_limit: int | None = None) -> Json:
    """The Envoy of a Gateway to which the only HTTPRoute is attached.

    `services` are the endpoints of the Services that are named, by `name:port`; `buffer_limit` is the Gateway's own, in
    bytes, None Envoy's. Raises ValueError for a field that is not translated here, KeyError for a name that leads nowhere.
    """
    (route,) = (each for each in documents if each["kind"] == "HTTPRoute")
    namespace = route["metadata"]["namespace"]
    name, per_route = _enabled(documents, route["metadata"]["name"])
    extension = one(documents, "GatewayExtension", name)["spec"]["extProc"]
    service = f"{extension['grpcService']['backendRef']['name']}:{extension['grpcService']['backendRef']['port']}"
    clusters = {service: cluster(_cluster(namespace, service), services[service], http2=_h2c(documents, service))}
    routes = []
    for match, rule in route_matches(only(route["spec"], "parentRefs", "hostnames", "rules")["rules"]):
        only(rule, "matches", "backendRefs", "filters", "timeouts")
        backends = [f"{each['name']}:{each['port']}" for each in rule.get("backendRefs", [])]
        clusters |= {each: cluster(_cluster(namespace, each), services[each]) for each in backends}
        action = _forward(namespace, backends, rule) if backends else _answer(documents, rule)
        routes.append(
            {"match": match, **action, "typed_per_filter_config": {f"ext_proc/{namespace}/{name}": per_route}}
        )
    turn_off = {
        "name": "global_disable/ext_proc",
        "disabled": True,
        "typed_config": typed(
            "extensions.filters.http.set_metadata.v3.Config",
            metadata=[{"metadata_namespace": _OFF, "value": {"disable": True}}],
        ),
    }
    ours = {
        "name": f"ext_proc/{namespace}/{name}",
        "disabled": True,
        "typed_config": _composite(_filter(extension, _cluster(namespace, service))),
    }
    limit = {} if buffer_limit is None else {"per_connection_buffer_limit_bytes": buffer_limit}
    return bootstrap([turn_off, ours], routes, [*clusters.values()], **limit)


def _enabled(documents: list[Json], route: str) -> tuple[str, Json]:
    """The extension that a policy puts on an HTTPRoute, and what stands on its routes for it."""
    target = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": route}
    policies = [each["spec"] for each in documents if each["kind"] == "TrafficPolicy"]
    (policy,) = (only(each, "targetRefs", "extProc") for each in policies if target in each["targetRefs"])
    reference = only(only(policy["extProc"], "extensionRef")["extensionRef"], "name")
    per_route = typed("extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={})
    return reference["name"], per_route


def _filter(extension: Json, target: str) -> Json:
    only(
        extension,
        *("grpcService", "failOpen", "messageTimeout", "statPrefix", "routeCacheAction"),
        *("processingMode", "allowProcessingModeOverride", "allowedProcessingModeOverrides"),
    )
    only(only(extension["grpcService"], "backendRef")["backendRef"], "name", "port")
    fields: Json = {
        "grpc_service": {"envoy_grpc": {"cluster_name": target}},
        "failure_mode_allow": extension.get("failOpen", True),
        "route_cache_action": _CACHE[extension.get("routeCacheAction", "FromResponse")],
        "allow_mode_override": extension.get("allowProcessingModeOverride", False),
        "allowed_override_modes": [_mode(each) for each in extension.get("allowedProcessingModeOverrides", [])],
    }
    if "processingMode" in extension:
        fields["processing_mode"] = _mode(extension["processingMode"])
    if "messageTimeout" in extension:
        fields["message_timeout"] = _duration(extension["messageTimeout"])
    if "statPrefix" in extension:
        fields["stat_prefix"] = extension["statPrefix"]
    return typed("extensions.filters.http.ext_proc.v3.ExternalProcessor", **fields)


def _mode(mode: Json) -> Json:
    words = _MODES | only(mode, *_MODES)
    return {"".join(f"_{char.lower()}" if char.isupper() else char for char in key): words[key] for key in _MODES}


def _composite(config: Json) -> Json:
    """The filter, unless another one has written that it is off."""
    written = typed(
        "extensions.matching.common_inputs.network.v3.DynamicMetadataInput", filter=_OFF, path=[{"key": "disable"}]
    )
    is_true = typed("extensions.matching.input_matchers.metadata.v3.Metadata", value={"bool_match": True}, invert=True)
    action = typed(
        "extensions.filters.http.composite.v3.ExecuteFilterAction",
        typed_config={"name": "envoy.filters.http.ext_proc", "typed_config": config},
    )
    predicate = {
        "input": {"name": "disable", "typed_config": written},
        "custom_match": {"name": "envoy.matching.matchers.metadata_matcher", "typed_config": is_true},
    }
    matcher = {
        "predicate": {"single_predicate": predicate},
        "on_match": {"action": {"name": "composite-action", "typed_config": action}},
    }
    return typed(
        "extensions.common.matching.v3.ExtensionWithMatcher",
        extension_config={
            "name": "composite_ext_proc",
            "typed_config": typed("extensions.filters.http.composite.v3.Composite"),
        },
        xds_matcher={"matcher_list": {"matchers": [matcher]}},
    )


def _forward(namespace: str, backends: list[str], rule: Json) -> Json:
    action: Json = {"timeout": _duration(only(rule["timeouts"], "request")["request"])} if "timeouts" in rule else {}
    if len(backends) == 1:
        action["cluster"] = _cluster(namespace, backends[0])
    else:
        action["weighted_clusters"] = {
            "clusters": [{"name": _cluster(namespace, each), "weight": 1} for each in backends]
        }
    return {"route": action}


def _answer(documents: list[Json], rule: Json) -> Json:
    """A rule without a backend has the DirectResponse that it names."""
    (reference,) = rule["filters"]
    assert (reference["type"], reference["extensionRef"]["kind"]) == ("ExtensionRef", "DirectResponse")
    said = only(one(documents, "DirectResponse", reference["extensionRef"]["name"])["spec"], "status", "body")
    return {"direct_response": {"status": said["status"], "body": {"inline_string": said["body"]}}}


def _h2c(documents: list[Json], service: str) -> bool:
    """Whether a Service that is rendered says that its port speaks HTTP/2."""
    name, _, port = service.partition(":")
    (found,) = (each for each in one(documents, "Service", name)["spec"]["ports"] if each["port"] == int(port))
    return found.get("appProtocol") == "kubernetes.io/h2c"


def _cluster(namespace: str, service: str) -> str:
    return f"kube_{namespace}_{service.replace(':', '_')}"


def _duration(text: str) -> str:
    return f"{int(text[:-2]) / 1000:g}s" if text.endswith("ms") else text
