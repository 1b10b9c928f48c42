# SPDX-License-Identifier: Apache-2.0
"""`/admin/api/routing`: the routing entries that operators make at run time, wherever a RoutingStore keeps them."""

from collections.abc import Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from extproc.policy.candidates import candidates
from extproc.policy.config import PolicyConfig, Route
from extproc.policy.document import spelled
from extproc.policy.loading import misrouted
from extproc.policy.routing import Edit, Refused, Routes, Routing, RoutingStore, matching, plain, put, remove
from extproc.policy.types import Snapshot
from extproc.server.answers import Mistake, as_json
from extproc.server.requests import RoutingChange, decoded, parameters

PATH: Final = "/admin/api/routing"
_STATUS: Final = {
    "conflict": 409,
    "read_only": 409,
    "unreadable": 409,
    "too_large": 413,
    "invalid": 400,
    "unavailable": 503,
}


class RoutingApi:
    """Its three methods."""

    def __init__(
        self,
        store: RoutingStore | None,
        read_only: str,
        snapshot: Callable[[], Snapshot],
        policy: Callable[[], PolicyConfig],
    ) -> None:
        """`read_only` is why nothing may be changed, "" if it may; without a store it says why there is none."""
        self._store = store
        self._read_only = read_only
        self._snapshot = snapshot
        self._policy = policy

    async def answer(self, request: Request) -> Response:
        """One request of any of the methods."""
        methods = {"POST": self.store, "DELETE": self.forget}
        return await methods.get(request.method, self.show)(request)

    async def show(self, _request: Request) -> Response:
        """All entries, and the version to make a change for."""
        found = await self._store.read() if self._store else Routing()
        if isinstance(found, Refused):
            raise _mistake(found)
        return as_json({"routing": [*map(plain, found.routes)], "resourceVersion": found.version})

    async def store(self, request: Request) -> Response:
        """Store an entry: 201 for a new one, 200 for one that there was for this model and owner."""
        change = await decoded(request, RoutingChange)
        policy = self._policy()
        route = Route(change.model, policy.normal(change.owned_by), change.selector)
        request.state.audit = plain(route)
        for fault in misrouted(msgspec.structs.replace(policy, routing=(route,))):
            raise Mistake(fault.message, spelled(fault.place[2:]))
        self._refuse_unknown(change.model, policy)
        before, stored = await self._change(put(route, policy.normal), change.version)
        known = matching(before, route.model, route.owned_by, policy.normal)
        return as_json(plain(route) | {"resourceVersion": stored.version}, 200 if known else 201)

    async def forget(self, request: Request) -> Response:
        """Forget an entry: 204, or 404 if there is none."""
        given = parameters(request, required=("model", "owned_by"), optional=("resourceVersion",))
        model, owner, normal = given["model"], given["owned_by"], self._policy().normal
        request.state.audit = {"model": model[:256], "owned_by": owner[:128]}
        before, _ = await self._change(remove(model, owner, normal), given.get("resourceVersion"))
        if not matching(before, model, owner, normal):
            message = "there is no entry for this model and owner"
            raise Mistake(message, "model", status=404, code="route_not_found")
        return Response(status_code=204)

    async def _change(self, edit: Edit, version: str | None) -> tuple[Routes, Routing]:
        """What was stored before the change, and what is stored now. Raises Mistake."""
        if self._read_only or self._store is None:
            raise _mistake(Refused("read_only", self._read_only))
        before: Routes = ()

        def remembering(routes: Routes) -> Routes:
            nonlocal before
            before = routes
            return edit(routes)

        stored = await self._store.change(remembering, version)
        if isinstance(stored, Refused):
            raise _mistake(stored)
        return before, stored

    def _refuse_unknown(self, model: str, policy: PolicyConfig) -> None:
        """A model that nobody serves is most likely misspelt; where not all lists are known, it may be one of theirs."""
        snapshot = self._snapshot()
        found = candidates(snapshot, policy, None, decoding=False)
        renamed = {name for rewrites in snapshot.rewrites.values() for name in rewrites.exact}
        drawn = any(rewrites.otherwise for rewrites in snapshot.rewrites.values())  # for any name
        if policy.match.models == "any" or drawn or not found.models_complete or model in found.listed | renamed:
            return
        raise Mistake("no endpoint serves this model", "model", status=404, code="model_not_found")


def _mistake(refused: Refused) -> Mistake:
    return Mistake(refused.message, status=_STATUS[refused.code], code=refused.code)
