# SPDX-License-Identifier: Apache-2.0
"""The objects for kgateway, Envoy Gateway and Gateway API against small schemas of their APIs, and what those refuse."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.manifests.kustomize import Json, deployed, one

SCHEMAS = Path(__file__).parent / "schemas"
OURS = {
    "kgateway": {"GatewayExtension", "TrafficPolicy", "HTTPRoute", "DirectResponse"},
    "envoy-gateway": {"EnvoyExtensionPolicy", "BackendTrafficPolicy", "ClientTrafficPolicy"},
    "llm-d-standalone": set[str](),
}
LABELS = {
    "app.kubernetes.io/name": "owned-by",
    "app.kubernetes.io/component": "ext-proc",
    "app.kubernetes.io/managed-by": "kustomize",
}
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: llm-d-inference-gateway, namespace: llm-d-multi-model}
spec:
  gatewayClassName: istio
  listeners:
  - {name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Same}}}
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: multi-model, namespace: llm-d-multi-model}
spec:
  parentRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: llm-d-inference-gateway}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: multi-model-pool}]
    timeouts: {request: 300s}
"""
TLS = """
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: owned-by, namespace: llm-d-multi-model}
spec:
  targetRefs: [{group: "", kind: Service, name: multi-model-pool-epp}]
  validation:
    hostname: multi-model-pool-epp
    caCertificateRefs: [{group: "", kind: ConfigMap, name: epp-ca}]
"""


def faults(document: Json) -> list[str]:
    """Where an object is not of its kind, and how."""
    schema = yaml.safe_load((SCHEMAS / f"{document['kind'].lower()}.yaml").read_text())
    Draft202012Validator.check_schema(schema)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]


def rendered(folder: Path, component: str) -> list[Json]:
    return deployed(folder, [component], namespace="team")


@pytest.mark.parametrize("component", OURS)
def test_what_a_component_adds_is_as_its_kinds_have_it_in_the_programs_namespace(
    tmp_path: Path, component: str
) -> None:
    (tmp_path / "base").mkdir()
    known = [(each["kind"], each["metadata"]["name"]) for each in deployed(tmp_path / "base", namespace="team")]
    (tmp_path / "it").mkdir()
    added = [
        each for each in rendered(tmp_path / "it", component) if (each["kind"], each["metadata"]["name"]) not in known
    ]

    assert {each["kind"] for each in added} - {"ConfigMap", "Service"} == OURS[component]
    assert [each["metadata"]["namespace"] for each in added] == ["team"] * len(added)
    assert [each["metadata"]["labels"] for each in added] == [LABELS] * len(added)
    assert [faults(each) for each in added if each["kind"] in OURS[component]] == [[]] * len(OURS[component])


@pytest.mark.parametrize("text", [GATEWAY, ROUTE, TLS], ids=["Gateway", "HTTPRoute", "BackendTLSPolicy"])
def test_objects_of_gateway_api_are_known(text: str) -> None:
    assert faults(yaml.safe_load(text)) == []


def changed(document: Json, path: str, value: Any) -> Json:
    """A copy in which one field is another, named as `spec.extProc.0.failOpen`."""
    document = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("component", "kind", "path", "value"),
    [
        ("kgateway", "GatewayExtension", "spec.extProc.failOpn", False),
        ("kgateway", "GatewayExtension", "spec.extProc.routeCacheAction", "DEFAULT"),
        ("kgateway", "GatewayExtension", "spec.extProc.metadataOptions", {"receiving": {"untyped": ["envoy.lb"]}}),
        ("kgateway", "TrafficPolicy", "spec.targetRefs.0.kind", "Service"),
        ("kgateway", "HTTPRoute", "spec.rules.0.matches.0.headers.0.type", "Prefix"),
        ("kgateway", "DirectResponse", "spec.status", 99),
        ("envoy-gateway", "EnvoyExtensionPolicy", "spec.extProc.1.failOpen", True),
        ("envoy-gateway", "EnvoyExtensionPolicy", "spec.extProc.0.initialMetadata", {}),
        (
            "envoy-gateway",
            "EnvoyExtensionPolicy",
            "spec.extProc.0.processingMode.request.attributes",
            ["xds.cluster_name"],
        ),
        ("envoy-gateway", "BackendTrafficPolicy", "spec.loadBalancer.endpointOverride.extractFrom.0.metadata", {}),
        ("envoy-gateway", "ClientTrafficPolicy", "spec.targetRefs.0.kind", "HTTPRoute"),
        ("envoy-gateway", "ClientTrafficPolicy", "spec.connection.bufferLimit", "a lot"),
    ],
    ids=str,
)
def test_what_the_api_does_not_have_is_a_fault(
    tmp_path: Path, component: str, kind: str, path: str, value: Any
) -> None:
    document = one(rendered(tmp_path, component), kind, "owned-by")

    assert faults(document) == []
    assert len(faults(changed(document, path, value))) == 1


def test_an_answer_may_take_as_long_as_it_takes(tmp_path: Path) -> None:
    """Envoy's own fifteen seconds are for an answer to its end."""
    folders = {component: tmp_path / component for component in OURS}
    for folder in folders.values():
        folder.mkdir()
    made = {component: rendered(folder, component) for component, folder in folders.items()}
    rules = one(made["kgateway"], "HTTPRoute", "owned-by")["spec"]["rules"]
    policy = one(made["envoy-gateway"], "BackendTrafficPolicy", "owned-by")["spec"]
    standalone = one(made["llm-d-standalone"], "ConfigMap", "owned-by-envoy")["data"]["envoy.yaml"]

    assert [each["timeouts"] for each in rules if "backendRefs" in each] == [{"request": "0s"}] * 3
    epp = one(made["envoy-gateway"], "EnvoyExtensionPolicy", "owned-by")["spec"]["extProc"][1]
    assert epp["messageTimeout"] == "300s"  # who waits in the EPP's queue
    assert policy["timeout"] == {"http": {"requestTimeout": "0s"}}
    assert "route: {cluster: pool, timeout: 0s}" in standalone


def test_the_service_that_stands_for_the_pool_has_its_pods_and_no_address(tmp_path: Path) -> None:
    spec = one(rendered(tmp_path, "envoy-gateway"), "Service", "owned-by-pool")["spec"]

    assert spec == {
        "clusterIP": "None",
        "selector": {"llm-d.ai/inference-serving": "true"},
        "ports": [{"name": "http", "port": 8000, "targetPort": 8000, "appProtocol": "http"}],
    }
