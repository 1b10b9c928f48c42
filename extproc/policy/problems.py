# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a policy document, not only the first of it; and what is odd about a good one."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from extproc.policy.candidates import Candidates, candidates
from extproc.policy.config import Duration, Fallback, PolicyConfig, Prefer, Split, default_policy
from extproc.policy.document import Document, DocumentError
from extproc.policy.faults import independent, judged
from extproc.policy.loading import duration, mistakes
from extproc.policy.types import ANY, Snapshot

_DURATION: Final = r"^(\d+(\.\d+)?(ms|s|m|h))+$"


def problems(text: bytes) -> list[str]:
    """Everything that is wrong, each with its line and path, a typo with the key that was meant; none if it is good."""
    try:
        document = Document(text, lenient=True)
    except DocumentError as error:
        return [str(error)]
    found = [str(error) for error in document.wrong]
    if document.value is not None:
        policy, faults = judged(document.value, PolicyConfig, duration)
        faults += independent(mistakes(policy), faults)
        found += [str(document.fail(fault.place, fault.message, fault.key)) for fault in faults]
    return list(dict.fromkeys(found))


def schema() -> dict[str, Any]:
    """The JSON Schema of a policy document, with what each key is for and its default."""

    def described(kind: type) -> dict[str, Any]:
        if kind is Duration:
            return {"type": "string", "pattern": _DURATION, "examples": ["10s", "1m30s"]}
        raise NotImplementedError

    found = msgspec.json.schema(PolicyConfig, schema_hook=described)
    kinds = found["$defs"]
    # msgspec leaves out the defaults that a function makes.
    defaults = msgspec.to_builtins(default_policy(), enc_hook=str)
    for key, top in kinds["PolicyConfig"]["properties"].items():
        if key not in kinds["PolicyConfig"]["required"]:
            top.setdefault("default", defaults[key])
        if "$ref" in top:
            for name, inner in kinds[top["$ref"].rpartition("/")[2]]["properties"].items():
                inner.setdefault("default", defaults[key][name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "OwnedByPolicy", **found}


def oddities(policy: PolicyConfig, snapshot: Snapshot) -> list[str]:
    """What a policy names that the endpoints of a snapshot, ready or not, are not: it is valid, and may be a mistake."""
    every = [candidates(snapshot, policy, pool, decoding=False) for pool in snapshot.pools]
    listed = frozenset[str]().union(*(found.listed for found in every))
    routed = {policy.normal(route.owned_by) for route in policy.routing}
    named = {policy.normal(owner) for _, _, owner in _owners(policy)}
    known = routed | {owner for owner in named if any(found.knows(owner) for found in every)}
    odd = [
        f"{place}: {who} `{owner}`, but no endpoint is that"
        for place, who, owner in _owners(policy)
        if policy.normal(owner) not in (ANY, "any", *known)
    ]
    odd += _odd_rules(policy, every, listed, known)
    labels = [endpoint.labels for members in snapshot.endpoints.values() for endpoint in members]
    for number, route in enumerate(policy.routing):
        if not any(map(route.selector.admits, labels)):
            odd.append(f"routing[{number}].selector: no endpoint has these labels")
        if listed and route.model not in listed:
            odd.append(f"routing[{number}].model: no endpoint lists `{route.model}`")
    for alias, model in policy.model_aliases.items():
        if listed and model not in listed:
            odd.append(f"modelAliases.{alias}: no endpoint lists `{model}`")
    return odd


def _odd_rules(policy: PolicyConfig, every: list[Candidates], listed: frozenset[str], known: set[str]) -> Iterator[str]:
    """The rules for models that nobody lists, or with owners that do not serve them."""
    routed = {
        (policy.model_aliases.get(route.model, route.model), policy.normal(route.owned_by)) for route in policy.routing
    }
    for number, rule in enumerate(policy.models):
        meant = [model for model in sorted(listed) if fnmatchcase(model, rule.model)]
        entries = {owner for model, owner in routed if fnmatchcase(model, rule.model)}
        if listed and not meant and not entries:
            yield f"models[{number}].model: no endpoint lists a model that `{rule.model}` matches"
        for owner in dict.fromkeys(map(policy.normal, rule.allow or ())):
            serves = any(found.group(owner, (model,)).known for found in every for model in meant)
            if meant and owner in known - entries and not serves:
                yield f"models[{number}].allow: model `{rule.model}` allows `{owner}`, but no endpoint serves it"


def _owners(policy: PolicyConfig) -> Iterator[tuple[str, str, str]]:
    """Every owner that a rule names: where, what the rule does with it, and the owner."""
    yield from _whens("", policy)
    for number, rule in enumerate(policy.models):
        for owner in rule.allow or ():
            yield f"models[{number}].allow", f"model `{rule.model}` allows", owner
        yield from _whens(f"models[{number}].", rule)


def _whens(place: str, rules: Any) -> Iterator[tuple[str, str, str]]:
    match rules.when_absent:
        case Prefer(owners=owners):
            yield from ((f"{place}whenAbsent.owners", "prefers", owner) for owner in owners)
        case Split(weights=weights):
            yield from ((f"{place}whenAbsent.weights", "gives a share to", owner) for owner in weights)
    if isinstance(rules.when_unready, Fallback):
        yield from ((f"{place}whenUnready.owners", "falls back to", owner) for owner in rules.when_unready.owners)
