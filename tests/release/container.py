# SPDX-License-Identifier: Apache-2.0
"""A process in the image's tree as a container has it: the image's variables and no other, its user, its root read-only."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from extproc.demo.processes import end
from release.tree import Image

ENDPOINTS: Final = "/etc/owned-by/endpoints.yaml"
"""Where a volume with endpoints is in the tree."""


@dataclass
class Container:
    """A running server, and the ports that it said."""

    process: asyncio.subprocess.Process
    ports: dict[str, int]


async def until_ready(process: asyncio.subprocess.Process) -> dict[str, int]:
    """The ports that a server says on its standard error, once it says that it is ready; all it said if it never is."""
    assert process.stderr is not None
    told: list[str] = []
    ports: dict[str, int] = {}
    async for line in process.stderr:
        told.append(line.decode())
        if not line.startswith(b"{"):
            continue  # a traceback, for the error
        entry = msgspec.json.decode(line)
        if entry["msg"] == "listening":
            ports = {name: port for name, port in entry.items() if name.endswith("_port")}
        if entry["msg"] == "ready":
            return ports
    raise AssertionError("".join(told))


async def start(image: Image, *words: str) -> asyncio.subprocess.Process:
    """A program of the image's, as the image's user where this process may become another one."""
    user, _, group = image.user.partition(":")
    other: Any = {"user": int(user), "group": int(group), "extra_groups": []} if os.getuid() == 0 else {}
    return await asyncio.create_subprocess_exec(
        *image.command(*words),
        cwd=image.below(image.workdir),
        env=image.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for pytest, which ends it in its turn
        **other,
    )


async def said(image: Image, *words: str) -> tuple[int | None, str, str]:
    """The exit code of a program of the image's, and what it wrote to both its outputs."""
    process = await start(image, *words)
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@contextlib.asynccontextmanager
async def serving(image: Image, *flags: str) -> AsyncIterator[Container]:
    """What the image starts by itself, with further flags, on free ports, once it says that it is ready."""
    free = ("--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0", "--admin-port", "0")
    here = ("--address", "127.0.0.1", "--drain-delay", "0s")
    process = await start(image, *image.entrypoint, *image.cmd, *here, *free, *flags)
    try:
        ports = await until_ready(process)
        yield Container(process, ports)
    finally:
        await end(process)
