# SPDX-License-Identifier: Apache-2.0
"""What the guides have a reader apply: the objects of the k3d guide, and the layers of the guide to installing."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import blocks
from tests.docs.walkthrough import NAMESPACE, documents, of_kind
from tests.manifests.kustomize import ROOT, build, one
from tests.manifests.schema import faults

INSTALL = (ROOT.parent / "docs" / "guides" / "install.md").read_text()

Json = dict[str, Any]


def name(document: Json) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def test_every_object_of_the_k3d_guide_is_what_its_kind_allows() -> None:
    objects = [each for each in documents() if each["kind"] != "Simple"]  # k3d's own, no object

    assert {name(each): told for each in objects if (told := faults(each))} == {}


def test_the_gateway_and_the_route_of_the_k3d_guide_are_those_that_the_overlay_patches() -> None:
    made = build(ROOT / "overlays" / "dev")
    (gateway,), (route,) = of_kind("Gateway"), of_kind("HTTPRoute")
    filters = [each for each in made if each["kind"] == "EnvoyFilter"]
    routes = one(made, "EnvoyFilter", "owned-by-routes")["spec"]["configPatches"]

    assert {each["metadata"]["namespace"] for each in filters} == {NAMESPACE} == {gateway["metadata"]["namespace"]}
    assert [each["spec"]["workloadSelector"]["labels"] for each in filters] == [
        {"gateway.networking.k8s.io/gateway-name": gateway["metadata"]["name"]}
    ] * len(filters)
    assert [each["match"]["routeConfiguration"]["vhost"]["route"]["name"] for each in routes] == [
        f"{NAMESPACE}.{route['metadata']['name']}.0"
    ]


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """The files of the guide to installing, where it says that they are."""
    shutil.copytree(ROOT, tmp_path / "manifests")
    for block in blocks(INSTALL):
        if match := re.match(r"# ([\w./-]+\.yaml)\n", block.text):
            path = tmp_path / (match[1] if "/" in match[1] else f"program/{match[1]}")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)
    return tmp_path


def test_the_layers_of_the_guide_to_installing_are_built_and_reach_what_they_name(layers: Path) -> None:
    made = build(layers / "gateway")
    selectors = [each["spec"]["workloadSelector"]["labels"] for each in made if each["kind"] == "EnvoyFilter"]
    (route,) = one(made, "EnvoyFilter", "owned-by-routes")["spec"]["configPatches"]
    (container,) = one(made, "Deployment", "owned-by")["spec"]["template"]["spec"]["containers"]

    assert {name(each): told for each in made if (told := faults(each))} == {}
    assert selectors == [{"gateway.networking.k8s.io/gateway-name": "my-gateway"}] * 3
    assert route["match"]["routeConfiguration"]["vhost"]["route"]["name"] == "llm-d.chat.0"
    assert container["image"].startswith("REGISTRY/owned-by:")
    assert "engineFrom" in one(made, "ConfigMap", "owned-by")["data"]["policy.yaml"]
    assert one(made, "DestinationRule", "owned-by-epp")["spec"]["host"] == "chat-epp.llm-d.svc.cluster.local"
