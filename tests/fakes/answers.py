# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that gives prepared answers: what an engine does not do on command."""

import asyncio
import contextlib
import ssl
from typing import Any, Self

from extproc.policy.types import Endpoint

NEVER = b""
"""An answer that does not come."""


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


FAILURE = answer(b"", "500 Internal Server Error")


class AnsweringServer:
    """Gives its answers in their order, the last one for ever. `gate` lets them through; `heads` are the requests' heads.

    It listens at each of `hosts`, an endpoint each; `most` is how many requests were under way at once.
    """

    def __init__(
        self, *answers: bytes, hosts: tuple[str, ...] = ("127.0.0.1",), tls: ssl.SSLContext | None = None
    ) -> None:
        self.answers = answers
        self.heads: list[str] = []
        self.connections = 0
        self.open = 0
        self.most = 0
        self.gate: asyncio.Semaphore | None = None
        self._hosts = hosts
        self._tls = tls
        self._asked = asyncio.Condition()
        self._tasks = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._hosts, 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def asked(self, times: int) -> None:
        """Wait until so many requests have come."""
        async with asyncio.timeout(20), self._asked:
            await self._asked.wait_for(lambda: len(self.heads) >= times)

    @property
    def endpoints(self) -> list[Endpoint]:
        """One for each host."""
        names = [each.getsockname()[:2] for each in self._server.sockets]
        return [Endpoint(f"pod-{number}", "default", *name) for number, name in enumerate(names)]

    def endpoint(self, name: str = "pod", **fields: Any) -> Endpoint:
        """The one at the first host."""
        return Endpoint(name, "default", *self._server.sockets[0].getsockname()[:2], **fields)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                said = self.answers[min(len(self.heads), len(self.answers) - 1)]
                self.open += 1
                self.most = max(self.most, self.open)
                async with self._asked:
                    self.heads.append(head.decode())
                    self._asked.notify_all()
                if self.gate:
                    await self.gate.acquire()
                if said == NEVER:
                    await asyncio.Event().wait()
                self.open -= 1
                writer.write(said)
                await writer.drain()
        writer.close()
