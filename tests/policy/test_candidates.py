# SPDX-License-Identifier: Apache-2.0
"""Engines and models of endpoints, and the groups that they make."""

from typing import Any

import msgspec
import pytest

from extproc.policy.candidates import Candidates, Group, candidates, engine, models_of, union
from extproc.policy.types import Endpoint, Model, ModelEntry
from tests.builders import CHAT, endpoint, policy, snapshot

DEFAULT = policy()

ENGINES = {
    "llm-d's label": ({"llm-d.ai/engine-type": "sglang"}, "", "sglang"),
    "the inference extension's": ({"inference.networking.k8s.io/engine-type": "sglang"}, "", "sglang"),
    "AIBrix's": ({"model.aibrix.ai/engine": "sglang"}, "", "sglang"),
    "the first label wins": ({"model.aibrix.ai/engine": "a", "llm-d.ai/engine-type": "b"}, "", "b"),
    "an empty label is none": ({"model.aibrix.ai/engine": "a", "llm-d.ai/engine-type": ""}, "", "a"),
    "normalised": ({"llm-d.ai/engine-type": "SGLang"}, "", "sglang"),
    "aliased": ({"llm-d.ai/engine-type": "trt-llm"}, "", "trtllm-serve"),
    "unlabelled": ({"app": "x"}, "", "vllm"),
    "unlabelled as another": ({}, "match: {unlabeledAs: SGLang}\n", "sglang"),
    "strict": ({}, "match: {unlabeledAs: ''}\n", ""),
    "a label of one's own": ({"e": "a"}, "match: {ownedByLabels: [e]}\n", "a"),
}


@pytest.mark.parametrize(("labels", "text", "owner"), ENGINES.values(), ids=ENGINES)
def test_the_engine_is_the_first_label(labels: dict[str, str], text: str, owner: str) -> None:
    assert engine(Endpoint("a", "default", "10.0.0.1", 8000, labels=labels), policy(text)) == owner


WORD = {
    "a label before its word": ("[label, probe]", {"llm-d.ai/engine-type": "sglang"}, "vllm", "sglang"),
    "its word before a label": ("[probe, label]", {"llm-d.ai/engine-type": "sglang"}, "tgi", "tgi"),
    "its word without a label": ("[label, probe]", {}, " SGLang ", "sglang"),
    "its word, aliased": ("[label, probe]", {}, "trtllm", "trtllm-serve"),
    "a word that is no owner": ("[label, probe]", {}, "my engine", "vllm"),
    "no word": ("[label, probe]", {}, "", "vllm"),
    "a word that nobody asked for": ("[label]", {}, "sglang", "vllm"),
}


@pytest.mark.parametrize(("order", "labels", "word", "owner"), WORD.values(), ids=WORD)
def test_the_engine_s_own_word_counts_where_the_policy_says_so(
    order: str, labels: dict[str, str], word: str, owner: str
) -> None:
    given = Endpoint("a", "default", "10.0.0.1", 8000, labels=labels, owned_by=word)
    assert engine(given, policy(f"match: {{engineFrom: {order}}}\n")) == owner


@pytest.mark.parametrize(
    ("order", "labels", "owner"),
    [
        ("[label, probe]", {}, ""),
        ("[label, probe]", {"llm-d.ai/engine-type": "sglang"}, "sglang"),
        ("[probe, label]", {"llm-d.ai/engine-type": "sglang"}, ""),
        ("[label]", {}, "vllm"),
    ],
)
def test_an_engine_whose_word_is_still_to_come_is_not_taken_for_another(
    order: str, labels: dict[str, str], owner: str
) -> None:
    given = Endpoint("a", "default", "10.0.0.1", 8000, labels=labels, owned_by=None)
    assert engine(given, policy(f"match: {{engineFrom: {order}}}\n")) == owner


SERVED: dict[str, tuple[Any, Any, Any]] = {
    "its own list": ((Model("a"),), {"m": "b"}, (Model("a"),)),
    "an empty list is a list": ((), {"m": "b"}, ()),
    "a label": (None, {"m": "b"}, (Model("b"),)),
    "neither": (None, {}, None),
}


@pytest.mark.parametrize(("models", "labels", "expected"), SERVED.values(), ids=SERVED)
def test_the_models_are_its_own_list_or_its_labels(models: Any, labels: dict[str, str], expected: Any) -> None:
    given = Endpoint("a", "default", "10.0.0.1", 8000, labels=labels, models=models)
    assert models_of(given, policy("match: {modelLabels: [m]}\n")) == expected


def test_several_labels_name_a_model_each() -> None:
    given = Endpoint("a", "default", "127.0.0.1", 8000, labels={"m": "b", "other": "x", "adapter": "c"}, models=None)
    rules = policy("match: {modelLabels: [adapter, none, m]}\n")
    assert models_of(given, rules) == (Model("c"), Model("b"))


V1, V2, S1 = endpoint(1, "vllm", ("a",)), endpoint(2, "vllm", ("b",), ready=False), endpoint(3, "sglang", None)

GROUPS = {
    "all": ("*", (), Group(3, (V1, S1))),
    "an owner": ("vllm", (), Group(2, (V1,))),
    "an owner and a model": ("vllm", ("a",), Group(1, (V1,))),
    "none ready": ("vllm", ("b",), Group(1, ())),
    "a model that may be there": ("sglang", ("a",), Group(1, (S1,))),
    "an unknown model that may be there": ("*", ("c",), Group(1, (S1,))),
    "an unknown model": ("vllm", ("c",), Group(0, ())),
    "an unknown owner": ("tgi", (), Group(0, ())),
    "one of several models": ("vllm", ("a", "b"), Group(2, (V1,))),
    "of several models those that serve them all": ("*", ("a", "c"), Group(2, (S1,))),
}


@pytest.mark.parametrize(("owner", "models", "group"), GROUPS.values(), ids=GROUPS)
def test_a_group_is_who_serves_and_who_of_them_is_ready(owner: str, models: tuple[str, ...], group: Group) -> None:
    assert Candidates([V1, V2, S1], DEFAULT).group(owner, models) == group


def test_unknown_names_make_no_groups_of_their_own() -> None:
    found = Candidates([V1, V2, S1], DEFAULT)
    for number in range(100):
        found.group(f"owner-{number}", (f"model-{number}",))
        found.group("vllm", (f"model-{number}",))
    assert len(found._groups) == 1


FACTS = {
    "different lists": ((V1, V2), True, {"a", "b"}, True, True),
    "the same list": ((V1, endpoint(4, "sglang", ("a",))), False, {"a"}, True, True),
    "known and unknown": ((V1, S1), True, {"a"}, True, False),
    "unknown only": ((S1,), False, set(), False, False),
    "the unready count": ((V2,), False, {"b"}, True, True),
    "nothing": ((), False, set(), False, False),
}


@pytest.mark.parametrize(("endpoints", "differ", "listed", "any_listed", "complete"), FACTS.values(), ids=FACTS)
def test_what_is_known_of_the_models(
    endpoints: tuple[Endpoint, ...],
    differ: bool,  # noqa: FBT001 - a column
    listed: set[str],
    any_listed: bool,  # noqa: FBT001 - a column
    complete: bool,  # noqa: FBT001 - a column
) -> None:
    found = Candidates(endpoints, DEFAULT)
    assert (found.differ, found.listed, found.any_listed, found.models_complete) == (
        differ,
        listed,
        any_listed,
        complete,
    )


@pytest.mark.parametrize("later", [(V1, S1), (V2, S1, V1), (endpoint(1, "sglang", ("b",)), V2), ()])
def test_what_was_sorted_before_is_sorted_the_same_again(later: tuple[Endpoint, ...]) -> None:
    former = Candidates([V1, V2, S1], DEFAULT)
    afresh, again = Candidates(later, DEFAULT), Candidates(later, DEFAULT, former)
    asked = [(owner, models) for owner in ("*", "vllm", "sglang", "tgi") for models in ((), ("a",), ("b",), ("c",))]

    assert [again.group(*one) for one in asked] == [afresh.group(*one) for one in asked]
    assert (again.differ, again.listed, again.catalogue) == (afresh.differ, afresh.listed, afresh.catalogue)


def test_the_next_snapshot_s_candidates_begin_with_those_of_the_last() -> None:
    last = snapshot(V1, V2)
    first = candidates(last, DEFAULT, CHAT, decoding=False)
    then = msgspec.structs.replace(snapshot(V1, S1, generation=2), former=last.memo)
    second = candidates(then, DEFAULT, CHAT, decoding=False)

    assert second.places[id(V1)] is first.places[id(V1)]
    assert [place[0] for place in second.places.values()] == [V1, S1]


def test_the_catalogue_has_one_entry_per_model_and_owner_of_what_is_ready() -> None:
    def serving(number: int, owner: str, *models: Model, ready: bool = True) -> Endpoint:
        return msgspec.structs.replace(endpoint(number, owner, ready=ready), models=models)

    found = Candidates(
        [
            serving(1, "vllm", Model("b", 20, 4096), Model("a")),
            serving(2, "vllm", Model("b", 10, 2048)),
            serving(3, "sglang", Model("b", None, 8192)),
            serving(4, "vllm", Model("c"), ready=False),
            endpoint(5, "vllm", None),
        ],
        DEFAULT,
    )
    assert found.catalogue == (
        ModelEntry("a", "vllm"),
        ModelEntry("b", "sglang", None, 8192),
        ModelEntry("b", "vllm", 10, 2048),
    )


def test_the_catalogue_leaves_out_what_the_policy_does_not_allow() -> None:
    rules = policy("models: [{model: a, allow: [sglang]}]")

    found = Candidates([endpoint(1, "vllm", ("a", "b")), endpoint(2, "sglang", ("a", "b"))], rules)

    assert [(entry.id, entry.owned_by) for entry in found.catalogue] == [
        ("a", "sglang"),
        ("b", "sglang"),
        ("b", "vllm"),
    ]


def test_the_catalogue_has_a_routing_entrys_owner_where_its_endpoints_are_ready() -> None:
    selectors = "{matchLabels: {llm-d.ai/engine-type: sglang}}}"
    rules = policy(
        f"""routing:
- {{model: a, owned_by: vllm, selector: {selectors}
- {{model: a, owned_by: canary, selector: {selectors}
- {{model: b, owned_by: canary, selector: {{matchLabels: {{app: none}}}}}}
"""
    )
    endpoints = [endpoint(1, "vllm", ("a", "b")), endpoint(2, "sglang", ("a", "b"))]
    waiting = [endpoints[0], msgspec.structs.replace(endpoints[1], ready=False)]

    assert [
        [(entry.id, entry.owned_by) for entry in Candidates(some, rules).catalogue] for some in (endpoints, waiting)
    ] == [
        [("a", "canary"), ("a", "sglang"), ("a", "vllm"), ("b", "sglang"), ("b", "vllm")],
        [("b", "vllm")],
    ]


def test_the_union_has_each_address_and_port_once() -> None:
    world = snapshot(V1, V2, other=(V1, S1))
    assert union(world) == (V1, V2, S1)


def test_in_the_union_endpoints_without_an_address_are_not_one() -> None:
    waiting = [msgspec.structs.replace(each, address="", ready=False) for each in (V1, S1)]
    waiting.append(msgspec.structs.replace(waiting[0], namespace="other"))
    assert union(snapshot(*waiting, other=(V2,))) == (*waiting, V2)


def test_in_the_union_the_ready_one_of_two_at_an_address_counts() -> None:
    ended = msgspec.structs.replace(V1, name="before", ready=False)
    assert union(snapshot(V1, other=(ended,))) == union(snapshot(ended, other=(V1,))) == (V1,)


def test_candidates_are_built_once_for_a_snapshot_and_a_policy() -> None:
    world = snapshot(V1)
    first = candidates(world, DEFAULT, CHAT, decoding=False)
    assert candidates(world, DEFAULT, CHAT, decoding=False) is first


def test_candidates_of_a_former_policy_are_forgotten() -> None:
    world = snapshot(V1)
    for _ in range(3):
        candidates(world, policy(), CHAT, decoding=False)
        candidates(world, DEFAULT, CHAT, decoding=True)
    assert len(world.memo) == 1


def test_who_cannot_decode_is_no_candidate_for_decoding() -> None:
    prefill, decode = endpoint(1, "vllm", role="prefill"), endpoint(2, "vllm", role="decode")
    world = snapshot(prefill, decode)
    assert candidates(world, DEFAULT, CHAT, decoding=True).group("vllm") == Group(1, (decode,))
    assert candidates(world, DEFAULT, CHAT, decoding=False).group("vllm") == Group(2, (prefill, decode))


def test_whose_an_address_is_is_told_by_all_its_endpoints_ready_or_not() -> None:
    shared = [
        Endpoint("pod-9-0", "default", "10.0.0.9", 8000, {"llm-d.ai/engine-type": "vllm"}),
        Endpoint("pod-9-1", "default", "10.0.0.9", 8001, {"llm-d.ai/engine-type": "sglang"}, ready=False),
    ]
    found = Candidates([V1, V2, endpoint(3, address="fd00::3"), *shared], policy("match: {unlabeledAs: ''}\n"))
    assert found.engines == {
        "10.0.0.1": {"vllm"},
        "10.0.0.2": {"vllm"},
        "fd00::3": {""},
        "10.0.0.9": {"vllm", "sglang"},
    }
