# SPDX-License-Identifier: Apache-2.0
"""A policy document -> PolicyConfig: the types say most of what may stand in it, the rest is said here."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from extproc.policy.config import (
    OWNER,
    Duration,
    Fallback,
    ModelRule,
    PolicyConfig,
    Prefer,
    Route,
    Split,
)
from extproc.policy.document import Document, Place
from extproc.policy.faults import Fault, judged
from extproc.policy.types import ANY

_REFUSED_HEADER: Final = re.compile(
    r"host|connection|upgrade|te|trailer|transfer-encoding|content-.*|authorization|cookie|x-envoy-.*"
    r"|x-gateway-destination-.*|x-prefiller-.*|x-encoder-.*|x-data-parallel-.*|x-kv-cache-.*"
)
"""What frames or authorises a request, what Envoy lets no filter set, and what is the EPP's."""


def parse_policy(text: bytes) -> PolicyConfig:
    """Read a policy document. Raises DocumentError with path and line for the first thing that is wrong."""
    document = Document(text)
    policy, faults = judged(document.value, PolicyConfig, duration)
    for fault in faults or mistakes(policy):
        raise document.fail(fault.place, fault.message, fault.key)
    return policy


def duration(kind: type, value: object) -> object:
    """Msgspec's hook for the one type that it does not know. Raises ValueError for what is none."""
    if kind is Duration and isinstance(value, str):
        return Duration.parse(value)
    raise ValueError(f"expected a duration such as 10s, got `{value}`")


def mistakes(policy: PolicyConfig) -> Iterator[Fault]:
    """What the types cannot say."""
    for alias, owner in policy.match.aliases.items():
        for word in (alias, owner):
            if not OWNER.fullmatch(word) or word in (ANY, "any"):
                yield Fault(("match", "aliases", alias), f"`{word}` is not an owner: a-z 0-9 . _ / - in lower case")
    unlabeled = policy.match.unlabeled_as
    if unlabeled and (not OWNER.fullmatch(policy.normal(unlabeled)) or policy.normal(unlabeled) == "any"):
        yield Fault(("match", "unlabeledAs"), f"`{unlabeled}` is not an owner: letters, digits and . _ / -")
    yield from _actions(policy, policy, ())
    for number, rule in enumerate(policy.models):
        place = ("models", number)
        yield from _names(policy, (*place, "allow"), enumerate(rule.allow or ()))
        yield from _actions(policy, rule, place)
    yield from misrouted(policy)
    yield from _promote(policy)
    if policy.body.timeout <= 0:
        yield Fault(("body", "timeout"), "must be longer than nothing")


def _actions(policy: PolicyConfig, rules: PolicyConfig | ModelRule, place: Place) -> Iterator[Fault]:
    """The owners that the whens name."""
    match rules.when_absent:
        case Prefer(owners=owners):
            yield from _order(policy, (*place, "whenAbsent", "owners"), owners)
        case Split(weights=weights):
            here = (*place, "whenAbsent", "weights")
            yield from _names(policy, here, ((owner, owner) for owner in weights))
            if not any(weights.values()):
                yield Fault(here, "no owner has a weight")
    if isinstance(rules.when_unready, Fallback):
        yield from _order(policy, (*place, "whenUnready", "owners"), rules.when_unready.owners)


def _order(policy: PolicyConfig, place: Place, owners: tuple[str, ...]) -> Iterator[Fault]:
    """Names that are none in an order of preference, where `*` is one, and the last."""
    for index, owner in enumerate(owners):
        if policy.normal(owner) not in (ANY, "any"):
            yield from _names(policy, place, [(index, owner)])
        elif index < len(owners) - 1:
            yield Fault(place, f"`{owner}` must be the last", index)


def _names(policy: PolicyConfig, place: Place, owners: Iterable[tuple[str | int | None, str]]) -> Iterator[Fault]:
    """Names that are none, each with the key at which it is."""
    for key, owner in owners:
        normal = policy.normal(owner)
        if normal in (ANY, "any"):
            yield Fault(place, f"`{owner}` is not an owner here: name it", key)
        elif not OWNER.fullmatch(normal):
            yield Fault(place, f"`{owner}` is not an owner: letters, digits and . _ / -", key)


def misrouted(policy: PolicyConfig) -> Iterator[Fault]:
    """What the types cannot say of the routing entries."""
    seen: dict[tuple[str, str], int] = {}
    for number, route in enumerate(policy.routing):
        place = ("routing", number)
        yield from _route(policy, place, route)
        earlier = seen.setdefault((route.model, policy.normal(route.owned_by)), number)
        if earlier != number:
            about = tuple(("routing", each, key) for each in (earlier, number) for key in ("model", "owned_by"))
            yield Fault(place, f"the same model and owner as in routing[{earlier}]", about=about)


def _route(policy: PolicyConfig, place: Place, route: Route) -> Iterator[Fault]:
    selector = route.selector
    yield from _names(policy, (*place, "owned_by"), [(None, route.owned_by)])
    if not selector.match_labels and not selector.match_expressions:
        yield Fault((*place, "selector"), "an empty selector would mean every endpoint")
    for index, expression in enumerate(selector.match_expressions):
        if bool(expression.values) != (expression.operator in ("In", "NotIn")):
            wanted = "takes no values" if expression.values else "needs values"
            yield Fault((*place, "selector", "matchExpressions", index), f"`{expression.operator}` {wanted}")


def _promote(policy: PolicyConfig) -> Iterator[Fault]:
    for key, name in (("header", policy.promote.header), ("model", policy.promote.model)):
        if _REFUSED_HEADER.fullmatch(name):
            yield Fault(("promote", key), f"`{name}` is not a header that may be set here")
    if (shared := policy.promote.owner_header) == policy.promote.model_header:
        message = f"owner and model cannot stand in the same header, `{shared}`"
        yield Fault(("promote",), message, about=(("promote", "header"), ("promote", "model")))
