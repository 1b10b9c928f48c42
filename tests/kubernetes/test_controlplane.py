# SPDX-License-Identifier: Apache-2.0
"""The control plane that other tests stand on does what it says."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.controlplane import Answer, ControlPlane
from tests.kubernetes.crds import CRDS
from tests.kubernetes.resources import POOLS, POOLS_ALPHA, REWRITES, collection, path_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

PODS = collection("v1", "pods")
POOL = {"selector": {"matchLabels": {"app": "llama"}}, "targetPorts": [{"number": 8000}], "more": {"kept": True}}
POOL_ALPHA = {"selector": {"app": "llama"}, "targetPortNumber": 8000}
REWRITE = {"poolRef": {"name": "chat"}, "rules": [{"targets": [{"modelRewrite": "llama-canary"}]}]}
GONE = [("ERROR", 410, "Expired")]


def named(api_version: str, kind: str, name: str, namespace: str, **fields: object) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def config_map(namespace: str, value: str) -> dict[str, Any]:
    return named("v1", "ConfigMap", "some", namespace, data={"key": value})


def state(pod: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    conditions = [(one["type"], one["status"]) for one in pod["status"]["conditions"]]
    return pod["status"]["phase"], pod["status"]["podIP"], conditions


async def revision(control_plane: ControlPlane, path: str) -> str:
    """Where a watch that follows a list begins."""
    return str((await control_plane.request("GET", path))["metadata"]["resourceVersion"])


async def told(control_plane: ControlPlane, path: str, version: str) -> list[tuple[str, int | None, str | None]]:
    events = await control_plane.watch(path, resource_version=version)
    return [(one["type"], one["object"].get("code"), one["object"].get("reason")) for one in events]


async def test_a_pod_is_what_was_written(control_plane: ControlPlane, namespace: str) -> None:
    labels, annotations = {"llm-d.ai/engine-type": "vllm"}, {"some": "words"}
    await control_plane.pod("one", namespace, ip="10.1.2.3", labels=labels, annotations=annotations)
    path = f"{collection('v1', 'pods', namespace)}/one"
    first = await control_plane.request("GET", path)
    await control_plane.set_ready("one", namespace, ready=False)
    second = await control_plane.request("GET", path)
    await control_plane.delete_gracefully("one", namespace)
    third = await control_plane.request("GET", path)
    await control_plane.delete_pod("one", namespace)
    fourth = await control_plane.ask("GET", path)

    assert first["metadata"]["labels"] == labels
    assert first["metadata"]["annotations"] == annotations
    assert state(first) == ("Running", "10.1.2.3", [("Ready", "True")])
    assert state(second) == ("Running", "10.1.2.3", [("Ready", "False")])
    assert state(third) == state(second)
    assert ["deletionTimestamp" in one["metadata"] for one in (first, second, third)] == [False, False, True]
    assert fourth.status == 404


async def test_a_pod_is_labelled_anew(control_plane: ControlPlane, namespace: str) -> None:
    await control_plane.pod("one", namespace, ip="10.1.2.3", labels={"a": "1", "b": "2", "c": "3"})
    pod = await control_plane.label("one", namespace, {"b": "4", "c": None})

    assert pod["metadata"]["labels"] == {"a": "1", "b": "4"}
    assert state(pod) == ("Running", "10.1.2.3", [("Ready", "True")])


async def test_a_pod_may_have_no_address_yet(control_plane: ControlPlane, namespace: str) -> None:
    pod = await control_plane.pod("one", namespace, ip=None, labels={}, ready=False)

    assert pod["status"]["phase"] == "Running"
    assert "podIP" not in pod["status"]


@pytest.mark.parametrize(
    ("api_version", "kind", "spec"),
    [
        (POOLS, "InferencePool", POOL),
        (POOLS_ALPHA, "InferencePool", POOL_ALPHA),
        (REWRITES, "InferenceModelRewrite", REWRITE),
        (POOLS_ALPHA, "InferenceModelRewrite", REWRITE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_custom_resource_is_applied_twice_and_kept_as_it_is(
    control_plane: ControlPlane, namespace: str, api_version: str, kind: str, spec: dict[str, Any]
) -> None:
    first = await control_plane.apply(named(api_version, kind, "chat", namespace, spec={**spec, "other": 1}))
    second = await control_plane.apply(named(api_version, kind, "chat", namespace, spec=spec))

    assert first["spec"] == {**spec, "other": 1}
    assert second["spec"] == spec
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


async def test_a_definition_may_be_applied_again(control_plane: ControlPlane) -> None:
    applied = [(await control_plane.apply(definition))["metadata"]["name"] for definition in CRDS]

    assert applied == [
        "inferencepools.inference.networking.k8s.io",
        "inferencepools.inference.networking.x-k8s.io",
        "inferencemodelrewrites.llm-d.ai",
        "inferencemodelrewrites.inference.networking.x-k8s.io",
    ]


async def test_a_token_of_two_seconds_is_accepted_and_then_refused(control_plane: ControlPlane, namespace: str) -> None:
    await control_plane.apply(named("v1", "ServiceAccount", "some", namespace))
    token = await control_plane.token(namespace, "some", seconds=2)
    codes = [(await control_plane.ask("GET", PODS, token=token)).status]
    async with asyncio.timeout(30):  # the server remembers for ten seconds what it has accepted
        while codes[-1] != 401:
            await asyncio.sleep(0.2)
            codes.append((await control_plane.ask("GET", PODS, token=token)).status)

    assert sorted(set(codes)) == [401, 403]
    assert codes[0] == 403  # known, and allowed nothing


async def test_a_token_that_was_not_used_is_refused_as_soon_as_it_is_old(
    control_plane: ControlPlane, namespace: str
) -> None:
    await control_plane.apply(named("v1", "ServiceAccount", "some", namespace))
    token = await control_plane.token(namespace, "some", seconds=-0.1)

    assert (await control_plane.ask("GET", PODS, token=token)).status == 401


async def test_compaction_is_seen_by_a_watch_once_the_server_has_restarted(
    control_plane: ControlPlane, namespace: str
) -> None:
    pools = collection(POOLS, "inferencepools")
    await control_plane.pod("one", namespace, ip="10.1.2.3", labels={})
    await control_plane.apply(named(POOLS, "InferencePool", "chat", namespace, spec=POOL))
    old = await revision(control_plane, PODS)
    await control_plane.set_ready("one", namespace, ready=False)
    revisions = [await control_plane.compact() for _ in range(2)]
    compacted = [await told(control_plane, path, old) for path in (PODS, pools)]
    exactly = f"{PODS}?limit=1&resourceVersion={old}&resourceVersionMatch=Exact"
    uncached = (await control_plane.ask("GET", exactly)).status
    await control_plane.restart_api_server()
    restarted = [await told(control_plane, path, old) for path in (PODS, pools)]
    new = await revision(control_plane, PODS)
    listed = [await told(control_plane, path, new) for path in (PODS, pools)]

    assert int(old) < revisions[0] <= revisions[1]
    assert uncached == 410
    assert compacted == [[("MODIFIED", None, None)], []]
    assert restarted == [GONE, GONE]
    assert listed == [[], []]


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_what_was_written_is_there_after_the_server_was(
    control_plane: ControlPlane, namespace: str, how: str
) -> None:
    url = control_plane.url
    written = await control_plane.apply(config_map(namespace, "kept"))
    await (control_plane.stop_api_server() if how == "stopped" else control_plane.kill_api_server())
    with pytest.raises(OSError, match=r"onnect"):
        await control_plane.ask("GET", "/readyz")
    await control_plane.start_api_server()

    assert await control_plane.request("GET", path_of(written)) == written
    assert control_plane.url == url


async def test_a_kubeconfig_says_where_and_whose_token(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    path = control_plane.kubeconfig(tmp_path / "config", token_file=tmp_path / "token", namespace=namespace)
    document = yaml.safe_load(path.read_text())

    assert document["clusters"][0]["cluster"] == {
        "server": control_plane.url,
        "certificate-authority": str(control_plane.ca_file),
    }
    assert document["users"][0]["user"] == {"tokenFile": str(tmp_path / "token")}
    assert document["contexts"][0]["context"] == {"cluster": "test", "user": "test", "namespace": namespace}
    assert ssl.create_default_context(cafile=control_plane.ca_file).cert_store_stats()["x509_ca"] == 1


async def test_who_has_no_token_of_ours_is_nobody(control_plane: ControlPlane) -> None:
    answer = await control_plane.ask("GET", PODS, token="made up")

    assert answer == Answer(401, answer.body)
    assert answer.body["reason"] == "Unauthorized"
