# SPDX-License-Identifier: Apache-2.0
"""`header`, and `promote` in every attachment: owner and model are named in headers, by which a route may be chosen."""

import json
from typing import Any

import pytest

from extproc.envoy.binding import Attachment
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Pool, Snapshot
from tests.builders import (
    DEFAULT,
    DEST,
    LLAMA,
    SPOOFABLE,
    Playbook,
    asks,
    attempts,
    before,
    body,
    body_goes_on,
    destination,
    endpoint,
    goes_on,
    headers,
    hint,
    parsed,
    picked,
    policy,
    said,
    session,
    snapshot,
)

BEFORE, AFTER, PICKER, HEADER = Attachment.BEFORE, Attachment.AFTER, Attachment.PICKER, Attachment.HEADER
S1 = "10.0.0.3:8000"
TO = attempts(S1)
OWNER, MODEL = "x-owned-by", "x-gateway-model-name"
WORLD = snapshot(endpoint(1, "vllm", None), endpoint(3, "sglang", None), endpoint(5, "tgi", None, ready=False))
NO_POOL = Snapshot()


def header(world: Snapshot = WORLD, policy_: PolicyConfig = DEFAULT, pool: Pool | None = None, **more: Any) -> Session:
    return session(HEADER, world, policy_, pool=pool, **more)


def test_owner_and_model_are_named_and_the_route_is_chosen_anew() -> None:
    play = Playbook(header()) >> headers((OWNER, " SGLang "), (MODEL, "m"))
    expected = goes_on(
        said("sglang", "m", "owner-matched", 1), sets={OWNER: "sglang", MODEL: "m"}, removes=SPOOFABLE, reroute=True
    )
    play << [expected]
    assert play.session.done


def test_the_route_is_chosen_anew_from_when_the_body_is_asked_for() -> None:
    play = Playbook(header()) >> headers() << [asks(reroute=True)]
    expected = body_goes_on(said("sglang", "m", "owner-matched", 1), sets={OWNER: "sglang", MODEL: "m"})
    play >> body({"engine": "SGLANG", "model": "m"}) << [expected]
    assert play.session.done


def named(run: Session, *pairs: tuple[str, str], data: Any = None, **more: Any) -> tuple[dict[str, str], set[str]]:
    """What comes of a request's headers, its body read if it is asked for: which are set and which are removed."""
    answers = parsed(run.receive(headers(*pairs, **more)))
    if not run.done:
        answers += parsed(run.receive(body(data or {})))
    assert run.outcome
    assert not run.outcome.reply.final
    sets: dict[str, str] = {}
    removes: set[str] = set()
    for answer in answers:
        for part in (answer.request_headers.response, answer.request_body.response):
            removes |= set(part.header_mutation.remove_headers)
            sets |= {each.header.key: each.header.raw_value.decode() for each in part.header_mutation.set_headers}
    return sets, removes - set(SPOOFABLE)


PASS = "whenUnknown: {action: passthrough}\n"
ALIAS = "modelAliases: {small: m}\n"
OWNERS: dict[str, tuple[str, str, str]] = {
    # the policy, what the client says, what the header says then ("": it is removed)
    "normalised": ("", " SGLang ", "sglang"),
    "aliased": (PASS, "TRT-LLM", "trtllm-serve"),
    "the first that is ready": ("", "tgi, nobody, sglang, vllm", "sglang"),
    "a winner before anything": ("", "sglang,*", "sglang"),
    "anything": ("", "*", ""),
    "any": ("", "any", ""),
    "nothing": ("", "", ""),
    "unknown, where that passes": (PASS, "nobody", "nobody"),
}


@pytest.mark.parametrize("source", ["header", "query", "body"])
@pytest.mark.parametrize(("text", "owners", "value"), OWNERS.values(), ids=OWNERS)
def test_the_owner_is_named_as_it_was_found(text: str, owners: str, value: str, source: str) -> None:
    run = header(policy_=policy(text))
    found = {
        "header": lambda: named(run, (OWNER, owners), data={"model": "m"}),
        "query": lambda: named(run, path=f"/v1/x?engine={owners.replace(' ', '+')}", data={"model": "m"}),
        "body": lambda: named(run, (OWNER, ""), data={"engine": owners, "model": "m"}),
    }[source]()
    expected = {OWNER: value, MODEL: "m"} if value else {MODEL: "m"}
    assert found == (expected, set() if value else {OWNER})


MODELS: dict[str, tuple[Any, str]] = {
    "as it is": (LLAMA, LLAMA),
    "trimmed": (" m ", "m"),
    "aliased": ("small", "m"),
    "beyond ASCII": ("modèle", "modèle"),
    "with a space": ("my model", "my model"),
    "just short enough": ("m" * 1023, "m" * 1023),
    "too long": ("m" * 1024, ""),
    "a line feed": ("m\nx-evil: 1", ""),
    "a NUL": ("m\0", ""),
    "a delete": ("m\x7f", ""),
    "a control character beyond ASCII": ("m\x85m", ""),
    "a line separator": ("m\u2028m", ""),
    "none": (None, ""),
    "a number": (3, ""),
}


@pytest.mark.parametrize(("model", "value"), MODELS.values(), ids=MODELS)
def test_the_model_is_named_if_a_header_can_hold_it(model: Any, value: str) -> None:
    found = named(header(policy_=policy(ALIAS)), (OWNER, "vllm"), data={"model": model})
    expected = {OWNER: "vllm", MODEL: value} if value else {OWNER: "vllm"}
    assert found == (expected, set() if value else {MODEL})


def test_the_policys_names_are_used() -> None:
    run = header(policy_=policy("promote: {header: x-engine, model: x-model}\n"))
    assert named(run, (OWNER, "vllm"), data={"model": "m"}) == ({"x-engine": "vllm", "x-model": "m"}, set())


def test_only_one_name_of_the_policys_leaves_the_other_as_it_is() -> None:
    run = header(policy_=policy("promote: {header: x-engine}\n"))
    assert named(run, (OWNER, "vllm"), data={"model": "m"}) == ({"x-engine": "vllm", MODEL: "m"}, set())


def test_a_body_that_can_name_nothing_is_not_waited_for() -> None:
    run = header()
    assert named(run, (OWNER, "vllm"), content_type="text/plain") == ({OWNER: "vllm"}, {MODEL})
    assert run.outcome
    assert not run.outcome.asked_body


def test_a_truncated_body_names_what_stands_in_it() -> None:
    play = Playbook(header()) >> headers() << [asks(reroute=True)]
    expected = body_goes_on(said("vllm", "", "owner-matched", 1), sets={OWNER: "vllm"}, removes=(MODEL,))
    play >> body(b'{"owned_by": "vllm", "prompt": "lo', ends=False) << [expected]


LEFT = {"a path of its own": "/health", "an admin path": "/metrics?owned_by=vllm"}


@pytest.mark.parametrize("path", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("world", [WORLD, NO_POOL], ids=["a pool", "no pool"])
def test_a_path_that_is_not_interpreted_is_left_alone(path: str, world: Snapshot) -> None:
    play = Playbook(header(world)) >> headers((OWNER, "b@d"), (MODEL, "m"), path=path)
    reason = "path-not-interpreted" if world is WORLD else "pool-unknown"
    play << [goes_on(said("", "m", reason, 0), removes=SPOOFABLE)]
    assert play.session.done


def test_the_list_of_models_is_answered() -> None:
    world = snapshot(endpoint(1, "vllm", ("a",)), other=(endpoint(3, "sglang", ("b",)),))
    (answer,) = parsed(header(world).receive(headers(method="GET", path="/v1/models", ends=True)))
    found = [(model["id"], model["owned_by"]) for model in json.loads(answer.immediate_response.body)["data"]]
    assert found == [("a", "vllm"), ("b", "sglang")]


# Which pool


def test_all_pools_are_one_without_being_asked_to() -> None:
    world = snapshot(endpoint(1, "vllm", None), other=(endpoint(3, "sglang", None), endpoint(4, "vllm", None)))
    play = Playbook(header(world)) >> headers((OWNER, "vllm"), (MODEL, "m"))
    expected = goes_on(
        said("vllm", "m", "owner-matched", 2), sets={OWNER: "vllm", MODEL: "m"}, removes=SPOOFABLE, reroute=True
    )
    play << [expected]


POOLS: dict[str, dict[str, Any]] = {
    "of the filter": {"pool": Pool("default", "other")},
    "of the flags": {"default": Pool("default", "other")},
}


@pytest.mark.parametrize("binding", POOLS.values(), ids=POOLS)
def test_a_pool_that_is_named_is_the_only_one(binding: dict[str, Any]) -> None:
    world = snapshot(endpoint(1, "vllm", None), other=(endpoint(3, "sglang", None),))
    (answer,) = parsed(header(world, **binding).receive(headers((OWNER, "vllm"), (MODEL, "m"))))
    assert answer.immediate_response.status.code == 404


@pytest.mark.parametrize("name", ["pool", "default"])
def test_a_pool_that_is_named_and_not_known_is_a_503(name: str) -> None:
    (answer,) = parsed(header(**{name: Pool("default", "gone")}).receive(headers((OWNER, "vllm"), (MODEL, "m"))))
    assert answer.immediate_response.status.code == 503


def test_where_the_route_leads_now_means_nothing() -> None:
    run = header()
    cluster = "outbound|80||web.default.svc.cluster.local"
    assert named(run, (OWNER, "vllm"), data={"model": "m"}, cluster=cluster) == ({OWNER: "vllm", MODEL: "m"}, set())


def test_without_any_pool_owner_and_model_are_named_too() -> None:
    play = Playbook(header(NO_POOL)) >> headers() << [asks(reroute=True)]
    expected = body_goes_on(said("sglang", "m", "pool-unknown", 0), sets={OWNER: "sglang", MODEL: "m"})
    play >> body({"engine": " SGLang", "model": "m"}) << [expected]


UNREAD: dict[str, tuple[dict[str, str], dict[str, str], set[str]]] = {
    "both": ({OWNER: "sglang,vllm", MODEL: "m"}, {OWNER: "sglang", MODEL: "m"}, set()),
    "anything": ({OWNER: "*", MODEL: "m"}, {MODEL: "m"}, {OWNER}),
}


@pytest.mark.parametrize(("given", "sets", "removes"), UNREAD.values(), ids=UNREAD)
def test_without_any_pool_headers_that_name_both_suffice(
    given: dict[str, str], sets: dict[str, str], removes: set[str]
) -> None:
    run = header(NO_POOL)
    assert named(run, *given.items()) == (sets, removes)
    assert run.outcome
    assert not run.outcome.asked_body


MALFORMED: dict[str, tuple[tuple[str, str], dict[str, Any], str]] = {
    "in the header": ((OWNER, "b@d"), {}, OWNER),
    "in the body": ((OWNER, ""), {"engine": 7}, "engine"),
}


@pytest.mark.parametrize("world", [WORLD, NO_POOL], ids=["a pool", "no pool"])
@pytest.mark.parametrize(("pair", "data", "param"), MALFORMED.values(), ids=MALFORMED)
def test_an_owner_that_cannot_be_read_is_a_400(
    pair: tuple[str, str], data: dict[str, Any], param: str, world: Snapshot
) -> None:
    run = header(world)
    answers = run.receive(headers(pair))
    if not run.done:
        answers = run.receive(body(data))
    (answer,) = parsed(answers)
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"], found["param"]) == (400, "owner_malformed", param)


# `promote` in the other attachments

PROMOTE = policy("promote: {header: x-engine, model: x-model}\n")
REROUTE = policy("promote: {header: x-engine, model: x-model, reroute: true}\n")
SAID: dict[Attachment, tuple[dict[str, Any], dict[str, str], tuple[str, ...]]] = {
    # the metadata of a request for sglang with the model m, the headers that are set, those that are removed
    BEFORE: (before("sglang", "m", S1), {}, SPOOFABLE),
    AFTER: (destination(TO) | said("sglang", "m", "owner-matched", 1, None), {DEST: TO}, ()),
    PICKER: (picked("sglang", "m", S1), {DEST: TO}, SPOOFABLE),
}


@pytest.mark.parametrize("policy_", [PROMOTE, REROUTE], ids=["as the route is", "anew"])
@pytest.mark.parametrize("attachment", SAID)
def test_every_attachment_names_what_it_found_at_the_headers(attachment: Attachment, policy_: PolicyConfig) -> None:
    metadata, sets, removes = SAID[attachment]
    expected = goes_on(
        metadata,
        sets={"x-engine": "sglang", "x-model": "m"} | sets,
        removes=removes,
        reroute=policy_ is REROUTE,
    )
    Playbook(session(attachment, policy_=policy_)) >> headers((OWNER, "sglang"), (MODEL, "m")) << [expected]


@pytest.mark.parametrize("policy_", [PROMOTE, REROUTE], ids=["as the route is", "anew"])
@pytest.mark.parametrize("attachment", SAID)
def test_every_attachment_names_what_it_found_in_the_body(attachment: Attachment, policy_: PolicyConfig) -> None:
    metadata, sets, removes = SAID[attachment]
    play = Playbook(session(attachment, policy_=policy_)) >> headers()
    play << [asks(removes=removes, reroute=policy_ is REROUTE)]
    expected = body_goes_on(metadata, sets={"x-engine": "sglang", "x-model": "m"} | sets)
    play >> body({"owned_by": "sglang", "model": "m"}) << [expected]


def test_only_the_header_that_the_policy_names_is_set() -> None:
    run = session(BEFORE, policy_=policy("promote: {header: x-engine}\n"))
    run_model = session(BEFORE, policy_=policy("promote: {model: x-model}\n"))
    assert named(run, (OWNER, "vllm")) == ({"x-engine": "vllm"}, set())
    assert named(run_model, (OWNER, "vllm"), data={"model": "m"}) == ({"x-model": "m"}, set())


def test_to_reroute_by_nothing_is_not_to_reroute() -> None:
    play = Playbook(session(BEFORE, policy_=policy("promote: {reroute: true}\n")))
    play >> headers((OWNER, "sglang")) << [goes_on(before("sglang", "", S1))]


def test_nothing_is_named_that_was_not_found() -> None:
    assert named(session(BEFORE, policy_=PROMOTE), ("x-engine", "vllm"), ("x-model", "m")) == (
        {},
        {"x-engine", "x-model"},
    )


def test_told_by_before_after_names_the_same() -> None:
    told = said("sglang", "m", "owner-matched", 1) | hint(S1) | destination(S1)
    run = session(AFTER, policy_=PROMOTE)
    assert named(run, metadata=told) == ({"x-engine": "sglang", "x-model": "m", DEST: TO}, set())


def test_on_a_route_that_leads_to_no_pool_nothing_is_named() -> None:
    cluster = "outbound|80||web.default.svc.cluster.local"
    play = Playbook(session(BEFORE, policy_=REROUTE, pool=None)) >> headers((OWNER, "vllm"), cluster=cluster)
    play << [goes_on(said("", "", "not-a-pool", 0))]
    assert play.session.done


def test_nothing_is_named_on_a_path_that_is_not_interpreted() -> None:
    play = Playbook(session(BEFORE, policy_=REROUTE)) >> headers((OWNER, "vllm"), path="/health")
    play << [goes_on(said("", "", "path-not-interpreted", 0))]


def test_where_no_pool_is_known_owner_and_model_are_named_all_the_same() -> None:
    play = Playbook(session(BEFORE, NO_POOL, PROMOTE, pool=None)) >> headers() << [asks()]
    expected = body_goes_on(said("vllm", "m", "pool-unknown", 0), sets={"x-engine": "vllm", "x-model": "m"})
    play >> body({"engine": "vllm", "model": "m"}) << [expected]


def test_nothing_is_promoted_into_an_answer_of_ours() -> None:
    (answer,) = parsed(session(BEFORE, policy_=PROMOTE).receive(headers((OWNER, "nobody"), (MODEL, "m"))))
    keys = [option.header.key for option in answer.immediate_response.headers.set_headers]
    assert keys == ["content-type", "x-owned-by-reason"]


@pytest.mark.parametrize("owners", ["tgi, *", "nobody, *"], ids=["not ready", "unknown"])
def test_an_owner_that_is_passed_over_for_anything_is_not_named(owners: str) -> None:
    assert named(header(), (OWNER, owners), (MODEL, "m")) == ({MODEL: "m"}, {OWNER})


UNKNOWN = policy("whenUnknown: {action: passthrough}\npromote: {header: x-engine}\n")


@pytest.mark.parametrize("attachment", [BEFORE, PICKER])
def test_an_owner_that_nobody_is_and_that_passes_is_named(attachment: Attachment) -> None:
    sets, removes = named(session(attachment, policy_=UNKNOWN), (OWNER, "nobody"), (MODEL, "m"))
    assert (sets["x-engine"], removes) == ("nobody", set())


def test_after_names_it_as_before_did() -> None:
    told = said("nobody", "m", "owner-unknown", 0) | destination(S1)
    run = session(AFTER, policy_=UNKNOWN)
    assert named(run, metadata=told) == ({"x-engine": "nobody", DEST: S1}, set())


REFUSED: dict[str, tuple[str, bytes, bool, str]] = {
    "absent": ("whenAbsent: {action: reject}\n", b'{"model": "m"}', True, "owner_required"),
    "truncated": ("whenTruncated: {action: reject}\n", b'{"prompt": "p', False, "body_truncated"),
}


@pytest.mark.parametrize("world", [WORLD, NO_POOL], ids=["a pool", "no pool"])
@pytest.mark.parametrize(("text", "data", "ends", "code"), REFUSED.values(), ids=REFUSED)
def test_what_the_policy_refuses_is_refused_without_a_pool_too(
    *, text: str, data: bytes, ends: bool, code: str, world: Snapshot
) -> None:
    run = header(world, policy(text))
    run.receive(headers())
    (answer,) = parsed(run.receive(body(data, ends=ends)))
    assert json.loads(answer.immediate_response.body)["error"]["code"] == code


@pytest.mark.parametrize("world", [WORLD, NO_POOL], ids=["a pool", "no pool"])
def test_a_model_that_is_to_be_named_and_was_not_seen_is_truncated(world: Snapshot) -> None:
    run = header(world, policy("whenTruncated: {action: reject}\n"))
    run.receive(headers((OWNER, "vllm")))
    (answer,) = parsed(run.receive(body(b'{"prompt": "p', ends=False)))
    assert json.loads(answer.immediate_response.body)["error"]["param"] == "model"
