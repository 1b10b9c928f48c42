# SPDX-License-Identifier: Apache-2.0
"""A real Envoy as a context: started, waited for until it is live, asked by its admin interface, ended by its handle."""

import asyncio
import http.client
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import msgspec

from extproc.demo.bootstrap import LISTENER
from extproc.demo.client import Answer, send
from extproc.demo.processes import end

_TAIL: Final = 4000
_POLL: Final = 0.02


class EnvoyError(Exception):
    """Envoy refused its configuration, ended early or was not live in time; the text ends with what it said."""


def find_program() -> str:
    """The `envoy` beside this interpreter, else the one on PATH. Raises EnvoyError if there is neither."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        raise EnvoyError("there is no `envoy` program: install the `demo` extra")
    return found


class Envoy:
    """An Envoy that serves while the context is open.

    Goes in: a bootstrap, a folder for its files, the program (None: `find_program`), and how many seconds it may take to
    be live. Comes out: `port` of the listener, `admin_port`, `pid`, `stats()`.
    """

    def __init__(
        self, bootstrap: dict[str, Any], folder: Path, program: str | Path | None = None, *, patience: float = 30
    ) -> None:
        """Nothing is started yet."""
        self.port = 0
        self.admin_port = 0
        self.log = folder / "envoy.log"
        self._bootstrap = bootstrap
        self._folder = folder
        self._program = program
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        """Start it and wait until it is live. Raises EnvoyError."""
        config, address = self._folder / "envoy.json", self._folder / "admin.txt"
        _write(config, self._bootstrap)
        address.unlink(missing_ok=True)
        # No hot restart: nothing in shared memory that another Envoy could take for its parent.
        with self._open_log() as log:
            self._process = await asyncio.create_subprocess_exec(
                self._program or find_program(),
                *("-c", config, "--admin-address-path", address),
                *("--concurrency", "1", "-l", "warning", "--disable-hot-restart"),
                *("--file-flush-interval-msec", "100"),  # who waits for an access log need not wait ten seconds
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which ends it in its turn
            )
        try:
            async with asyncio.timeout(self._patience):
                await self._live(address)
        except TimeoutError as error:
            await end(self._process)
            raise EnvoyError(f"Envoy was not live after {self._patience:g} s\n{self._tail()}") from error
        except BaseException:
            await end(self._process)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it and wait until it is gone."""
        assert self._process is not None
        await end(self._process)

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Its counters and gauges, those whose name matches the regular expression `pattern`."""
        path = "/stats?format=json" + (f"&filter={pattern}" if pattern else "")
        entries = (await self._ask(path)).json()["stats"]
        return {entry["name"]: entry["value"] for entry in entries if isinstance(entry.get("value"), int)}

    async def _live(self, address: Path) -> None:
        while not self.port:
            self._check()
            try:
                self.admin_port = self.admin_port or _port(address)
                if (await self._ask("/ready")).body.strip() == b"LIVE":
                    self.port = await self._listener()
                    break
            except (OSError, ValueError, http.client.HTTPException):
                pass  # the file is not there or half written, or the port does not answer yet
            await asyncio.sleep(_POLL)

    async def _listener(self) -> int:
        for status in (await self._ask("/listeners?format=json")).json().get("listener_statuses", []):
            if status["name"] == LISTENER:
                return int(status["local_address"]["socket_address"]["port_value"])
        return 0

    async def _ask(self, path: str) -> Answer:
        return await send(self.admin_port, "GET", path, timeout=5)

    def _open_log(self) -> BinaryIO:
        return self.log.open("wb")

    def _check(self) -> None:
        assert self._process is not None
        if self._process.returncode is not None:
            raise EnvoyError(f"Envoy ended with exit code {self._process.returncode}\n{self._tail()}")

    def _tail(self) -> str:
        try:
            return self.log.read_text(errors="replace")[-_TAIL:]
        except OSError:
            return "it wrote no log"


async def validate(program: str | Path | None, bootstrap: dict[str, Any], folder: Path) -> None:
    """Let Envoy (None: `find_program`) check a bootstrap without serving it. Raises EnvoyError with what it says."""
    config = folder / "validate.json"
    _write(config, bootstrap)
    process = await asyncio.create_subprocess_exec(
        program or find_program(),
        *("--mode", "validate", "-c", config, "-l", "warning", "--disable-hot-restart"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        await end(process)
    if process.returncode:
        raise EnvoyError(output.decode(errors="replace")[-_TAIL:])


def _port(address: Path) -> int:
    return int(address.read_text().rpartition(":")[2])


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
