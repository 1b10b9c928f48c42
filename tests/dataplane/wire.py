# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 by hand: what a well-behaved client library will not send."""

import asyncio
import hashlib
import http.client
import socket

from extproc.demo.client import LOOPBACK, Answer


async def exchange(port: int, *pieces: bytes) -> Answer:
    """Send bytes over a connection of its own, piece by piece, and read one answer."""
    return await asyncio.to_thread(_exchange, port, pieces)


def _exchange(port: int, pieces: tuple[bytes, ...]) -> Answer:
    with socket.create_connection((LOOPBACK, port), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, body, 0)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    """A request head; JSON unless a line says otherwise."""
    fixed = [f"{method} {path} HTTP/1.1", "host: gateway", *lines]
    if method == "POST" and not any(line.startswith("content-type") for line in lines):
        fixed.append("content-type: application/json")
    return ("\r\n".join(fixed) + "\r\n\r\n").encode()


def post(path: str, body: bytes, *lines: str) -> bytes:
    """A whole request with a content-length."""
    return head(path, f"content-length: {len(body)}", *lines) + body


def chunks(body: bytes, size: int, *, trailer: str = "") -> bytes:
    """A chunked body, with a trailer field if one is given."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return framed + b"0\r\n" + (trailer + "\r\n" if trailer else "").encode() + b"\r\n"


def digest(body: bytes) -> str:
    """What an engine says of a body that it received whole."""
    return hashlib.sha256(body).hexdigest()
