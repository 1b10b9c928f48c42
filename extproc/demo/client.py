# SPDX-License-Identifier: Apache-2.0
"""One HTTP request to a port of this machine, with the standard library: the demo brings no client of its own."""

import asyncio
import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

LOOPBACK: Final = "127.0.0.1"
"""The only address that the demo listens on and dials."""


@dataclass(frozen=True)
class Answer:
    """What came back: header names in lower case, and how long it took until the last byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    milliseconds: float

    def json(self) -> Any:
        """The body as JSON. Raises msgspec.DecodeError if it is none."""
        return msgspec.json.decode(self.body)


async def send(  # noqa: PLR0913 - what a request is made of
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    *,
    timeout: float = 30,  # noqa: ASYNC109 - the socket's, which also ends the thread
) -> Answer:
    """Send one request over a connection of its own. Raises OSError or http.client.HTTPException if nothing answers."""
    return await asyncio.to_thread(_send, port, method, path, headers or {}, body, timeout=timeout)


def _send(  # noqa: PLR0913 - as above
    port: int, method: str, path: str, headers: Mapping[str, str], body: bytes | None, *, timeout: float
) -> Answer:
    started = time.perf_counter()
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        received = response.read()
    finally:
        connection.close()
    lowered = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, lowered, received, (time.perf_counter() - started) * 1000)
