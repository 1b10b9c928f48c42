# SPDX-License-Identifier: Apache-2.0
"""A program in the background: started, waited for until it is ready, ended by its handle; its output is a log file."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, Final

import aiohttp

from extproc.demo.client import LOOPBACK
from extproc.demo.processes import end

_POLL: Final = 0.05
_TAIL: Final = 4000
_GRACE: Final = 20.0
_TRIES: Final = 5
_PORTS: Final = range(20_000, 32_000)


class DaemonError(Exception):
    """The program ended early or was not ready in time; the text ends with what it said."""


class PortTakenError(DaemonError):
    """The program ended because somebody else listens on its port."""


class Daemon:
    """A program that may be started, stopped and started again.

    Goes in: its path, its log file and how many seconds it may take to be ready.
    """

    def __init__(self, program: Path, log: Path, *, patience: float = 60) -> None:
        """Nothing is started yet."""
        self._program = program
        self._log = log
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, flags: list[str], ready: Callable[[], Awaitable[bool]]) -> None:
        """Start it and ask `ready` until it says so; while it cannot say, it may raise. Raises DaemonError."""
        assert self._process is None, "it runs already"
        with self._open_log() as log:
            process = await asyncio.create_subprocess_exec(
                self._program,
                *flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which ends it in its turn
            )
        self._process = process
        try:
            async with asyncio.timeout(self._patience):
                while not await _says_yes(ready):
                    self._check(process)
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            await self.stop()
            raise DaemonError(f"{self._program.name} was not ready in {self._patience:g} s\n{self._tail()}") from error
        except BaseException:
            await self.stop()
            raise

    async def start_on_free_ports(self, flags: Callable[[], list[str]], ready: Callable[[], Awaitable[bool]]) -> None:
        """Start it with flags that name free ports, and with others as often as somebody else is faster."""
        for _ in range(_TRIES):
            try:
                return await self.start(flags(), ready)
            except PortTakenError as error:
                taken = error
        raise taken

    async def stop(self, grace: float = _GRACE) -> None:
        """SIGTERM and, after `grace` seconds, SIGKILL; returns when it is gone. Nothing if it does not run."""
        if self._process is not None:
            await end(self._process, grace)
            self._process = None

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone; nothing if it does not run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

    def _check(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            tail = self._tail()
            kind = PortTakenError if "address already in use" in tail else DaemonError
            raise kind(f"{self._program.name} ended with exit code {process.returncode}\n{tail}")

    def _open_log(self) -> BinaryIO:
        return self._log.open("wb")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-_TAIL:]


async def _says_yes(ready: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await ready()
    except (OSError, aiohttp.ClientError):
        return False


def free_port() -> int:
    """A port that nobody listens on now; whoever binds it must be ready to lose it.

    It is none of those that the kernel gives to outgoing connections: while a server is away, a client that dials its
    port again and again could be given that port itself.
    """
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return port
