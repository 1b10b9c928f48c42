# SPDX-License-Identifier: Apache-2.0
"""A policy document -> PolicyConfig: the types say most of what may stand in it, the rest is said here."""

import re
from collections.abc import Iterator
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
from extproc.policy.document import Document
from extproc.policy.types import ANY

_REFUSED_HEADER: Final = re.compile(
    r"host|connection|upgrade|te|trailer|transfer-encoding|content-.*|authorization|cookie|x-envoy-.*"
    r"|x-gateway-destination-.*|x-prefiller-.*|x-encoder-.*|x-data-parallel-.*|x-kv-cache-.*"
)
"""What frames or authorises a request, what Envoy lets no filter set, and what is the EPP's."""

Mistake = tuple[str, str]
"""A path as msgspec spells it, `$.models[0].allow`, and what is wrong there."""


def parse_policy(text: bytes) -> PolicyConfig:
    """Read a policy document. Raises DocumentError with path and line for the first thing that is wrong."""
    document = Document(text)
    policy = document.convert(PolicyConfig, dec_hook=duration)
    for path, message in mistakes(policy):
        raise document.fail(path, message)
    return policy


def duration(kind: type, value: object) -> object:
    """Msgspec's hook for the one type that it does not know. Raises ValueError for what is none."""
    if kind is Duration and isinstance(value, str):
        return Duration.parse(value)
    raise ValueError(f"expected a duration such as 10s, got `{value}`")


def mistakes(policy: PolicyConfig) -> Iterator[Mistake]:
    """What the types cannot say."""
    for alias, owner in policy.match.aliases.items():
        for word in (alias, owner):
            if not OWNER.fullmatch(word) or word in (ANY, "any"):
                yield f"$.match.aliases.{alias}", f"`{word}` is not an owner: a-z 0-9 . _ / - in lower case"
    unlabeled = policy.match.unlabeled_as
    if unlabeled and (not OWNER.fullmatch(policy.normal(unlabeled)) or policy.normal(unlabeled) == "any"):
        yield "$.match.unlabeledAs", f"`{unlabeled}` is not an owner: letters, digits and . _ / -"
    yield from _actions(policy, policy, "$")
    for number, rule in enumerate(policy.models):
        yield from _names(policy, f"$.models[{number}].allow", rule.allow or ())
        yield from _actions(policy, rule, f"$.models[{number}]")
    yield from misrouted(policy)
    yield from _promote(policy)
    if policy.body.timeout <= 0:
        yield "$.body.timeout", "must be longer than nothing"


def _actions(policy: PolicyConfig, rules: PolicyConfig | ModelRule, place: str) -> Iterator[Mistake]:
    """The owners that the whens name."""
    match rules.when_absent:
        case Prefer(owners=owners):
            yield from _names(policy, f"{place}.whenAbsent.owners", owners, ordered=True)
        case Split(weights=weights):
            yield from _names(policy, f"{place}.whenAbsent.weights", tuple(weights))
            if not any(weights.values()):
                yield f"{place}.whenAbsent.weights", "no owner has a weight"
    if isinstance(rules.when_unready, Fallback):
        yield from _names(policy, f"{place}.whenUnready.owners", rules.when_unready.owners, ordered=True)


def _names(policy: PolicyConfig, place: str, owners: tuple[str, ...], *, ordered: bool = False) -> Iterator[Mistake]:
    """Names that are none; in an order of preference `*` is one, and the last."""
    for index, owner in enumerate(owners):
        normal = policy.normal(owner)
        if normal in (ANY, "any"):
            if not ordered:
                yield place, f"`{owner}` is not an owner here: name it"
            elif index < len(owners) - 1:
                yield place, f"`{owner}` must be the last"
        elif not OWNER.fullmatch(normal):
            yield place, f"`{owner}` is not an owner: letters, digits and . _ / -"


def misrouted(policy: PolicyConfig) -> Iterator[Mistake]:
    """What the types cannot say of the routing entries."""
    seen: dict[tuple[str, str], int] = {}
    for number, route in enumerate(policy.routing):
        place = f"$.routing[{number}]"
        yield from _route(policy, place, route)
        earlier = seen.setdefault((route.model, policy.normal(route.owned_by)), number)
        if earlier != number:
            yield place, f"the same model and owner as in routing[{earlier}]"


def _route(policy: PolicyConfig, place: str, route: Route) -> Iterator[Mistake]:
    selector = route.selector
    yield from _names(policy, f"{place}.owned_by", (route.owned_by,))
    if not selector.match_labels and not selector.match_expressions:
        yield f"{place}.selector", "an empty selector would mean every endpoint"
    for index, expression in enumerate(selector.match_expressions):
        if bool(expression.values) != (expression.operator in ("In", "NotIn")):
            wanted = "takes no values" if expression.values else "needs values"
            yield f"{place}.selector.matchExpressions[{index}]", f"`{expression.operator}` {wanted}"


def _promote(policy: PolicyConfig) -> Iterator[Mistake]:
    for key, name in (("header", policy.promote.header), ("model", policy.promote.model)):
        if _REFUSED_HEADER.fullmatch(name):
            yield f"$.promote.{key}", f"`{name}` is not a header that may be set here"
    if (shared := policy.promote.owner_header) == policy.promote.model_header:
        yield "$.promote", f"owner and model cannot stand in the same header, `{shared}`"
