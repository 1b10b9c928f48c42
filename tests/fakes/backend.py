# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 members of a pool that say what reached them, and whose answers stay open until a test releases them.

An answer is server-sent events: `FIRST` at once, `LAST` and the end when it is released. So a test can hold a request
between its first and its last byte and look at what is open meanwhile.
"""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import aiohttp
import h11

FIRST = b"data: first\n\n"
LAST = b"data: [DONE]\n\n"
HOLD = "x-test-hold"
"""A request with this header and the value `no` is answered to its end at once."""
_READ = 65_536

Fields = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class _Arrived:
    """A request that has arrived to its end."""

    method: bytes
    headers: dict[str, str]
    body_bytes: int
    body_sha256: str
    trailers: dict[str, str]

    def told(self) -> dict[str, str]:
        """What the answer's headers say of it."""
        return {
            "x-body-bytes": str(self.body_bytes),
            "x-body-sha256": self.body_sha256,
            "x-content-length": self.headers.get("content-length", "-"),
            "x-transfer-encoding": self.headers.get("transfer-encoding", "-"),
            "x-trailers": ",".join(f"{name}={value}" for name, value in self.trailers.items()) or "-",
            "x-seen": json.dumps(self.headers),
        }


@contextlib.asynccontextmanager
async def opened(
    port: int, body: bytes = b"{}", headers: Mapping[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A chat request through the gateway at `port`, from its answer's head on: the answer's body is still to be read."""
    fields = {"content-type": "application/json"} | dict(headers or {})
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=fields) as response:
        yield response


class Backend:
    """Members that serve while the context is open: `members` are names and hosts, each gets a free port of its host.

    Those in `refusing` have a port, too, that is theirs alone but refuses connections. `endpoints` is name -> (host,
    port). Unless `hold` is False an answer waits for `release` after its first event.
    """

    def __init__(
        self,
        members: Mapping[str, str] | Iterable[tuple[str, str]],
        *,
        refusing: Collection[str] = (),
        hold: bool = True,
    ) -> None:
        self.endpoints: dict[str, tuple[str, int]] = {}
        self._members = dict(members)
        self._refusing = refusing
        self._hold = hold
        self._held: dict[asyncio.Event, str] = {}
        self._connections = set[asyncio.Task[None]]()
        self._ports = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as ports:
            for name, host in self._members.items():
                # Bound and not listening: nobody else gets the port, and the kernel refuses whoever connects.
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                bound = ports.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
                bound.bind((host, 0))
                self.endpoints[name] = (host, bound.getsockname()[1])
                if name not in self._refusing:
                    server = await asyncio.start_server(self._accept(name), sock=bound)
                    ports.callback(server.close)
            self._ports = ports.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all ports, and all connections whatever is open on them."""
        self._ports.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def address(self, name: str) -> str:
        """`ip:port` of a member, `[v6]:port`."""
        host, port = self.endpoints[name]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def release(self, name: str | None = None) -> None:
        """Let the answers end that wait now, of one member or of all; later ones wait again."""
        for released, member in self._held.items():
            if name in {None, member}:
                released.set()

    def _accept(self, name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = asyncio.get_running_loop().create_task(self._serve(name, reader, writer))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

        return accepted

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: request after request until either side wants it closed."""
        protocol = h11.Connection(h11.SERVER)
        with contextlib.suppress(OSError, h11.RemoteProtocolError), contextlib.closing(writer):  # the client left
            while protocol.our_state is h11.IDLE and (request := await _read(protocol, reader)) is not None:
                await self._answer(name, request, protocol, writer)
                if protocol.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    protocol.start_next_cycle()

    async def _answer(
        self, name: str, request: _Arrived, protocol: h11.Connection, writer: asyncio.StreamWriter
    ) -> None:
        fields = {"content-type": "text/event-stream", "x-served-by": name} | request.told()
        events: list[h11.Event] = [h11.Response(status_code=200, headers=list(fields.items()))]
        if request.method == b"HEAD":
            await _write(protocol, writer, *events, h11.EndOfMessage())
            return
        released = asyncio.Event()
        self._held[released] = name  # before the first byte leaves: whoever has it can release the rest
        try:
            await _write(protocol, writer, *events, h11.Data(FIRST))
            if self._hold and request.headers.get(HOLD) != "no":
                await released.wait()
        finally:
            del self._held[released]
        await _write(protocol, writer, h11.Data(LAST), h11.EndOfMessage())


async def _read(protocol: h11.Connection, reader: asyncio.StreamReader) -> _Arrived | None:
    """The next request to its end, None if the client has closed instead."""
    head: h11.Request | None = None
    size, digest = 0, hashlib.sha256()
    while True:
        match protocol.next_event():
            case h11.NEED_DATA:
                protocol.receive_data(await reader.read(_READ))
            case h11.Request() as head:
                pass
            case h11.Data(data=data):
                size += len(data)
                digest.update(data)
            case h11.EndOfMessage(headers=trailers):
                assert head is not None
                return _Arrived(head.method, _joined(head.headers), size, digest.hexdigest(), _joined(trailers))
            case _:
                return None


async def _write(protocol: h11.Connection, writer: asyncio.StreamWriter, *events: h11.Event) -> None:
    for event in events:
        writer.write(protocol.send(event) or b"")
    await writer.drain()


def _joined(fields: Fields) -> dict[str, str]:
    """Header fields by name; the values of lines with one name are joined as HTTP allows."""
    joined: dict[str, str] = {}
    for name, value in fields:
        text = value.decode("latin-1")
        joined[name.decode()] = f"{joined[name.decode()]}, {text}" if name.decode() in joined else text
    return joined
