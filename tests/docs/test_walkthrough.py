# SPDX-License-Identifier: Apache-2.0
"""The files of docs/guides/llm-d-on-k3d/ fit together, and the page applies them and asks in every way that there is."""

import re
from collections import Counter
from collections.abc import Collection

import msgspec

from extproc.demo.cases import LLAMA, QWEN
from tests.docs.curl import Curl, commands
from tests.docs.pages import ROOT, blocks
from tests.docs.walkthrough import FOLDER, NAMESPACE, Json, deployed, documents, of_kind
from tests.manifests.kustomize import build

GUIDE = (ROOT / "docs" / "guides" / "llm-d-on-k3d.md").read_text()
OVERLAY = ROOT / "manifests" / "overlays" / "dev"
FIELDS = ("owned_by", "engine", "inference_server")


def test_the_page_asks_in_every_way_that_there_is() -> None:
    asked = {(curl.request.path.partition("?")[2].partition("=")[0], *_named(curl)) for curl in commands(GUIDE)}
    wanted = {("owned_by",), ("engine",), ("inference_server",), ("", "x-owned-by")}
    wanted |= {("", field) for field in FIELDS}

    assert wanted <= asked


def _named(curl: Curl) -> list[str]:
    """The headers and the fields of the body that name an owner."""
    headers = [name for name, _ in curl.request.headers if name == "x-owned-by"]
    body = msgspec.json.decode(curl.request.body or b"{}")
    return headers + [field for field in FIELDS if field in body]


def test_the_engines_are_two_models_and_one_of_them_twice() -> None:
    assert [(one.name, one.kind, one.model) for one, _ in deployed()] == [
        ("llama-vllm", "vllm", LLAMA),
        ("qwen-vllm", "vllm", QWEN),
        ("llama-sglang", "sglang", LLAMA),
    ]


def test_the_pool_selects_every_engine_at_its_port() -> None:
    (pool,) = of_kind("InferencePool")
    containers = [one for each in of_kind("Deployment", "engines.yaml", "sglang.yaml") for one in _containers(each)]
    ports = {port["containerPort"] for one in containers for port in one["ports"]}

    assert [pool["spec"]["selector"]["matchLabels"].items() <= labels.items() for _, labels in deployed()] == [True] * 3
    assert ports == {port["number"] for port in pool["spec"]["targetPorts"]} == {8000}
    assert all(f"--port={port}" in one["args"] for one in containers for port in ports)


def _containers(deployment: dict[str, object]) -> list[dict[str, list[dict[str, object]]]]:
    return deployment["spec"]["template"]["spec"]["containers"]  # type: ignore[index,no-any-return]


def test_the_route_leads_from_the_gateway_to_the_pool_and_not_to_a_service() -> None:
    (route,) = of_kind("HTTPRoute")
    (gateway,) = of_kind("Gateway")
    (pool,) = of_kind("InferencePool")

    assert route["spec"] == {
        "parentRefs": [{"name": gateway["metadata"]["name"]}],
        "rules": [
            {
                "backendRefs": [
                    {
                        "group": pool["apiVersion"].partition("/")[0],
                        "kind": "InferencePool",
                        "name": pool["metadata"]["name"],
                    }
                ]
            }
        ],
    }


def test_the_pools_picker_is_a_service_of_its_namespace_that_selects_it() -> None:
    (pool,) = of_kind("InferencePool")
    picker = pool["spec"]["endpointPickerRef"]
    service = next(each for each in of_kind("Service") if each["metadata"]["name"] == picker["name"])
    deployment = next(each for each in of_kind("Deployment") if each["metadata"]["name"] == picker["name"])
    (rule,) = of_kind("DestinationRule")

    assert picker["port"]["number"] in {port["port"] for port in service["spec"]["ports"]}
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert rule["spec"]["host"] == f"{picker['name']}.{NAMESPACE}.svc.cluster.local"


def test_everything_is_in_the_one_namespace_and_waits_for_no_substitution() -> None:
    where = {each["metadata"].get("namespace") for each in documents() if each["kind"] not in ("Namespace", "Simple")}

    assert where == {NAMESPACE}
    assert not any("${" in path.read_text() for path in FOLDER.glob("*.yaml"))


def test_the_page_applies_every_file_once() -> None:
    applied = re.findall(
        r"(?:apply -f|--config) docs/guides/llm-d-on-k3d/(\S+)", "".join(b.text for b in blocks(GUIDE))
    )

    assert Counter(applied) == Counter(path.name for path in FOLDER.iterdir())


OTHERS = {"istiod": (500, 2048), "the Gateway's proxy": (100, 128), "CoreDNS": (100, 70), "metrics-server": (100, 70)}
"""Thousandths of a core and MiB that pods of Istio's and k3s' own ask for, by their defaults."""


def _asked(names: Collection[str], objects: Collection[Json]) -> tuple[int, int]:
    """What the Deployments ask for, those of others among them: cores and GiB, rounded up."""
    cores, memory = (sum(each) for each in zip(*OTHERS.values(), strict=True))
    for each in objects:
        if each["kind"] == "Deployment" and each["metadata"]["name"] in names:
            for one in each["spec"]["template"]["spec"]["containers"]:
                cpu, size = (one["resources"]["requests"][key] for key in ("cpu", "memory"))
                cores += int(cpu.removesuffix("m")) * (1 if cpu.endswith("m") else 1000)
                memory += int(size[:-2]) * {"Mi": 1, "Gi": 1024}[size[-2:]]
    return -(-cores // 1000), -(-memory // 1024)


def test_the_page_says_how_much_all_pods_ask_for() -> None:
    objects = [*documents(), *build(OVERLAY)]
    first = {"llama-vllm", "qwen-vllm", "owned-by", "multi-model-pool-epp"}

    said = re.findall(r"(\d+) cores and (\d+) GiB", GUIDE)

    assert [(int(cores), int(memory)) for cores, memory in said] == [
        _asked(first, objects),
        _asked({*first, "llama-sglang"}, objects),
    ]


def test_a_pod_that_asks_for_a_gpu_runs_where_there_is_one() -> None:
    specs = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in of_kind("Deployment")}
    runtimes = {
        name: spec.get("runtimeClassName")
        for name, spec in specs.items()
        if any("nvidia.com/gpu" in one["resources"].get("limits", {}) for one in spec["containers"])
    }

    assert runtimes == {"llama-sglang": "nvidia"}
