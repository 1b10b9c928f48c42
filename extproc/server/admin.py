# SPDX-License-Identifier: Apache-2.0
"""The HTTP ports: `/metrics` for Prometheus, and the admin pages for people and probes. Read-only.

The admin pages name pods and policy, so a page of another site must not reach them through an operator's browser: the
Host must be one of ours, and a request that a browser calls cross-site is refused. Probes are exempt: they show nothing.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

PROBES: Final = ("/healthz", "/readyz")
Page = Callable[[], object]

_GRACE: Final = 1
"""Seconds for which the exit waits for a client that does not read its answer."""


def admin_app(
    ready: Callable[[], bool], pages: Mapping[str, Page], address: str, others: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """`/healthz`, `/readyz`, each of `pages` (path -> a function of its content) as JSON, and the `others`."""

    def page(content: Page) -> Callable[[Request], Response]:
        def respond(_request: Request) -> Response:
            body = msgspec.json.format(msgspec.json.encode(content(), enc_hook=str, order="sorted"))
            return Response(body + b"\n", media_type="application/json")

        return respond

    def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(_request: Request) -> Response:
        return PlainTextResponse("ok\n") if ready() else PlainTextResponse("not ready\n", status_code=503)

    routes = [Route("/healthz", healthz), Route("/readyz", readyz), *others]
    routes += [Route(path, page(content)) for path, content in pages.items()]
    return _SameSite(Starlette(routes=routes), address)


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


class _SameSite:
    """Refuses a foreign Host (DNS rebinding) and what a browser says comes from another site."""

    def __init__(self, app: ASGIApp, address: str) -> None:
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in self._hosts:
                await _refused(f"the Host `{host[:100]}` is not this server's")(scope, receive, send)
                return
            if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                await _refused("a request from another site is refused")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refused(message: str) -> Response:
    body: dict[str, Any] = {"error": {"code": "forbidden", "message": message}}
    return Response(msgspec.json.encode(body), status_code=403, media_type="application/json")


class HttpServer(uvicorn.Server):
    """A uvicorn server inside our loop: signals are the process's business, not its."""

    def __init__(self, app: ASGIApp, address: str, port: int, on_stop: Callable[[], None] = lambda: None) -> None:
        """Bind now, so that a taken port is an error before anything is served. Raises OSError.

        `on_stop` is called when it begins to stop: then it waits for its answers to end, a second for those that do not.
        """
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_GRACE
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
