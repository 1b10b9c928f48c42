# SPDX-License-Identifier: Apache-2.0
"""What every benchmark is made of: an Envoy of its own before each processor, turns of wrk, and whose CPU that took."""

import asyncio
import contextlib
import os
import re
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.client import LOOPBACK
from extproc.demo.envoy import Envoy
from extproc.policy.types import Pool

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

    async def add(
        self, name: str, port: int | None, pid: int | None, *, with_body: bool = False, pool: str = str(POOL)
    ) -> Case:
        """A case with an Envoy of its own before a processor."""
        folder = self.folder / f"envoy-{len(self.cases)}"
        folder.mkdir()
        plan = Plan(endpoints=((LOOPBACK, 9),), before_port=port, pool=pool)
        envoy = await self.stack.enter_async_context(Envoy(direct(bootstrap(plan)), folder))
        case = self.cases[name] = Case(name, envoy.port, envoy.pid, pid, with_body)
        return case

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
