# SPDX-License-Identifier: Apache-2.0
"""What an operator's rules make of owners and models: allow, prefer, split, fallback, routing; per model and for all."""

from typing import Any

import msgspec
import pytest

from extproc.policy.decide import asks_body, decide
from extproc.policy.types import (
    Decision,
    Endpoint,
    InferenceRequest,
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
from tests.builders import CHAT, asking, endpoint, head, outcome, policy, snapshot

V1 = endpoint(1, "vllm", ("a", "b"))
V2 = msgspec.structs.replace(endpoint(2, "vllm", ("a",)), labels=endpoint(2, "vllm", ("a",)).labels | {"tier": "spot"})
S3 = endpoint(3, "sglang", ("a",))
T4 = endpoint(4, "tgi", ("a",), ready=False)
M5 = endpoint(5, "mlx", ("c",), ready=False)
WORLD = snapshot(V1, V2, S3, T4, M5)


def allow(*owners: str, model: str = "'*'", more: str = "") -> str:
    return f"models:\n- {{model: {model}, allow: [{', '.join(owners)}]{more and ', ' + more}}}\n"


ROUTED = "routing: [{{model: a, owned_by: {}, selector: {{matchLabels: {{tier: spot}}}}}}]\n"

Row = tuple[str, tuple[str, ...], str, tuple[Any, ...]]
"""The policy, who is named, the model, what comes of it."""

FORBIDDEN = (403, "rejected-by-policy", "x-owned-by")
NOT_FOUND = (404, "owner-not-found", "x-owned-by")
NOT_READY = (503, "no-ready-endpoint", "x-owned-by")
PASS_UNKNOWN = "whenUnknown: {action: passthrough}\n"
PASS_MODEL = "whenUnknownModel: {action: passthrough}\n"

ALLOWED: dict[str, Row] = {
    # an owner is named
    "who is allowed": (allow("sglang", "tgi"), ("sglang",), "", ("pod-3", "owner-matched", "sglang")),
    "who is allowed, by an alias": (allow("' SGLang '"), ("sglang",), "a", ("pod-3", "owner-matched", "sglang")),
    "who is not": (allow("sglang"), ("vllm",), "", FORBIDDEN),
    "who is not, for a model": (allow("sglang"), ("vllm",), "a", FORBIDDEN),
    "who is not and not ready": (allow("sglang"), ("tgi",), "", FORBIDDEN),
    "who is not and unknown": (allow("sglang"), ("nobody",), "", FORBIDDEN),
    "who is not and unknown, where that passes": (PASS_UNKNOWN + allow("sglang"), ("nobody",), "", FORBIDDEN),
    "who is allowed and not ready": (allow("tgi"), ("tgi",), "", NOT_READY),
    "who is allowed and unknown": (allow("nobody"), ("nobody",), "", NOT_FOUND),
    "who is not, of a list": (allow("sglang"), ("vllm", "sglang"), "", ("pod-3", "owner-matched", "sglang")),
    "who is not ready, of a list": (allow("tgi"), ("vllm", "tgi"), "", NOT_READY),
    "nobody of a list": (allow("sglang"), ("vllm", "tgi"), "", FORBIDDEN),
    "nobody of a list, else anything": (allow("sglang"), ("vllm", "*"), "", ("pod-3", "owner-allowed", "*")),
    "somebody of a list, else anything": (allow("vllm"), ("vllm", "*"), "b", ("pod-1", "owner-matched", "vllm")),
    # nobody is named
    "nobody": (allow("sglang"), (), "", ("pod-3", "owner-allowed", "")),
    "nobody, for a model": (allow("sglang"), (), "a", ("pod-3", "owner-allowed", "")),
    "anything": (allow("sglang"), ("*",), "", ("pod-3", "owner-allowed", "*")),
    "nobody, where a routing entry alone makes the owner": (
        allow("canary") + ROUTED.format("canary"),
        (),
        "a",
        ("pod-2", "owner-allowed", ""),
    ),
    "anything, where a routing entry alone makes the owner": (
        allow("canary", "sglang") + ROUTED.format("canary"),
        ("*",),
        "a",
        ("pod-2", "pod-3", "owner-allowed", "*"),
    ),
    "nobody, where a routing entry says who the owner is": (
        allow("vllm") + ROUTED.format("vllm"),
        (),
        "a",
        ("pod-2", "owner-allowed", ""),
    ),
    "anything, for a model": (allow("vllm"), ("*",), "a", ("pod-1", "pod-2", "owner-allowed", "*")),
    "nobody, the model narrows it already": (allow("vllm"), (), "b", ("pod-1", "model-matched", "")),
    "nobody, all that is ready is allowed": (allow("vllm", "sglang"), (), "", ("pass", "owner-absent")),
    "anything, all that is ready is allowed": (allow("vllm", "sglang"), ("*",), "", ("pass", "owner-any")),
    "nobody, who is allowed is not ready": (allow("tgi"), (), "", (503, "no-ready-endpoint", "")),
    "anything, who is allowed is not ready": (allow("tgi"), ("*",), "a", NOT_READY),
    "nobody, who is allowed is unknown": (allow("nobody"), (), "", (503, "no-ready-endpoint", "")),
    "nobody, who is allowed has not the model": (allow("sglang"), (), "b", ("pod-3", "model-unknown", "")),
    "nobody, a model that nobody has": (allow("sglang"), (), "x", ("pod-3", "model-unknown", "")),
    # whatever else lets it pass stays among those who are allowed
    "unknown, where that passes": (
        PASS_UNKNOWN + allow("sglang", "nobody"),
        ("nobody",),
        "a",
        ("pod-3", "owner-unknown", ""),
    ),
    "an unknown model, where that passes": (
        PASS_MODEL + allow("sglang"),
        ("sglang",),
        "x",
        ("pod-3", "model-unknown", "sglang"),
    ),
    "an unknown model, where that passes, of anything": (
        PASS_MODEL + allow("sglang"),
        ("*",),
        "x",
        ("pod-3", "model-unknown", "*"),
    ),
    # of which model
    "another model is free": (allow("sglang", model="a"), ("vllm",), "b", ("pod-1", "owner-matched", "vllm")),
    "no model is free": (allow("sglang", model="a"), ("vllm",), "", ("pod-1", "pod-2", "owner-matched", "vllm")),
    "this model is not": (allow("sglang", model="a"), ("vllm",), "a", FORBIDDEN),
    "models are not matched, rules are": (
        "match: {models: any}\n" + allow("sglang", model="a"),
        ("vllm",),
        "a",
        FORBIDDEN,
    ),
}

PREFER_TGI = "whenAbsent: {action: prefer, owners: [tgi]}\n"
PREFER_BOTH = "whenAbsent: {action: prefer, owners: [tgi, sglang, vllm]}\n"
PREFERRED: dict[str, Row] = {
    "the first": (
        "whenAbsent: {action: prefer, owners: [sglang, vllm]}\n",
        (),
        "a",
        ("pod-3", "owner-preferred", "sglang"),
    ),
    "in capitals": ("whenAbsent: {action: prefer, owners: [SGLang]}\n", (), "", ("pod-3", "owner-preferred", "sglang")),
    "the first that is ready": (PREFER_BOTH, (), "", ("pod-3", "owner-preferred", "sglang")),
    "the first that has the model": (PREFER_BOTH, (), "b", ("pod-1", "owner-preferred", "vllm")),
    "an unknown one is passed over": (
        "whenAbsent: {action: prefer, owners: [nobody, sglang]}\n",
        (),
        "",
        ("pod-3", "owner-preferred", "sglang"),
    ),
    "else anything": ("whenAbsent: {action: prefer, owners: [tgi, '*']}\n", (), "", ("pass", "owner-absent")),
    "else anything, by the model": (
        "whenAbsent: {action: prefer, owners: [sglang, any]}\n",
        (),
        "b",
        ("pod-1", "model-matched", ""),
    ),
    "none ready": (PREFER_TGI, (), "", (503, "no-ready-endpoint", "")),
    "none ready, a fallback": (
        PREFER_TGI + "whenUnready: {action: fallback, owners: [sglang]}\n",
        (),
        "",
        ("pod-3", "owner-fallback", "sglang"),
    ),
    "nobody is known": ("whenAbsent: {action: prefer, owners: [nobody]}\n", (), "", (404, "owner-not-found", "")),
    "nobody is known, that passes": (
        PASS_UNKNOWN + "whenAbsent: {action: prefer, owners: [nobody]}\n",
        (),
        "",
        ("pass", "owner-unknown"),
    ),
    "nobody has the model": (PREFER_BOTH, (), "x", ("pass", "model-unknown")),
    "an owner that is named": (PREFER_BOTH, ("vllm",), "b", ("pod-1", "owner-matched", "vllm")),
    "anything that is named": (PREFER_BOTH, ("*",), "", ("pass", "owner-any")),
    "a part is allowed": (
        PREFER_BOTH + allow("tgi", "vllm"),
        (),
        "",
        ("pod-1", "pod-2", "owner-preferred", "vllm"),
    ),
    "none is allowed": (PREFER_TGI + allow("vllm"), (), "", (403, "rejected-by-policy", "")),
    "none is allowed, else anything": (
        "whenAbsent: {action: prefer, owners: [tgi, '*']}\n" + allow("sglang"),
        (),
        "",
        ("pod-3", "owner-allowed", ""),
    ),
}

FALL_BACK = "whenUnready: {action: fallback, owners: [mlx, sglang, vllm]}\n"
ELSE_ANY = "whenUnready: {action: fallback, owners: [mlx, '*']}\n"
FALLEN_BACK: dict[str, Row] = {
    "known, none ready": (FALL_BACK, ("tgi",), "", ("pod-3", "owner-fallback", "sglang")),
    "known, none ready, for the model": (FALL_BACK, ("tgi",), "a", ("pod-3", "owner-fallback", "sglang")),
    "ready": (FALL_BACK, ("vllm",), "b", ("pod-1", "owner-matched", "vllm")),
    "one of a list is ready": (FALL_BACK, ("tgi", "vllm"), "b", ("pod-1", "owner-matched", "vllm")),
    "one of a list is known": (FALL_BACK, ("nobody", "tgi"), "", ("pod-3", "owner-fallback", "sglang")),
    "unknown": (FALL_BACK, ("nobody",), "", NOT_FOUND),
    "unknown for the model": (FALL_BACK, ("tgi",), "b", NOT_FOUND),
    "unknown, that passes": (PASS_UNKNOWN + FALL_BACK, ("nobody",), "", ("pass", "owner-unknown")),
    "an unknown model": (FALL_BACK, ("tgi",), "x", (404, "model-not-found", "model")),
    "none of the fallback is ready": (
        "whenUnready: {action: fallback, owners: [mlx, nobody]}\n",
        ("tgi",),
        "",
        NOT_READY,
    ),
    "none of the fallback has the model": (
        "whenUnready: {action: fallback, owners: [sglang, vllm]}\n",
        ("mlx",),
        "c",
        NOT_READY,
    ),
    "in capitals": (
        "whenUnready: {action: fallback, owners: [SGLang]}\n",
        ("tgi",),
        "",
        ("pod-3", "owner-fallback", "sglang"),
    ),
    "the model chooses among the fallback": (
        "match: {models: known}\nwhenUnready: {action: fallback, owners: [sglang, vllm]}\n",
        ("nobody", "tgi"),
        "a",
        ("pod-3", "owner-fallback", "sglang"),
    ),
    "a part is allowed": (
        FALL_BACK + allow("tgi", "vllm"),
        ("tgi",),
        "",
        ("pod-1", "pod-2", "owner-fallback", "vllm"),
    ),
    "none is allowed": (FALL_BACK + allow("tgi"), ("tgi",), "", NOT_READY),
    "who is named is not allowed": (FALL_BACK + allow("vllm"), ("tgi",), "", FORBIDDEN),
    "to anything that is allowed": (ELSE_ANY + allow("tgi", "sglang"), ("tgi",), "", ("pod-3", "owner-allowed", "*")),
    "to anything, none allowed is ready": (ELSE_ANY + allow("tgi", "mlx"), ("tgi",), "", NOT_READY),
    "nobody is named, none allowed is ready": (
        FALL_BACK + allow("tgi", "vllm"),
        (),
        "a",
        ("pod-1", "pod-2", "owner-allowed", ""),
    ),
    "nobody is named, only the fallback is ready": (
        FALL_BACK,
        (),
        "c",
        (503, "no-ready-endpoint", ""),
    ),
}

OF_A = "models:\n- {{model: a, {}}}\n- {{model: '*', allow: [vllm, sglang, tgi, nobody]}}\n"
PER_MODEL: dict[str, Row] = {
    "whenAbsent rejects": (
        OF_A.format("whenAbsent: {action: reject}"),
        (),
        "a",
        (400, "owner-required", "x-owned-by"),
    ),
    "whenAbsent rejects another model": (
        OF_A.format("whenAbsent: {action: reject}"),
        (),
        "b",
        ("pod-1", "model-matched", ""),
    ),
    "whenAbsent passes where the policy rejects": (
        "whenAbsent: {action: reject}\n" + OF_A.format("whenAbsent: {action: passthrough}"),
        (),
        "a",
        ("pass", "owner-absent"),
    ),
    "the policy rejects where no rule speaks": (
        "whenAbsent: {action: reject}\n" + OF_A.format("whenAbsent: {action: passthrough}"),
        (),
        "",
        (400, "owner-required", "x-owned-by"),
    ),
    "whenAbsent prefers": (
        OF_A.format("whenAbsent: {action: prefer, owners: [sglang]}"),
        (),
        "a",
        ("pod-3", "owner-preferred", "sglang"),
    ),
    "whenUnknown passes": (
        OF_A.format("whenUnknown: {action: passthrough}"),
        ("nobody",),
        "a",
        ("pass", "owner-unknown"),
    ),
    "whenUnknown rejects another model": (
        OF_A.format("whenUnknown: {action: passthrough}"),
        ("nobody",),
        "b",
        NOT_FOUND,
    ),
    "whenUnready falls back": (
        OF_A.format("whenUnready: {action: fallback, owners: [vllm]}"),
        ("tgi",),
        "a",
        ("pod-1", "pod-2", "owner-fallback", "vllm"),
    ),
    "whenUnready rejects without a model": (
        OF_A.format("whenUnready: {action: fallback, owners: [vllm]}"),
        ("tgi",),
        "",
        NOT_READY,
    ),
    "whenUnready rejects where the policy falls back": (
        FALL_BACK + OF_A.format("whenUnready: {action: reject}"),
        ("tgi",),
        "a",
        NOT_READY,
    ),
}

RULES = {
    f"{about}: {case}": row
    for about, table in {
        "allow": ALLOWED,
        "prefer": PREFERRED,
        "fallback": FALLEN_BACK,
        "per model": PER_MODEL,
    }.items()
    for case, row in table.items()
}


@pytest.mark.parametrize(("text", "owners", "model", "expected"), RULES.values(), ids=RULES)
def test_the_rules_say_where_it_goes(text: str, owners: tuple[str, ...], model: str, expected: tuple[Any, ...]) -> None:
    assert outcome(decide(asking(*owners, model=model), WORLD, policy(text))) == expected


CUT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "refused for this model": (OF_A.format("whenTruncated: {action: reject}"), (413, "body-truncated", "owned_by")),
    "passes for this model": (
        "whenTruncated: {action: reject}\n" + OF_A.format("whenTruncated: {action: passthrough}"),
        ("pass", "owner-absent"),
    ),
}


@pytest.mark.parametrize(("text", "expected"), CUT.values(), ids=CUT)
def test_a_truncated_body_is_what_the_rule_of_its_model_says(text: str, expected: tuple[Any, ...]) -> None:
    assert outcome(decide(asking(model="a", truncated=True), WORLD, policy(text))) == expected


UNSEEN = {
    "a rule": allow("vllm", model="a"),
    "a routing entry": "routing:\n- {model: a, owned_by: vllm, selector: {matchLabels: {app: x}}}\n",
}
UNLISTED = snapshot(endpoint(1, "vllm", None))


@pytest.mark.parametrize("text", UNSEEN.values(), ids=UNSEEN)
def test_a_model_that_a_truncated_body_may_name_is_missed_where_rules_are_for_models(text: str) -> None:
    cut = asking("vllm", truncated=True)
    rules = policy("whenTruncated: {action: reject}\n" + text)
    assert outcome(decide(cut, UNLISTED, rules)) == (413, "body-truncated", "model")


# Whole decisions, with their steps

POOL_STEP = Step("pool default/chat", 5, 3)


def test_a_403_is_a_whole_decision() -> None:
    message = "`vllm` or `tgi` may not serve the model `a` here"
    expected = Reject(403, Reason.REJECTED_BY_POLICY, message, "engine", (POOL_STEP,))
    assert decide(asking("vllm", "tgi", model="a", param="engine"), WORLD, policy(allow("sglang"))) == expected


def test_a_403_without_a_model_does_not_name_one() -> None:
    message = "`vllm` may not serve this request here"
    expected = Reject(403, Reason.REJECTED_BY_POLICY, message, "x-owned-by", (POOL_STEP,))
    assert decide(asking("vllm"), WORLD, policy(allow("sglang"))) == expected


def test_a_long_model_is_cut_in_a_403() -> None:
    decision = decide(asking("vllm", model="x" * 1000), WORLD, policy(allow("sglang")))
    assert isinstance(decision, Reject)
    assert decision.message == f"`vllm` may not serve the model `{'x' * 128}` here"


STEPS: dict[str, tuple[str, InferenceRequest, Decision]] = {
    "who is not allowed is no step": (
        allow("sglang"),
        asking("vllm", "sglang", model="a"),
        Restrict((S3,), Reason.OWNER_MATCHED, "sglang", (POOL_STEP, Step("owner sglang", 3, 1), Step("model a", 1, 1))),
    ),
    "what is allowed is one": (
        allow("sglang"),
        asking(model="a"),
        Restrict((S3,), Reason.OWNER_ALLOWED, "", (POOL_STEP, Step("allowed", 3, 1), Step("model a", 1, 1))),
    ),
    "who is preferred": (
        PREFER_BOTH,
        asking(),
        Restrict(
            (S3,), Reason.OWNER_PREFERRED, "sglang", (POOL_STEP, Step("owner tgi", 3, 0), Step("owner sglang", 3, 1))
        ),
    ),
    "who is drawn": (
        "whenAbsent: {action: split, weights: {tgi: 1, sglang: 1}}\n",
        asking(drawn=("tgi", "sglang")),
        Restrict((S3,), Reason.OWNER_DRAWN, "sglang", (POOL_STEP, Step("owner tgi", 3, 0), Step("owner sglang", 3, 1))),
    ),
    "the fallback": (
        FALL_BACK,
        asking("tgi"),
        Restrict(
            (S3,),
            Reason.OWNER_FALLBACK,
            "sglang",
            (POOL_STEP, Step("owner tgi", 3, 0), Step("owner mlx", 3, 0), Step("owner sglang", 3, 1)),
        ),
    ),
    "a hint is the last": (
        PREFER_BOTH,
        asking(model="b", scope=Scope(CHAT, destination=True, hint=SubsetHint(frozenset({"10.0.0.1"})))),
        Restrict(
            (V1,),
            Reason.OWNER_PREFERRED,
            "vllm",
            (
                POOL_STEP,
                *(Step("owner tgi", 3, 0), Step("model b", 0, 0)),
                *(Step("owner sglang", 3, 1), Step("model b", 1, 0)),
                *(Step("owner vllm", 3, 2), Step("model b", 2, 1)),
                Step("subset hint", 1, 1),
            ),
        ),
    ),
}


@pytest.mark.parametrize(("text", "request_", "decision"), STEPS.values(), ids=STEPS)
def test_the_steps_say_what_was_done(text: str, request_: InferenceRequest, decision: Decision) -> None:
    assert decide(request_, WORLD, policy(text)) == decision


# split: what is drawn is an order of preference

SPLIT = "whenAbsent: {action: split, weights: {tgi: 1, sglang: 1, vllm: 1}}\n"
DRAWS: dict[str, tuple[str, tuple[str, ...], str, tuple[Any, ...]]] = {
    # the rest of the policy, who is drawn, the model
    "the first": ("", ("sglang", "vllm", "tgi"), "a", ("pod-3", "owner-drawn", "sglang")),
    "the next that is ready": ("", ("tgi", "sglang", "vllm"), "", ("pod-3", "owner-drawn", "sglang")),
    "the next that has the model": ("", ("sglang", "tgi", "vllm"), "b", ("pod-1", "owner-drawn", "vllm")),
    "none ready": ("", ("tgi",), "", (503, "no-ready-endpoint", "")),
    "none ready, a fallback": (FALL_BACK, ("tgi",), "", ("pod-3", "owner-fallback", "sglang")),
    "none known": ("", ("nobody",), "a", (404, "owner-not-found", "")),
    "nobody has the model": ("", ("sglang", "vllm"), "x", ("pass", "model-unknown")),
    "the next that is allowed": (allow("tgi", "vllm"), ("sglang", "vllm"), "b", ("pod-1", "owner-drawn", "vllm")),
    "none is allowed": (allow("vllm"), ("sglang", "tgi"), "", (403, "rejected-by-policy", "")),
}


@pytest.mark.parametrize(("text", "drawn", "model", "expected"), DRAWS.values(), ids=DRAWS)
def test_what_is_drawn_is_tried_in_its_order(
    text: str, drawn: tuple[str, ...], model: str, expected: tuple[Any, ...]
) -> None:
    assert outcome(decide(asking(model=model, drawn=drawn), WORLD, policy(SPLIT + text))) == expected


# routing


def pod(
    number: int, owner: str = "", models: tuple[str, ...] | None = ("a",), *, ready: bool = True, **labels: str
) -> Endpoint:
    made = endpoint(number, owner, models, ready)
    return msgspec.structs.replace(made, labels={**made.labels, **labels})


CANARY = pod(1, "vllm", app="canary", tier="gold")
STABLE = pod(2, "vllm", app="stable")
OTHER = pod(3, "sglang", app="canary", tier="free")
TIRED = pod(4, "vllm", app="tired", ready=False)
B_ONLY = pod(5, "vllm", ("b",), app="canary", tier="gold")
BARE = endpoint(6, "tgi", ("a",))
ROUTED = snapshot(CANARY, STABLE, OTHER, TIRED, B_ONLY, BARE)


def to(selector: str, model: str = "a", owner: str = "vllm") -> str:
    return f"routing:\n- {{model: {model}, owned_by: {owner}, selector: {{{selector}}}}}\n"


def labels(**wanted: str) -> str:
    return f"matchLabels: {{{', '.join(f'{key}: {value}' for key, value in wanted.items())}}}"


def expressions(*each: str) -> str:
    return f"matchExpressions: [{', '.join(f'{{{one}}}' for one in each)}]"


APP = labels(app="canary")
SELECTED: dict[str, Row] = {
    "those that are selected, whatever engine they are": (
        to(APP),
        ("vllm",),
        "a",
        ("pod-1", "pod-3", "owner-matched", "vllm"),
    ),
    "those alone of another engine": (
        to("matchLabels: {tier: free}"),
        ("vllm",),
        "a",
        ("pod-3", "owner-matched", "vllm"),
    ),
    "an owner that no endpoint is": (
        to(APP, owner="nobody"),
        ("nobody",),
        "a",
        ("pod-1", "pod-3", "owner-matched", "nobody"),
    ),
    "an owner by its alias": (
        to(APP, owner="TRT-LLM"),
        ("trtllm-serve",),
        "a",
        ("pod-1", "pod-3", "owner-matched", "trtllm-serve"),
    ),
    "the models still count": (to(APP, model="b"), ("vllm",), "b", ("pod-5", "owner-matched", "vllm")),
    "the models do not count where they never do": (
        "match: {models: any}\n" + to(APP),
        ("vllm",),
        "a",
        ("pod-1", "pod-3", "pod-5", "owner-matched", "vllm"),
    ),
    "another model": (to(APP, model="b"), ("vllm",), "a", ("pod-1", "pod-2", "owner-matched", "vllm")),
    "another owner": (to(labels(app="stable")), ("sglang",), "a", ("pod-3", "owner-matched", "sglang")),
    "no model": (to(APP), ("vllm",), "", ("pod-1", "pod-2", "pod-5", "owner-matched", "vllm")),
    "no owner": (to(APP), (), "a", ("pod-1", "pod-2", "pod-3", "pod-6", "model-matched", "")),
    "anything": (to(APP), ("*",), "a", ("pod-1", "pod-2", "pod-3", "pod-6", "model-matched", "*")),
    "a preferred owner": (
        "whenAbsent: {action: prefer, owners: [vllm]}\n" + to(APP),
        (),
        "a",
        ("pod-1", "pod-3", "owner-preferred", "vllm"),
    ),
    "a fallback": (
        "whenUnready: {action: fallback, owners: [tgi]}\n" + to(labels(app="tired")) + to(APP, owner="tgi")[9:],
        ("vllm",),
        "a",
        ("pod-1", "pod-3", "owner-fallback", "tgi"),
    ),
    "none of them ready": (to(labels(app="tired")), ("vllm",), "a", NOT_READY),
    "none of them ready, the next": (
        to(labels(app="tired")),
        ("vllm", "tgi"),
        "a",
        ("pod-6", "owner-matched", "tgi"),
    ),
    "nothing is selected": (to(labels(app="gone")), ("vllm",), "a", NOT_FOUND),
    "nothing is selected, the next": (to(labels(app="gone")), ("vllm", "tgi"), "a", ("pod-6", "owner-matched", "tgi")),
    "nothing is selected, unknown ones pass": (
        PASS_UNKNOWN + to(labels(app="gone")),
        ("vllm",),
        "a",
        ("pass", "owner-unknown"),
    ),
    "nothing is selected, no fallback": (
        "whenUnready: {action: fallback, owners: [tgi]}\n" + to(labels(app="gone")),
        ("vllm",),
        "a",
        NOT_FOUND,
    ),
    "nothing that has the model is selected": (to("matchLabels: {tier: free}", model="b"), ("vllm",), "b", NOT_FOUND),
    "an owner that is allowed, by pods of one that is not": (
        to("matchLabels: {tier: free}") + allow("vllm"),
        ("vllm",),
        "a",
        ("pod-3", "owner-matched", "vllm"),
    ),
    "an owner that is not allowed": (to(APP) + allow("sglang"), ("vllm",), "a", FORBIDDEN),
    # the selector
    "two labels": (to(labels(app="canary", tier="gold")), ("vllm",), "a", ("pod-1", "owner-matched", "vllm")),
    "a label and an expression": (
        to(f"{APP}, {expressions('key: tier, operator: In, values: [free]')}"),
        ("vllm",),
        "a",
        ("pod-3", "owner-matched", "vllm"),
    ),
    "two expressions": (
        to(expressions("key: app, operator: Exists", "key: tier, operator: DoesNotExist")),
        ("vllm",),
        "a",
        ("pod-2", "owner-matched", "vllm"),
    ),
    "In": (
        to(expressions("key: app, operator: In, values: [stable, canary]")),
        ("vllm",),
        "a",
        ("pod-1", "pod-2", "pod-3", "owner-matched", "vllm"),
    ),
    "In, the value is another label's": (
        to(expressions("key: tier, operator: In, values: [stable, canary]")),
        ("vllm",),
        "a",
        NOT_FOUND,
    ),
    "In, the label is absent": (
        to(expressions("key: gone, operator: In, values: ['']")),
        ("vllm",),
        "a",
        NOT_FOUND,
    ),
    "NotIn, also where the label is absent": (
        to(expressions("key: tier, operator: NotIn, values: [gold]")),
        ("vllm",),
        "a",
        ("pod-2", "pod-3", "pod-6", "owner-matched", "vllm"),
    ),
    "Exists": (
        to(expressions("key: tier, operator: Exists")),
        ("vllm",),
        "a",
        ("pod-1", "pod-3", "owner-matched", "vllm"),
    ),
    "DoesNotExist": (
        to(expressions("key: tier, operator: DoesNotExist")),
        ("vllm",),
        "a",
        ("pod-2", "pod-6", "owner-matched", "vllm"),
    ),
}


@pytest.mark.parametrize(("text", "owners", "model", "expected"), SELECTED.values(), ids=SELECTED)
def test_a_routing_entry_says_who_an_owners_endpoints_are(
    text: str, owners: tuple[str, ...], model: str, expected: tuple[Any, ...]
) -> None:
    assert outcome(decide(asking(*owners, model=model), ROUTED, policy(text))) == expected


def test_routing_is_a_step_of_its_own() -> None:
    steps = (Step("pool default/chat", 6, 5), Step("routing", 5, 3), Step("model a", 3, 2))
    expected = Restrict((CANARY, OTHER), Reason.OWNER_MATCHED, "vllm", steps)
    assert decide(asking("vllm", model="a"), ROUTED, policy(to(APP))) == expected


def test_one_request_after_another_is_routed_by_its_own_entry() -> None:
    rules = policy(to(APP) + to(labels(app="stable"), owner="sglang")[9:])
    found = [outcome(decide(asking(owner, model="a"), ROUTED, rules)) for owner in ("vllm", "sglang", "tgi", "vllm")]
    assert found == [
        ("pod-1", "pod-3", "owner-matched", "vllm"),
        ("pod-2", "owner-matched", "sglang"),
        ("pod-6", "owner-matched", "tgi"),
        ("pod-1", "pod-3", "owner-matched", "vllm"),
    ]


def test_a_destination_that_is_routed_must_decode() -> None:
    prefill = msgspec.structs.replace(CANARY, role="prefill")
    due = asking("vllm", model="a", scope=Scope(CHAT, destination=True))
    decided = decide(due, snapshot(prefill, STABLE, OTHER), policy(to(APP)))
    assert outcome(decided) == ("pod-3", "owner-matched", "vllm")


def test_a_routing_entry_stays_within_the_pool() -> None:
    world = snapshot(CANARY, other=(OTHER,))
    assert outcome(decide(asking("vllm", model="a"), world, policy(to(APP)))) == ("pod-1", "owner-matched", "vllm")
    everywhere = asking("vllm", model="a", scope=Scope(union=True))
    assert outcome(decide(everywhere, world, policy(to(APP)))) == ("pod-1", "pod-3", "owner-matched", "vllm")


@pytest.mark.parametrize("name", ["chat", "a"])
def test_a_rewritten_model_is_routed_by_either_name(name: str) -> None:
    world = Snapshot(1, (CHAT,), {CHAT: (CANARY, STABLE)}, {CHAT: Rewrites({"chat": ("a",)})})
    rules = policy(to(labels(app="stable"), model=name))
    assert outcome(decide(asking("vllm", model="chat"), world, rules)) == ("pod-2", "owner-matched", "vllm")


def test_a_model_that_nobody_lists_is_routed_too() -> None:
    world = snapshot(pod(1, "vllm", None, app="canary"), pod(2, "vllm", None, app="stable"))
    rules = policy(to(APP))
    found = [outcome(decide(asking("vllm", model=model), world, rules)) for model in ("x", "a", "x")]
    both = ("pod-1", "pod-2", "owner-matched", "vllm")
    assert found == [both, ("pod-1", "owner-matched", "vllm"), both]


# Asking for the body

NO_BODY_OWNER = "sources: {body: []}\n"
ASKS: dict[str, tuple[str, InferenceRequest, bool]] = {
    "a rule for models": (allow("vllm"), asking("vllm"), True),
    "a routing entry": (to(APP), asking("vllm"), True),
    "a rule, the model is in a header": (allow("vllm"), asking("vllm", model="a", header_model="a"), False),
    "a rule, the model is final": (allow("vllm"), asking("vllm", model="a", fixed_model=True), False),
    "a rule, no owner is read from bodies": (NO_BODY_OWNER + allow("vllm"), asking(), True),
    "a rule that lets pass what the policy refuses": (
        NO_BODY_OWNER + "whenAbsent: {action: reject}\n" + OF_A.format("whenAbsent: {action: passthrough}"),
        asking(),
        True,
    ),
    "a rule, on a path of its own": (allow("vllm"), asking("vllm", interpreted=False), False),
    "a rule, an unknown pool": (allow("vllm"), asking("vllm", scope=Scope(Pool("default", "gone"))), False),
    "no rule": ("", asking("vllm"), False),
    "a draw, the body may name an owner": (SPLIT, asking(drawn=("vllm",)), True),
    "a preference, the body may name an owner": (PREFER_BOTH, asking(), True),
    "a draw, no owner is read from bodies": (NO_BODY_OWNER + SPLIT, asking(drawn=("vllm",)), False),
    "a preference, no owner is read from bodies": (NO_BODY_OWNER + PREFER_BOTH, asking(), False),
}


@pytest.mark.parametrize(("text", "request_", "asked"), ASKS.values(), ids=ASKS)
def test_the_body_is_asked_for_where_a_rule_depends_on_the_model(
    text: str,
    request_: InferenceRequest,
    asked: bool,  # noqa: FBT001 - a column
) -> None:
    assert asks_body(request_, UNLISTED, policy(text)) is asked


# Without a pool, where owner and model are named in headers

UNPOOLED: dict[str, Row] = {
    "who is allowed": (allow("vllm"), ("vllm",), "m", ("pass", "pool-unknown")),
    "who is not": (allow("vllm"), ("sglang",), "m", FORBIDDEN),
    "nobody of a list": (allow("vllm"), ("sglang", "tgi"), "m", FORBIDDEN),
    "anything": (allow("vllm"), ("sglang", "*"), "m", ("pass", "pool-unknown")),
    "nobody": (allow("vllm"), (), "m", ("pass", "pool-unknown")),
    "another model": (allow("vllm", model="a"), ("sglang",), "m", ("pass", "pool-unknown")),
    "an owner is required for the model": (
        "models:\n- {model: m, whenAbsent: {action: reject}}\n",
        (),
        "m",
        (400, "owner-required", "x-owned-by"),
    ),
    "who is preferred is not allowed": (PREFER_TGI + allow("vllm"), (), "m", (403, "rejected-by-policy", "")),
}


@pytest.mark.parametrize(("text", "owners", "model", "expected"), UNPOOLED.values(), ids=UNPOOLED)
def test_without_a_pool_what_may_not_be_is_refused_all_the_same(
    text: str, owners: tuple[str, ...], model: str, expected: tuple[Any, ...]
) -> None:
    request = asking(*owners, model=model, scope=Scope(union=True, promotes=True))
    assert outcome(decide(request, Snapshot(), policy(text))) == expected


def test_a_model_that_nobody_lists_and_that_passes_falls_back_too() -> None:
    rules = policy("whenUnknownModel: {action: passthrough}\nwhenUnready: {action: fallback, owners: [vllm]}\n")
    world = snapshot(endpoint(1, "vllm"), endpoint(5, "tgi", ready=False))
    decision = decide(head(rules, x_owned_by="tgi", x_gateway_model_name="x"), world, rules)
    assert isinstance(decision, Restrict)
    assert [each.name for each in decision.endpoints] == ["pod-1"]


def test_a_preferred_owner_gives_way_to_a_model_that_only_the_body_names() -> None:
    rules = policy(
        "sources: {body: []}\nwhenUnknownModel: {action: passthrough}\nwhenAbsent: {action: prefer, owners: [vllm]}\n"
    )
    assert asks_body(head(rules), snapshot(endpoint(1, "vllm"), endpoint(3, "sglang")), rules)


def test_routing_holds_for_a_rewritten_name_where_models_are_not_compared() -> None:
    rules = policy("match: {models: any}\nrouting: [{model: v1, owned_by: vllm, selector: {matchLabels: {app: x}}}]\n")
    canary = msgspec.structs.replace(endpoint(8, "other"), labels={"app": "x"})
    world = Snapshot(1, (CHAT,), {CHAT: (endpoint(1, "vllm"), canary)}, {CHAT: Rewrites({"chat": ("v1",)})})
    decision = decide(head(rules, x_owned_by="vllm", x_gateway_model_name="chat"), world, rules)
    assert isinstance(decision, Restrict)
    assert [each.name for each in decision.endpoints] == ["pod-8"]
