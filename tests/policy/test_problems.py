# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a policy, each with its place; and what is odd about a good one."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
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
- {model: a, owned_by: B, selector: {matchExpressions: [{key: k, operator: Is}]}}
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
        "line 10, models[2].whenAbsent.action: Invalid value 'nope'",
        "line 11, models[3].model: Expected `str`, got `int`",
        "line 14, routing[1].selector.matchExpressions[0].operator: Invalid enum value 'Is'",
        "line 15, body.timeout: expected a duration such as 10s, got `10`",
        "line 16, whenAbsent: Object missing required field `owners`",
        "line 10, models[2].allow: `*` is not an owner here: name it",
        "line 13, routing[0].selector: an empty selector would mean every endpoint",
        "line 14, routing[1]: the same model and owner as in routing[0]",
    ]


def test_a_good_policy_has_no_problems() -> None:
    assert problems((HEAD + "destinations: 2\n").encode()) == []


@pytest.mark.parametrize("text", ["", "a: [", "[]", "a: 1\na: 2", "5"], ids=["empty", "cut", "a list", "twice", "5"])
def test_what_is_no_policy_at_all_has_one_problem(text: str) -> None:
    assert len(problems(text.encode())) == 1


LINES = st.sampled_from(
    [*MANY.splitlines(keepends=True), "destinations: x\n", "guard: maybe\n", "models: {}\n", "paths: [a]\n"]
)


def refused(text: bytes) -> list[str]:
    try:
        parse_policy(text)
    except DocumentError as error:
        return [str(error)]
    return []


@given(st.lists(LINES, max_size=12))
def test_there_is_a_problem_where_the_server_refuses_the_policy_and_only_there(lines: list[str]) -> None:
    text = (HEAD + "".join(lines)).encode()
    found = [problem.partition(", did you mean")[0] for problem in problems(text)]
    assert found[:1] == refused(text)


WORLD = snapshot(endpoint(1, "vllm", (LLAMA,)), endpoint(2, "sglang", (QWEN,)))
ODD = {
    "nothing": ("models: [{model: 'meta-llama/*', allow: [vllm]}]", []),
    "allow, an owner": (
        "models: [{model: m, allow: [tgi]}]",
        ["models[0].allow: model `m` allows `tgi`, but no endpoint is that"],
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
        "models: [{model: m, whenAbsent: {action: split, weights: {tgi: 1}}}]",
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
