# SPDX-License-Identifier: Apache-2.0
"""Stand-in, to be replaced: `POST /explain` and a token, enough to run the page."""

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from extproc.envoy.binding import Attachment, Binding, ProtocolError, parse_pool
from extproc.envoy.explain import HttpRequest, explain
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Snapshot
from extproc.server.assets import FILES


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What the form posts."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = {}
    body: str = ""
    attachment: Attachment = Attachment.BEFORE
    pool: str = ""
    cluster: str = ""
    pick: str = ""


def explain_route(snapshot: Callable[[], Snapshot], policy: Callable[[], PolicyConfig]) -> Route:
    """`POST /explain`."""

    async def respond(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await request.body(), type=Asked)
            pool = parse_pool(asked.pool) if asked.pool else None
        except (msgspec.MsgspecError, ProtocolError) as error:
            return _error(400, str(error), "pool" if isinstance(error, ProtocolError) else None, "malformed")
        if not asked.path.startswith("/"):
            return _error(400, f"`{asked.path}` is not a path: it begins with /", "path", "malformed")
        http = HttpRequest(
            asked.method, asked.path, tuple(asked.headers.items()), asked.body.encode(), asked.pick, asked.cluster
        )
        found = explain(http, Binding(asked.attachment, pool), snapshot(), policy())
        return Response(found.to_json(), media_type="application/json")

    return Route("/explain", respond, methods=["POST"])


class Token:
    """401 without the token, but for probes and the page's files."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        """All of it is open if the token is empty."""
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        given = Headers(scope=scope).get("authorization", "") if scope["type"] == "http" else ""
        if self._token and scope["path"] not in (*FILES, "/healthz", "/readyz") and given != f"Bearer {self._token}":
            await _error(401, "the admin token is needed", None, "unauthorized")(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _error(status: int, message: str, param: str | None, code: str) -> Response:
    error: dict[str, Any] = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Response(msgspec.json.encode({"error": error}), status_code=status, media_type="application/json")
