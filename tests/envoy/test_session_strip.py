# SPDX-License-Identifier: Apache-2.0
"""`body.strip`: the owner's keys go from the body of a request that goes on, and its length with them."""

from typing import Any

import pytest

from extproc.envoy.binding import Attachment, Binding, BodyMode
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Snapshot
from tests.builders import (
    CHAT,
    DEST,
    DUPLEX,
    MIXED,
    PLAIN,
    SPOOFABLE,
    Playbook,
    asks,
    attempts,
    before,
    body,
    body_goes_on,
    destination,
    frames,
    goes_on,
    headers,
    kept_trailers,
    parsed,
    picked,
    policy,
    said,
    session,
    streams,
    trailers,
)

BEFORE, AFTER, PICKER, HEADER = Attachment.BEFORE, Attachment.AFTER, Attachment.PICKER, Attachment.HEADER
V1, V2, S1 = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"
TO = attempts(S1)
STRIP = policy("body: {strip: true}\n")
SGLANG = ("x-owned-by", "sglang")
LENGTH = "content-length"
DATA = b'{"model": "m","owned_by": "sglang","n": 1.0}'
BARE = b'{"model": "m","n": 1.0}'


def stripping(
    attachment: Attachment = BEFORE, world: Snapshot = PLAIN, policy_: PolicyConfig = STRIP, **more: Any
) -> Session:
    return session(attachment, world, policy_, **more)


# What fits into Envoy's buffer

PARTIAL: dict[Attachment, tuple[pb.ProcessingResponse, pb.ProcessingResponse]] = {
    BEFORE: (asks(), body_goes_on(before("sglang", "m", S1), removes=(LENGTH,), body=BARE)),
    AFTER: (
        asks(removes=()),
        body_goes_on(
            destination(TO) | said("sglang", "m", "owner-matched", 1, None),
            sets={DEST: TO},
            removes=(LENGTH,),
            body=BARE,
        ),
    ),
    PICKER: (asks(), body_goes_on(picked("sglang", "m", S1), sets={DEST: TO}, removes=(LENGTH,), body=BARE)),
    HEADER: (
        asks(reroute=True),
        body_goes_on(
            said("sglang", "m", "owner-matched", 1),
            sets={"x-owned-by": "sglang", "x-gateway-model-name": "m"},
            removes=(LENGTH,),
            body=BARE,
        ),
    ),
}


@pytest.mark.parametrize("attachment", Attachment)
def test_the_body_goes_on_without_the_key_and_without_its_length(attachment: Attachment) -> None:
    asked, expected = PARTIAL[attachment]
    play = Playbook(stripping(attachment)) >> headers() << [asked] >> body(DATA) << [expected]
    assert play.session.done


BODIES: dict[str, tuple[bytes, bytes]] = {
    "one key": (DATA, BARE),
    "each of them": (b'{"owned_by": "sglang","engine": null,"n": 1,"inference_server": "x"}', b'{"n": 1}'),
    "nothing else": (b'{"owned_by": "sglang"}', b"{}"),
    "only at the top": (b'{"x": {"owned_by": 1},"owned_by": "sglang"}', b'{"x": {"owned_by": 1}}'),
}


@pytest.mark.parametrize(("data", "bare"), BODIES.values(), ids=BODIES)
def test_all_else_stays_as_it_was_written(data: bytes, bare: bytes) -> None:
    run = stripping()
    run.receive(headers())
    (answer,) = parsed(run.receive(body(data)))
    assert answer.request_body.response.body_mutation.body == bare


def test_a_body_is_asked_for_though_its_headers_suffice() -> None:
    play = Playbook(stripping()) >> headers(SGLANG) << [asks()]
    expected = body_goes_on(before("sglang", "m", S1), removes=(LENGTH,), body=b'{"model": "m"}')
    play >> body(b'{"model": "m","engine": "vllm"}') << [expected]


def test_a_prefix_goes_on_without_the_keys_that_stand_in_it() -> None:
    play = Playbook(stripping()) >> headers() << [asks()]
    expected = body_goes_on(before("sglang", "", S1), removes=(LENGTH,), body=b'{"prompt": "lo')
    play >> body(b'{"owned_by": "sglang","prompt": "lo', ends=False) << [expected]


def test_the_policys_keys_go_and_no_others() -> None:
    run = stripping(policy_=policy("sources: {body: [by]}\nbody: {strip: true}\n"))
    run.receive(headers())
    (answer,) = parsed(run.receive(body(b'{"by": "sglang","owned_by": "x"}')))
    assert answer.request_body.response.body_mutation.body == b'{"owned_by": "x"}'


UNCHANGED: dict[str, tuple[tuple[tuple[str, str], ...], bytes]] = {
    "no such key": ((SGLANG,), b'{"model": "m"}'),
    "a value that looks like one": ((SGLANG,), b'{"model": "m", "x": "owned_by"}'),
    "an empty body": ((SGLANG,), b""),
    "no JSON": ((SGLANG,), b'owned_by="sglang"'),
    "no object": ((SGLANG,), b'["owned_by", "sglang"]'),
}


@pytest.mark.parametrize(("pairs", "data"), UNCHANGED.values(), ids=UNCHANGED)
def test_where_there_is_nothing_to_strip_body_and_length_stay(pairs: tuple[tuple[str, str], ...], data: bytes) -> None:
    play = Playbook(stripping()) >> headers(*pairs) << [asks()]
    model = "m" if b"model" in data else ""
    play >> body(data) << [body_goes_on(before("sglang", model, S1))]


def test_by_default_nothing_is_stripped() -> None:
    play = Playbook(session()) >> headers() >> body(DATA) << [asks(), body_goes_on(before("sglang", "m", S1))]
    assert play.session.done


PASSING: dict[str, tuple[str, tuple[tuple[str, str], ...], bytes, str, str]] = {
    "anything": ("", (), b'{"engine": "*"}', "", "owner-any"),
    "absent": ("", (), b'{"engine": null}', "", "owner-absent"),
    "unknown": ("whenUnknown: {action: passthrough}\n", (), b'{"engine": "nobody"}', "nobody", "owner-unknown"),
    "anything in a header": ("", (("x-owned-by", "*"),), b'{"engine": "vllm"}', "", "owner-any"),
}


@pytest.mark.parametrize(("text", "pairs", "data", "owner", "reason"), PASSING.values(), ids=PASSING)
def test_the_body_of_a_request_that_passes_is_stripped_too(
    text: str, pairs: tuple[tuple[str, str], ...], data: bytes, owner: str, reason: str
) -> None:
    play = Playbook(stripping(policy_=policy(text + "body: {strip: true}\n"))) >> headers(*pairs) << [asks()]
    play >> body(data) << [body_goes_on(said(owner, "", reason, 0), removes=(LENGTH,), body=b"{}")]


# All of the body comes through us

LARGE = b'{"owned_by": "sglang","prompt": "' + b"x" * 130_000 + b'"}'
LARGE_BARE = b'{"prompt": "' + b"x" * 130_000 + b'"}'
WHOLE: dict[str, tuple[Any, dict[str, Any], list[pb.ProcessingResponse]]] = {
    "FULL_DUPLEX_STREAMED": (DUPLEX, {}, []),
    "asked for": (None, {"body": BodyMode.STREAM}, [streams()]),
}
NAMED = goes_on(before("sglang", "", S1), removes=(*SPOOFABLE, LENGTH))


@pytest.mark.parametrize(("mode", "binding", "asked"), WHOLE.values(), ids=WHOLE)
def test_the_length_goes_with_the_headers_and_the_key_from_the_frames(
    mode: Any, binding: dict[str, Any], asked: list[pb.ProcessingResponse]
) -> None:
    play = Playbook(stripping(**binding)) >> headers(mode=mode) << asked
    play >> body(LARGE[:70_000], ends=False) << []
    play >> body(LARGE[70_000:]) << [NAMED, *frames(LARGE_BARE)]
    assert play.session.done


@pytest.mark.parametrize(("mode", "binding", "asked"), WHOLE.values(), ids=WHOLE)
def test_trailers_follow_the_stripped_body(
    mode: Any, binding: dict[str, Any], asked: list[pb.ProcessingResponse]
) -> None:
    play = Playbook(stripping(**binding)) >> headers(mode=mode) >> body(LARGE, ends=False) << asked
    play >> trailers() << [NAMED, *frames(LARGE_BARE, ends=False), kept_trailers()]


@pytest.mark.parametrize(("mode", "binding", "asked"), WHOLE.values(), ids=WHOLE)
def test_a_body_is_held_though_its_headers_suffice(
    mode: Any, binding: dict[str, Any], asked: list[pb.ProcessingResponse]
) -> None:
    play = Playbook(stripping(**binding)) >> headers(SGLANG, mode=mode) << asked
    play >> body(b'{"engine": "vllm"}') << [NAMED, *frames(b"{}")]


@pytest.mark.parametrize(("mode", "binding", "asked"), WHOLE.values(), ids=WHOLE)
def test_what_is_held_and_has_no_such_key_keeps_its_length(
    mode: Any, binding: dict[str, Any], asked: list[pb.ProcessingResponse]
) -> None:
    play = Playbook(stripping(**binding)) >> headers(SGLANG, mode=mode) << asked
    play >> body(b'{"n": 1}') << [goes_on(before("sglang", "", S1)), *frames(b'{"n": 1}')]


# Whose body is not ours to change

FORM = "multipart/form-data; boundary=edge"
FIELDS = (
    b'--edge\r\nContent-Disposition: form-data; name="owned_by"\r\n\r\nsglang\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--edge--\r\n'
)


def test_a_form_is_read_and_not_stripped() -> None:
    play = Playbook(stripping()) >> headers(content_type=FORM) << [asks()]
    play >> body(FIELDS) << [body_goes_on(before("sglang", "m", S1))]


def test_a_form_whose_headers_suffice_is_not_asked_for() -> None:
    play = Playbook(stripping()) >> headers(SGLANG, content_type=FORM) << [goes_on(before("sglang", "", S1))]
    assert play.session.done


def test_a_form_that_is_held_goes_on_as_it_came() -> None:
    play = Playbook(stripping()) >> headers(mode=DUPLEX, content_type=FORM) >> body(FIELDS)
    play << [goes_on(before("sglang", "m", S1)), *frames(FIELDS)]


def test_a_form_that_begins_like_json_is_not_stripped_either() -> None:
    data = b'{"owned_by": "x"}\r\n' + FIELDS
    play = Playbook(stripping()) >> headers(SGLANG, mode=DUPLEX, content_type=FORM)
    play << [goes_on(before("sglang", "", S1))]
    play >> body(data) << frames(data)
    run = stripping()
    run.receive(headers(content_type=FORM))
    (answer,) = parsed(run.receive(body(data)))
    assert not answer.request_body.response.HasField("body_mutation")


def test_forms_of_the_same_headers_are_read_each() -> None:
    replies = Replies(PLAIN, STRIP)
    for _ in range(2):
        play = Playbook(Session(Binding(BEFORE, CHAT), lambda: replies, lambda: 0))
        play >> headers(content_type=FORM) >> body(FIELDS) << [asks(), body_goes_on(before("sglang", "m", S1))]


ELSEWHERE = "outbound|80||web.default.svc.cluster.local"
LEFT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a path that is not interpreted": ({}, {"path": "/health"}, "path-not-interpreted"),
    "a route to no pool": ({"pool": None}, {"cluster": ELSEWHERE}, "not-a-pool"),
    "no pool that is known": ({"pool": None, "world": Snapshot()}, {}, "pool-unknown"),
}


@pytest.mark.parametrize(("binding", "more", "reason"), LEFT.values(), ids=LEFT)
def test_a_body_that_is_not_for_us_is_not_asked_for(binding: dict[str, Any], more: dict[str, Any], reason: str) -> None:
    play = Playbook(stripping(**binding)) >> headers(**more) << [goes_on(said("", "", reason, 0))]
    assert play.session.done


@pytest.mark.parametrize(("binding", "more", "reason"), LEFT.values(), ids=LEFT)
def test_a_body_that_is_not_for_us_goes_through_us_as_it_came(
    binding: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    play = Playbook(stripping(**binding)) >> headers(mode=DUPLEX, **more) << [goes_on(said("", "", reason, 0))]
    play >> body(DATA) << frames(DATA)


UNREAD = {
    "text": {"content_type": "text/plain"},
    "no type": {"content_type": ""},
    "no body": {"ends": True},
}


@pytest.mark.parametrize("more", UNREAD.values(), ids=UNREAD)
def test_a_body_that_cannot_be_read_is_not_stripped(more: dict[str, Any]) -> None:
    run = stripping()
    run.receive(headers(SGLANG, **more))
    assert run.done


def test_a_refusal_at_the_headers_asks_for_no_body() -> None:
    run = stripping()
    (answer,) = parsed(run.receive(headers(("x-owned-by", "nobody"))))
    assert (answer.immediate_response.status.code, run.done) == (404, True)


@pytest.mark.parametrize(("mode", "binding", "asked"), WHOLE.values(), ids=WHOLE)
def test_a_refusal_at_the_body_says_nothing_more(
    mode: Any, binding: dict[str, Any], asked: list[pb.ProcessingResponse]
) -> None:
    play = Playbook(stripping(**binding)) >> headers(mode=mode) << asked
    (answer,) = parsed(play.session.receive(body(b'{"engine": "nobody"}')))
    assert answer.WhichOneof("response") == "immediate_response"
    assert not answer.HasField("request_headers")


def test_what_before_has_stripped_is_not_read_again() -> None:
    told = said("sglang", "m", "owner-matched", 1) | destination(S1)
    expected = goes_on(destination(TO) | said("sglang", "m", "owner-matched", 1, None), sets={DEST: TO}, removes=())
    play = Playbook(stripping(AFTER)) >> headers(metadata=told) << [expected]
    assert play.session.done


def test_reading_a_body_to_strip_it_does_not_change_where_it_goes() -> None:
    plain, stripped = (session(world=MIXED, policy_=each) for each in (policy(), STRIP))
    for run in (plain, stripped):
        run.receive(headers(("x-owned-by", "vllm"), ("x-llm-d-model-name-rewrite", "Qwen/Qwen2.5-0.5B-Instruct")))
        if not run.done:
            run.receive(body(b'{"model": "meta-llama/Llama-3.2-1B-Instruct", "engine": "sglang"}'))
    assert plain.outcome
    assert stripped.outcome
    assert (plain.outcome.destination, stripped.outcome.destination) == (attempts(V2), attempts(V2))
