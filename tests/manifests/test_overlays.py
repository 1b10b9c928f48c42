# SPDX-License-Identifier: Apache-2.0
"""The overlays: what `kubectl apply -k` sends for each, and that every part of it is for the same namespace."""

from typing import Any

import pytest

from extproc.cli import main
from extproc.flags import refuse_contradictions
from tests.manifests.kustomize import ROOT, build, one
from tests.manifests.schema import wrong

Json = dict[str, Any]

NAMES = sorted(folder.name for folder in (ROOT / "overlays").iterdir())
PROGRAM = {
    "ConfigMap/owned-by",
    "ConfigMap/owned-by-routing",
    "Deployment/owned-by",
    "PodDisruptionBudget/owned-by",
    "Role/owned-by",
    "RoleBinding/owned-by",
    "Service/owned-by",
    "ServiceAccount/owned-by",
}


def names(documents: list[Json]) -> list[str]:
    return sorted(f"{each['kind']}/{each['metadata']['name']}" for each in documents)


def deployment(documents: list[Json]) -> Json:
    found: Json = one(documents, "Deployment", "owned-by")["spec"]
    return found


def container(documents: list[Json]) -> Json:
    found: Json = deployment(documents)["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_object_is_what_its_kind_allows(name: str) -> None:
    assert wrong(build(ROOT / "overlays" / name)) == {}


@pytest.mark.parametrize(("name", "namespace"), [("dev", "llm-d-multi-model"), ("production", "llm-d")])
def test_every_object_is_in_the_one_namespace(name: str, namespace: str) -> None:
    assert {each["metadata"]["namespace"] for each in build(ROOT / "overlays" / name)} == {namespace}


@pytest.mark.parametrize("name", NAMES)
def test_the_program_takes_the_arguments(name: str) -> None:
    command, *arguments = container(build(ROOT / "overlays" / name))["args"]

    refuse_contradictions(main.commands[command].make_context(command, arguments).params)


def test_dev_is_one_replica_of_the_imported_image_that_says_all_it_does() -> None:
    documents = build(ROOT / "overlays" / "dev")
    found = container(documents)

    assert deployment(documents)["replicas"] == 1
    assert found["imagePullPolicy"] == "Never"
    assert found["args"] == ["serve", "--config-map=owned-by", "--log-format=console", "--log-level=debug"]


def test_dev_is_the_program_before_the_epp() -> None:
    assert names(build(ROOT / "overlays" / "dev")) == sorted(
        [*PROGRAM, "EnvoyFilter/owned-by-before", "EnvoyFilter/owned-by-routes", "DestinationRule/owned-by"]
    )


def test_production_is_isolated_scaled_watched_and_fenced() -> None:
    assert names(build(ROOT / "overlays" / "production")) == sorted(
        [
            *PROGRAM,
            "EnvoyFilter/owned-by-before",
            "EnvoyFilter/owned-by-after",
            "EnvoyFilter/owned-by-routes",
            "DestinationRule/owned-by",
            "DestinationRule/owned-by-epp",
            "HorizontalPodAutoscaler/owned-by",
            "ServiceMonitor/owned-by",
            "PrometheusRule/owned-by",
            "ConfigMap/owned-by-dashboard",
            "NetworkPolicy/owned-by",
        ]
    )


def test_production_leaves_the_number_of_pods_to_the_autoscaler() -> None:
    assert "replicas" not in deployment(build(ROOT / "overlays" / "production"))
