# SPDX-License-Identifier: Apache-2.0
"""docs/guides/llm-d-on-k3d.md: its requests, sent as they stand there, print what it says.

They go through a real Envoy, which is configured as istiod would by the guide's files and the overlay that it applies, to
simulated engines of the guide's names, labels and models.
"""

import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from extproc.demo.client import LOOPBACK
from extproc.demo.engines import Engines, Simulated
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server
from tests.docs.curl import Answer, Curl, commands, says, send
from tests.docs.pages import ROOT
from tests.docs.walkthrough import NAMESPACE, POOL, deployed, of_kind
from tests.fakes.epp import EndpointPicker
from tests.heard import Heard
from tests.manifests.istio import placed
from tests.manifests.istiod import Gateway, Service
from tests.manifests.kustomize import build, one

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

GUIDE = (ROOT / "docs" / "guides" / "llm-d-on-k3d.md").read_text()
CURLS = list(commands(GUIDE))
GATEWAY, ADMIN = 8080, 9091


@dataclass
class Cluster:
    """The guide's ports, where they really are, and its EPP; `without` is the gateway before owned-by is there."""

    ports: dict[int, int]
    without: int
    epp: EndpointPicker
    heard: Heard

    async def send(self, curl: Curl) -> Answer:
        """Send a command; what it stores is in force when this returns."""
        self.heard.said.clear()
        answer = await send(curl, self.ports)
        if (curl.port, answer.status) in {(ADMIN, 201), (ADMIN, 204)}:
            await self.heard.line(msg="loaded", source="routing")
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("walkthrough")
    wanted = deployed()
    async with contextlib.AsyncExitStack() as stack:
        engines: list[Simulated] = []
        for number, (engine, _) in enumerate(
            wanted, 1
        ):  # an address each and one port, as pods: the EPP goes by address
            pod = replace(engine, host=f"127.0.4.{number}", port=engines[0].port if engines else 0)
            engines += (await stack.enter_async_context(Engines([pod]))).endpoints
        entries = [
            {"name": pod.name, "address": pod.address, "labels": labels}
            for pod, (_, labels) in zip(engines, wanted, strict=True)
        ]
        pool = {"namespace": NAMESPACE, "name": POOL, "endpoints": entries}
        (folder / "endpoints.yaml").write_bytes(msgspec.json.encode({"pools": [pool]}))
        overlay = build(ROOT / "manifests" / "overlays" / "dev")
        (folder / "policy.yaml").write_text(one(overlay, "ConfigMap", "owned-by")["data"]["policy.yaml"])
        heard = Heard()
        files = ("--endpoints-file", str(folder / "endpoints.yaml"), "--config-file", str(folder / "policy.yaml"))
        # The name is what `exchange` says; curl would say localhost.
        server = await stack.enter_async_context(Server(*files, "--admin-hosts", "gateway", on_line=heard))
        epp = await stack.enter_async_context(EndpointPicker([pod.address for pod in engines], seed=1))
        around = Gateway(
            services={
                f"owned-by.{NAMESPACE}:9002": Service([(LOOPBACK, server.grpc_port)], h2c=True),
                f"{POOL}-epp.{NAMESPACE}:9002": Service([(LOOPBACK, epp.port)], h2c=True),
            },
            pools={f"{POOL}.{NAMESPACE}": [(pod.host, pod.port) for pod in engines]},
            namespace=NAMESPACE,
        )
        # The stand-in speaks no TLS, which is all that the guide's one DestinationRule is about.
        applied = [*of_kind("InferencePool"), *of_kind("HTTPRoute")]
        envoys = []
        for name, objects in (("with", [*overlay, *applied]), ("without", applied)):
            (folder / name).mkdir()
            envoys.append(await stack.enter_async_context(Envoy(placed(around, objects), folder / name)))
        yield Cluster({GATEWAY: envoys[0].port, ADMIN: server.admin_port}, envoys[1].port, epp, heard)


def expected(curl: Curl) -> tuple[int, str]:
    """The status and the engine that the words before a command promise; an answer of ours is no engine's."""
    statuses = re.findall(r"\b([2-5]\d\d):$", curl.before)
    served = re.findall(r"[Aa]nswered by `([a-z-]+)`", curl.before.rpartition("\n\n")[2])
    return int(statuses[0]) if statuses else 200, served[0] if served else ""


async def test_every_command_prints_what_is_shown(cluster: Cluster) -> None:
    """In the order of the page: what one of them stores is what a later one asks for."""
    wrong: list[tuple[str, Answer]] = []
    for curl in CURLS:
        answer = await cluster.send(curl)
        found = (answer.status, answer.headers.get("x-served-by", ""))
        if found != expected(curl) or not says(answer.text, curl.shown):
            wrong.append((curl.line, answer))

    assert wrong == []


async def test_every_request_to_an_engine_came_by_the_picker_with_a_hint(cluster: Cluster) -> None:
    cluster.epp.seen.clear()
    asked = [curl for curl in CURLS if expected(curl)[1] and "stable" not in curl.line]  # who is forgotten by then
    for curl in asked:
        await cluster.send(curl)

    assert [len(seen.hint or []) for seen in cluster.epp.seen] == [1] * len(asked)


async def test_without_owned_by_the_picker_sends_models_to_engines_that_have_them_not(cluster: Cluster) -> None:
    chat = next(curl for curl in CURLS if expected(curl)[1] == "qwen-vllm")
    statuses = Counter([(await send(chat, {GATEWAY: cluster.without})).status for _ in range(20)])

    assert set(statuses) == {200, 404}
