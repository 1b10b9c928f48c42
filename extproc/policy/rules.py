# SPDX-License-Identifier: Apache-2.0
"""What the policy says of one model: the first rule that matches its name, what it leaves out being the policy's own."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

import msgspec

from extproc.policy.config import Fallback, PassOrRefuse, PolicyConfig, Prefer, Route, Split, WhenAbsent, WhenUnready
from extproc.policy.types import ANY, InferenceRequest, Reason

_WIDTH = 2**64
_SHORT = 256
"""Models with names up to this length are remembered: what a client can make us keep stays small."""


class Rules(NamedTuple):
    """The rules of a model; `allow` None is every owner, `owners` those of `prefer` and of `fallback`, normalised."""

    allow: frozenset[str] | None
    when_absent: WhenAbsent
    when_unknown: PassOrRefuse
    when_unready: WhenUnready
    when_truncated: PassOrRefuse
    preferred: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()


def rules_of(policy: PolicyConfig, model: str) -> Rules:
    """The rules for a model ("" if none was named, which only a pattern such as `*` matches)."""
    if not policy.models:
        model = ""  # they are the same for all
    return (_rules if len(model) <= _SHORT else _rules.__wrapped__)(policy, model)


@lru_cache(maxsize=1024)
def _rules(policy: PolicyConfig, model: str) -> Rules:
    rule = next((rule for rule in policy.models if fnmatchcase(model, rule.model)), None)
    when_absent = (rule and rule.when_absent) or policy.when_absent
    when_unready = (rule and rule.when_unready) or policy.when_unready
    return Rules(
        frozenset(policy.normal(owner) for owner in rule.allow) if rule and rule.allow is not None else None,
        when_absent,
        (rule and rule.when_unknown) or policy.when_unknown,
        when_unready,
        (rule and rule.when_truncated) or policy.when_truncated,
        _owners(when_absent.owners, policy) if isinstance(when_absent, Prefer) else (),
        _owners(when_unready.owners, policy) if isinstance(when_unready, Fallback) else (),
    )


def allowed(owner: str, rules: Rules) -> bool:
    """Whether an owner may serve the model."""
    return rules.allow is None or owner in rules.allow


def route_of(policy: PolicyConfig, models: Collection[str], owner: str) -> Route | None:
    """The routing entry for an owner and any of a model's names, None if there is none."""
    if not policy.routing:
        return None
    routes = _routes(policy)
    found = [routes[model, owner] for model in models if (model, owner) in routes]
    return min(found, key=lambda each: each.place).route if found else None


@lru_cache(maxsize=8)
def _routes(policy: PolicyConfig) -> dict[tuple[str, str], "_Placed"]:
    """Each entry with its place: of several names of a model the one whose entry stands first counts."""
    found: dict[tuple[str, str], _Placed] = {}
    for place, route in enumerate(policy.routing):
        found.setdefault((route.model, policy.normal(route.owned_by)), _Placed(place, route))
    return found


class _Placed(NamedTuple):
    place: int
    route: Route


def forget() -> None:
    """Let go of what was derived from policies that are no longer in force: each keeps all that it is made of."""
    for kept in (_rules, _routes, _draws):
        kept.cache_clear()


def order_of(request: InferenceRequest, policy: PolicyConfig) -> tuple[tuple[str, ...], Reason]:
    """Who is to serve the request, in order, and why those: the client named them, or the policy where it did not."""
    if request.owners or request.told:
        return request.owners, Reason.OWNER_MATCHED
    if request.drawn:
        return request.drawn, Reason.OWNER_DRAWN
    return rules_of(policy, request.model).preferred, Reason.OWNER_PREFERRED


def drawn(request: InferenceRequest, policy: PolicyConfig, identity: Callable[[], str]) -> InferenceRequest:
    """The request with the order of preference that a `split` gives it, where it names no owner.

    `identity()` is the request's own (`x-request-id`): every replica draws the same for it, and so does a retry that keeps it.
    """
    if not _draws(policy) or request.owners or request.malformed or request.told or not request.interpreted:
        return request
    split = rules_of(policy, request.model).when_absent
    if not isinstance(split, Split):  # what was drawn before its model was known does not hold
        return msgspec.structs.replace(request, drawn=()) if request.drawn else request
    weights: dict[str, int] = {}
    for owner, weight in split.weights.items():
        weights[policy.normal(owner)] = weights.get(policy.normal(owner), 0) + weight
    return msgspec.structs.replace(request, drawn=draw(weights, identity()))


@lru_cache(maxsize=8)
def _draws(policy: PolicyConfig) -> bool:
    return any(isinstance(when, Split) for when in (policy.when_absent, *(rule.when_absent for rule in policy.models)))


def draw(weights: Mapping[str, int], identity: str) -> tuple[str, ...]:
    """All owners with a weight, in an order that is drawn: each is the first as often as its share of the weights says.

    Weighted rendezvous hashing: a changed weight moves no more requests than it must, and where the first owner has no
    ready endpoint the others share its requests by their weights.
    """

    def place(owner: str) -> float:
        digest = hashlib.blake2b(f"{owner}\0{identity}".encode(errors="replace"), digest_size=8).digest()
        return -math.log((int.from_bytes(digest) + 0.5) / _WIDTH) / weights[owner]

    return tuple(sorted((owner for owner, weight in weights.items() if weight), key=place))


def _owners(owners: Collection[str], policy: PolicyConfig) -> tuple[str, ...]:
    normal = (policy.normal(owner) for owner in owners)
    return tuple(dict.fromkeys(ANY if owner == "any" else owner for owner in normal))
