# SPDX-License-Identifier: Apache-2.0
"""docs/guides/troubleshoot.md: what the doctor prints there is what it prints."""

import asyncio
import contextlib
import re
import sys
from pathlib import Path

import pytest

from extproc.demo.bootstrap import Plan
from extproc.doctor.findings import ABOUT, Check
from tests.dataplane.stage import hosts, stage
from tests.docs.pages import ROOT, blocks

GUIDE = (ROOT / "docs" / "guides" / "troubleshoot.md").read_text()
(SHOWN,) = [block.text for block in blocks(GUIDE) if not block.language]


def table(head: str) -> list[list[str]]:
    """The rows of the table whose head begins so, cell by cell."""
    rows = GUIDE[GUIDE.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_check_is_listed_with_what_it_means() -> None:
    assert table("| check |") == [[f"`{check}`", about] for check, about in ABOUT.items()]


def test_every_symptom_leads_to_checks_that_there_are() -> None:
    named = {name for row in table("| what a client sees |") for name in re.findall(r"`([a-z-]+)`", row[1])}

    assert named
    assert named <= set(Check)


@pytest.mark.slow
async def test_the_output_is_what_the_doctor_prints(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        pods = await stage(stack, tmp_path, hosts(2), hold=False)
        pods.epp.pool = [pods.pods.address(name) for name in pods.pods.endpoints if name.startswith("vllm")]
        plan = Plan(
            endpoints=pods.pool,
            before_port=pods.server.grpc_port,
            picker_port=pods.epp.port,
            forward_hint=False,
            buffer_limit=8 << 20,
        )
        envoy = await pods.envoy(plan)
        urls = {"gateway": envoy.port, "envoy": envoy.admin_port, "admin": pods.server.admin_port}
        arguments = [word for name, port in urls.items() for word in (f"--{name}", f"http://127.0.0.1:{port}")]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc.cli", "doctor", *arguments), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()

    assert (process.returncode, output.decode()) == (1, SHOWN)
