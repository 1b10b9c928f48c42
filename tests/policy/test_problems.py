# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a policy, each with its place; and what is odd about a good one."""

import copy
import re
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.policy.config import PolicyConfig, default_policy
from extproc.policy.document import DocumentError
from extproc.policy.loading import parse_policy
from extproc.policy.problems import oddities, problems, schema
from extproc.policy.types import Snapshot
from tests.builders import HEAD, LLAMA, QWEN, endpoint, policy, snapshot

MANY = """\
destination: 3
sources:
  header: [x]
  query: 5
models:
- {model: a, alow: [vllm]}
- {allow: [vllm]}
- {model: b, allow: ["*"], whenAbsent: {action: nope}}
- {model: 5}
routing:
- {model: a, owned_by: b, selector: {}}
- {model: a, owned_by: B, selector: {matchExpressions: [{key: k, operator: in}]}}
body: {timeout: 10}
whenAbsent: {action: prefer}
"""


def test_everything_that_is_wrong_is_told_at_once() -> None:
    assert problems((HEAD + MANY).encode()) == [
        "line 3: Object contains unknown field `destination`, did you mean `destinations`?",
        "line 5, sources: Object contains unknown field `header`, did you mean `headers`?",
        "line 6, sources.query: Expected `array`, got `int`",
        "line 8, models[0]: Object contains unknown field `alow`, did you mean `allow`?",
        "line 9, models[1]: Object missing required field `model`",
        "line 10, models[2].whenAbsent.action: Invalid value 'nope', expected `passthrough` or `reject` or `prefer` or `split`",
        "line 11, models[3].model: Expected `str`, got `int`",
        "line 14, routing[1].selector.matchExpressions[0].operator: Invalid value 'in', did you mean `In`?",
        "line 15, body.timeout: expected a duration such as 10s, got `10`",
        "line 16, whenAbsent: Object missing required field `owners`",
        "line 10, models[2].allow: `*` is not an owner here: name it",
        "line 13, routing[0].selector: an empty selector would mean every endpoint",
        "line 14, routing[1]: the same model and owner as in routing[0]",
    ]


def test_a_good_policy_has_no_problems() -> None:
    assert problems((HEAD + "destinations: 2\n").encode()) == []


@pytest.mark.parametrize("text", ["", "a: [", "[]", "5"], ids=["empty", "cut", "a list", "5"])
def test_what_is_no_policy_at_all_has_one_problem(text: str) -> None:
    assert len(problems(text.encode())) == 1


ROUTE = "routing: [{{model: a, owned_by: vllm, selector: {}}}]\n"
GUARD = "line 4, guard: Expected `bool`, got `int`"
TOLD: dict[str, tuple[str, list[str]]] = {
    "each by itself": (
        "paths: [x]\nsources: {header: [a]}\ndestinations: 0\nmodels: [{model: a, alow: [a]}]\n",
        [
            "line 3, paths[0]: Expected a path, which begins with /",
            "line 4, sources: Object contains unknown field `header`, did you mean `headers`?",
            "line 5, destinations: Expected `int` >= 1",
            "line 6, models[0]: Object contains unknown field `alow`, did you mean `allow`?",
        ],
    ),
    "the elements of lists": (
        "paths: [1, /a, b]\nmatch: {engineFrom: [labels, label, 3]}\n",
        [
            "line 3, paths[0]: Expected `str`, got `int`",
            "line 3, paths[2]: Expected a path, which begins with /",
            "line 4, match.engineFrom[0]: Invalid value 'labels', did you mean `label`?",
            "line 4, match.engineFrom[2]: Expected `str`, got `int`, expected `label` or `probe`",
        ],
    ),
    "the values of maps": (
        "modelAliases:\n  a: 1\n  b.c: 2\n  c d: {}\n  d: e\nmatch:\n  aliases: {a: 1, B: b}\n",
        [
            "line 4, modelAliases.a: Expected `str`, got `int`",
            "line 5, modelAliases.b.c: Expected `str`, got `int`",
            'line 6, modelAliases["c d"]: Expected `str`, got `object`',
            "line 9, match.aliases.a: Expected `str`, got `int`",
            "line 9, match.aliases.B: `B` is not an owner: a-z 0-9 . _ / - in lower case",
        ],
    ),
    "weights, none": (
        "whenAbsent: {action: split, weights: {}}\n",
        ["line 3, whenAbsent.weights: Expected `object` of length >= 1"],
    ),
    "weights, less than nothing": (
        "whenAbsent:\n  action: split\n  weights:\n    a: -1\n    b: x\n    '*': 1\n",
        [
            "line 6, whenAbsent.weights.a: Expected `int` >= 0",
            "line 7, whenAbsent.weights.b: Expected `int`, got `str`",
            "line 8, whenAbsent.weights: `*` is not an owner here: name it",
        ],
    ),
    "owners, no list": (
        "whenAbsent: {action: prefer, owners: a}\n",
        ["line 3, whenAbsent.owners: Expected `array`, got `str`"],
    ),
    "owners, each on its line": (
        "whenAbsent:\n  action: prefer\n  owners:\n  - '*'\n  - 3\n  - a b\n",
        [
            "line 7, whenAbsent.owners[1]: Expected `str`, got `int`",
            "line 6, whenAbsent.owners: `*` must be the last",
            "line 8, whenAbsent.owners: `a b` is not an owner: letters, digits and . _ / -",
        ],
    ),
    "a label": (
        ROUTE.format("{matchLabels: {a: 1}}"),
        ["line 3, routing[0].selector.matchLabels.a: Expected `str`, got `int`"],
    ),
    "a typo of labels": (
        ROUTE.format("{matchLabel: {a: b}}"),
        ["line 3, routing[0].selector: Object contains unknown field `matchLabel`, did you mean `matchLabels`?"],
    ),
    "a key of another action": (
        "whenAbsent: {action: reject, owners: [a]}\n",
        ["line 3, whenAbsent: Object contains unknown field `owners`"],
    ),
    "a typo of a required key": (
        "routing: [{model: a, ownedBy: vllm, selector: {matchLabels: {a: b}}}]\n",
        ["line 3, routing[0]: Object contains unknown field `ownedBy`, did you mean `owned_by`?"],
    ),
    "a typo of `action`": (
        "whenAbsent: {actoin: reject}\nwhenUnready: {Action: fallback, owners: []}\nwhenUnknown: {actio: nope}\n",
        [
            "line 3, whenAbsent: Object contains unknown field `actoin`, did you mean `action`?",
            "line 4, whenUnready: Object contains unknown field `Action`, did you mean `action`?",
            "line 4, whenUnready.owners: Expected `array` of length >= 1",
            "line 5, whenUnknown: Object contains unknown field `actio`, did you mean `action`?",
        ],
    ),
    "no action": (
        "whenAbsent: {ownrs: [a]}\n",
        [
            "line 3, whenAbsent: Object contains unknown field `ownrs`, did you mean `owners`?",
            "line 3, whenAbsent: Object missing required field `action`",
        ],
    ),
    "no such action": (
        "whenAbsent: {action: rejct, owners: 5}\nwhenUnready: {action: 5}\n",
        [
            "line 3, whenAbsent.action: Invalid value 'rejct', did you mean `reject`?",
            "line 4, whenUnready.action: Expected `str`, got `int`, expected `reject` or `fallback`",
        ],
    ),
    "no such value": (
        "match: {models: knwon}\n",
        ["line 3, match.models: Invalid value 'knwon', did you mean `known`?"],
    ),
    "names of headers": (
        'sources: {headers: [X-A, "x-a\\n"]}\npromote: {header: "x-e\\n", model: X}\n',
        [
            f"line {line}: Expected the name of a header, in lower case"
            for line in ("3, sources.headers[0]", "3, sources.headers[1]", "4, promote.header", "4, promote.model")
        ],
    ),
    "a set": ("paths: !!set {/a, /b}\nguard: 1\n", ["line 3: the tag `!!set` may not stand here", GUARD]),
    "keys twice": (
        "guard: true\nbody: {strip: true, strip: false}\nguard: false\nguard: 1\n",
        [
            "line 5: the key `guard` stands twice",
            "line 6: the key `guard` stands twice",
            "line 4: the key `strip` stands twice",
            "line 6, guard: Expected `bool`, got `int`",
        ],
    ),
    "what cannot be merged": (
        "guard: 1\nguard: 2\nbody: {<<: 5}\n",
        [
            "line 4: the key `guard` stands twice",
            "line 5: expected a mapping or list of mappings for merging, but found scalar",
        ],
    ),
    "twins where something else is wrong": (
        (
            "routing:\n- {model: a, owned_by: b, selector: 5}\n- {model: a, owned_by: B, selector: {matchLabels: {a: b}}}\n"
            "- {model: a, owned_by: 5, selector: {matchLabels: {a: b}}}\n- 7\n- 8\n"
        ),
        [
            "line 4, routing[0].selector: Expected `object`, got `int`",
            "line 6, routing[2].owned_by: Expected `str`, got `int`",
            "line 7, routing[3]: Expected `object`, got `int`",
            "line 8, routing[4]: Expected `object`, got `int`",
            "line 5, routing[1]: the same model and owner as in routing[0]",
        ],
    ),
    "headers that may not be the same, of which one is none": (
        "promote: {header: X, model: x-owned-by}\n",
        ["line 3, promote.header: Expected the name of a header, in lower case"],
    ),
    "aliases that are none": (
        "match: {aliases: 5}\n",
        ["line 3, match.aliases: Expected `object`, got `int`"],
    ),
    "more than fifty": (
        "".join(f"key{number}: 1\n" for number in range(60)),
        [f"line {number + 3}: Object contains unknown field `key{number}`" for number in range(60)],
    ),
}


@pytest.mark.parametrize(("text", "told"), TOLD.values(), ids=TOLD)
def test_each_fault_is_told_once_and_nothing_that_follows_from_it(text: str, told: list[str]) -> None:
    assert problems((HEAD + text).encode()) == told


def test_a_typo_of_a_key_of_the_head_is_not_also_a_missing_key() -> None:
    assert problems(HEAD.replace("apiVersion", "apiversion").encode()) == [
        "line 1: Object contains unknown field `apiversion`, did you mean `apiVersion`?"
    ]


LINES = st.sampled_from(
    [
        *MANY.splitlines(keepends=True),
        "destinations: x\n",
        "guard: maybe\n",
        "models: {}\n",
        "paths: [a]\n",
        "paths: !!set {/a}\n",
        "1: 2\n",
    ]
)


def refused(text: bytes) -> list[str]:
    try:
        parse_policy(text)
    except DocumentError as error:
        return [str(error)]
    return []


@given(st.lists(LINES, max_size=12))
def test_the_first_problem_is_what_the_server_says(lines: list[str]) -> None:
    text = (HEAD + "".join(lines)).encode()
    assert problems(text)[:1] == refused(text)


FULL = {
    "apiVersion": "owned-by/v1alpha1",
    "kind": "OwnedByPolicy",
    "paths": ["/v1/*"],
    "sources": {"headers": ["x-a"], "query": ["q"], "body": ["b"], "modelHeaders": ["x-m"]},
    "match": {"engineFrom": ["label", "probe"], "unlabeledAs": "vllm", "models": "any", "aliases": {"a": "b"}},
    "modelAliases": {"a": "b", "c.d": "e"},
    "destinations": 3,
    "guard": True,
    "whenAbsent": {"action": "split", "weights": {"a": 1, "b": 0}},
    "whenUnknown": {"action": "passthrough"},
    "whenUnready": {"action": "fallback", "owners": ["a", "*"]},
    "models": [
        {"model": "m", "allow": ["a"], "whenAbsent": {"action": "prefer", "owners": ["a"]}},
        {"model": "n*", "whenUnready": {"action": "reject"}},
    ],
    "routing": [
        {"model": "m", "owned_by": "a", "selector": {"matchLabels": {"x": "y"}}},
        {
            "model": "m",
            "owned_by": "b",
            "selector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]},
        },
    ],
    "body": {"strip": True, "maxBytes": 7, "timeout": "1m30s"},
    "promote": {"header": "x-o", "model": "x-p", "reroute": True},
}
WORDS = st.sampled_from(
    ["", "a", "b", "*", "any", "/a", "x-o", "x-a\n", "X", "action", "reject", "split", "In", "10s", "é"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.integers() | st.floats() | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def nodes(value: Any) -> list[Any]:
    """Every list and map, with what is in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if inner else []), *(node for each in inner for node in nodes(each))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A valid policy with some keys renamed or taken away, some values replaced, and some in another place."""
    value = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(0, 4))):
        node = draw(st.sampled_from(nodes(value)))
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        change = draw(st.sampled_from(["replace", "take", "rename", "elsewhere"]))
        if change == "replace":
            node[key] = draw(ANYTHING)
        elif change == "elsewhere":
            node[key] = copy.deepcopy(draw(st.sampled_from(nodes(value))))
        elif change == "rename" and isinstance(node, dict):
            node[draw(WORDS | st.just(key[:-1]) | st.just(key.upper()))] = node.pop(key)
        else:
            del node[key]
        if not value:
            return value
    return value


@settings(max_examples=400)
@given(mutated(), st.sampled_from([False, True]))
def test_there_is_a_problem_where_the_server_refuses_the_policy_and_only_there(value: Any, flow: object) -> None:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False, default_flow_style=bool(flow)).encode()
    found = problems(text)
    lines = [int(match[1]) for match in (re.match(r"line (\d+)[:,] ?", each) for each in found) if match]

    assert found[:1] == refused(text)
    assert len(lines) == len(found) or found == ["the document is empty"]
    assert all(1 <= line <= text.count(b"\n") + 1 for line in lines)
    assert not any("\n" in each or "[...]" in each for each in found)


WORLD = snapshot(endpoint(1, "vllm", (LLAMA,)), endpoint(2, "sglang", (QWEN,)))
ENTRY = f"""\
routing: [{{model: '{LLAMA}', owned_by: cheap, selector: {{matchExpressions: [{{key: none, operator: DoesNotExist}}]}}}}]"""
ODD = {
    "nothing": ("models: [{model: 'meta-llama/*', allow: [vllm]}]", []),
    "allow, an owner": (
        f"models: [{{model: '{LLAMA}', allow: [tgi]}}]",
        [f"models[0].allow: model `{LLAMA}` allows `tgi`, but no endpoint is that"],
    ),
    "a pattern": ("models: [{model: 'gpt-*'}]", ["models[0].model: no endpoint lists a model that `gpt-*` matches"]),
    "a pattern for an alias": (
        f"modelAliases: {{small: '{LLAMA}'}}\nmodels: [{{model: small}}]",
        ["models[0].model: no endpoint lists a model that `small` matches"],
    ),
    "an owner of a routing entry": (
        (
            f"{ENTRY}\nwhenAbsent: {{action: prefer, owners: [Cheap, any]}}\n"
            "whenUnready: {action: fallback, owners: [cheap]}\n"
            f"models: [{{model: '{LLAMA}', allow: [cheap]}}]"
        ),
        [],
    ),
    "an owner of a routing entry for another model": (
        f"{ENTRY}\nmodels: [{{model: '{QWEN}', allow: [cheap]}}]",
        [f"models[0].allow: model `{QWEN}` allows `cheap`, but no endpoint serves it"],
    ),
    "an engine that serves a model by a routing entry": (
        f"{ENTRY.replace('cheap', 'sglang')}\nmodels: [{{model: '{LLAMA}', allow: [vllm, sglang]}}]",
        [],
    ),
    "allow, a pair": (
        "models: [{model: 'meta-llama/*', allow: [vllm, SGLang]}]",
        ["models[0].allow: model `meta-llama/*` allows `sglang`, but no endpoint serves it"],
    ),
    "prefer": (
        "whenAbsent: {action: prefer, owners: [tgi, '*']}",
        ["whenAbsent.owners: prefers `tgi`, but no endpoint is that"],
    ),
    "split": (
        "models: [{model: '*', whenAbsent: {action: split, weights: {tgi: 1}}}]",
        ["models[0].whenAbsent.weights: gives a share to `tgi`, but no endpoint is that"],
    ),
    "fallback": (
        "whenUnready: {action: fallback, owners: [tgi]}",
        ["whenUnready.owners: falls back to `tgi`, but no endpoint is that"],
    ),
    "routing": (
        f"routing: [{{model: '{LLAMA}', owned_by: vllm, selector: {{matchLabels: {{app: x}}}}}}]",
        ["routing[0].selector: no endpoint has these labels"],
    ),
    "an alias": ("modelAliases: {small: m}", ["modelAliases.small: no endpoint lists `m`"]),
}


@pytest.mark.parametrize(("text", "odd"), ODD.values(), ids=ODD)
def test_what_no_endpoint_is_is_told(text: str, odd: list[str]) -> None:
    assert oddities(policy(text), WORLD) == odd


def test_of_no_endpoints_every_owner_is_odd() -> None:
    assert oddities(policy("whenAbsent: {action: prefer, owners: [vllm]}"), Snapshot()) == [
        "whenAbsent.owners: prefers `vllm`, but no endpoint is that"
    ]


def test_the_schema_knows_every_key_and_no_other() -> None:
    found = schema()
    top = found["$defs"]["PolicyConfig"]

    assert set(top["properties"]) == {field.encode_name for field in msgspec.structs.fields(type(policy()))}
    assert (top["required"], top["additionalProperties"]) == (["apiVersion", "kind"], False)
    assert found["$defs"]["Body"]["properties"]["timeout"]["pattern"] == r"^(\d+(\.\d+)?(ms|s|m|h))+$"


KEYS = [
    (kind, name, key)
    for kind, described in schema()["$defs"].items()
    for name, key in described["properties"].items()
    if name != "action"
]


@pytest.mark.parametrize("key", [key for _, _, key in KEYS], ids=[f"{kind}.{name}" for kind, name, _ in KEYS])
def test_the_schema_says_in_one_sentence_what_each_key_is_for(key: dict[str, Any]) -> None:
    assert re.fullmatch(r"[^.\n]+\.", key["description"])


def test_the_defaults_of_the_schema_written_out_are_the_default_policy() -> None:
    parts = schema()["$defs"]
    top = parts["PolicyConfig"]["properties"]
    nested = {name: parts[key["$ref"].rpartition("/")[2]]["properties"] for name, key in top.items() if "$ref" in key}
    defaults = {name: key["default"] for name, key in top.items() if "default" in key}
    inner = {name: {each: key["default"] for each, key in keys.items()} for name, keys in nested.items()}

    assert (top.keys() - defaults.keys(), set(inner)) == (
        {"apiVersion", "kind"},
        {"sources", "match", "body", "promote"},
    )
    for written in (defaults, inner):
        document = {"apiVersion": "owned-by/v1alpha1", "kind": "OwnedByPolicy"} | written
        assert plain(parse_policy(msgspec.json.encode(document))) == plain(default_policy())


def plain(policy_: PolicyConfig) -> object:
    return msgspec.to_builtins(policy_, enc_hook=str)


def test_a_routing_entry_for_a_model_that_no_endpoint_lists_is_odd() -> None:
    text = "routing: [{model: m, owned_by: vllm, selector: {matchLabels: {llm-d.ai/engine-type: vllm}}}]"

    assert oddities(policy(text), WORLD) == ["routing[0].model: no endpoint lists `m`"]
    assert oddities(policy(text), snapshot(endpoint(1, "vllm", None))) == []
