# SPDX-License-Identifier: Apache-2.0
"""An operator's rules in whole streams: who is drawn or preferred, at the headers or at the body, and who is named."""

import itertools
import json
from typing import Any

import pytest

from extproc.envoy.binding import Attachment, Binding
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.rules import draw
from extproc.policy.types import Snapshot
from tests.builders import (
    CHAT,
    DEST,
    DUPLEX,
    MIXED,
    PLAIN,
    QWEN,
    SPOOFABLE,
    Playbook,
    asks,
    attempts,
    before,
    body,
    body_goes_on,
    destination,
    endpoint,
    frames,
    goes_on,
    headers,
    parsed,
    picked,
    policy,
    said,
    session,
    snapshot,
)

BEFORE, AFTER, PICKER, HEADER = Attachment.BEFORE, Attachment.AFTER, Attachment.PICKER, Attachment.HEADER
V1, V2, S3 = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"
OWNER, MODEL = "x-owned-by", "x-gateway-model-name"
WEIGHTS = {"vllm": 60, "sglang": 40}
SPLIT = policy("whenAbsent: {action: split, weights: {vllm: 60, sglang: 40}}\n")
PREFER = policy("whenAbsent: {action: prefer, owners: [tgi, sglang]}\n")
WORLD = snapshot(endpoint(1, "vllm", None), endpoint(3, "sglang", None), endpoint(5, "tgi", None, ready=False))
IDS = [f"r-{number}" for number in range(40)]


def by(identity: str) -> tuple[str, str]:
    """The header in which Envoy names a request."""
    return "x-request-id", identity


def served(run: Session, message: Any, *more: Any) -> tuple[str, str]:
    """Who is chosen for a request that is taken through a stream, and why."""
    for each in (message, *more):
        run.receive(each)
    assert run.outcome
    return run.outcome.reply.owner, run.outcome.reply.reason.value


# split


@pytest.mark.parametrize("attachment", [BEFORE, PICKER])
@pytest.mark.parametrize("identity", IDS)
def test_a_request_is_drawn_by_its_id_wherever_that_is_decided(attachment: Attachment, identity: str) -> None:
    expected = (draw(WEIGHTS, identity)[0], "owner-drawn")
    model = body({"model": "m"})
    at_headers = served(session(attachment, WORLD, SPLIT), headers(by(identity), ends=True))
    at_body = served(session(attachment, WORLD, SPLIT), headers(by(identity)), model)
    when_held = served(session(attachment, WORLD, SPLIT), headers(by(identity), mode=DUPLEX), model)
    bodiless = "hint-without-body" if attachment is BEFORE else "owner-drawn"
    assert (at_headers, at_body, when_held) == ((expected[0], bodiless), expected, expected)


def test_both_owners_are_drawn_by_these_ids() -> None:
    assert {draw(WEIGHTS, identity)[0] for identity in IDS} == {"vllm", "sglang"}


def ids_of(owner: str) -> str:
    return next(identity for identity in IDS if draw(WEIGHTS, identity)[0] == owner)


def test_before_says_whom_it_drew() -> None:
    play = Playbook(session(BEFORE, WORLD, SPLIT)) >> headers(by(ids_of("sglang"))) << [asks()]
    play >> body({"model": "m"}) << [body_goes_on(before("sglang", "m", S3, reason="owner-drawn"))]


def test_picker_sends_it_to_whom_it_drew() -> None:
    play = Playbook(session(PICKER, WORLD, SPLIT)) >> headers(by(ids_of("vllm")), mode=DUPLEX) << []
    data = b'{"model": "m"}'
    answer = goes_on(picked("vllm", "m", V1, reason="owner-drawn"), sets={DEST: attempts(V1)})
    play >> body(data) << [answer, *frames(data)]


def test_an_owner_that_the_body_names_is_not_drawn() -> None:
    for identity in IDS[:8]:
        found = served(session(BEFORE, WORLD, SPLIT), headers(by(identity)), body({"engine": "sglang"}))
        assert found == ("sglang", "owner-matched")


def test_a_model_that_the_body_names_is_split_by_its_own_rule() -> None:
    rules = policy(
        "whenAbsent: {action: split, weights: {vllm: 1}}\n"
        "models:\n- {model: m, whenAbsent: {action: split, weights: {sglang: 1}}}\n"
    )
    found = [
        served(session(BEFORE, WORLD, rules), headers(by("r")), body({"model": model})) for model in ("m", "another")
    ]
    assert found == [("sglang", "owner-drawn"), ("vllm", "owner-drawn")]


def test_where_the_drawn_owner_is_not_ready_the_next_is_taken() -> None:
    rules = policy("whenAbsent: {action: split, weights: {tgi: 1000000, sglang: 1}}\n")
    play = Playbook(session(BEFORE, WORLD, rules)) >> headers(by("r"), ends=True)
    found = before("sglang", "", S3, reason="hint-without-body")
    play << [goes_on(found)]


def shared(attachment: Attachment, policy_: PolicyConfig, world: Snapshot = WORLD) -> Any:
    """Streams of one process, one after another: they share what is kept, and the rotation."""
    replies, rotation = Replies(world, policy_), itertools.count().__next__
    return lambda: Session(Binding(attachment, CHAT), lambda: replies, rotation)


@pytest.mark.parametrize("attachment", [BEFORE, PICKER])
def test_without_an_id_requests_are_drawn_in_turn(attachment: Attachment) -> None:
    stream = shared(attachment, SPLIT)
    owners = [served(stream(), headers(ends=True))[0] for _ in range(200)]
    assert 80 < owners.count("vllm") < 160
    assert owners.count("vllm") + owners.count("sglang") == 200


@pytest.mark.parametrize("attachment", [BEFORE, PICKER])
def test_a_kept_answer_is_not_another_requests_draw(attachment: Attachment) -> None:
    stream = shared(attachment, SPLIT)
    for _ in range(2):
        found = [served(stream(), headers(by(identity), ends=True))[0] for identity in IDS]
        assert found == [draw(WEIGHTS, identity)[0] for identity in IDS]


def test_a_kept_answer_for_a_model_is_not_another_requests_draw() -> None:
    stream = shared(BEFORE, SPLIT, MIXED)
    for _ in range(2):
        found = [served(stream(), headers(by(identity), (MODEL, QWEN), ends=True))[0] for identity in IDS]
        assert found == ["vllm"] * len(IDS)  # sglang has not the model
        drawn = [served(stream(), headers(by(identity)), body({"prompt": ""}))[0] for identity in IDS]
        assert drawn == [draw(WEIGHTS, identity)[0] for identity in IDS]


# `after`

TOLD = said("sglang", "m", "owner-drawn", 1, S3)


@pytest.mark.parametrize("identity", IDS[:8])
def test_after_keeps_the_owner_that_before_drew(identity: str) -> None:
    message = headers(by(identity), metadata=TOLD | destination(V1))
    written = destination(attempts(S3)) | said("sglang", "m", "owner-matched", 1, None)
    Playbook(session(AFTER, WORLD, SPLIT)) >> message << [goes_on(written, sets={DEST: attempts(S3)}, removes=())]


@pytest.mark.parametrize("identity", IDS[:8])
def test_alone_after_draws_as_before_would(identity: str) -> None:
    found = served(session(AFTER, WORLD, SPLIT), headers(by(identity), metadata=destination(V1)), body({"model": "m"}))
    assert found == (draw(WEIGHTS, identity)[0], "owner-drawn")


def test_after_does_not_draw_what_before_let_pass() -> None:
    message = headers(by("r"), (DEST, V2), metadata=said("", "m", "owner-absent", 0) | destination(V2))
    run = session(AFTER, WORLD, SPLIT)
    run.receive(message)
    assert run.outcome
    assert (run.outcome.reply.reason, run.outcome.destination) == ("owner-absent", V2)


def test_after_keeps_the_owner_that_before_fell_back_to() -> None:
    rules = policy("whenUnready: {action: fallback, owners: [sglang]}\n")
    told = said("sglang", "m", "owner-fallback", 1, S3)
    message = headers((OWNER, "tgi"), metadata=told | destination(V1))
    written = destination(attempts(S3)) | said("sglang", "m", "owner-matched", 1, None)
    Playbook(session(AFTER, WORLD, rules)) >> message << [goes_on(written, sets={DEST: attempts(S3)}, removes=())]


# What the model decides is asked for

RULES: dict[str, tuple[str, str, tuple[str, str]]] = {
    # the policy, the model in the body, who serves it and why
    "allow, another model": ("models:\n- {model: a, allow: [sglang]}\n", "b", ("vllm", "owner-matched")),
    "allow, this model": ("models:\n- {model: a, allow: [sglang]}\n", "a", ("", "rejected-by-policy")),
    "routing": (
        "routing:\n- {model: a, owned_by: vllm, selector: {matchLabels: {llm-d.ai/engine-type: tgi}}}\n",
        "a",
        ("", "no-ready-endpoint"),
    ),
}


@pytest.mark.parametrize(("text", "model", "expected"), RULES.values(), ids=RULES)
def test_the_body_is_asked_for_where_rules_depend_on_the_model(
    text: str, model: str, expected: tuple[str, str]
) -> None:
    run = session(BEFORE, WORLD, policy(text))
    Playbook(run) >> headers((OWNER, "vllm")) << [asks()]
    assert served(run, body({"model": model})) == expected


def test_a_403_is_an_error_as_clients_expect_it() -> None:
    run = session(BEFORE, WORLD, policy("models:\n- {model: m, allow: [sglang]}\n"))
    (answer,) = parsed(run.receive(headers((OWNER, "vllm"), (MODEL, "m"))))
    immediate = answer.immediate_response
    assert (immediate.status.code, json.loads(immediate.body), run.done) == (
        403,
        {
            "error": {
                "message": "`vllm` may not serve the model `m` here",
                "type": "invalid_request_error",
                "param": OWNER,
                "code": "rejected_by_policy",
            }
        },
        True,
    )


SAID: dict[str, tuple[PolicyConfig, dict[str, Any]]] = {
    "preferred": (PREFER, before("sglang", "m", S3, reason="owner-preferred")),
    "allowed": (
        policy("models:\n- {model: m, allow: [sglang]}\n"),
        before("", "m", S3, reason="owner-allowed"),
    ),
}


@pytest.mark.parametrize(("policy_", "metadata"), SAID.values(), ids=SAID)
def test_before_says_whom_it_chose_where_nobody_was_named(policy_: PolicyConfig, metadata: dict[str, Any]) -> None:
    play = Playbook(session(BEFORE, WORLD, policy_)) >> headers() << [asks()]
    play >> body({"model": "m"}) << [body_goes_on(metadata)]


def test_before_says_whom_it_fell_back_to() -> None:
    rules = policy("whenUnready: {action: fallback, owners: [sglang]}\n")
    message = headers((OWNER, "tgi"), (MODEL, "m"))
    Playbook(session(BEFORE, WORLD, rules)) >> message << [goes_on(before("sglang", "m", S3, reason="owner-fallback"))]


# `header`

NAMED: dict[str, tuple[PolicyConfig, Snapshot, str, str]] = {
    # the policy, what is known, the owner that is named, why
    "preferred, the first that is ready": (PREFER, WORLD, "sglang", "owner-preferred"),
    "preferred, the first of all": (PREFER, Snapshot(), "tgi", "pool-unknown"),
    "preferred for the model": (
        policy("models:\n- {model: m, whenAbsent: {action: prefer, owners: [SGLang]}}\n"),
        Snapshot(),
        "sglang",
        "pool-unknown",
    ),
    "drawn": (SPLIT, WORLD, draw(WEIGHTS, "r-1")[0], "owner-drawn"),
    "drawn, without a pool": (SPLIT, Snapshot(), draw(WEIGHTS, "r-1")[0], "pool-unknown"),
}


@pytest.mark.parametrize(("policy_", "world", "owner", "reason"), NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("at", ["headers", "body"])
def test_header_names_whom_the_policy_chose(
    policy_: PolicyConfig, world: Snapshot, owner: str, reason: str, at: str
) -> None:
    known = world.pools and reason != "pool-unknown"
    metadata = said(owner if known else "", "m", reason, 1 if known else 0)
    if not known:
        metadata = said(owner, "m", reason, 0)
    sets = {OWNER: owner, MODEL: "m"}
    play = Playbook(session(HEADER, world, policy_, pool=None))
    if at == "headers":
        answer = goes_on(metadata, sets=sets, removes=SPOOFABLE, reroute=True)
        play >> headers(by("r-1"), (MODEL, "m"), ends=True) << [answer]
    else:
        play >> headers(by("r-1")) << [asks(reroute=True)]
        play >> body({"model": "m"}) << [body_goes_on(metadata, sets=sets)]


@pytest.mark.parametrize("attachment", [BEFORE, PICKER])
def test_a_promoted_header_names_whom_the_policy_drew(attachment: Attachment) -> None:
    rules = policy("whenAbsent: {action: split, weights: {vllm: 60, sglang: 40}}\npromote: {header: x-engine}\n")
    identity = ids_of("sglang")
    run = session(attachment, PLAIN, rules)
    run.receive(headers(by(identity)))
    (answer,) = parsed(run.receive(body({"model": "m"})))
    mutation = answer.request_body.response.header_mutation
    found = {each.header.key: each.header.raw_value.decode() for each in mutation.set_headers}
    assert found == {"x-engine": "sglang"} | ({DEST: attempts(S3)} if attachment is PICKER else {})


def test_what_was_drawn_does_not_hold_where_the_models_own_rule_draws_nobody() -> None:
    rules = policy(
        "whenAbsent: {action: split, weights: {vllm: 1}}\nmodels: [{model: b, whenAbsent: {action: passthrough}}]\n"
    )
    run = session(policy_=rules)
    run.receive(headers(by("r")))
    run.receive(body({"model": "b"}))
    assert run.outcome
    assert (run.outcome.reply.reason, run.outcome.request.drawn) == ("owner-absent", ())


ALLOWED = policy("models: [{model: '*', allow: [nobody, sglang]}]\nwhenUnknown: {action: passthrough}\n")


@pytest.mark.parametrize(
    ("world", "owners", "named"),
    [(Snapshot(), "vllm,sglang", "sglang"), (WORLD, "vllm,nobody", "nobody")],
    ids=["no pool", "a pool"],
)
def test_a_header_never_names_an_owner_that_is_not_allowed(world: Snapshot, owners: str, named: str) -> None:
    run = session(HEADER, world, ALLOWED, pool=None)
    (answer,) = parsed(run.receive(headers((OWNER, owners), (MODEL, "m"))))
    sets = {
        each.header.key: each.header.raw_value for each in answer.request_headers.response.header_mutation.set_headers
    }
    assert sets[OWNER] == named.encode()


def test_after_does_not_refuse_what_before_has_let_through() -> None:
    rules = policy(
        "models: [{model: '*', allow: [nobody, sglang], whenAbsent: {action: reject}}]\nwhenUnknown: {action: passthrough}\n"
    )
    told = said("", "m", "owner-unknown", 1) | destination(S3)
    run = session(AFTER, WORLD, rules)
    run.receive(headers((OWNER, "nobody"), metadata=told))
    assert run.outcome
    assert (run.outcome.reply.final, run.outcome.destination) == (False, attempts(S3))
