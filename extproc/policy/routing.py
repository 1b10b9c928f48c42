# SPDX-License-Identifier: Apache-2.0
"""The routing entries that the admin API keeps: a document of its own, merged last into the operators' policy.

So the policy can come from Git and stay as it is there, and an entry that is made at run time is still in every replica.
What keeps the document is a RoutingStore: a ConfigMap or a file (see discovery/), which the admin API knows by nothing else.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from extproc.policy.config import Match, PolicyConfig, Route, default_policy
from extproc.policy.document import Document, DocumentError
from extproc.policy.loading import misrouted

Routes = tuple[Route, ...]


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    api_version: Literal["owned-by/v1alpha1"]
    kind: Literal["OwnedByRouting"]
    routing: Routes = ()


class Routing(msgspec.Struct, frozen=True):
    """What is stored, and the version of the store that says it: opaque, another with each change, "" if nothing is."""

    routes: Routes = ()
    version: str = ""


class Refused(msgspec.Struct, frozen=True):
    """Why the store did not do it, in words for an operator; nothing was changed, unless they say that this is not known.

    `conflict`: it is not at the version that was meant, or others kept changing it. `read_only`: we may not write there.
    `unreadable`: what is stored is no routing document, and would be lost. `unavailable`: it cannot be reached now.
    `invalid`: what was to be stored is no routing document. `too_large`: it is more than can be stored there.
    """

    code: Literal["conflict", "read_only", "unreadable", "unavailable", "invalid", "too_large"]
    message: str


Edit = Callable[[Routes], Routes]
Normal = Callable[[str], str]
"""What an owner's name is compared as."""


class RoutingStore(Protocol):
    """Where the entries are kept."""

    async def read(self) -> Routing | Refused:
        """What is stored now."""

    async def change(self, edit: Edit, version: str | None = None) -> Routing | Refused:
        """Store what `edit` makes of what is stored, and say what is stored then.

        With a `version` only if that is the present one ("": if nothing is stored). Without, `edit` may be called again,
        with what somebody else has stored meanwhile: nothing of theirs is lost. What `edit` leaves as it is, is not written.
        """


def parse_routing(text: bytes) -> Routes:
    """Read a routing document; none if the text is empty. Raises DocumentError with path and line for a mistake."""
    if not text.strip():
        return ()
    try:  # as it is written here, which is a hundred times as fast as YAML
        routes = msgspec.json.decode(text, type=_Stored).routing
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        routes = Document(text).convert(_Stored).routing
    # What two names of an owner come to is the policy's business, which may be another tomorrow.
    literal = msgspec.structs.replace(default_policy(), match=Match(aliases={}), routing=routes)
    for fault in misrouted(literal):
        raise Document(text).fail(fault.place, fault.message, fault.key)
    return routes


def routing_document(routes: Routes) -> str:
    """The document that `parse_routing` reads: JSON, which is YAML, a line for each thing."""
    stored = _Stored("owned-by/v1alpha1", "OwnedByRouting", routes)
    return msgspec.json.format(msgspec.json.encode(stored), indent=2).decode() + "\n"


def plain(route: Route) -> dict[str, Any]:
    """An entry as it is written and shown: what the selector does not say is left out."""
    found: dict[str, Any] = msgspec.to_builtins(route)
    return found


def with_routes(policy: PolicyConfig, routes: Routes) -> PolicyConfig:
    """The policy with these entries: one for a model and owner that the policy has an entry for takes its place."""
    if not routes:
        return policy
    found = {(route.model, policy.normal(route.owned_by)): route for route in (*policy.routing, *routes)}
    return msgspec.structs.replace(policy, routing=tuple(found.values()))


def edited(now: Routing, edit: Edit, version: str | None, where: str) -> str | Routing | Refused:
    """The document to store in the place of `now`; `now` itself if the edit leaves it as it is, or why it may not be.

    `version` is the one that was meant, None if any is right; `where` is what the place is called.
    """
    if version is not None and version != now.version:
        is_at = f"is at version {now.version}" if now.version else "does not exist"
        meant = f"version {version} was meant" if version else "none was meant to be there"
        return Refused("conflict", f"{where} {is_at}; {meant}")
    after = edit(now.routes)
    if [*map(plain, after)] == [*map(plain, now.routes)]:
        return now
    text = routing_document(after)
    try:
        parse_routing(text.encode())
    except DocumentError as error:
        return Refused("invalid", f"the entries would be refused: {error}")
    return text


def put(route: Route, normal: Normal = str) -> Edit:
    """Store an entry, in the place of those for the same model and owner."""

    def edit(routes: Routes) -> Routes:
        same = matching(routes, route.model, route.owned_by, normal)
        if not same:
            return (*routes, route)
        return tuple(route if each is same[0] else each for each in routes if each is same[0] or each not in same)

    return edit


def remove(model: str, owned_by: str, normal: Normal = str) -> Edit:
    """Forget the entries for a model and owner."""

    def edit(routes: Routes) -> Routes:
        same = matching(routes, model, owned_by, normal)
        return tuple(each for each in routes if each not in same)

    return edit


def matching(routes: Routes, model: str, owned_by: str, normal: Normal = str) -> Routes:
    """The entries for a model and owner; with a policy's `normal`, those that its aliases make one to a request."""
    return tuple(each for each in routes if each.model == model and normal(each.owned_by) == normal(owned_by))
