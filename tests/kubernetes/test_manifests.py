# SPDX-License-Identifier: Apache-2.0
"""What kustomize makes of manifests/, at a real API server, and the program as the Deployment would start it.

The API server of the tests has no gRPC probes and knows neither policy/v1 nor autoscaling/v2: of Deployment,
PodDisruptionBudget and HorizontalPodAutoscaler there is only the schema's word, in tests/manifests.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from extproc.demo.client import send
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.program import POLICY, deployed, in_namespace, labels, pool, running
from tests.kubernetes.resources import collection_of, is_known
from tests.manifests import kustomize

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

OURS: Final = ("autoscaling", "monitoring", "network-policy", "tls", "admin-readonly", "several-namespaces")
ENTRY: Final = {"model": "m", "owned_by": "sglang", "selector": {"matchLabels": {"app": "chat"}}}

Json = dict[str, Any]


def lost(sent: Any, kept: Any, place: str = "") -> list[str]:
    """Where the API server left out or changed what it was sent; it may add to it."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [each for key in sent for each in lost(sent[key], kept.get(key), f"{place}.{key}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        return [
            each
            for number, pair in enumerate(zip(sent, kept, strict=True))
            for each in lost(*pair, f"{place}.{number}")
        ]
    return [] if sent == kept else [place]


async def tried(control_plane: ControlPlane, document: Json) -> list[str]:
    """What an API server loses of an object that it is sent and does not keep. Raises RefusedError."""
    return lost(document, await control_plane.request("POST", collection_of(document) + "?dryRun=All", document))


async def test_the_api_server_takes_the_objects_as_they_are(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    documents = kustomize.deployed(tmp_path, OURS, namespace=namespace, patches=in_namespace(namespace))
    found = {
        f"{each['kind']}/{each['metadata']['name']}": await tried(control_plane, each)
        for each in documents
        if is_known(each)
    }

    assert found == {
        "ServiceAccount/owned-by": [],
        "Role/owned-by": [],
        "RoleBinding/owned-by": [],
        "RoleBinding/owned-by-discovery": [],
        "ClusterRole/owned-by-discovery": [],
        "ConfigMap/owned-by": [],
        "ConfigMap/owned-by-dashboard": [],
        "ConfigMap/owned-by-routing": [],
        "Service/owned-by": [],
        "NetworkPolicy/owned-by": [],
    }


async def test_a_field_that_it_does_not_know_would_be_lost(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    service = kustomize.one(kustomize.deployed(tmp_path, namespace=namespace), "Service", "owned-by")
    service["spec"]["ports"][0]["appProtokoll"] = "http"

    assert await tried(control_plane, service) == [".spec.ports.0.appProtokoll"]


@pytest.mark.parametrize(
    ("components", "status"), [((), 201), (("admin-readonly",), 409)], ids=["base", "admin-readonly"]
)
async def test_the_program_is_ready_with_the_arguments_of_the_deployment(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, components: tuple[str, ...], status: int
) -> None:
    documents = kustomize.deployed(tmp_path / "again", components, namespace=namespace)
    (container,) = kustomize.one(documents, "Deployment", "owned-by")["spec"]["template"]["spec"]["containers"]
    command, *arguments = container["args"]
    await control_plane.apply(pool("chat", namespace, 8000))
    await control_plane.pod("a", namespace, ip="127.0.1.1", labels=labels("sglang"))
    async with deployed(control_plane, namespace, tmp_path, *components) as kubeconfig:
        await control_plane.apply(kustomize.one(documents, "ConfigMap", POLICY))
        async with running(kubeconfig, *arguments) as program:
            loaded = await program.line(msg="loaded", source="policy")
            hint = await program.hint(x_owned_by="sglang")
            port, body = program.server.admin_port, json.dumps(ENTRY).encode()
            written = await send(port, "POST", "/admin/api/routing", {"content-type": "application/json"}, body)

    assert command == "serve"
    assert (loaded["configmap"], hint) == (f"{namespace}/owned-by", ["127.0.1.1:8000"])
    assert written.status == status
