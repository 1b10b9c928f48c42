# SPDX-License-Identifier: Apache-2.0
"""The HTTP ports: a server inside our loop, and what the metrics port serves."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from extproc.envoy.answers import error_document

_GRACE: Final = 1
"""Seconds for which the exit waits for a client that does not read its answer."""

CONNECTIONS: Final = 256
"""How many may be open at a port: each holds a descriptor, of which the data plane needs its own."""
SILENCE: Final = 10.0
"""Seconds until a connection must have asked for something."""


def metrics_app(registry: CollectorRegistry) -> ASGIApp:
    """`/metrics` in Prometheus' formats."""
    # A mount answers the path without a slash behind it with a redirect, which a scraper or curl need not follow.
    return Starlette(routes=[Route("/metrics", _Served(make_asgi_app(registry)))])


class _Served:
    """An ASGI application as a route takes it: a plain function would be taken for one that answers a Request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Protocol(H11Protocol):
    """HTTP/1.1 with a bound on connections and on their silence; what is no HTTP is told in our shape of an error."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more, if there is room for it."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        self._waiting = self.loop.call_later(SILENCE, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """One less."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read and hang up; where an answer is under way, only that."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete:
            body = msgspec.json.encode(error_document(400, "bad_request", msg))
            head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _give_up(self) -> None:
        cycle: Any = self.cycle
        if cycle is None:
            self.transport.close()


class HttpServer(uvicorn.Server):
    """A uvicorn server inside our loop: signals are the process's business, not its."""

    def __init__(self, app: ASGIApp, address: str, port: int, on_stop: Callable[[], None] = lambda: None) -> None:
        """Bind now, so that a taken port is an error before anything is served. Raises OSError.

        `on_stop` is called when it begins to stop: then it waits for its answers to end, a second for those that do not.
        """
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            server_header=False,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE,
            # uvicorn believes x-forwarded-for from loopback, and that is where every port-forward comes from.
            proxy_headers=False,
        )
        super().__init__(config)
        self._on_stop = on_stop
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.create_server((address, port), family=family)
        self.port: int = self.socket.getsockname()[1]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's handlers alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; called by `serve` when `should_exit` is set."""
        self._on_stop()
        await super().shutdown(sockets)

    async def run_until_stopped(self) -> None:
        """Serve until `should_exit` is set."""
        await self.serve(sockets=[self.socket])
