# SPDX-License-Identifier: Apache-2.0
"""A real Envoy and a real API server: what happens to a pod is what happens to its requests, within the time that we promise.

The engines are simulated, on an address of loopback each and one port, as pods are. Nothing but the hint steers the picker.
"""

import asyncio
import contextlib
import http.client
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec
import pytest
import pytest_asyncio

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.cases import LLAMA, QWEN
from extproc.demo.client import send
from extproc.demo.engines import Engines, Simulated
from extproc.demo.envoy import Envoy
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.program import deployed, labels, policy, pool, running

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

LEAVES: Final = 1.0
"""Seconds after which a pod that is not ready gets no request any more (design section 7)."""
COMES: Final = 2.0
"""Seconds within which a pod that became ready gets its first."""
WATCHED: Final = 2.0
"""Seconds for which it is watched that it gets none."""
NO_ANSWER: Final = 0
PATH: Final = "/v1/chat/completions"
BLIND: Final = (
    "{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, match: {models: any},"
    " sources: {headers: [], query: [], body: [], modelHeaders: []}}"
)
POLICY: Final = "{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, match: {engineFrom: [label, probe]}}"
ASKED: Final = ("vllm", "sglang", "tgi")


@dataclass(frozen=True)
class Sent:
    """A request and what came of it: whom it asked for, when it was sent, who answered how."""

    owner: str
    at: float
    status: int
    served_by: str


@dataclass
class Gateway:
    """The gateway under a steady load."""

    port: int
    sent: list[Sent] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def load(self, owner: str) -> None:
        """Ask for an owner again and again, each time once the last answer is there."""
        body = msgspec.json.encode({"model": LLAMA, "messages": []})
        headers = {"content-type": "application/json", "x-owned-by": owner}
        while True:
            at = time.monotonic()
            try:
                answer = await send(self.port, "POST", PATH, headers, body)
                self.sent.append(Sent(owner, at, answer.status, answer.headers.get("x-served-by", "")))
            except (OSError, http.client.HTTPException):
                self.sent.append(Sent(owner, at, NO_ANSWER, ""))
            self.news.set()

    async def one_more(self) -> None:
        """Wait for the next answer."""
        self.news.clear()
        await self.news.wait()

    def outcomes(self) -> set[tuple[str, int]]:
        """Whom requests asked for, and with what status they were answered."""
        return {(one.owner, one.status) for one in self.sent}

    async def first(self, name: str, *, after: float) -> float:
        """How many seconds after a moment the first request was sent that an engine answered."""
        async with asyncio.timeout(20):
            while True:
                found = [one.at for one in self.sent if one.served_by == name and one.at >= after]
                if found:
                    return min(found) - after
                await self.one_more()

    async def models(self) -> list[tuple[str, str]]:
        """What `/v1/models` lists through the gateway."""
        answer = await send(self.port, "GET", "/v1/models")
        return [(entry["id"], entry["owned_by"]) for entry in answer.json()["data"]]

    async def listed(self, wanted: list[tuple[str, str]], *, after: float) -> float:
        """How many seconds after a moment that is what `/v1/models` lists."""
        async with asyncio.timeout(20):
            while await self.models() != wanted:
                await self.one_more()
        return time.monotonic() - after


ROWS: Final[dict[str, tuple[Literal["vllm", "sglang"], str]]] = {
    "vllm-0": ("vllm", LLAMA),
    "vllm-1": ("vllm", LLAMA),
    "sglang-0": ("sglang", LLAMA),
    "sglang-1": ("sglang", LLAMA),
    "qwen-0": ("sglang", QWEN),
}


@contextlib.asynccontextmanager
async def engines() -> AsyncIterator[dict[str, Simulated]]:
    """All of them at one port: the first finds it, the others have it at addresses that nobody else uses."""
    async with contextlib.AsyncExitStack() as stack:
        up: list[Simulated] = []
        for number, (name, (kind, model)) in enumerate(ROWS.items(), 1):
            wanted = Simulated(name, kind, model, host=f"127.0.2.{number}", port=up[0].port if up else 0)
            up += (await stack.enter_async_context(Engines([wanted]))).endpoints
        yield {one.name: one for one in up}


@pytest_asyncio.fixture(loop_scope="session")
async def gateway(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Three ready pods, two that are not, both our servers, Envoy, and a steady load."""
    blind = tmp_path / "blind.yaml"
    blind.write_text(BLIND)
    async with contextlib.AsyncExitStack() as stack:
        up = await stack.enter_async_context(engines())
        kubeconfig = await stack.enter_async_context(deployed(control_plane, namespace, tmp_path))
        await control_plane.apply(policy(namespace, POLICY))
        await control_plane.apply(pool("chat", namespace, up["vllm-0"].port))
        for name, one in up.items():
            # One pod has no engine label: its engine says by itself what it is.
            said = {"app": "chat"} if name == "sglang-1" else labels(one.kind)
            ready = name not in ("sglang-1", "qwen-0")
            await control_plane.pod(name, namespace, ip=one.host, labels=said, ready=ready)
        probe = ("--probe-interval", "30s")
        before = await stack.enter_async_context(running(kubeconfig, *probe, "--config-map", "owned-by"))
        picker = await stack.enter_async_context(
            running(kubeconfig, "--config-file", str(blind), "--attachment", "picker")
        )
        plan = Plan(
            endpoints=tuple((one.host, one.port) for one in up.values()),
            before_port=before.server.grpc_port,
            picker_port=picker.server.grpc_port,
            pool=f"{namespace}/chat",
        )
        envoy = await stack.enter_async_context(Envoy(bootstrap(plan), tmp_path))
        found = Gateway(envoy.port)
        clients = [asyncio.create_task(found.load(owner)) for owner in ASKED]
        yield found
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def test_a_pod_that_is_not_ready_gets_no_request_a_second_later(
    gateway: Gateway, control_plane: ControlPlane, namespace: str
) -> None:
    await gateway.first("vllm-1", after=time.monotonic())
    await control_plane.set_ready("vllm-1", namespace, ready=False)
    left = time.monotonic()
    while time.monotonic() < left + LEAVES + WATCHED:
        await gateway.one_more()

    late = [one for one in gateway.sent if one.served_by == "vllm-1" and one.at > left + LEAVES]
    served = Counter(one.served_by for one in gateway.sent if one.owner == "vllm" and one.at > left + LEAVES)
    assert (late, list(served)) == ([], ["vllm-0"])
    assert gateway.outcomes() == {("vllm", 200), ("sglang", 200), ("tgi", 404)}


async def test_a_new_pod_gets_its_first_request_within_two_seconds(
    gateway: Gateway, control_plane: ControlPlane, namespace: str
) -> None:
    await gateway.first("sglang-0", after=time.monotonic())
    await control_plane.set_ready("sglang-1", namespace, ready=True)
    took = await gateway.first("sglang-1", after=time.monotonic())

    assert took < COMES
    assert gateway.outcomes() == {("vllm", 200), ("sglang", 200), ("tgi", 404)}


async def test_the_list_of_models_follows_the_pods(
    gateway: Gateway, control_plane: ControlPlane, namespace: str
) -> None:
    fewer = [(LLAMA, "sglang"), (LLAMA, "vllm")]
    more = [(QWEN, "sglang"), *fewer]
    before = await gateway.models()
    await control_plane.set_ready("qwen-0", namespace, ready=True)
    came = await gateway.listed(more, after=time.monotonic())
    await control_plane.set_ready("qwen-0", namespace, ready=False)
    went = await gateway.listed(fewer, after=time.monotonic())

    assert before == fewer
    assert came < COMES
    assert went < LEAVES
    assert gateway.outcomes() == {("vllm", 200), ("sglang", 200), ("tgi", 404)}
