# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a policy document, not only the first of it; and what is odd about a good one.

msgspec names one fault at a time. What is at fault is replaced by something that is not, and the document tried again,
until it passes or nothing can be replaced.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec
from msgspec import inspect

from extproc.policy.candidates import candidates
from extproc.policy.config import Duration, Fallback, PolicyConfig, Prefer, Split, default_policy
from extproc.policy.document import Document, DocumentError
from extproc.policy.loading import duration, mistakes
from extproc.policy.types import ANY, Snapshot

_MOST: Final = 50
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]+)`")
_DURATION: Final = r"^(\d+(\.\d+)?(ms|s|m|h))+$"
_FINE: Final[dict[str, Any]] = {
    "apiVersion": "owned-by/v1alpha1",
    "kind": "OwnedByPolicy",
    "model": "-",
    "owned_by": "-",
    "key": "-",
    "operator": "Exists",
    "selector": {"matchLabels": {"-": "-"}},
}
"""What stands for a required field that is wrong or missing."""
_ELEMENTS: Final = {
    "models": ("model",),
    "routing": ("model", "owned_by", "selector"),
    "matchExpressions": ("key", "operator"),
}
"""The required fields of the elements of each list."""


def problems(text: bytes) -> list[str]:
    """Everything that is wrong, each with its line and path, a typo with the key that was meant; none if it is good."""
    try:
        document = Document(text)
    except DocumentError as error:
        return [str(error)]
    found: list[str] = []
    value = copy.deepcopy(document.value)
    while len(found) < _MOST:
        try:
            policy = msgspec.convert(value, PolicyConfig, dec_hook=duration)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `")
            path = path.rstrip("`") or "$"
            unknown = _UNKNOWN.search(message)
            found.append(str(document.fail(path, message + _meant(path, unknown), unknown)))
            if not _mend(value, path, unknown[1] if unknown else _missing(message)):
                break
        else:
            found += [str(document.fail(path, message)) for path, message in mistakes(policy)]
            break
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
    listed = frozenset().union(*(found.listed for found in every))
    odd = [
        f"{place}: {who} `{owner}`, but no endpoint is that"
        for place, who, owner in _owners(policy)
        if owner != ANY and not any(found.knows(policy.normal(owner)) for found in every)
    ]
    for number, rule in enumerate(policy.models):
        meant = [model for model in sorted(listed) if fnmatchcase(model, rule.model)]
        for owner in map(policy.normal, rule.allow or ()):
            known = [found for found in every if found.knows(owner)]
            if meant and known and not any(found.group(owner, (model,)).known for found in known for model in meant):
                odd.append(f"models[{number}].allow: model `{rule.model}` allows `{owner}`, but no endpoint serves it")
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


def _missing(message: str) -> str | None:
    found = re.search(r"missing required field `([^`]+)`", message)
    return found[1] if found else None


def _mend(value: Any, path: str, key: str | None) -> bool:
    """Replace what is at fault, `key` of the node at `path` if one is named; False if that cannot be."""
    steps: list[Any] = [name or int(index) for name, index in _STEP.findall(path) if index != "..."]
    steps += [key] if key else []
    if not steps:
        return False
    nodes = [value]
    for step in steps[:-1]:
        nodes.append(nodes[-1][step] if isinstance(step, int) else nodes[-1].get(step))
    parent, last = nodes[-1], steps[-1]
    if isinstance(last, int):
        lists = [step for step in steps[:-1] if isinstance(step, str)]
        required = _ELEMENTS.get(lists[-1] if lists else "")
        # A name of its own, so that two that were wrong are not twins.
        parent[last] = {name: _FINE[name] for name in required} | {required[0]: f"-{last}"} if required else "-"
        return True
    if not isinstance(parent, dict):
        return False
    if last in _FINE and (key is None or last not in parent):
        parent[last] = copy.deepcopy(_FINE[last])
    elif last == "action" or last not in parent:  # an action that is none, or that lacks something: the whole of it
        return len(steps) > 1 and _mend(value, path.rpartition(".")[0] if key is None else path, None)
    else:
        del parent[last]
    return True


def _meant(path: str, unknown: re.Match[str] | None) -> str:
    """The known key that an unknown one is nearest to."""
    if unknown is None:
        return ""
    near = difflib.get_close_matches(unknown[1], sorted(_keys(path)), n=1)
    return f", did you mean `{near[0]}`?" if near else ""


def _keys(path: str) -> set[str]:
    """The keys of the object at a path."""
    kinds: Iterable[inspect.Type] = [inspect.type_info(PolicyConfig)]
    for name, _ in _STEP.findall(path):
        kinds = [inner for kind in kinds for inner in _inside(kind, name)]
    return {
        field.encode_name for kind in _plain(kinds) if isinstance(kind, inspect.StructType) for field in kind.fields
    }


def _inside(kind: inspect.Type, name: str) -> Iterator[inspect.Type]:
    for plain in _plain([kind]):
        match plain:
            case inspect.StructType(fields=fields):
                yield from (field.type for field in fields if field.encode_name == name)
            case inspect.VarTupleType(item_type=inner) | inspect.DictType(value_type=inner):
                yield inner


def _plain(kinds: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """The types without what wraps them."""
    for kind in kinds:
        match kind:
            case inspect.Metadata(type=inner):
                yield from _plain([inner])
            case inspect.UnionType(types=types):
                yield from _plain(types)
            case _:
                yield kind
