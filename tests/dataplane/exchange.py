# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 exchange in every framing, whose answer can be looked at while it is still coming."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import h11

from extproc.demo.client import LOOPBACK

Framing = Literal["content-length", "chunked", "trailers"]
_PIECE = 50_000


@dataclass(frozen=True)
class Request:
    """What is sent: header names in lower case; `body` None is a request that has none."""

    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = b"{}"
    framing: Framing = "content-length"


@dataclass
class Exchange:
    """An answer from its head on."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader
    _protocol: h11.Connection
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False

    async def until(self, text: bytes) -> None:
        """Read until the body has this text, or to its end."""
        while text not in self.body and not self.ended:
            await self._more()

    async def rest(self) -> bytes:
        """The body to its end. Raises h11.RemoteProtocolError if it is cut short."""
        while not self.ended:
            await self._more()
        return bytes(self.body)

    async def _more(self) -> None:
        event = await _next(self._protocol, self._reader)
        if isinstance(event, h11.Data):
            self.body += event.data
        else:
            self.ended = True


@contextlib.asynccontextmanager
async def exchange(port: int, request: Request) -> AsyncIterator[Exchange]:
    """Send a request over a connection of its own; yields as soon as the answer's head is there."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    protocol = h11.Connection(h11.CLIENT)
    sending = asyncio.create_task(_send(protocol, writer, request))
    try:
        event = await _next(protocol, reader)
        assert isinstance(event, h11.Response), event
        headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        yield Exchange(event.status_code, headers, reader, protocol)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


async def _send(protocol: h11.Connection, writer: asyncio.StreamWriter, request: Request) -> None:
    fields = [("host", "gateway"), *request.headers]
    trailers: list[tuple[str, str]] = []
    if request.body is not None and request.framing == "content-length":
        fields.append(("content-length", str(len(request.body))))
    elif request.body is not None:
        fields.append(("transfer-encoding", "chunked"))
        if request.framing == "trailers":
            fields.append(("trailer", "x-end"))
            trailers = [("x-end", "1")]
    body = request.body or b""
    writer.write(protocol.send(h11.Request(method=request.method, target=request.path, headers=fields)) or b"")
    for start in range(0, len(body), _PIECE):
        writer.write(protocol.send(h11.Data(body[start : start + _PIECE])) or b"")
        await writer.drain()
    writer.write(protocol.send(h11.EndOfMessage(headers=trailers)) or b"")
    await writer.drain()


async def _next(protocol: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            protocol.receive_data(await reader.read(65_536))
        elif not isinstance(event, h11.InformationalResponse):
            return event
