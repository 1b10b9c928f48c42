# SPDX-License-Identifier: Apache-2.0
"""Measure, side by side in one run, and print: `python -m bench [SECONDS [ROUNDS]]`.

Each case is a real Envoy (one worker) that answers 200 by itself behind our filter, so that the filter is what differs,
and wrk with 16 connections before it. The cases take turns; the figures are medians over the rounds. CPU is what
the kernel charged the processes for, divided by the requests. The machine is noisy: read the ratios.
"""

import asyncio
import contextlib
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from bench.load import BODY, HEADERS, MODEL, PATH, POOL, Bench, Case, ratio, rss
from extproc.demo.processes import Server, end
from extproc.discovery.file import parse_endpoints
from extproc.envoy.binding import Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.policy.config import default_policy
from extproc.policy.types import Snapshot


def endpoints(total: int, matching: int, *, unready: int = -1) -> bytes:
    """An endpoints file of `total` endpoints of which `matching` are SGLang; `unready` is the number of one that is not."""
    members = [
        {
            "name": f"pod-{number}",
            "address": f"127.{number // 60_000}.{number // 250 % 250}.{number % 250 + 1}:8000",
            "labels": {"llm-d.ai/engine-type": "sglang" if number < matching else "vllm"},
            "models": [MODEL],
            "ready": number != unready,
        }
        for number in range(total)
    ]
    return msgspec.json.encode({"pools": [{"name": "chat", "endpoints": members}]})


def replies(text: bytes, *, with_body: bool) -> list[bytes]:
    """What our server answers to the request, message by message: the constants of the bare server."""
    found = parse_endpoints(text)
    world = Replies(Snapshot(1, tuple(found), found), default_policy())
    session = Session(Binding(pool=POOL), lambda: world, itertools.count().__next__)
    head = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration())
    fields = {":method": "POST", ":path": PATH, "content-type": "application/json"} | ({} if with_body else HEADERS)
    for name, value in fields.items():
        head.request_headers.headers.headers.append(pb.HeaderValue(key=name, raw_value=value.encode()))
    said = session.receive(head)
    if with_body:
        said += session.receive(pb.ProcessingRequest(request_body=pb.HttpBody(body=BODY, end_of_stream=True)))
    return said


class Servers(Bench):
    """The servers that are measured, ours and the bare one."""

    async def ours(self, name: str, text: bytes, *, with_body: bool = False) -> Case:
        """Our server as users run it, its decision log on and written to a pipe that is read."""
        path = self.folder / f"endpoints-{len(self.cases)}.yaml"
        await asyncio.to_thread(path.write_bytes, text)
        started = time.perf_counter()
        server = await self.stack.enter_async_context(Server("--endpoints-file", str(path), patience=120))
        print(f"{name}: ready after {time.perf_counter() - started:.2f} s, {rss(server.pid):.0f} MiB", flush=True)
        return await self.add(name, server.grpc_port, server.pid, with_body=with_body)

    async def bare(self, name: str, text: bytes, *, with_body: bool = False) -> Case:
        """The bare server with our own answers as its constants."""
        files = []
        for number, reply in enumerate(replies(text, with_body=with_body)):
            files.append(self.folder / f"reply-{len(self.cases)}-{number}")
            files[-1].write_bytes(reply)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.bare", *map(str, files)), stdout=asyncio.subprocess.PIPE
        )
        self.stack.push_async_callback(end, child)
        assert child.stdout is not None
        port = int(await child.stdout.readline())
        return await self.add(name, port, child.pid, with_body=with_body)


@contextlib.asynccontextmanager
async def churn(path: Path, total: int, matching: int) -> AsyncIterator[None]:
    """Another endpoint is not ready every 50 ms, while the context is open."""

    async def change() -> None:
        for number in itertools.count():
            await asyncio.to_thread(replace, path, endpoints(total, matching, unready=number % total))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(change())
    try:
        yield
    finally:
        task.cancel()


def replace(path: Path, text: bytes) -> None:
    """Change a file so that no reader sees half of it."""
    half = path.with_suffix(".new")
    half.write_bytes(text)
    half.replace(path)


async def main(seconds: float, rounds: int) -> None:
    """Start every case, let them take turns, print."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owned-by-bench-")))
        bench = Servers(stack, folder)
        few, many, all_match = endpoints(100, 50), endpoints(5_000, 50), endpoints(5_000, 5_000)
        await bench.add("no filter", None, None)
        await bench.bare("bare, headers", few)
        await bench.ours("ours, headers", few)
        await bench.bare("bare, 2 KB body", few, with_body=True)
        await bench.ours("ours, 2 KB body", few, with_body=True)
        await bench.ours("50 of 5,000 match", many)
        await bench.ours("a hint of 5,000", all_match)
        churned = await bench.ours("20 changes a second", few)
        path = folder / f"endpoints-{len(bench.cases) - 1}.yaml"
        for _ in range(rounds):
            for case in bench.cases.values():
                async with churn(path, 100, 50) if case is churned else contextlib.nullcontext():
                    await bench.turn(case, seconds)
        report(bench)


def report(bench: Bench) -> None:
    """Print the table and the ratios of design section 7."""
    cases = bench.cases
    print(f"\n{'':<22}{'req/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'server us':>11}{'Envoy us':>10}{'MiB':>6}{'errors':>8}")
    for name, case in cases.items():
        memory = f"{rss(case.server):.0f}" if case.server else "-"
        figures = [case.median(each) for each in ("rate", "p50", "p99", "server", "envoy")]
        errors = sum(load.errors for load in case.loads)
        print(
            f"{name:<22}{figures[0]:>8.0f}{figures[1]:>9.2f}{figures[2]:>9.2f}{figures[3]:>11.0f}{figures[4]:>10.0f}{memory:>6}{errors:>8}"
        )
    hint = len(replies(endpoints(5_000, 5_000), with_body=False)[0])
    print(f"\nbytes of a reply with 5,000 entries, which the EPP gets with every message: {hint}\n")

    def both(name: str) -> float:
        return cases[name].median("server") + cases[name].median("envoy")

    ours, bare = cases["ours, headers"], cases["bare, headers"]
    ratio(
        "server CPU of a headers-only decision, to the bare server",
        ours.median("server"),
        bare.median("server"),
        "<= 1.15",
    )
    ours_body, bare_body = cases["ours, 2 KB body"], cases["bare, 2 KB body"]
    ratio(
        "server CPU of a body decision, to the bare server",
        ours_body.median("server"),
        bare_body.median("server"),
        "<= 1.20",
    )
    ratio(
        "server + Envoy CPU, 50 of 5,000 endpoints match, to 50 of 100",
        both("50 of 5,000 match"),
        both("ours, headers"),
        "<= 1.1",
    )
    ratio(
        "server + Envoy CPU of a hint of 5,000, to a hint of 50",
        both("a hint of 5,000"),
        both("ours, headers"),
        "no bound",
    )
    ratio(
        "p99 under 20 changes a second, to none",
        cases["20 changes a second"].median("p99"),
        ours.median("p99"),
        "<= 1.5",
    )


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    asyncio.run(main(given[0] if given else 4, int(given[1]) if len(given) > 1 else 5))
