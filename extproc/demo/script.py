# SPDX-License-Identifier: Apache-2.0
"""`owned-by demo`: put the whole path up, send each case through it, say which engine answered."""

import asyncio
import contextlib
import http.client
import signal
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.cases import ENGINES, LLAMA, QWEN, Case, Served, cases
from extproc.demo.client import LOOPBACK, Answer, send
from extproc.demo.engines import MAX_MODEL_LEN, Engines, Simulated
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server
from extproc.envoy.binding import Attachment
from extproc.policy.config import default_policy
from extproc.policy.types import Pool

POOL: Final = Pool("default", "chat")
REPEATS: Final = 4
"""How often a request is sent that an engine answers: as many as there are engines, so that luck cannot pass it."""

_CREATED: Final = 1_700_000_000


@dataclass(frozen=True)
class Result:
    """A case and what came of it: every answer, and the first fault ("" if there is none)."""

    case: Case
    answers: Sequence[Answer]
    fault: str


async def run(*, once: bool, forward_hint: bool = True, console: Console) -> int:
    """Run the demo and print what happens; the exit code.

    With `once` the cases run with the guard and without it, and 0 means that each request went where it must. Otherwise
    they run once and everything stays up until SIGINT or SIGTERM. `forward_hint=False` hides the hint from the EPP's
    place: then the steered cases must fail. Raises EnvoyError, ServerError or OSError if something does not start.
    """
    show = asyncio.create_task(_once(console, forward_hint) if once else _stay(console, forward_hint))
    with _stopping(show):
        try:
            return await show
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return int(once)  # a signal: the end of a demo that stays up, an interruption of one that does not


async def _once(console: Console, forward_hint: bool) -> int:  # noqa: FBT001 - passed on
    wrong = 0
    for guard in (True, False):
        async with stage(guard=guard, forward_hint=forward_hint) as port:
            results = await play(port)
        _print(console, f"guard {'on' if guard else 'off'}", results)
        wrong += sum(bool(result.fault) for result in results)
    console.print(f"{wrong} of {2 * len(cases())} went wrong" if wrong else "every request went where it must")
    return int(wrong > 0)


async def _stay(console: Console, forward_hint: bool) -> int:  # noqa: FBT001 - passed on
    async with stage(guard=True, forward_hint=forward_hint) as port:
        _print(console, "owned-by", await play(port))
        for line in _curls(port):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print("Ctrl-C ends it.")
        await asyncio.Event().wait()
    return 0


@contextlib.asynccontextmanager
async def stage(*, guard: bool, forward_hint: bool) -> AsyncIterator[int]:
    """Everything that the demo needs, up while the context is open; the port of the gateway."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="owned-by-demo-")))
        engines = await stack.enter_async_context(Engines(ENGINES))
        endpoints = _write(folder / "endpoints.yaml", _endpoints(engines.endpoints))
        nothing: dict[str, list[str]] = {"headers": [], "query": [], "body": [], "modelHeaders": []}
        # Nothing but the hint steers the picker: it reads no owner and compares no model.
        plain = _write(folder / "picker.yaml", _policy(sources=nothing, match={"models": "any"}))
        policy = _write(folder / "before.yaml", _policy(guard=guard))
        picker = await stack.enter_async_context(Server(*_flags(Attachment.PICKER, endpoints, plain)))
        before = await stack.enter_async_context(Server(*_flags(Attachment.BEFORE, endpoints, policy)))
        plan = Plan(
            endpoints=tuple((LOOPBACK, engine.port) for engine in engines.endpoints),
            before_port=before.grpc_port,
            picker_port=picker.grpc_port,
            pool=str(POOL),
            forward_hint=forward_hint,
        )
        envoy = await stack.enter_async_context(Envoy(bootstrap(plan), folder))
        yield envoy.port


async def play(port: int) -> list[Result]:
    """Send every case through the gateway at `port`, one after the other."""
    return [await _play(port, case) for case in cases()]


async def _play(port: int, case: Case) -> Result:
    answers: list[Answer] = []
    fault = ""
    for _ in range(REPEATS if isinstance(case.expected, Served) else 1):
        try:
            answer = await send(port, case.method, case.path, case.all_headers, case.payload or None)
        except (OSError, http.client.HTTPException) as error:
            return Result(case, answers, fault or f"no answer: {error!r}")
        answers.append(answer)
        fault = fault or case.expected.fault(case, answer)
    return Result(case, answers, fault)


def _flags(attachment: Attachment, endpoints: Path, policy: Path) -> list[str]:
    pool = ["--pool-name", POOL.name, "--pool-namespace", POOL.namespace]
    return ["--attachment", attachment, *pool, "--endpoints-file", str(endpoints), "--config-file", str(policy)]


def _endpoints(engines: Sequence[Simulated]) -> dict[str, Any]:
    label = default_policy().match.owned_by_labels[0]
    entries = [
        {
            "name": engine.name,
            "address": engine.address,
            "labels": {label: engine.kind},
            "models": [{"id": engine.model, "created": _CREATED, "max_model_len": MAX_MODEL_LEN[engine.kind]}],
        }
        for engine in engines
    ]
    return {"pools": [{"namespace": POOL.namespace, "name": POOL.name, "endpoints": entries}]}


def _policy(**rules: Any) -> dict[str, Any]:
    basis = default_policy()
    return {"apiVersion": basis.api_version, "kind": basis.kind, **rules}


def _write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _print(console: Console, title: str, results: Sequence[Result]) -> None:
    table = Table("request", "answered by", "status", "ms", "", title=title, title_justify="left")
    for result in results:
        servers = sorted({answer.headers.get("x-served-by", "owned-by") for answer in result.answers})
        statuses = sorted({str(answer.status) for answer in result.answers})
        times = [answer.milliseconds for answer in result.answers]
        median = f"{statistics.median(times):.1f}" if times else "-"
        verdict = "[red]wrong[/]" if result.fault else "[green]ok[/]"
        table.add_row(result.case.title, ", ".join(servers), ", ".join(statuses), median, verdict)
    console.print(table)
    for result in results:
        if result.fault:
            console.print(f"{result.case.title}: {result.fault}", style="red", markup=False, highlight=False)


def _curls(port: int) -> list[str]:
    base = f"http://{LOOPBACK}:{port}"
    chat = f"curl -si {base}/v1/chat/completions"
    kind = "-H 'content-type: application/json'"
    hello = '"messages": [{"role": "user", "content": "hello"}]'
    return [
        f"curl -s {base}/v1/models",
        f"{chat} {kind} -H 'x-owned-by: sglang' -d '{{\"model\": \"{LLAMA}\", {hello}}}'",
        f'{chat} {kind} -d \'{{"model": "{QWEN}", "owned_by": "vllm", "stream": true, {hello}}}\'',
    ]


@contextlib.contextmanager
def _stopping(task: asyncio.Task[int]) -> Iterator[None]:
    """SIGINT and SIGTERM cancel the task, once: a second one must not interrupt the ending of the processes."""
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            task.cancel()
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
