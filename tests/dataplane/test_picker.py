# SPDX-License-Identifier: Apache-2.0
"""Our server as the pool's picker, without an EPP: load, refusals, and who served."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from extproc.demo.bootstrap import Bodies, Plan, bootstrap
from extproc.demo.client import LOOPBACK, Answer, send
from extproc.demo.engines import Engines, Simulated
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server
from tests.dataplane.conftest import write_endpoints
from tests.dataplane.exchange import exchange
from tests.dataplane.scenarios import chat
from tests.dataplane.stage import Stage, hosts, stage
from tests.dataplane.test_table import settled

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "m"
TRIO = [Simulated(f"vllm-{number}", "vllm", MODEL) for number in range(3)]


class Trio:
    """Three engines that say how busy they are, a server that asks them, and an Envoy."""

    def __init__(self, engines: Engines, server: Server, envoy: Envoy) -> None:
        self.engines = engines
        self.server = server
        self.envoy = envoy

    async def served(self, count: int) -> Counter[str]:
        """Who answers so many requests."""
        return Counter([(await self._one()).headers["x-served-by"] for _ in range(count)])

    async def _one(self) -> Answer:
        return await send(self.envoy.port, "GET", "/v1/x")

    async def until(self, wanted: Callable[[], Awaitable[bool]]) -> None:
        """Wait for figures to arrive: only what they do can be seen from outside."""
        async with asyncio.timeout(30):
            while not await wanted():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(loop_scope="session")
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    async with Engines(TRIO) as engines:
        endpoints = str(write_endpoints(tmp_path, engines))
        often = ("--refresh-metrics-interval", "50ms", "--metrics-staleness-threshold", "500ms")
        async with Server("--endpoints-file", endpoints, "--attachment", "picker", *often) as server:
            pool = tuple((LOOPBACK, one.port) for one in engines.endpoints)
            async with Envoy(bootstrap(Plan(endpoints=pool, picker_port=server.grpc_port)), tmp_path) as envoy:
                yield Trio(engines, server, envoy)


async def fresh(trio: Trio) -> int:
    status = (await send(trio.server.admin_port, "GET", "/statusz")).json()
    return int(status["load"]["fresh"])


async def test_the_engine_with_the_fewest_waiting_requests_is_the_first(trio: Trio) -> None:
    trio.engines.load("vllm-0", waiting=4, kv_cache=0.0)
    trio.engines.load("vllm-1", waiting=1, kv_cache=0.9)
    trio.engines.load("vllm-2", waiting=2, kv_cache=0.1)

    async def only_one() -> bool:
        return await trio.served(3) == {"vllm-1": 3}

    await trio.until(only_one)
    assert await trio.served(12) == {"vllm-1": 12}


async def test_among_equals_in_waiting_the_emptier_caches_share_evenly(trio: Trio) -> None:
    for name, used in (("vllm-0", 0.31), ("vllm-1", 0.92), ("vllm-2", 0.35)):
        trio.engines.load(name, waiting=0, kv_cache=used)

    async def without_the_full_one() -> bool:
        return await trio.served(4) == {"vllm-0": 2, "vllm-2": 2}

    await trio.until(without_the_full_one)
    assert await trio.served(12) == {"vllm-0": 6, "vllm-2": 6}


async def test_without_fresh_figures_the_endpoints_take_turns(trio: Trio) -> None:
    trio.engines.load("vllm-0", waiting=9, kv_cache=0.9)

    async def spared() -> bool:
        return "vllm-0" not in await trio.served(3)

    async def stale() -> bool:
        return await fresh(trio) == 0

    await trio.until(spared)
    for one in TRIO:
        trio.engines.silence(one.name)
    await trio.until(stale)
    assert await trio.served(12) == {"vllm-0": 4, "vllm-1": 4, "vllm-2": 4}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("picker")
        flags = ("--attachment", "picker")
        yield await stage(stack, folder, hosts(2), refusing=("vllm-0",), hold=False, flags=flags)


async def served_metric(stage: Stage) -> dict[str, float]:
    text = (await send(stage.server.metrics_port, "GET", "/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("owned_by_served_total")]
    return {line.partition('endpoint="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_who_served_is_counted_where_the_gateway_tells(pods: Stage) -> None:
    plan = Plan(
        endpoints=pods.pool,
        picker_port=pods.server.grpc_port,
        picker_bodies=Bodies.DUPLEX,
        picker_response_headers=True,
        report_served=True,
        retries=2,
    )
    envoy = await pods.envoy(plan)
    for owner in ("vllm", "sglang"):
        for _ in range(4):
            async with exchange(envoy.port, chat(owner, "last key").request) as answer:
                assert (answer.status, answer.headers["x-served-by"][:4]) == (200, owner[:4])
    counted = await served_metric(pods)

    # Of vLLM's two, which take turns to be named first, one is dead.
    assert counted == {"first": 6, "next": 2}
    assert await settled(envoy, "epp") == 0


async def test_nothing_that_is_eligible_is_a_503(pods: Stage, tmp_path: Path) -> None:
    members = [{"name": "a", "address": "127.0.0.1:9", "models": [MODEL], "ready": False}]
    (tmp_path / "endpoints.yaml").write_bytes(msgspec.json.encode({"pools": [{"name": "chat", "endpoints": members}]}))
    async with Server("--endpoints-file", str(tmp_path / "endpoints.yaml"), "--attachment", "picker") as server:
        envoy = await pods.envoy(Plan(endpoints=pods.pool, picker_port=server.grpc_port))
        async with exchange(envoy.port, chat("vllm", "last key").request) as answer:
            error = msgspec.json.decode(await answer.rest())["error"]

    assert (answer.status, error["code"], answer.headers["retry-after"]) == (503, "no_ready_endpoint", "1")
