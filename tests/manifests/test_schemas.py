# SPDX-License-Identifier: Apache-2.0
"""All that kustomize makes of manifests/ is what its kinds allow, and a misspelt field would be seen."""

import copy
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.manifests.kustomize import ROOT, build, deployed, one
from tests.manifests.schema import FOLDER, faults, wrong

pytestmark = pytest.mark.slow

COMPONENTS = sorted(folder.name for folder in (ROOT / "components").iterdir())
TOGETHER = [
    ("istio-before", "tls"),
    ("istio-before", "fail-open", "epp-outlier"),
    ("istio-strict", "tls", "fail-open"),
    ("istio-strict", "only-when-asked", "fail-open"),
    ("istio-picker", "tls"),
    ("envoy-gateway", "fail-open"),
    ("kgateway", "fail-open"),
    ("several-namespaces", "network-policy", "admin-readonly"),
    ("autoscaling", "monitoring", "network-policy", "tls", "admin-readonly"),
]
"""Components as operators would combine them, in the order in which they list them."""
ABOVE = {"only-when-asked": "istio-before"}
"""Components that change another one, without which they do not build."""
SETS = [(), *[(ABOVE[name], name) if name in ABOVE else (name,) for name in COMPONENTS], *TOGETHER]
OURS = {
    "app.kubernetes.io/name": "owned-by",
    "app.kubernetes.io/component": "ext-proc",
    "app.kubernetes.io/managed-by": "kustomize",
}
NAMES_OF_THE_OWNERS = {"labels", "annotations", "matchLabels", "data", "selector", "requests", "limits", "nodeSelector"}
"""Maps in which any key may stand; a `selector` is one in a Service, and an object of known fields elsewhere."""

Json = dict[str, Any]


@functools.cache
def made(components: tuple[str, ...]) -> tuple[Json, ...]:
    """What an operator's two layers come to; nobody changes it."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(deployed(Path(folder), components, namespace="team"))


def misspelt(document: Json) -> Iterator[tuple[str, Json]]:
    """The document with one key misspelt, once for each of its keys that is a field's name, and where that is."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if isinstance(value, dict):
            free = path and path[-1] in NAMES_OF_THE_OWNERS and all(isinstance(each, str) for each in value.values())
            for key, inner in value.items():
                if not free:
                    yield (*path, key)
                yield from places(inner, (*path, key))
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                yield from places(inner, (*path, number))

    for *path, key in places(document, ()):
        changed = copy.deepcopy(document)
        holder: Any = changed
        for step in path:
            holder = holder[step]
        holder[f"{key}x"] = holder.pop(key)
        yield ".".join(map(str, [*path, key])), changed


@pytest.mark.parametrize("components", SETS, ids="+".join)
class TestRendered:
    """`base` with each component, and with several, in an operator's two layers."""

    def test_every_object_is_what_its_kind_allows(self, components: tuple[str, ...]) -> None:
        assert wrong(made(components)) == {}

    def test_every_object_is_there_once(self, components: tuple[str, ...]) -> None:
        found = [
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in made(components)
        ]

        assert len(set(found)) == len(found)

    def test_every_object_is_labelled_as_ours(self, components: tuple[str, ...]) -> None:
        labels = {
            f"{each['kind']}/{each['metadata']['name']}": each["metadata"].get("labels", {})
            for each in made(components)
        }

        assert {name: found for name, found in labels.items() if not found.items() >= OURS.items()} == {}


@pytest.mark.parametrize("name", COMPONENTS)
def test_no_component_labels_what_is_not_its_own(name: str) -> None:
    said = yaml.safe_load((ROOT / "components" / name / "kustomization.yaml").read_text())

    assert {"labels", "commonLabels", "namespace", "namePrefix", "nameSuffix"} & said.keys() == set()


@pytest.mark.parametrize("name", ["autoscaling", "monitoring", "network-policy"])
def test_a_component_in_the_layer_that_says_the_namespace_is_refused(name: str, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    deployed(tmp_path, namespace="team")  # for the relative path of the base
    (base,) = yaml.safe_load((tmp_path / "program" / "kustomization.yaml").read_text())["resources"]
    said = {"namespace": "team", "resources": [base], "components": [base.replace("base", f"components/{name}")]}
    (layer / "kustomization.yaml").write_text(yaml.safe_dump(said))

    with pytest.raises(AssertionError, match=r"metadata\.namespace.*is missing|unable to find field.*namespace"):
        build(layer)


class TestTheCheckItself:
    """It sees what it is there for."""

    def test_every_misspelt_field_is_seen(self) -> None:
        unseen = []
        for document in made(("autoscaling", "monitoring", "network-policy", "tls")):
            for place, changed in misspelt(document):
                if place in {"apiVersion", "kind"}:
                    with pytest.raises(LookupError, match="no kind or no apiVersion"):
                        faults(changed)
                elif not faults(changed):
                    unseen.append(f"{document['kind']}: {place}")

        assert unseen == []

    def test_a_wrong_value_is_told_with_its_place(self) -> None:
        documents = copy.deepcopy(made(("monitoring",)))
        deployment, monitor = one(documents, "Deployment", "owned-by"), one(documents, "ServiceMonitor", "owned-by")
        deployment["spec"]["replicas"] = "two"
        monitor["spec"]["endpoints"][0]["honorLabels"] = "yes"

        assert wrong([deployment, monitor]) == {
            "Deployment/owned-by": ["spec.replicas: 'two' is not of type 'integer', 'null'"],
            "ServiceMonitor/owned-by": ["spec.endpoints[0].honorLabels: 'yes' is not of type 'boolean'"],
        }

    def test_an_object_without_a_namespace_is_told(self) -> None:
        documents = build(ROOT / "base")

        assert set(map(tuple, map(faults, documents))) == {("metadata.namespace: it is missing",)}

    @pytest.mark.parametrize("api_version", ["example.com/v1", "networking.example.com/v1", "networking.k8s.io/v2"])
    def test_a_kind_that_nobody_knows_is_an_error(self, api_version: str) -> None:
        with pytest.raises(LookupError, match=f"{api_version} NetworkPolicy is no kind of Kubernetes"):
            faults({"apiVersion": api_version, "kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": "b"}})

    @pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
    def test_each_schema_of_ours_says_whose_it_is_and_leaves_nothing_open(self, path: Path) -> None:
        schema = yaml.safe_load(path.read_text())
        Draft202012Validator.check_schema(schema)

        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["additionalProperties"] is False
        assert schema["properties"]["kind"]["const"].lower() == path.stem
        assert schema["properties"]["apiVersion"].keys() <= {"const", "enum"}
        assert {"apiVersion", "kind", "metadata"} <= {*schema["required"]}
