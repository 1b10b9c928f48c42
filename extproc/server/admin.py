# SPDX-License-Identifier: Apache-2.0
"""The admin port: probes, what this process knows and does, and what an operator can change while it runs."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from extproc.envoy.answers import models_document
from extproc.envoy.binding import Binding, ProtocolError, parse_pool
from extproc.envoy.explain import HttpRequest, explain
from extproc.policy.config import PolicyConfig
from extproc.policy.decide import decide
from extproc.policy.pick import Loads
from extproc.policy.routing import RoutingStore
from extproc.policy.types import Answer, InferenceRequest, Pool, Reject, Scope, Snapshot
from extproc.server.answers import HANDLERS, Mistake, as_json
from extproc.server.openapi import document
from extproc.server.requests import OWNERS, Explain, body_of, decoded, parameters
from extproc.server.routing import PATH as ROUTING
from extproc.server.routing import RoutingApi

_MODELS: Final = "/v1/models"
Page = Callable[[], object]


class Sources(NamedTuple):
    """What the admin port shows and changes. `pages` are the content of the JSON pages, by their paths.

    `binding` is what the flags say of a stream that says nothing; `read_only` why the routing cannot be changed, "" if it
    can; `discover` looks at everything again and says what changed.
    """

    ready: Callable[[], bool]
    pages: Mapping[str, Page]
    snapshot: Callable[[], Snapshot]
    policy: Callable[[], PolicyConfig]
    loads: Callable[[], Loads]
    binding: Binding
    discover: Callable[[], Awaitable[object]]
    routing: RoutingStore | None
    read_only: str


def admin_app(sources: Sources, more: Sequence[BaseRoute] = ()) -> Starlette:
    """The application; `more` are routes beside its own. Who may ask is Access's business."""
    pages = _Pages(sources)
    routing = RoutingApi(sources.routing, sources.read_only, sources.snapshot, sources.policy)
    routes = [
        Route("/healthz", pages.healthz),
        Route("/readyz", pages.readyz),
        *(Route(path, _page(content)) for path, content in sources.pages.items()),
        Route(_MODELS, pages.models),
        Route(_MODELS + "/{model:path}", pages.models),
        Route("/explain", pages.explain, methods=["POST"]),
        Route("/admin/discover", pages.discover, methods=["POST"]),
        Route(ROUTING, routing.answer, methods=["GET", "POST", "DELETE"]),
        Route("/openapi.json", _page(document)),
        *more,
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False  # a redirect has no body of ours, and not every client follows one
    return app


class _Pages:
    """The handlers that look at what the process knows."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def healthz(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n") if self._sources.ready() else PlainTextResponse("not ready\n", 503)

    def models(self, request: Request) -> Response:
        """What the data plane lists, of one pool or of all as one."""
        snapshot, policy = self._sources.snapshot(), self._sources.policy()
        given = parameters(request, optional=("owned_by", "pool"))
        pool = _pool(given["pool"]) if "pool" in given else None
        if pool and pool not in snapshot.endpoints:
            raise Mistake(f"there is no pool `{pool}`", "pool", status=404, code="pool_unknown")
        owners = _owners(given["owned_by"], policy) if "owned_by" in given else ()
        path = request.scope["raw_path"].decode("latin-1")
        decision = decide(InferenceRequest(Scope(pool, union=True), "GET", path, owners, "owned_by"), snapshot, policy)
        if isinstance(decision, Reject):
            code = decision.reason.replace("-", "_")
            raise Mistake(decision.message, decision.param, status=decision.status, code=code)
        if isinstance(decision, Answer):
            return as_json(models_document(decision))
        if path.rstrip("/") != _MODELS:
            raise Mistake("no endpoint's models are known", "model", status=404, code="model_not_found")
        return as_json(models_document(Answer(())))

    async def explain(self, request: Request) -> Response:
        """Where a request would go and why, by the present snapshot and policy."""
        asked = await decoded(request, Explain)
        headers = tuple((name.lower(), value) for name, value in asked.headers.items())
        body = asked.body.encode() if isinstance(asked.body, str) else msgspec.json.encode(asked.body)
        binding = self._sources.binding
        binding = msgspec.structs.replace(
            binding,
            attachment=asked.attachment or binding.attachment,
            pool=_pool(asked.pool) if asked.pool is not None else binding.pool,
            body=asked.body_mode or binding.body,
        )
        http = HttpRequest(asked.method, asked.path, headers, body, asked.pick, asked.cluster)
        sources = self._sources
        found = explain(http, binding, sources.snapshot(), sources.policy(), sources.loads())
        return as_json(msgspec.to_builtins(found) | {"facts": found.facts()})

    async def discover(self, request: Request) -> Response:
        """Look at everything again, now, and say what changed."""
        if (await body_of(request)).strip() not in (b"", b"{}"):
            raise Mistake("nothing is to be said in the body")
        return as_json(await self._sources.discover())


def _page(content: Page) -> Callable[[Request], Response]:
    def respond(_request: Request) -> Response:
        return as_json(content())

    return respond


def _owners(text: str, policy: PolicyConfig) -> tuple[str, ...]:
    if not re.search(OWNERS, text):
        raise Mistake(
            "`owned_by` is not a list of at most 8 owners with commas between them", "owned_by", code="owner_malformed"
        )
    return tuple(dict.fromkeys(map(policy.normal, text.split(","))))


def _pool(text: str) -> Pool:
    try:
        return parse_pool(text)
    except ProtocolError as error:
        raise Mistake(f"`{text[:100]}` is not namespace/name", "pool") from error
