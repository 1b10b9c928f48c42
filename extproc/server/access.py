# SPDX-License-Identifier: Apache-2.0
"""Who may ask the admin port, and what is written down of it.

Its pages name pods and policy and its writes move traffic, so a page of another site must not reach it through an
operator's browser: the Host must be one of ours, and what a browser says comes from another site is refused. With a token
file, a bearer token is needed too. Probes are exempt: they show nothing. The status page's own files are exempt from the
token, which it could not send before it is there; they hold no data.
"""

import hmac
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from extproc.observability.logs import Logger
from extproc.server.answers import problem
from extproc.settings import read_token

PROBES: Final = ("/healthz", "/readyz")
_SAFE: Final = ("GET", "HEAD")
_JSON: Final = re.compile(r"application/json *(;.*)?", re.IGNORECASE)
_SHOWN: Final = 200


class Access:
    """An ASGI application behind the rules of the admin port."""

    def __init__(  # noqa: PLR0913 - the rules
        self,
        app: ASGIApp,
        logger: Logger,
        audit: Logger,
        *,
        address: str,
        hosts: Collection[str] = (),
        token_file: Path | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        """`address` and `hosts` are what this server may be called, beside the names of loopback; None needs no token.

        `audit` is told of every write, whatever the level of `logger`. `open_paths` are asked without a token.
        """
        self._app = app
        self._logger = logger.bind(logger="admin")
        self._audit = audit.bind(logger="admin")
        self._hosts = {"localhost", "127.0.0.1", "[::1]", *map(_bracketed, (address, *hosts))}
        self._token_file = token_file
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse before anything is read; a write is logged with what came of it."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        if scope["method"] in _SAFE or not scope["path"].startswith("/admin/"):
            await self._admit(scope, receive, send)
            return
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        said = scope.setdefault("state", {})
        try:
            await self._admit(scope, receive, note)
        finally:
            client, _ = scope.get("client") or ("", 0)
            what = {"method": scope["method"], "path": scope["path"][:_SHOWN], "status": status, "client": client}
            self._audit.info("admin write", **what, **said.get("audit", {}))

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._refusal(scope, Headers(scope=scope)) or self._app
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """Why it may not be, None if it may."""
        host = headers.get("host", "").lower()
        if _name(host) not in self._hosts:
            return problem(403, "forbidden", f"the Host `{host[:_SHOWN]}` is not this server's")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return problem(403, "forbidden", "a request from another site is refused")
        if any(_netloc(origin) != host for origin in headers.getlist("origin")):
            return problem(403, "forbidden", "a request from another origin is refused")
        if scope["path"] not in self._open_paths and (refusal := self._unknown(headers)) is not None:
            return refusal
        if _has_body(headers) and not _JSON.fullmatch(headers.get("content-type", "")):
            return problem(415, "unsupported_media_type", "the content type of a body must be application/json")
        return None

    def _unknown(self, headers: Headers) -> ASGIApp | None:
        """Why the token that came will not do."""
        if self._token_file is None:
            return None
        try:
            token = read_token(self._token_file)  # again each time: a mounted secret is rotated
        except ValueError as error:
            self._logger.warning("no admin token can be checked", error=str(error))
            return problem(503, "token_unreadable", "this server cannot read its own token now")
        kind, _, given = headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode())
        if known and kind.lower() == "bearer":
            return None
        said = "the bearer token is wrong" if given else "a bearer token is needed: `authorization: Bearer ...`"
        return problem(401, "unauthorized", said, headers={"www-authenticate": 'Bearer realm="owned-by admin"'})


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _name(host: str) -> str:
    """A Host without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _bracketed(host: str) -> str:
    """An address or a name as a Host has it: IPv6 in brackets, all in lower case."""
    return f"[{host.strip('[]')}]".lower() if ":" in host else host.lower()


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
