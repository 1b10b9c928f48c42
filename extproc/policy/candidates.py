# SPDX-License-Identifier: Apache-2.0
"""The endpoints of a pool as a policy sees them: engines and models resolved once per snapshot, not once per request.

Deciding then costs a few dictionary look-ups, however many endpoints there are.
"""

from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from extproc.policy.config import OWNER, PolicyConfig, Route
from extproc.policy.rules import allowed, route_of, rules_of
from extproc.policy.types import ANY, Endpoint, Model, ModelEntry, Pool, Snapshot

Models = tuple[str, ...]
"""What a request may ask an engine for: nothing in particular, one model, or one of those that a rewrite draws from."""


Parts = tuple[tuple[str, Route | None], ...]
"""Owners, and for each the routing entry that says who its endpoints are, if there is one."""


class Group(NamedTuple):
    """Endpoints that have an owner and a model in common: how many there are, and which of them are ready."""

    known: int
    ready: tuple[Endpoint, ...]

    @property
    def answers(self) -> bool:
        """Whether one of those that are ready can answer a request: prefill pods alone cannot."""
        return any(endpoint.decodes for endpoint in self.ready)


class _Alike:
    """Endpoints that have an owner and a list of models in common: how many there are, and which of them are ready."""

    __slots__ = ("ids", "known", "owner", "ready")

    def __init__(self, owner: str, ids: frozenset[str] | None) -> None:
        self.owner = owner
        self.ids = ids
        self.known = 0
        self.ready: list[Endpoint] = []

    def may_serve(self, model: str) -> bool:
        return self.ids is None or model in self.ids


def _sort(places: Iterable[tuple[Endpoint, tuple[str, frozenset[str] | None]]]) -> list[_Alike]:
    alike: dict[tuple[str, frozenset[str] | None], _Alike] = {}
    for endpoint, key in places:
        if (found := alike.get(key)) is None:
            found = alike[key] = _Alike(*key)
        found.known += 1
        if endpoint.ready:
            found.ready.append(endpoint)
    return list(alike.values())


class Candidates:
    """The endpoints that may answer: those of one pool (or several as one), without those that cannot decode if asked."""

    def __init__(self, endpoints: Iterable[Endpoint], policy: PolicyConfig, former: "Candidates | None" = None) -> None:
        """Sort the endpoints by engine and models: there are few of both, however many endpoints there are.

        `former` has sorted most of these endpoints before, under the same policy.
        """
        self._policy = policy
        self._groups: dict[tuple[Parts, Models], Group] = {}
        self.places: dict[int, tuple[Endpoint, tuple[str, frozenset[str] | None]]] = {}
        """Each endpoint with its engine and models, by its identity: being kept here, its id is only ever its own."""
        before = former.places if former else {}
        for endpoint in endpoints:
            each = before.get(id(endpoint))
            if each is None:
                each = (endpoint, (engine(endpoint, policy), _ids(models_of(endpoint, policy))))
            self.places[id(endpoint)] = each
        self._alike = tuple(_sort(self.places.values()))
        self._owners = {ANY, *(each.owner for each in self._alike)}
        served = {each.ids for each in self._alike}
        self.differ = len(served) > 1
        """Whether the endpoints differ in the models that they serve, ready or not."""
        self.listed: frozenset[str] = frozenset().union(*(ids for ids in served if ids is not None))
        """Every model that some endpoint is known to serve, ready or not."""
        self.any_listed = any(ids is not None for ids in served)
        """Whether the models of at least one endpoint are known."""

    def group(self, owner: str, models: Models = (), route: Route | None = None) -> Group:
        """The endpoints of `owner` (`*`: all) that serve `models` or may serve them; empty: whatever they serve.

        A `route` says who the owner's endpoints are.
        """
        return self.together(((owner, route),), models)

    def together(self, parts: Parts, models: Models = ()) -> Group:
        """The endpoints of several owners, each endpoint once.

        Of several models any will do, but an endpoint that serves them all is right whichever the EPP draws: if such ones
        are ready, only they are.
        """
        if not any(route or owner in self._owners for owner, route in parts):
            return Group(0, ())
        # All models that nobody lists have the same group: a client cannot grow the table with names of its own.
        key = (parts, tuple(model if model in self.listed else "" for model in models))
        if (group := self._groups.get(key)) is None:
            serving = [each for each in self._of(parts) if not models or any(map(each.may_serve, models))]
            whole = [each for each in serving if each.ready and all(map(each.may_serve, models))]
            ready = tuple(endpoint for each in whole or serving for endpoint in each.ready)
            group = self._groups[key] = Group(sum(each.known for each in serving), ready)
        return group

    def _of(self, parts: Parts) -> list[_Alike]:
        """The endpoints of these owners, sorted."""
        owners = {owner for owner, route in parts if route is None}
        routes = [route for _, route in parts if route is not None]
        if not routes:
            return [each for each in self._alike if ANY in owners or each.owner in owners]
        return _sort(
            (one, key)
            for one, key in self.places.values()
            if key[0] in owners or any(route.selector.admits(one.labels) for route in routes)
        )

    def knows(self, owner: str) -> bool:
        """Whether some endpoint, ready or not, is of this owner; `*` always."""
        return owner in self._owners

    @property
    def census(self) -> tuple[tuple[str, frozenset[str] | None, int, int], ...]:
        """Owner and models (None: unknown) that some endpoints have in common, how many there are, how many of them ready."""
        return tuple((each.owner, each.ids, each.known, len(each.ready)) for each in self._alike)

    @cached_property
    def engines(self) -> dict[str, frozenset[str]]:
        """Whose an address is, ready or not: the owners of its endpoints."""
        found: dict[str, set[str]] = {}
        for one, (owner, _) in self.places.values():
            found.setdefault(one.address, set()).add(owner)
        return {address: frozenset(owners) for address, owners in found.items()}

    @cached_property
    def undecided(self) -> bool:
        """Whether an endpoint is ready of which it is still to come who it is."""
        places = self.places.values()
        return any(one.ready and one.owned_by is None and not owner for one, (owner, _) in places)

    @cached_property
    def models_complete(self) -> bool:
        """Whether some models are known, and those of all that is ready."""
        return self.any_listed and all(each.ids is not None for each in self._alike if each.ready)

    @cached_property
    def catalogue(self) -> tuple[ModelEntry, ...]:
        """What a client may ask for and would get: one entry per model and owner, in that order.

        That is the models of the ready endpoints under the owner of each, without those that the policy does not allow;
        where a routing entry says who a model's owner is, it is those endpoints.
        """
        entries: dict[tuple[str, str], ModelEntry] = {}
        for each in self._alike:
            for model in self._models(each):
                if route_of(self._policy, (model.id,), each.owner) is None:
                    _enter(entries, model, each.owner)
        for route in self._policy.routing:
            for each in self._of((("", route),)):
                for model in self._models(each):
                    if model.id == route.model:
                        _enter(entries, model, self._policy.normal(route.owned_by))
        return tuple(
            entries[model, owner] for model, owner in sorted(entries) if allowed(owner, rules_of(self._policy, model))
        )

    def _models(self, alike: _Alike) -> Iterable[Model]:
        """What the ready ones of these endpoints serve; the same list once."""
        lists = [models_of(endpoint, self._policy) or () for endpoint in alike.ready]
        return chain.from_iterable({id(models): models for models in lists}.values())


def candidates(snapshot: Snapshot, policy: PolicyConfig, pool: Pool | None, *, decoding: bool) -> Candidates:
    """The candidates of a pool (None: of all pools as one), built on first use and kept as long as the snapshot."""
    key = (policy, pool, decoding)
    found = snapshot.memo.get(key)
    if found is None:
        members = snapshot.endpoints[pool] if pool else union(snapshot)
        chosen = [endpoint for endpoint in members if endpoint.decodes] if decoding else members
        found = Candidates(chosen, policy, snapshot.former.get(key))
        for old in [k for k in snapshot.memo if k[0] is not policy]:
            del snapshot.memo[old]
        snapshot.memo[key] = found
    assert isinstance(found, Candidates)
    return found


def union(snapshot: Snapshot) -> tuple[Endpoint, ...]:
    """The endpoints of all pools, each address and port once, whichever is ready; without an address each is itself."""
    found: dict[object, Endpoint] = {}
    for one in (endpoint for pool in snapshot.pools for endpoint in snapshot.endpoints[pool]):
        key = one.destination if one.address else (one.namespace, one.name, one.port)
        if key not in found or one.ready:
            found[key] = one
    return tuple(found.values())


def engine(endpoint: Endpoint, policy: PolicyConfig) -> str:
    """Who serves the endpoint, normalised: its label or its own word, as the policy orders them, else `unlabeledAs`.

    "" if nobody knows, also while its own word counts and is still to come.
    """
    for source in policy.match.engine_from:
        if source == "probe" and endpoint.owned_by is None:
            return ""
        if found := label_engine(endpoint, policy) if source == "label" else probed_engine(endpoint, policy):
            return found
    return policy.normal(policy.match.unlabeled_as)


def label_engine(endpoint: Endpoint, policy: PolicyConfig) -> str:
    """The first of its engine labels that is an owner, normalised; "" if it has none."""
    for key in policy.match.owned_by_labels:
        if OWNER.fullmatch(label := policy.normal(endpoint.labels.get(key, ""))):
            return label
    return ""


def probed_engine(endpoint: Endpoint, policy: PolicyConfig) -> str:
    """What it says of itself, normalised; "" if nobody asked it or its answer is no owner."""
    owner = policy.normal(endpoint.owned_by or "")
    return owner if OWNER.fullmatch(owner) else ""


def models_of(endpoint: Endpoint, policy: PolicyConfig) -> tuple[Model, ...] | None:
    """What the endpoint serves: its own list, else what its labels name; None if neither is known."""
    if endpoint.models is not None or not policy.match.model_labels:
        return endpoint.models
    named = tuple(Model(label) for key in policy.match.model_labels if (label := endpoint.labels.get(key)))
    return named or None


def _enter(entries: dict[tuple[str, str], ModelEntry], model: Model, owner: str) -> None:
    """Enter a model, or what it adds to the entry that there is: the least that all its endpoints promise."""
    key = (model.id, owner)
    entry = entries.get(key, ModelEntry(*key))
    entries[key] = ModelEntry(
        *key, _least(entry.created, model.created), _least(entry.max_model_len, model.max_model_len)
    )


def _ids(models: tuple[Model, ...] | None) -> frozenset[str] | None:
    return None if models is None else frozenset(model.id for model in models)


def _least(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
