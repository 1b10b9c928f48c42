# SPDX-License-Identifier: Apache-2.0
"""Measure, side by side in one run, and print: `python -m bench [SECONDS [ROUNDS]]`.

Each case is a real Envoy (one worker) that answers 200 by itself behind our filter, so that the filter is what differs,
and wrk with 16 connections before it. The cases take turns; the figures are medians over the rounds. CPU is what
the kernel charged the processes for, divided by the requests. The machine is noisy: read the ratios.
"""

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.client import LOOPBACK
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server, end
from extproc.discovery.file import parse_endpoints
from extproc.envoy.binding import Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.responses import Replies
from extproc.envoy.session import Session
from extproc.policy.config import default_policy
from extproc.policy.types import Pool, Snapshot

PATH = "/v1/chat/completions"
MODEL = "meta-llama/Llama-3.2-1B-Instruct"
BODY = msgspec.json.encode({"model": MODEL, "owned_by": "sglang", "prompt": "p" * 1_900})
HEADERS = {"x-owned-by": "sglang", "x-gateway-model-name": MODEL}
POOL = Pool("default", "chat")
TICKS = os.sysconf("SC_CLK_TCK")
WRK = re.compile(
    r"50%\s+(?P<p50>[\d.]+)(?P<u50>us|ms|s).*?99%\s+(?P<p99>[\d.]+)(?P<u99>us|ms|s).*?"
    r"(?P<count>\d+) requests in (?P<seconds>[\d.]+)s(?P<rest>.*)",
    re.DOTALL,
)
UNIT = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Load:
    """One turn of one case."""

    rate: float
    p50: float
    p99: float
    server: float
    envoy: float
    errors: int


@dataclass
class Case:
    """A running configuration: where wrk goes, whose CPU counts, and what was seen."""

    name: str
    port: int
    envoy: int
    server: int | None
    with_body: bool
    loads: list[Load] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(getattr(load, figure) for load in self.loads)


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


def direct(config: dict[str, Any]) -> dict[str, Any]:
    """The bootstrap, its route answered by Envoy itself: an upstream would be measured too."""
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    route = chain["route_config"]["virtual_hosts"][0]["routes"][0]
    del route["route"]
    route["direct_response"] = {"status": 200, "body": {"inline_string": "ok"}}
    return config


class Bench:
    """The cases, all of them up at once and idle unless it is their turn."""

    def __init__(self, stack: contextlib.AsyncExitStack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.cases: dict[str, Case] = {}
        self.servers: dict[str, Server] = {}

    async def add(self, name: str, port: int | None, pid: int | None, *, with_body: bool = False) -> Case:
        """A case with an Envoy of its own before a processor."""
        folder = self.folder / f"envoy-{len(self.cases)}"
        folder.mkdir()
        plan = Plan(endpoints=((LOOPBACK, 9),), before_port=port, pool=str(POOL))
        envoy = await self.stack.enter_async_context(Envoy(direct(bootstrap(plan)), folder))
        case = self.cases[name] = Case(name, envoy.port, envoy.pid, pid, with_body)
        return case

    async def ours(self, name: str, text: bytes, *, with_body: bool = False) -> Case:
        """Our server as users run it, its decision log on and written to a pipe that is read."""
        path = self.folder / f"endpoints-{len(self.cases)}.yaml"
        await asyncio.to_thread(path.write_bytes, text)
        started = time.perf_counter()
        server = await self.stack.enter_async_context(Server("--endpoints-file", str(path), patience=120))
        print(f"{name}: ready after {time.perf_counter() - started:.2f} s, {rss(server.pid):.0f} MiB", flush=True)
        self.servers[name] = server
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

    async def turn(self, case: Case, seconds: float) -> None:
        """One turn of a case."""
        before = cpu(case.server), cpu(case.envoy)
        output = await wrk(case, seconds)
        spent = cpu(case.server) - before[0], cpu(case.envoy) - before[1]
        found = WRK.search(output)
        if found is None:
            raise SystemExit(f"wrk said:\n{output}")
        count = int(found["count"])
        errors = re.search(r"Non-2xx or 3xx responses: (\d+)", found["rest"])
        case.loads.append(
            Load(
                rate=count / float(found["seconds"]),
                p50=float(found["p50"]) * UNIT[found["u50"]],
                p99=float(found["p99"]) * UNIT[found["u99"]],
                server=spent[0] / count * 1e6,
                envoy=spent[1] / count * 1e6,
                errors=int(errors[1]) if errors else 0,
            )
        )


async def wrk(case: Case, seconds: float) -> str:
    """Run wrk against a case; what it printed."""
    lines = {"content-type": "application/json"} | ({} if case.with_body else HEADERS)
    body = BODY if case.with_body else b"{}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = '{body.decode()}'\n")
        script.writelines(f"wrk.headers['{name}'] = '{value}'\n" for name, value in lines.items())
        script.flush()
        child = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", "-c16", f"-d{seconds:g}s", "--latency", "-s", script.name),
            f"http://{LOOPBACK}:{case.port}{PATH}",
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await child.communicate()
    return output.decode()


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


def cpu(pid: int | None) -> float:
    """CPU seconds that a process has used."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss(pid: int) -> float:
    """Resident memory in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def ratio(line: str, one: float, other: float, budget: str) -> None:
    """Print a ratio beside its budget."""
    print(f"{line:<78} {one / other:5.2f}   {budget}")


async def main(seconds: float, rounds: int) -> None:
    """Start every case, let them take turns, print."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owned-by-bench-")))
        bench = Bench(stack, folder)
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
