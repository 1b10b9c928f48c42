# SPDX-License-Identifier: Apache-2.0
"""The status page's own files, and the headers that hold a browser to them.

The page takes nothing from elsewhere and runs nothing that is not in its files, so that a pod's label is a text whatever
it says. The files show nothing of the cluster: they need no token.
"""

from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES: Final = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/stream.js": "stream.js",
    "/tables.js": "tables.js",
    "/chart.js": "chart.js",
    "/explain.js": "explain.js",
    "/dom.js": "dom.js",
}
"""Each path and its file."""

_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",  # the icon
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # no text becomes markup, should a line of ours ever try
)
HEADERS: Final = {
    "content-security-policy": "; ".join(_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def page_routes() -> list[Route]:
    """The page at `/` and what it is made of."""
    return [_route(path, name) for path, name in FILES.items()]


def _route(path: str, name: str) -> Route:
    content = resources.files("extproc.server").joinpath("page", name).read_bytes()
    media_type = _TYPES[name.rpartition(".")[2]]

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return Route(path, serve, methods=["GET"])
