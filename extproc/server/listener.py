# SPDX-License-Identifier: Apache-2.0
"""The HTTP ports: a server inside our loop, and what the metrics port serves."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


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


class HttpServer(uvicorn.Server):
    """A uvicorn server inside our loop: signals are the process's business, not its."""

    def __init__(self, app: ASGIApp, address: str, port: int) -> None:
        """Bind now, so that a taken port is an error before anything is served. Raises OSError."""
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.create_server((address, port), family=family)
        self.port: int = self.socket.getsockname()[1]
        self.stopping = asyncio.Event()
        """Set when it is to end: an answer that has no end must then have one, or it would be waited for."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's handlers alone."""
        yield

    async def run_until_stopped(self) -> None:
        """Serve until `stop`."""
        await self.serve(sockets=[self.socket])

    def stop(self) -> None:
        """End as soon as the answers that are under way have ended."""
        self.stopping.set()
        self.should_exit = True
