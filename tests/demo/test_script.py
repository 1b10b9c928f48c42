# SPDX-License-Identifier: Apache-2.0
"""The demo itself: real Envoy, real servers, simulated engines."""

import asyncio
import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from extproc.demo.cases import cases
from extproc.demo.script import run


@pytest.mark.slow
async def test_every_request_goes_where_it_must_with_the_guard_and_without() -> None:
    output = io.StringIO()

    assert await run(once=True, console=Console(file=output, width=120)) == 0
    assert output.getvalue().count(" ok ") == 2 * len(cases())
    assert output.getvalue().endswith("every request went where it must\n")


@pytest.mark.slow
async def test_the_demo_fails_when_the_hint_does_not_reach_the_picker() -> None:
    output = io.StringIO()

    assert await run(once=True, forward_hint=False, console=Console(file=output, width=120)) == 1
    verdicts = [line.split("│")[-2].strip() for line in output.getvalue().splitlines() if line.startswith("│")]
    steered = ["wrong"] * 10 + ["ok", "ok", "wrong", "ok", "ok"]
    assert verdicts == steered * 2


@pytest.mark.slow
async def test_ctrl_c_ends_a_demo_that_stays_up_and_leaves_no_process_behind() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "extproc.cli", "demo"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"COLUMNS": "200"},
    )
    try:
        assert process.stdout is not None
        lines = []
        while (line := (await process.stdout.readline()).decode()) not in ("Ctrl-C ends it.\n", ""):
            lines.append(line)
        children = children_of(process.pid)
        process.send_signal(2)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert (code, len(children)) == (0, 3)
    assert [pid for pid in children if alive(pid)] == []
    assert [line.partition(" ")[0] for line in lines[-3:]] == ["curl"] * 3


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue  # it ended while we looked
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(status.parent.name))
    return found
