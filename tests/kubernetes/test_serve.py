# SPDX-License-Identifier: Apache-2.0
"""The whole program against a real API server, with our own Role and a token of our service account."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from extproc.demo.client import send
from tests.heard import PATIENCE
from tests.kubernetes.conftest import fresh_namespace
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.crds import CRDS
from tests.kubernetes.program import ACCOUNT, Program, deployed, in_namespace, labels, policy, pool, running
from tests.manifests import kustomize

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

WITHIN = 1.0
"""Seconds in which a policy takes effect."""
POLICY = "{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, destinations: %s}"


@pytest_asyncio.fixture(loop_scope="session")
async def kubeconfig(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[Path]:
    async with deployed(control_plane, namespace, tmp_path) as path:
        yield path


async def chat(control_plane: ControlPlane, namespace: str) -> None:
    """A pool with one pod, as most tests begin."""
    await control_plane.apply(pool("chat", namespace, 8000))
    await control_plane.pod("a", namespace, ip="127.0.1.1", labels=labels("vllm"))


async def readiness(program: Program) -> int:
    return (await send(program.server.admin_port, "GET", "/readyz")).status


async def error_of(program: Program, resource: str) -> str | None:
    """What is wrong with a resource; the first of its namespaces counts."""
    found: str | None = next(iter((await program.page("/statusz"))["sources"][resource].values()))["error"]
    return found


class TestPodsAndPools:
    """What there is, as it changes."""

    async def test_they_are_followed_through_their_lives(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await chat(control_plane, namespace)
        async with running(kubeconfig) as program:
            seen, other = partial(program.ready, f"{namespace}/chat"), partial(program.ready, f"{namespace}/other")
            assert await seen() == {"a@127.0.1.1:8000": True}

            await control_plane.pod("b", namespace, ip="127.0.1.2", labels=labels("sglang"), ready=False)
            await program.until(seen, {"a@127.0.1.1:8000": True, "b@127.0.1.2:8000": False})
            await control_plane.set_ready("b", namespace, ready=True)
            await program.until(seen, {"a@127.0.1.1:8000": True, "b@127.0.1.2:8000": True})
            await control_plane.delete_gracefully("a", namespace)
            await program.until(seen, {"a@127.0.1.1:8000": False, "b@127.0.1.2:8000": True})
            await control_plane.delete_pod("a", namespace)
            await program.until(seen, {"b@127.0.1.2:8000": True})
            await control_plane.label("b", namespace, {"app": "other"})
            await program.until(seen, {})
            await control_plane.apply(pool("other", namespace, 8000, 8001, selector={"app": "other"}))
            await program.until(other, {"b-rank-0@127.0.1.2:8000": True, "b-rank-1@127.0.1.2:8001": True})
            await control_plane.delete(pool("chat", namespace, 8000))

            async def pools() -> list[str]:
                return sorted((await program.page("/statusz"))["pools"])

            await program.until(pools, [f"{namespace}/other"])

    async def test_a_pool_of_the_older_kind_is_read_where_there_is_no_other(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        definition = next(
            one for one in CRDS if one["metadata"]["name"] == "inferencepools.inference.networking.k8s.io"
        )
        await control_plane.pod("a", namespace, ip="127.0.1.1", labels=labels("vllm"))
        await control_plane.apply(
            {
                "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
                "kind": "InferencePool",
                "metadata": {"name": "chat", "namespace": namespace},
                "spec": {"selector": {"app": "chat"}, "targetPortNumber": 8000},
            }
        )
        await control_plane.remove_definition(definition)
        try:
            async with running(kubeconfig) as program:
                found = await program.ready(f"{namespace}/chat")
        finally:
            await control_plane.apply(definition)

        assert found == {"a@127.0.1.1:8000": True}

    async def test_without_pools_a_selector_and_a_port_make_one(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await control_plane.pod("a", namespace, ip="127.0.1.1", labels=labels("vllm"))
        flags = ("--endpoint-selector", "app=chat", "--endpoint-target-ports", "8000,8001")
        async with running(kubeconfig, *flags) as program:
            found = await program.ready(f"{namespace}/endpoints")

        assert found == {"a-rank-0@127.0.1.1:8000": True, "a-rank-1@127.0.1.1:8001": True}

    async def test_several_namespaces_have_pools_of_their_own(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
    ) -> None:
        await chat(control_plane, namespace)
        async with fresh_namespace(control_plane) as second:
            documents = kustomize.deployed(
                tmp_path / "both", ["several-namespaces"], namespace=namespace, patches=in_namespace(second)
            )
            for kind in ("ClusterRole", "RoleBinding"):
                await control_plane.apply(kustomize.one(documents, kind, "owned-by-discovery"))
            await control_plane.apply(pool("chat", second, 9000))
            await control_plane.pod("z", second, ip="127.0.1.9", labels=labels("vllm"))
            async with running(kubeconfig, "--namespaces", f"{namespace},{second}") as program:
                found = [await program.ready(f"{each}/chat") for each in (namespace, second)]

        assert found == [{"a@127.0.1.1:8000": True}, {"z@127.0.1.9:9000": True}]

    async def test_all_namespaces_are_one_watch_a_resource(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
    ) -> None:
        await chat(control_plane, namespace)
        documents = kustomize.deployed(tmp_path / "both", ["several-namespaces"], namespace=namespace)
        role = kustomize.one(documents, "ClusterRole", "owned-by-discovery")
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"everywhere-{namespace}"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": role["metadata"]["name"],
            },
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
        }
        await control_plane.apply(role)
        await control_plane.apply(binding)
        try:
            async with running(kubeconfig, "--namespaces", "*") as program:
                found = await program.ready(f"{namespace}/chat")
                sources = (await program.page("/statusz"))["sources"]
        finally:
            await control_plane.delete(binding)

        assert found == {"a@127.0.1.1:8000": True}
        assert {name: list(each) for name, each in sources.items()} == {
            "pods": ["*"],
            "pools": ["*"],
            "rewrites": ["*"],
            "routing": ["configmap", "error", "watch"],
        }

    async def test_a_rewrite_decides_which_model_is_matched_as_long_as_it_is_there(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        rewrite = {
            "apiVersion": "llm-d.ai/v1alpha2",
            "kind": "InferenceModelRewrite",
            "metadata": {"name": "chat", "namespace": namespace},
            "spec": {
                "poolRef": {"group": "inference.networking.k8s.io", "name": "chat"},
                "rules": [{"matches": [{"model": {"value": "chat"}}], "targets": [{"modelRewrite": "v2"}]}],
            },
        }
        await control_plane.apply(
            policy(namespace, POLICY.replace("destinations: %s", "match: {modelLabels: [model]}"))
        )
        await control_plane.apply(pool("chat", namespace, 8000))
        for number, model in enumerate(("v1", "v2"), 1):
            said = labels("vllm") | {"model": model}
            await control_plane.pod(model, namespace, ip=f"127.0.1.{number}", labels=said)
        async with running(kubeconfig, "--config-map", "owned-by") as program:
            seen = partial(program.hint, x_gateway_model_name="chat")
            assert await seen() == []
            await control_plane.apply(rewrite)
            await program.until(seen, ["127.0.1.2:8000"])
            await control_plane.delete(rewrite)
            await program.until(seen, [])

    async def test_two_thousand_pods_come_and_go(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await control_plane.apply(pool("chat", namespace, 8000))
        await control_plane.pods(
            [
                (f"pod-{n}", f"127.1.{n // 250}.{n % 250 + 1}", labels("vllm" if n % 2 else "sglang"))
                for n in range(2_000)
            ],
            namespace,
        )
        async with running(kubeconfig) as program:

            async def counts() -> dict[str, int]:
                found: dict[str, int] = (await program.page("/statusz"))["pools"][f"{namespace}/chat"]
                return found

            assert await counts() == {"ready": 2_000, "not_ready": 0}
            await control_plane.set_ready("pod-7", namespace, ready=False)
            await program.until(counts, {"ready": 1_999, "not_ready": 1})
            await control_plane.delete_pods(namespace)
            await program.until(counts, {"ready": 0, "not_ready": 0})


class TestTrouble:
    """What the API server does to its clients."""

    async def test_what_vanished_during_a_silence_is_gone_after_a_410(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await chat(control_plane, namespace)
        await control_plane.pod("b", namespace, ip="127.0.1.2", labels=labels("vllm"))
        async with running(kubeconfig) as program:
            os.kill(program.server.pid, signal.SIGSTOP)  # it hears of nothing until it goes on
            try:
                await control_plane.restart_api_server()  # else its socket would hear for it
                await control_plane.delete_pod("a", namespace)
                await control_plane.pod("c", namespace, ip="127.0.1.3", labels=labels("vllm"))
                await control_plane.compact()
                await control_plane.restart_api_server()  # which remembers nothing older than this moment
            finally:
                os.kill(program.server.pid, signal.SIGCONT)
            seen = partial(program.ready, f"{namespace}/chat")
            await program.until(seen, {"b@127.0.1.2:8000": True, "c@127.0.1.3:8000": True})
            restarts = await program.metrics()

        name = f'owned_by_watch_restarts_total{{namespace="{namespace}",reason="expired",resource="pods"}}'
        assert restarts[name] == 1

    async def test_the_last_snapshot_serves_while_the_api_server_is_away(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await chat(control_plane, namespace)
        async with running(kubeconfig) as program:
            seen = partial(program.ready, f"{namespace}/chat")
            await control_plane.kill_api_server()
            try:
                await program.line(msg="the API server fails", resource="pods")
                during = (await seen(), await readiness(program))
                ages = [await age(program), await age(program)]
            finally:
                await control_plane.start_api_server()
            await control_plane.pod("b", namespace, ip="127.0.1.2", labels=labels("vllm"))
            await program.until(seen, {"a@127.0.1.1:8000": True, "b@127.0.1.2:8000": True})
            after = await error_of(program, "pods")

        assert (during, after) == (({"a@127.0.1.1:8000": True}, 200), None)
        assert 0 < ages[0] < ages[1]

    async def test_it_waits_for_an_api_server_that_is_not_there_yet(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await chat(control_plane, namespace)
        await control_plane.stop_api_server()
        try:
            async with running(kubeconfig, until="listening") as program:
                await program.line(msg="the API server fails", resource="inferencepools")
                before = await readiness(program)
                await control_plane.start_api_server()
                await program.line(msg="ready")
                after = (await readiness(program), await program.ready(f"{namespace}/chat"))
        finally:
            await control_plane.restart_api_server()

        assert (before, after) == (503, (200, {"a@127.0.1.1:8000": True}))

    async def test_a_token_that_expired_is_read_again(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await chat(control_plane, namespace)
        token = kubeconfig.with_name("token")
        short = await control_plane.token(namespace, ACCOUNT, seconds=5)
        token.write_text(short)
        async with running(kubeconfig) as program:
            await refused(control_plane, namespace, short)
            await control_plane.restart_api_server()  # which ends the watches that the token began
            await program.line(msg="the API server fails", resource="pods", error="Unauthorized")
            token.write_text(await control_plane.token(namespace, ACCOUNT, seconds=600) + "\n")
            await control_plane.pod("b", namespace, ip="127.0.1.2", labels=labels("vllm"))
            seen = partial(program.ready, f"{namespace}/chat")
            await program.until(seen, {"a@127.0.1.1:8000": True, "b@127.0.1.2:8000": True})

    async def test_a_permission_that_is_removed_is_named_and_what_was_known_stays(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
    ) -> None:
        await chat(control_plane, namespace)
        role = kustomize.one(kustomize.deployed(tmp_path / "again", namespace=namespace), "Role", "owned-by")
        poorer = role | {"rules": [rule for rule in role["rules"] if "pods" not in rule["resources"]]}
        async with running(kubeconfig) as program:
            seen = partial(program.ready, f"{namespace}/chat")
            await control_plane.apply(poorer)
            await control_plane.restart_api_server()  # a watch that stands is not asked again for its permission
            told = await program.line(msg="the API server fails", resource="pods", status=403)
            during = (await seen(), await readiness(program))
            await control_plane.apply(role)
            await control_plane.pod("b", namespace, ip="127.0.1.2", labels=labels("vllm"))
            await program.until(seen, {"a@127.0.1.1:8000": True, "b@127.0.1.2:8000": True})

        assert told["error"].startswith(f"the permission to watch pods in namespace {namespace} is missing: ")
        assert during == ({"a@127.0.1.1:8000": True}, 200)

    async def test_a_permission_that_was_never_given_keeps_it_from_being_ready(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        await chat(control_plane, namespace)
        async with running(kubeconfig, "--namespaces", "elsewhere", until="listening") as program:
            told = await program.line(msg="the API server fails", resource="pods")
            await program.line(msg="the API server fails", resource="inferencepools")
            components = (await program.page("/statusz"))["components"]
            status = await readiness(program)

        assert told["error"].startswith("the permission to list pods in namespace elsewhere is missing: ")
        assert (status, components["pods"], components["pools"]) == (503, False, False)


async def age(program: Program) -> float:
    """The staleness of the pods as the gauge says it."""
    found = await program.metrics()
    return next(value for name, value in found.items() if "staleness" in name and 'resource="pods"' in name)


async def refused(control_plane: ControlPlane, namespace: str, token: str) -> None:
    """Wait until the API server takes the token no longer: it remembers for a while that it did."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    async with asyncio.timeout(PATIENCE):
        while (await control_plane.ask("GET", path, token=token)).status != 401:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.2)


class TestPolicy:
    """The policy in a ConfigMap."""

    async def test_good_bad_and_good_again(self, control_plane: ControlPlane, namespace: str, kubeconfig: Path) -> None:
        await control_plane.apply(policy(namespace, POLICY % 2))
        async with running(kubeconfig, "--config-map", "owned-by") as program:

            async def shown() -> tuple[int, str | None]:
                page = await program.page("/configz")
                return page["policy"]["destinations"], page["error"]

            steps: list[tuple[str | None, int, str | None]] = [
                (POLICY % "many", 2, "policy.yaml: line 1, destinations: Expected `int`, got `str`"),
                (POLICY % 5, 5, None),
                ("", 5, "policy.yaml: the document is empty"),
                (None, 5, "it has no key `policy.yaml`"),
                (POLICY % 6, 6, None),
            ]
            assert await shown() == (2, None)
            for text, destinations, error in steps:
                await control_plane.apply(policy(namespace, text))
                applied = time.monotonic()
                await program.until(shown, (destinations, error))
                assert time.monotonic() - applied < WITHIN
            await control_plane.delete(policy(namespace, None))
            await program.until(shown, (6, "it was deleted"))
            metrics = await program.metrics()
            events = await told(control_plane, namespace, 4)

        assert metrics['owned_by_config_last_reload_successful{source="policy"}'] == 0
        assert [(event["reason"], event["involvedObject"]["name"], event["message"]) for event in events] == [
            (
                "PolicyRefused",
                "owned-by",
                "the last good policy stays: policy.yaml: line 1, destinations: Expected `int`, got `str`",
            ),
            ("PolicyRefused", "owned-by", "the last good policy stays: policy.yaml: the document is empty"),
            ("PolicyRefused", "owned-by", "the last good policy stays: it has no key `policy.yaml`"),
            ("PolicyRefused", "owned-by", "the last good policy stays: it was deleted"),
        ]

    async def test_it_is_not_ready_without_one_and_becomes_so_with_one(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        async with running(kubeconfig, "--config-map", f"{namespace}/owned-by", until="listening") as program:
            missing = await program.line(msg="not loaded, the last good one stays", source="policy")
            before = await readiness(program)
            await control_plane.apply(policy(namespace, POLICY % 4))
            await program.line(msg="ready")
            after = (await program.page("/configz"))["policy"]["destinations"]

        assert (missing["error"], before, after) == ("it does not exist", 503, 4)


async def told(control_plane: ControlPlane, namespace: str, count: int) -> list[dict[str, Any]]:
    """Our events, oldest first, once there are so many."""
    path = f"/api/v1/namespaces/{namespace}/events"
    async with asyncio.timeout(PATIENCE):
        while len(found := (await control_plane.request("GET", path))["items"]) < count:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)
    return sorted(found, key=lambda event: int(event["metadata"]["resourceVersion"]))
