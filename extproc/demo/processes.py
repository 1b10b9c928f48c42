# SPDX-License-Identifier: Apache-2.0
"""`owned-by serve` as a context: started, waited for until it says that it is ready, ended by its handle."""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Self

import msgspec

from extproc.demo.client import LOOPBACK

_KEPT: Final = 50
_LONGEST_LINE: Final = 1 << 20
_GRACE: Final = 10.0
_VARIABLES: Final = ("OWNED_BY_", "KUBE", "NAMESPACE", "POD_NAME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PORTS: Final = ("grpc_port", "grpc_health_port", "metrics_port", "admin_port")


class ServerError(Exception):
    """The server ended early or was not ready in time; the text ends with its last lines."""


class Server:
    """A server of ours that serves while the context is open, on free ports of 127.0.0.1.

    Goes in: further flags of `serve` (a later one wins), a callback for each line that it logs, how many seconds it may
    take to be ready, and whether to wait `until` then or only until it is listening. Comes out: its ports, `pid`,
    `returncode` and the last `lines`.
    """

    def __init__(
        self,
        *flags: str,
        on_line: Callable[[str], None] | None = None,
        patience: float = 30,
        until: Literal["listening", "ready"] = "ready",
    ) -> None:
        """Nothing is started yet."""
        self.grpc_port = 0
        self.grpc_health_port = 0
        self.metrics_port = 0
        self.admin_port = 0
        self.lines: deque[str] = deque(maxlen=_KEPT)
        free = [word for port in _PORTS for word in ("--" + port.replace("_", "-"), "0")]
        drain = ["--drain-delay", "0s", "--drain-timeout", "1s"]
        self._flags = ["--address", LOOPBACK, *free, *drain, *flags]
        self._on_line = on_line
        self._patience = patience
        self._until = until
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, None while it runs."""
        assert self._process is not None
        return self._process.returncode

    async def __aenter__(self) -> Self:
        """Start it and wait until it is ready. Raises ServerError."""
        # Whatever such variables the caller has are for a server of the caller's.
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(_VARIABLES)}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc.cli", "serve", *self._flags),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,  # Ctrl-C is for the demo, which ends it in its turn
        )
        self._reader = asyncio.create_task(self._read(self._process.stderr))
        try:
            await self._until_ready(self._reader)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it and wait until it is gone."""
        await self._end()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); nothing if it has ended."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it at once (SIGKILL); nothing if it has ended."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Its exit code, once it has ended and its last line is read."""
        assert self._process is not None
        assert self._reader is not None
        code = await self._process.wait()
        await self._reader
        return code

    async def _until_ready(self, reader: asyncio.Task[None]) -> None:
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, reader}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            raise ServerError("the server did not become ready\n" + "\n".join(self.lines))

    async def _end(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        await end(self._process)
        await self._reader

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        """Read all that it says: a full pipe would stop it."""
        assert stream is not None
        while line := await _line(stream):
            text = line.decode(errors="replace").rstrip()
            self.lines.append(text)
            if not self._ready.is_set():
                self._look(text)
            if self._on_line:
                self._on_line(text)

    def _look(self, text: str) -> None:
        try:
            said: Any = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return  # a warning of the interpreter, or a traceback: kept for the error
        if not isinstance(said, dict):
            return
        if said.get("msg") == "listening":
            for name in _PORTS:
                setattr(self, name, said[name])
        if said.get("msg") == self._until:
            self._ready.set()


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line that is too long)\n"


async def end(process: asyncio.subprocess.Process, grace: float = _GRACE) -> None:
    """SIGTERM and, after `grace` seconds, SIGKILL to a process that may have ended; returns when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(grace):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
