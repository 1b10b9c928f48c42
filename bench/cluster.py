# SPDX-License-Identifier: Apache-2.0
"""Measure what a large cluster costs, and print: `python -m bench.cluster [SECONDS [ROUNDS [PODS]]]`.

A real kube-apiserver (KUBEBUILDER_ASSETS) with 5,000 pods, one of a hundred of them SGLang, each of which answers the probe;
our server in the namespace that they are in, a real Envoy that answers by itself, and wrk before it. 20 times a second a
pod's readiness changes: in the quiet turns in another namespace that somebody else watches, so that the API server is as
busy in both.
"""

import asyncio
import contextlib
import itertools
import shutil
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from bench.load import MODEL, Bench, cpu, ratio, rss
from extproc.demo.client import send
from extproc.demo.processes import Server
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.crds import CRDS
from tests.kubernetes.program import deployed, labels, pool

HERE, ELSEWHERE = "here", "elsewhere"
CHANGES = 20
ANSWER = msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "engine"}]})
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
    ANSWER
)


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[int]:
    """One server for every address of loopback, since no machine has 5,000 of them to spare; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if writer.get_extra_info("peername")[0].startswith("127."):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(HEAD + ANSWER)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "0.0.0.0", 0) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def churn(control_plane: ControlPlane, namespace: str, pods: int) -> AsyncIterator[None]:
    """While the context is open, pod after pod is not ready, and ready again with the next change."""
    over = asyncio.Event()

    async def change() -> None:
        began = time.monotonic()
        for number in itertools.count():
            await control_plane.set_ready(f"pod-{number // 2 % pods}", namespace, ready=bool(number % 2))
            if over.is_set() and number % 2:
                return
            await asyncio.sleep(max(began + (number + 1) / CHANGES - time.monotonic(), 0))

    task = asyncio.create_task(change())
    try:
        yield
    finally:
        over.set()
        await task


@contextlib.asynccontextmanager
async def watcher(control_plane: ControlPlane, namespace: str) -> AsyncIterator[None]:
    """Somebody who watches the pods of a namespace as our server does, and looks at nothing."""
    url = f"{control_plane.url}/api/v1/namespaces/{namespace}/pods"
    trust = ssl.create_default_context(cafile=control_plane.ca_file)
    headers = {"authorization": f"Bearer {control_plane.admin_token}"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), headers=headers) as session,
        session.get(url, params={"watch": "1"}, timeout=aiohttp.ClientTimeout(total=None)) as response,
    ):

        async def drain() -> None:
            async for _ in response.content.iter_any():
                pass

        task = asyncio.create_task(drain())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def unready(server: Server) -> int:
    """How many endpoints of the snapshot are not ready, by the server's own gauge."""
    text = (await send(server.metrics_port, "GET", "/metrics")).body.decode()
    line = next(line for line in text.splitlines() if line.startswith("owned_by_endpoints") and 'ready="false"' in line)
    return int(float(line.rpartition(" ")[2]))


async def leaving(control_plane: ControlPlane, server: Server, number: int) -> float:
    """Milliseconds from the API server's answer that a pod is not ready until it is not in the snapshot's ready ones."""
    await control_plane.set_ready(f"pod-{number}", HERE, ready=False)
    said = time.perf_counter()
    while await unready(server) == 0:
        pass
    took = (time.perf_counter() - said) * 1000
    await control_plane.set_ready(f"pod-{number}", HERE, ready=True)
    while await unready(server):
        pass
    return took


async def main(seconds: float, rounds: int, pods: int) -> None:
    """Fill the cluster, start the server, let the turns alternate, print."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owned-by-bench-")))
        port = await stack.enter_async_context(engine())
        control_plane = await stack.enter_async_context(ControlPlane(folder))
        for definition in CRDS:
            await control_plane.apply(definition)
        for namespace, count in ((HERE, pods), (ELSEWHERE, 100)):
            await control_plane.create_namespace(namespace)
            rows = ((f"pod-{n}", f"127.{n // 60_000 + 1}.{n // 250 % 250}.{n % 250 + 1}", n) for n in range(count))
            await control_plane.pods(
                [(name, ip, labels("vllm" if n % 100 else "sglang")) for name, ip, n in rows], namespace
            )
        await control_plane.apply(pool("chat", HERE, port))
        kubeconfig = await stack.enter_async_context(deployed(control_plane, HERE, folder))
        started = time.perf_counter()
        server = await stack.enter_async_context(Server("--kubeconfig", str(kubeconfig), patience=300))
        print(f"{pods} pods: ready after {time.perf_counter() - started:.1f} s, {rss(server.pid):.0f} MiB", flush=True)
        await stack.enter_async_context(watcher(control_plane, ELSEWHERE))
        bench = Bench(stack, folder)
        cases = {
            name: await bench.add(name, server.grpc_port, server.pid, pool=f"{HERE}/chat") for name in (HERE, ELSEWHERE)
        }
        idle: dict[str, list[float]] = {HERE: [], ELSEWHERE: []}
        for _ in range(rounds):
            for namespace, count in ((ELSEWHERE, 100), (HERE, pods)):
                async with churn(control_plane, namespace, count):
                    before, began = cpu(server.pid), time.perf_counter()
                    await asyncio.sleep(seconds)
                    idle[namespace].append((cpu(server.pid) - before) / (time.perf_counter() - began) * 100)
                    await bench.turn(cases[namespace], seconds)
        left = [await leaving(control_plane, server, number) for number in range(20)]
        quiet, busy = cases[ELSEWHERE], cases[HERE]
        print(f"\n{'':<24}{'req/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'server us':>11}{'idle CPU %':>12}{'errors':>8}")
        for name, case in (("quiet", quiet), (f"{CHANGES} changes a second", busy)):
            figures = [case.median(each) for each in ("rate", "p50", "p99", "server")]
            errors = sum(load.errors for load in case.loads)
            print(
                f"{name:<24}{figures[0]:>8.0f}{figures[1]:>9.2f}{figures[2]:>9.2f}{figures[3]:>11.0f}"
                f"{statistics.median(idle[case.name]):>12.1f}{errors:>8}"
            )
        print(f"\nmemory at the end: {rss(server.pid):.0f} MiB   <= 200")
        print(
            f"not ready until left out of the snapshot: median {statistics.median(left):.0f} ms, "
            f"most {max(left):.0f} ms   <= 1000"
        )
        ratio("p99 under changes, to none", busy.median("p99"), quiet.median("p99"), "<= 1.5")
        ratio("server CPU a request under changes, to none", busy.median("server"), quiet.median("server"), "no bound")


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    asyncio.run(
        main(
            given[0] if given else 4,
            int(given[1]) if len(given) > 1 else 5,
            int(given[2]) if len(given) > 2 else 5_000,
        )
    )
