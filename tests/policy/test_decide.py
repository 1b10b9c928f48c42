# SPDX-License-Identifier: Apache-2.0
"""The nine steps and each `when*`, as design section 3 lists them."""

from typing import Any

import msgspec
import pytest

from extproc.policy.decide import asks_body, decide, promoted, reroutes
from extproc.policy.types import (
    Answer,
    Endpoint,
    Malformed,
    Model,
    ModelEntry,
    PassThrough,
    Pool,
    Reason,
    Reject,
    Restrict,
    Rewrites,
    Scope,
    Snapshot,
    Step,
    SubsetHint,
)
from tests.builders import CHAT, LLAMA, QWEN, asking, endpoint, outcome, policy, snapshot

V1 = endpoint(1, "vllm", (LLAMA,))
V2 = endpoint(2, "vllm", (QWEN,))
S1 = endpoint(3, "sglang", (LLAMA,))
S2 = endpoint(4, "sglang", (LLAMA,), ready=False)
T1 = endpoint(5, "tgi", (LLAMA,), ready=False)
WORLD = snapshot(V1, V2, S1, S2, T1)


def test_a_matched_owner_is_a_whole_decision() -> None:
    decision = decide(asking("sglang", model=LLAMA), WORLD, policy())
    steps = (
        Step("pool default/chat", 5, 3),
        Step("owner sglang", 3, 1),
        Step(f"model {LLAMA}", 1, 1),
    )
    assert decision == Restrict((S1,), Reason.OWNER_MATCHED, "sglang", steps)


def test_an_absent_owner_is_a_whole_decision() -> None:
    steps = (Step("pool default/chat", 5, 3),)
    assert decide(asking(), WORLD, policy()) == PassThrough(Reason.OWNER_ABSENT, steps)


def test_an_unknown_owner_is_a_404() -> None:
    decision = decide(asking("nobody", param="engine"), WORLD, policy())
    steps = (Step("pool default/chat", 5, 3), Step("owner nobody", 3, 0))
    assert decision == Reject(404, Reason.OWNER_NOT_FOUND, "no endpoint is `nobody`", "engine", steps)


def test_a_malformed_owner_is_a_400() -> None:
    decision = decide(asking(malformed=Malformed("engine", "what?")), WORLD, policy())
    assert decision == Reject(400, Reason.OWNER_MALFORMED, "what?", "engine", (Step("pool default/chat", 5, 3),))


PASS_UNKNOWN = "whenUnknown: {action: passthrough}\n"
PASS_MODEL = "whenUnknownModel: {action: passthrough}\n"
REQUIRED = "whenAbsent: {action: reject}\n"
ANY_MODEL = "match: {models: any}\n"
ROUTES: dict[str, tuple[str, tuple[str, ...], str, tuple[Any, ...]]] = {
    # owners
    "an owner": ("", ("vllm",), "", ("pod-1", "pod-2", "owner-matched", "vllm")),
    "the first owner with a ready endpoint": ("", ("tgi", "sglang", "vllm"), "", ("pod-3", "owner-matched", "sglang")),
    "an unknown owner is passed over": ("", ("nobody", "sglang"), "", ("pod-3", "owner-matched", "sglang")),
    "else anything": ("", ("tgi", "*"), "", ("pass", "owner-any")),
    "anything": ("", ("*",), "", ("pass", "owner-any")),
    "no owner": ("", (), "", ("pass", "owner-absent")),
    # models
    "an owner and a model": ("", ("vllm",), QWEN, ("pod-2", "owner-matched", "vllm")),
    "a model narrows without an owner": ("", (), QWEN, ("pod-2", "model-matched", "")),
    "a model narrows anything": ("", ("*",), QWEN, ("pod-2", "model-matched", "*")),
    "the next owner for a model": ("", ("sglang", "vllm"), QWEN, ("pod-2", "owner-matched", "vllm")),
    "else anything, by the model": ("", ("sglang", "*"), QWEN, ("pod-2", "model-matched", "*")),
    "models: any, an owner": (ANY_MODEL, ("vllm",), QWEN, ("pod-1", "pod-2", "owner-matched", "vllm")),
    "models: any, no owner": (ANY_MODEL, (), QWEN, ("pass", "owner-absent")),
    "models: any, an unknown model": (ANY_MODEL, ("sglang",), "x", ("pod-3", "owner-matched", "sglang")),
    # whenUnready
    "none ready": ("", ("tgi",), "", (503, "no-ready-endpoint", "x-owned-by")),
    "none ready for the model": ("", ("tgi",), LLAMA, (503, "no-ready-endpoint", "x-owned-by")),
    "none ready, then unknown": ("", ("tgi", "nobody"), "", (503, "no-ready-endpoint", "x-owned-by")),
    "none ready is not unknown": (PASS_UNKNOWN, ("tgi",), "", (503, "no-ready-endpoint", "x-owned-by")),
    # whenUnknown
    "unknown": ("", ("nobody",), "", (404, "owner-not-found", "x-owned-by")),
    "unknown passes": (PASS_UNKNOWN, ("nobody",), "", ("pass", "owner-unknown")),
    "unknown with a known model": ("", ("nobody",), LLAMA, (404, "owner-not-found", "x-owned-by")),
    "no endpoint has both": ("", ("sglang",), QWEN, (404, "owner-not-found", "x-owned-by")),
    "no endpoint has both, passes": (PASS_UNKNOWN, ("sglang",), QWEN, ("pass", "owner-unknown")),
    # whenUnknownModel
    "unknown model": ("", ("vllm",), "x", (404, "model-not-found", "model")),
    "unknown model and owner": ("", ("nobody",), "x", (404, "model-not-found", "model")),
    "unknown model is not unknown owner": (PASS_UNKNOWN, ("vllm",), "x", (404, "model-not-found", "model")),
    "unknown model without an owner": ("", (), "x", ("pass", "model-unknown")),
    "unknown model passes, the owner holds": (PASS_MODEL, ("sglang",), "x", ("pod-3", "model-unknown", "sglang")),
    "unknown model passes, unknown owner": (PASS_MODEL, ("nobody",), "x", (404, "owner-not-found", "x-owned-by")),
    "unknown model passes, none ready": (PASS_MODEL, ("tgi",), "x", (503, "no-ready-endpoint", "x-owned-by")),
    # whenAbsent
    "an owner is required": (REQUIRED, (), "", (400, "owner-required", "x-owned-by")),
    "an owner is required, with a model": (REQUIRED, (), LLAMA, (400, "owner-required", "x-owned-by")),
    "anything is an owner": (REQUIRED, ("*",), "", ("pass", "owner-any")),
    "a required owner is given": (REQUIRED, ("sglang",), "", ("pod-3", "owner-matched", "sglang")),
}


@pytest.mark.parametrize(("text", "owners", "model", "expected"), ROUTES.values(), ids=ROUTES)
def test_owner_and_model_say_where_it_goes(
    text: str, owners: tuple[str, ...], model: str, expected: tuple[Any, ...]
) -> None:
    assert outcome(decide(asking(*owners, model=model), WORLD, policy(text))) == expected


UNKNOWN_LISTS: dict[str, tuple[tuple[Endpoint, ...], tuple[str, ...], str, tuple[Any, ...]]] = {
    "an unknown list may hold the model": (
        (V1, endpoint(6, "sglang", None)),
        ("sglang",),
        "x",
        ("pod-6", "owner-matched", "sglang"),
    ),
    "of another owner, it keeps whenUnknown": (
        (V1, endpoint(6, "sglang", None)),
        ("vllm",),
        "x",
        (404, "owner-not-found", "x-owned-by"),
    ),
    "of an unready one, it does not": (
        (V1, endpoint(6, "sglang", None, ready=False)),
        ("vllm",),
        "x",
        (404, "model-not-found", "model"),
    ),
    "no owner, it narrows to those that may": (
        (V1, endpoint(6, "sglang", None)),
        (),
        "x",
        ("pod-6", "model-matched", ""),
    ),
    "nothing is known of models": (
        (endpoint(6, "sglang", None),),
        ("sglang",),
        "x",
        ("pod-6", "owner-matched", "sglang"),
    ),
    "an empty list serves none": (
        (V1, endpoint(6, "sglang", ())),
        ("sglang",),
        LLAMA,
        (404, "owner-not-found", "x-owned-by"),
    ),
    "only unready ones serve the model": ((T1, V2), (), LLAMA, (503, "no-ready-endpoint", "")),
    "an empty pool, no owner": ((), (), "", ("pass", "owner-absent")),
    "an empty pool, an owner": ((), ("vllm",), "", (404, "owner-not-found", "x-owned-by")),
    "a pool of unready ones, no owner": ((T1,), (), "", ("pass", "owner-absent")),
    "a pool of unready ones, anything": ((T1,), ("*",), "", (503, "no-ready-endpoint", "x-owned-by")),
}


@pytest.mark.parametrize(("endpoints", "owners", "model", "expected"), UNKNOWN_LISTS.values(), ids=UNKNOWN_LISTS)
def test_what_is_known_of_the_models_matters(
    endpoints: tuple[Endpoint, ...], owners: tuple[str, ...], model: str, expected: tuple[Any, ...]
) -> None:
    request = asking(*owners, model=model, param="x-owned-by" if owners else "")
    assert outcome(decide(request, snapshot(*endpoints), policy())) == expected


TWO = snapshot(V1, other=(S1,))
EMPTY = Snapshot()
POOLS: dict[str, tuple[Snapshot, Scope, tuple[Any, ...]]] = {
    "named": (TWO, Scope(Pool("default", "other")), (404, "owner-not-found", "x-owned-by")),
    "named, unknown": (TWO, Scope(Pool("default", "gone")), (503, "pool-unknown", "")),
    "named, another namespace": (TWO, Scope(Pool("prod", "chat")), (503, "pool-unknown", "")),
    "the only one": (snapshot(V1), Scope(), ("pod-1", "owner-matched", "vllm")),
    "one of two": (TWO, Scope(), ("pass", "pool-unknown")),
    "the union": (TWO, Scope(union=True), ("pod-1", "owner-matched", "vllm")),
    "named, and the union allowed": (TWO, Scope(Pool("default", "gone"), union=True), (503, "pool-unknown", "")),
    "none watched": (EMPTY, Scope(), ("pass", "pool-unknown")),
    "none watched, the union allowed": (EMPTY, Scope(union=True), ("pass", "pool-unknown")),
    "none watched, a destination is due": (EMPTY, Scope(destination=True), (503, "pool-unknown", "")),
    "none watched, a destination is chosen": (EMPTY, Scope(destination=True, chosen=True), ("pass", "pool-unknown")),
    "none watched, it is to be promoted": (EMPTY, Scope(union=True, promotes=True), ("pass", "pool-unknown")),
    "to no pool, one is watched": (snapshot(V1), Scope(foreign=True), ("pass", "not-a-pool")),
    "to no pool, the union allowed": (TWO, Scope(union=True, foreign=True), ("pass", "not-a-pool")),
    "to no pool, none watched": (EMPTY, Scope(foreign=True), ("pass", "not-a-pool")),
    "to no pool, a destination is due": (TWO, Scope(foreign=True, destination=True), ("pass", "not-a-pool")),
}


@pytest.mark.parametrize(("world", "scope", "expected"), POOLS.values(), ids=POOLS)
def test_the_pool_comes_first(world: Snapshot, scope: Scope, expected: tuple[Any, ...]) -> None:
    assert outcome(decide(asking("vllm", scope=scope), world, policy())) == expected


def test_a_route_to_no_pool_is_a_whole_decision() -> None:
    request = asking("nobody", scope=Scope(foreign=True), malformed=Malformed("engine", "what?"))
    assert decide(request, WORLD, policy()) == PassThrough(Reason.NOT_A_POOL, (Step("no pool", 0, 0),))


@pytest.mark.parametrize("scope", [Scope(CHAT), Scope(Pool("default", "gone")), Scope(CHAT, destination=True)])
def test_what_a_filter_before_us_has_let_pass_passes(scope: Scope) -> None:
    request = asking("nobody", scope=scope, passed=Reason.OWNER_UNKNOWN, malformed=Malformed("engine", "what?"))
    steps = (Step("passed by an earlier filter", 0, 0),)
    assert decide(request, WORLD, policy(REQUIRED)) == PassThrough(Reason.OWNER_UNKNOWN, steps)


UNREADABLE: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "no pool": ({"scope": Scope()}, ("pass", "pool-unknown")),
    "no pool, it is to be promoted": (
        {"scope": Scope(union=True, promotes=True)},
        (400, "owner-malformed", "engine"),
    ),
    "a pool that is not known, it is to be promoted": (
        {"scope": Scope(CHAT, union=True, promotes=True)},
        (400, "owner-malformed", "engine"),
    ),
    "no pool, a path of its own": (
        {"scope": Scope(union=True, promotes=True), "interpreted": False},
        ("pass", "pool-unknown"),
    ),
}


@pytest.mark.parametrize(("more", "expected"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_owner_that_is_to_be_named_must_be_readable_even_without_a_pool(
    more: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert outcome(decide(asking(malformed=Malformed("engine", "what?"), **more), EMPTY, policy())) == expected


NO_BODY_OWNER = "sources: {body: []}\n"
CUT_UNPOOLED: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "the owner may be in the rest": ("", "m", (413, "body-truncated", "owned_by")),
    "no owner is read from bodies, the model is known": (NO_BODY_OWNER, "m", ("pass", "pool-unknown")),
    "no owner is read from bodies, the model is not": (NO_BODY_OWNER, "", (413, "body-truncated", "model")),
}


@pytest.mark.parametrize(("text", "model", "expected"), CUT_UNPOOLED.values(), ids=CUT_UNPOOLED)
def test_without_a_pool_a_truncated_body_is_refused_for_what_is_to_be_named(
    text: str, model: str, expected: tuple[Any, ...]
) -> None:
    request = asking(model=model, truncated=True, scope=Scope(union=True, promotes=True))
    assert outcome(decide(request, EMPTY, policy(text + "whenTruncated: {action: reject}\n"))) == expected


def test_a_path_that_is_not_interpreted_passes_whatever_it_says() -> None:
    request = asking("nobody", interpreted=False, malformed=Malformed("engine", "what?"))
    expected = PassThrough(Reason.PATH_NOT_INTERPRETED, (Step("pool default/chat", 5, 3),))
    assert decide(request, WORLD, policy()) == expected


PREFILL, DECODE = endpoint(7, "vllm", role="prefill"), endpoint(8, "vllm", role="prefill-decode")
ROLES = snapshot(PREFILL, DECODE, S1)


def hinting(*destinations: str) -> Scope:
    return Scope(CHAT, destination=True, hint=SubsetHint(frozenset(destinations)))


TO = Scope(CHAT, destination=True)
BEHIND = Scope(CHAT, destination=True, chosen=True)
DESTINATIONS: dict[str, tuple[Snapshot, Scope, tuple[str, ...], tuple[Any, ...]]] = {
    "before takes every role": (ROLES, Scope(CHAT), ("vllm",), ("pod-7", "pod-8", "owner-matched", "vllm")),
    "a destination must decode": (ROLES, TO, ("vllm",), ("pod-8", "owner-matched", "vllm")),
    "passing through is any of them": (ROLES, TO, (), ("pod-8", "pod-3", "owner-absent", "")),
    "anything is any of them": (ROLES, TO, ("*",), ("pod-8", "pod-3", "owner-any", "")),
    "what is chosen must decode": (ROLES, BEHIND, ("vllm",), ("pod-8", "owner-matched", "vllm")),
    "passing through is what is chosen": (ROLES, BEHIND, (), ("pass", "owner-absent")),
    "anything is what is chosen": (ROLES, BEHIND, ("*",), ("pass", "owner-any")),
    "none ready, one is chosen": (snapshot(T1), BEHIND, (), ("pass", "owner-absent")),
    "none ready at all": (snapshot(T1), TO, (), (503, "no-ready-endpoint", "")),
    "an empty pool": (snapshot(), TO, (), (503, "no-ready-endpoint", "")),
    "a hint": (WORLD, hinting("10.0.0.2:8000"), ("vllm",), ("pod-2", "owner-matched", "vllm")),
    "a hint without a port": (WORLD, hinting("10.0.0.1"), ("vllm",), ("pod-1", "owner-matched", "vllm")),
    "a hint of others": (WORLD, hinting("10.0.0.3:8000"), ("vllm",), (503, "no-ready-endpoint", "")),
    "an empty hint": (WORLD, hinting(), ("vllm",), (503, "no-ready-endpoint", "")),
    "an empty hint, no owner": (WORLD, hinting(), (), (503, "no-ready-endpoint", "")),
    "a hint, no owner": (WORLD, hinting("10.0.0.3", "10.0.0.4"), (), ("pod-3", "owner-absent", "")),
}


@pytest.mark.parametrize(("world", "scope", "owners", "expected"), DESTINATIONS.values(), ids=DESTINATIONS)
def test_a_destination_is_an_endpoint_that_decodes_and_is_hinted(
    world: Snapshot, scope: Scope, owners: tuple[str, ...], expected: tuple[Any, ...]
) -> None:
    assert outcome(decide(asking(*owners, scope=scope), world, policy())) == expected


def test_a_hint_is_the_last_step() -> None:
    decision = decide(asking("vllm", scope=hinting("10.0.0.2:8000")), WORLD, policy())
    steps = (Step("pool default/chat", 5, 3), Step("owner vllm", 3, 2), Step("subset hint", 2, 1))
    assert decision == Restrict((V2,), Reason.OWNER_MATCHED, "vllm", steps)


REJECT_CUT = "whenTruncated: {action: reject}\n"
TRUNCATED: dict[str, tuple[Snapshot, str, tuple[str, ...], str, tuple[Any, ...]]] = {
    "passes, no owner": (WORLD, "", (), "", ("pass", "owner-absent")),
    "passes, an owner": (WORLD, "", ("sglang",), "", ("pod-3", "owner-matched", "sglang")),
    "refused, no owner": (WORLD, REJECT_CUT, (), LLAMA, (413, "body-truncated", "owned_by")),
    "refused, no model": (WORLD, REJECT_CUT, ("sglang",), "", (413, "body-truncated", "model")),
    "refused, both seen": (WORLD, REJECT_CUT, ("sglang",), LLAMA, ("pod-3", "owner-matched", "sglang")),
    "refused, the model is of no matter": (
        snapshot(endpoint(6, "sglang", None)),
        REJECT_CUT,
        ("sglang",),
        "",
        ("pod-6", "owner-matched", "sglang"),
    ),
}


@pytest.mark.parametrize(("world", "text", "owners", "model", "expected"), TRUNCATED.values(), ids=TRUNCATED)
def test_a_truncated_body_is_what_the_policy_says(
    world: Snapshot, text: str, owners: tuple[str, ...], model: str, expected: tuple[Any, ...]
) -> None:
    request = asking(*owners, model=model, truncated=True)
    assert outcome(decide(request, world, policy(text))) == expected


def test_a_truncated_body_whose_owner_is_never_read_is_refused_for_its_model() -> None:
    decision = decide(asking(truncated=True, param=""), WORLD, policy(REJECT_CUT + NO_BODY_OWNER))
    assert outcome(decision)[:2] == (413, "body-truncated")


LISTED = snapshot(
    msgspec.structs.replace(V1, models=(Model("a/b", 7, 4096), Model("c"))),
    msgspec.structs.replace(S1, models=(Model("a/b", None, 8192),)),
    T1,
)
AB_S, AB_V, C = ("a/b", "sglang"), ("a/b", "vllm"), ("c", "vllm")
LISTS: dict[str, tuple[str, str, tuple[str, ...], tuple[Any, ...]]] = {
    "all": ("GET", "/v1/models", (), (AB_S, AB_V, C)),
    "a trailing slash": ("GET", "/v1/models/", (), (AB_S, AB_V, C)),
    "HEAD": ("HEAD", "/v1/models", (), (AB_S, AB_V, C)),
    "of an owner": ("GET", "/v1/models", ("vllm",), (AB_V, C)),
    "of two owners": ("GET", "/v1/models", ("vllm", "sglang"), (AB_S, AB_V, C)),
    "of anything": ("GET", "/v1/models", ("*",), (AB_S, AB_V, C)),
    "of an owner that is not ready": ("GET", "/v1/models", ("tgi",), ()),
    "of an unknown owner": ("GET", "/v1/models", ("nobody",), (404, "owner-not-found", "x-owned-by")),
    "one": ("GET", "/v1/models/c", (), (C,)),
    "one with a slash": ("GET", "/v1/models/a/b", (), (AB_S,)),
    "one with an escaped slash": ("GET", "/v1/models/a%2Fb", (), (AB_S,)),
    "one with a small escape": ("HEAD", "/v1/models/a%2fb", (), (AB_S,)),
    "one of an owner": ("GET", "/v1/models/a/b", ("vllm",), (AB_V,)),
    "one that nobody serves": ("GET", "/v1/models/x", (), (404, "model-not-found", "model")),
    "one that the owner does not serve": ("GET", "/v1/models/c", ("sglang",), (404, "model-not-found", "model")),
    "POST": ("POST", "/v1/models", (), ("pass", "owner-absent")),
    "DELETE": ("DELETE", "/v1/models/c", (), ("pass", "owner-absent")),
    "another path": ("GET", "/v1/modelsx", (), ("pass", "owner-absent")),
}


@pytest.mark.parametrize(("method", "path", "owners", "expected"), LISTS.values(), ids=LISTS)
def test_the_models_are_listed(method: str, path: str, owners: tuple[str, ...], expected: tuple[Any, ...]) -> None:
    assert outcome(decide(asking(*owners, method=method, path=path), LISTED, policy())) == expected


def test_the_list_is_a_whole_decision() -> None:
    decision = decide(asking("vllm", method="GET", path="/v1/models"), LISTED, policy())
    entries = (ModelEntry("a/b", "vllm", 7, 4096), ModelEntry("c", "vllm"))
    steps = (Step("pool default/chat", 3, 2), Step("models", 3, 2))
    assert decision == Answer(entries, single=False, reason=Reason.MODELS_LISTED, steps=steps)


def test_one_model_is_answered_as_one() -> None:
    decision = decide(asking(method="GET", path="/v1/models/c"), LISTED, policy())
    assert isinstance(decision, Answer)
    assert (decision.models, decision.single) == ((ModelEntry("c", "vllm"),), True)


def test_a_model_is_asked_for_by_its_alias_too() -> None:
    decision = decide(asking(method="GET", path="/v1/models/small"), LISTED, policy("modelAliases: {small: c}\n"))
    assert outcome(decision) == (C,)


def test_an_unknown_owner_that_may_pass_does_not_shorten_the_list() -> None:
    asked = asking("nobody", method="GET", path="/v1/models")
    decision = decide(asked, LISTED, policy("whenUnknown: {action: passthrough}\n"))
    assert outcome(decision) == (AB_S, AB_V, C)


def test_where_no_list_is_known_an_engine_answers() -> None:
    world = snapshot(endpoint(1, "vllm", None))
    assert outcome(decide(asking(method="GET", path="/v1/models"), world, policy())) == ("pass", "owner-absent")


SAME = snapshot(V1, S1)
ASKS: dict[str, tuple[Snapshot, str, tuple[str, ...], dict[str, Any], bool]] = {
    "no owner": (WORLD, "", (), {}, True),
    "no owner, a model header": (WORLD, "", (), {"header_model": LLAMA, "model": LLAMA}, True),
    "an owner, models differ": (WORLD, "", ("vllm",), {}, True),
    "an owner, models differ, a model header": (
        WORLD,
        "",
        ("vllm",),
        {"header_model": LLAMA, "model": LLAMA},
        False,
    ),
    "an owner, one model, unknown ones are refused": (SAME, "", ("vllm",), {}, True),
    "an owner, one model, unknown ones pass": (SAME, PASS_MODEL, ("vllm",), {}, False),
    "an owner, models differ, unknown ones pass": (WORLD, PASS_MODEL, ("vllm",), {}, True),
    "an owner, models are not matched": (WORLD, ANY_MODEL, ("vllm",), {}, False),
    "an owner, no model is known": (snapshot(endpoint(1, "vllm", None)), "", ("vllm",), {}, False),
    "an owner, only an unready one differs": (
        snapshot(V1, endpoint(2, "vllm", (QWEN,), ready=False)),
        PASS_MODEL,
        ("vllm",),
        {},
        True,
    ),
    "no owner is read from bodies, models are not matched": (WORLD, ANY_MODEL + NO_BODY_OWNER, (), {}, False),
    "malformed": (WORLD, "", (), {"malformed": Malformed("engine", "what?")}, False),
    "not interpreted": (WORLD, "", (), {"interpreted": False}, False),
    "an unknown pool": (WORLD, "", (), {"scope": Scope(Pool("default", "gone"))}, False),
    "no pool": (TWO, "", (), {"scope": Scope()}, False),
}


NAMES_OWNER = "promote: {header: x-engine}\n"
NAMES_MODEL = "promote: {model: x-model}\n"
FRONT = Scope(CHAT, union=True, promotes=True)
NOWHERE = Scope(union=True, promotes=True)
UNKNOWN_LIST = snapshot(endpoint(1, "vllm", None))
PROMOTES: dict[str, tuple[Snapshot, str, tuple[str, ...], dict[str, Any], bool]] = {
    "the owner, which is named": (UNKNOWN_LIST, NAMES_OWNER, ("vllm",), {}, False),
    "the owner, which is not": (UNKNOWN_LIST, NAMES_OWNER, (), {}, True),
    "the owner, which no body names": (UNKNOWN_LIST, NAMES_OWNER + NO_BODY_OWNER, (), {}, False),
    "the model, which is not named": (UNKNOWN_LIST, NAMES_MODEL, ("vllm",), {}, True),
    "the model, which a header names": (
        UNKNOWN_LIST,
        NAMES_MODEL,
        ("vllm",),
        {"header_model": "m", "model": "m"},
        False,
    ),
    "the model, which is final": (UNKNOWN_LIST, NAMES_MODEL, ("vllm",), {"fixed_model": True, "model": "m"}, False),
    "the model, and it is refused anyway": (UNKNOWN_LIST, NAMES_MODEL + NO_BODY_OWNER + REQUIRED, (), {}, False),
    "the model, on a path of its own": (UNKNOWN_LIST, NAMES_MODEL, (), {"interpreted": False}, False),
    "both, in front": (UNKNOWN_LIST, "", ("vllm",), {"scope": FRONT}, True),
    "both, in front, both named": (
        UNKNOWN_LIST,
        "",
        ("vllm",),
        {"scope": FRONT, "header_model": "m", "model": "m"},
        False,
    ),
    "both, in front, malformed": (UNKNOWN_LIST, "", (), {"scope": FRONT, "malformed": Malformed("a", "b")}, False),
    "both, in front, a list of models": (
        UNKNOWN_LIST,
        "",
        (),
        {"scope": FRONT, "method": "GET", "path": "/v1/models"},
        False,
    ),
    "both, without a pool": (EMPTY, "", (), {"scope": NOWHERE}, True),
    "both, without a pool, an owner": (EMPTY, "", ("vllm",), {"scope": NOWHERE}, True),
    "both, without a pool, a model": (EMPTY, "", (), {"scope": NOWHERE, "header_model": "m", "model": "m"}, True),
    "both, without a pool, both named": (
        EMPTY,
        "",
        ("vllm",),
        {"scope": NOWHERE, "header_model": "m", "model": "m"},
        False,
    ),
    "both, of a pool that is not known": (EMPTY, "", (), {"scope": FRONT}, False),
    "the owner, without a pool": (EMPTY, NAMES_OWNER, (), {"scope": Scope()}, True),
    "the owner, without a pool, which a rule chooses by the model": (
        EMPTY,
        NAMES_OWNER + NO_BODY_OWNER + "models:\n- {model: a, whenAbsent: {action: prefer, owners: [vllm]}}\n",
        (),
        {"scope": Scope()},
        True,
    ),
    "the owner, without a pool, which a rule chooses by a model that a header names": (
        EMPTY,
        NAMES_OWNER + NO_BODY_OWNER + "models:\n- {model: a, whenAbsent: {action: prefer, owners: [vllm]}}\n",
        (),
        {"scope": Scope(), "header_model": "a", "model": "a"},
        False,
    ),
    "the owner, without a pool, which nothing chooses": (
        EMPTY,
        NAMES_OWNER + NO_BODY_OWNER,
        (),
        {"scope": Scope()},
        False,
    ),
    "the owner, without a pool, a model": (EMPTY, NAMES_OWNER, ("vllm",), {"scope": Scope()}, False),
    "neither, without a pool": (EMPTY, "", (), {"scope": Scope()}, False),
    "both, on a route to no pool": (WORLD, NAMES_OWNER, (), {"scope": Scope(foreign=True)}, False),
}


@pytest.mark.parametrize(
    ("world", "text", "owners", "more", "asked"), [*ASKS.values(), *PROMOTES.values()], ids=[*ASKS, *PROMOTES]
)
def test_the_body_is_asked_for_if_it_could_change_the_decision_or_what_a_header_names(
    world: Snapshot,
    text: str,
    owners: tuple[str, ...],
    more: dict[str, Any],
    asked: bool,  # noqa: FBT001 - a column
) -> None:
    assert asks_body(asking(*owners, **more), world, policy(text)) is asked


REROUTE = "promote: {header: x-engine, reroute: true}\n"
NAMED: dict[str, tuple[str, dict[str, Any], tuple[bool, bool], bool]] = {
    # the policy, the request; whether owner and model are named; whether the route is chosen anew
    "nothing": ("", {}, (False, False), False),
    "the owner": (NAMES_OWNER, {}, (True, False), False),
    "the model": (NAMES_MODEL, {}, (False, True), False),
    "the owner, anew": (REROUTE, {}, (True, False), True),
    "anew by nothing": ("promote: {reroute: true}\n", {}, (False, False), False),
    "in front": ("", {"scope": FRONT}, (True, True), True),
    "in front, under another name": (NAMES_MODEL, {"scope": FRONT}, (True, True), True),
    "on a path of its own": (REROUTE, {"interpreted": False}, (False, False), False),
    "in front, on a path of its own": ("", {"scope": FRONT, "interpreted": False}, (False, False), False),
    "on a route to no pool": (REROUTE, {"scope": Scope(foreign=True)}, (False, False), False),
}


@pytest.mark.parametrize(("text", "more", "named", "anew"), NAMED.values(), ids=NAMED)
def test_owner_and_model_are_named_where_policy_or_place_say_so(
    text: str,
    more: dict[str, Any],
    named: tuple[bool, bool],
    anew: bool,  # noqa: FBT001 - a column
) -> None:
    request, rules = asking(**more), policy(text)
    assert (promoted(request, rules), reroutes(request, rules)) == (named, anew)


ADAPTED = endpoint(6, "vllm", ("base", "v1", "v2"))
PLAIN = endpoint(7, "vllm", ("base", "v1"))
REWRITES = Rewrites({"chat": ("v1",), "canary": ("v1", "v2"), "gone": ("v9",)})

REWRITTEN: dict[str, tuple[Rewrites, dict[str, Any], tuple[Any, ...]]] = {
    "a name for one model": (REWRITES, {"model": "chat"}, ("pod-6", "pod-7", "owner-matched", "vllm")),
    "a name for a draw of models goes to who serves them all": (
        REWRITES,
        {"model": "canary"},
        ("pod-6", "owner-matched", "vllm"),
    ),
    "a name for a model that nobody serves": (REWRITES, {"model": "gone"}, (404, "model-not-found", "model")),
    "a name without an entry": (REWRITES, {"model": "v2"}, ("pod-6", "owner-matched", "vllm")),
    "any other name": (Rewrites({}, ("v2",)), {"model": "whatever"}, ("pod-6", "owner-matched", "vllm")),
    "the rewrite header is final": (
        REWRITES,
        {"model": "chat", "fixed_model": True},
        (404, "model-not-found", "model"),
    ),
}


@pytest.mark.parametrize(("rewrites", "asked", "expected"), REWRITTEN.values(), ids=REWRITTEN)
def test_a_rewritten_model_is_matched_as_what_the_engines_call_it(
    rewrites: Rewrites, asked: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    pools = {CHAT: (ADAPTED, PLAIN)}
    world = Snapshot(1, (CHAT,), pools, {CHAT: rewrites})

    assert outcome(decide(asking("vllm", **asked), world, policy())) == expected


@pytest.mark.parametrize(("ready", "status"), [(True, 503), (False, 404)])
def test_an_owner_is_not_unknown_while_a_ready_endpoint_may_turn_out_to_be_it(ready: bool, status: int) -> None:  # noqa: FBT001 - a column
    asked = msgspec.structs.replace(endpoint(6, models=None, ready=ready), owned_by=None)
    rules = policy("match: {engineFrom: [label, probe]}\n")

    assert outcome(decide(asking("tgi"), snapshot(V1, asked), rules))[0] == status


def test_in_a_union_a_name_is_what_it_is_in_each_pool() -> None:
    other = Pool("default", "other")
    pools = {CHAT: (endpoint(6, "vllm", ("v1",)),), other: (endpoint(7, "vllm", ("chat",)),)}
    world = Snapshot(1, (CHAT, other), pools, {CHAT: REWRITES})
    everywhere = {"scope": Scope(None, union=True), "model": "chat"}

    assert outcome(decide(asking("vllm", **everywhere), world, policy())) == ("pod-6", "pod-7", "owner-matched", "vllm")


def test_a_rewrite_is_for_its_own_pool() -> None:
    other = Pool("default", "other")
    world = Snapshot(1, (CHAT, other), {CHAT: (ADAPTED,), other: (PLAIN,)}, {CHAT: REWRITES})
    elsewhere = {"scope": Scope(other), "model": "chat"}

    assert outcome(decide(asking("vllm", **elsewhere), world, policy())) == (404, "model-not-found", "model")


def test_an_owner_that_only_a_routing_entry_has_is_known_to_the_list() -> None:
    rules = policy("routing: [{model: c, owned_by: Canary, selector: {matchLabels: {llm-d.ai/engine-type: vllm}}}]")
    request = asking("canary", method="GET", path="/v1/models")

    assert outcome(decide(request, LISTED, rules)) == (("c", "canary"),)
