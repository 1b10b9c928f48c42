# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server that does what a test says, for what a real one will not do on command.

Each request waits for the test, which takes it with `await server.request()` and answers it, in part or not at all.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

PATIENCE = 10.0
"""Seconds until a test that waits in vain fails."""


class Exchange:
    """A request, and the ways to answer it."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode().splitlines()
        self.method, target, _ = first.split(" ")
        url = urlsplit(target)
        self.path = url.path
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        self.body = b""
        self.answered = asyncio.Event()
        self._reader = reader
        self._writer = writer

    async def json(self, status: int, document: Any, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer."""
        await self.text(status, json.dumps(document).encode(), {"content-type": "application/json", **(headers or {})})

    async def text(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer, its body as it is."""
        self._head(status, {"content-length": str(len(body)), **(headers or {})})
        self._writer.write(body)
        await self._writer.drain()
        self.answered.set()

    async def stream(self, status: int = 200) -> None:
        """The head of an answer that comes in chunks: a watch that stands."""
        self._head(status, {"content-type": "application/json", "transfer-encoding": "chunked"})
        await self._writer.drain()

    async def line(self, *documents: Any) -> None:
        """One line for each document, each a chunk of its own."""
        for document in documents:
            await self.raw(json.dumps(document).encode() + b"\n")

    async def raw(self, data: bytes) -> None:
        """A chunk of anything."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    async def end(self) -> None:
        """The end, as it should be."""
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        self.answered.set()

    async def cut(self, beginning: bytes = b"{") -> None:
        """The beginning of a chunk that is longer, and the end of the connection."""
        self._writer.write(b"%x\r\n%b" % (len(beginning) + 1, beginning))
        await self._writer.drain()
        self._writer.close()
        self.answered.set()

    def reset(self) -> None:
        """The connection is gone at once, without a goodbye."""
        # SO_LINGER with no time to linger: the kernel sends RST
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.answered.set()

    async def left(self) -> None:
        """Wait until the client has given up."""
        async with asyncio.timeout(PATIENCE):
            assert await self._reader.read() == b""
        self.answered.set()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode())


class ApiServer:
    """A server on a free port of loopback, from `async with` on."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self._tls = tls
        self._arrived = asyncio.Queue[Exchange]()
        self._connections = set[asyncio.Task[None]]()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, at the port that it had if it had one."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def request(self) -> Exchange:
        """The next request."""
        async with asyncio.timeout(PATIENCE):
            return await self._arrived.get()

    @property
    def waiting(self) -> int:
        """How many requests have arrived that no test has taken."""
        return self._arrived.qsize()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError), contextlib.closing(writer):  # the client left
            while head := await reader.readuntil(b"\r\n\r\n"):
                exchange = Exchange(head, reader, writer)
                exchange.body = await reader.readexactly(int(exchange.headers.get("content-length", 0)))
                self._arrived.put_nowait(exchange)
                await exchange.answered.wait()


def write_kubeconfig(path: Path, server: str, namespace: str = "", **user: Any) -> Path:
    """A kubeconfig for the server; `user` may have a `token`, a `tokenFile` or an `exec`."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": namespace}}],
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(json.dumps(document))
    return path
