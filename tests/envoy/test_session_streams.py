# SPDX-License-Identifier: Apache-2.0
"""Whole streams where the body passes through us, and what is done when the response comes through them."""

import json
from typing import Any

import pytest

from extproc.envoy.binding import Attachment, BodyMode
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from tests.builders import (
    DEFAULT,
    DEST,
    DUPLEX,
    KEPT_ANSWER_TRAILERS,
    KEPT_HEADERS,
    NONE,
    SPOOFABLE,
    Playbook,
    answer_body,
    answer_frame,
    answer_headers,
    attempts,
    before,
    body,
    context,
    destination,
    frame,
    frames,
    goes_on,
    headers,
    hint,
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
SGLANG = ("x-owned-by", "sglang")
SMALL = b'{"owned_by": "sglang"}'
BODY = b'{"owned_by": "sglang", "prompt": "' + b"x" * 130_000 + b'"}'
TO = attempts(S1)
PICKED = goes_on(picked("sglang", "", S1), sets={DEST: TO})
EPP = destination(V1)
"""What the EPP has picked when `after` has its turn; every test's request then goes to the other engine."""
SAID = {
    BEFORE: goes_on(before("sglang", "", S1)),
    AFTER: goes_on(destination(TO) | said("sglang", "", "owner-matched", 1, None), sets={DEST: TO}, removes=()),
    PICKER: PICKED,
    HEADER: goes_on(
        said("sglang", "", "owner-matched", 1),
        sets={"x-owned-by": "sglang"},
        removes=(*SPOOFABLE, "x-gateway-model-name"),
        reroute=True,
    ),
}
"""What each attachment says to the headers of a request that names sglang and no model."""


def first(attachment: Attachment, *pairs: tuple[str, str], **more: Any) -> pb.ProcessingRequest:
    """The first message; `after` is behind an EPP that has picked an endpoint of the other engine."""
    return headers(*pairs, **(({"metadata": EPP} if attachment is AFTER else {}) | more))


def duplex(attachment: Attachment, *pairs: tuple[str, str], **more: Any) -> pb.ProcessingRequest:
    """The first message of a stream that both bodies are to pass through, as gateways set up an EPP's."""
    return first(attachment, *pairs, mode=DUPLEX, answers=DUPLEX, **more)


# The filter's own mode is FULL_DUPLEX_STREAMED


@pytest.mark.parametrize("attachment", Attachment)
def test_headers_and_body_are_held_until_it_is_decided(attachment: Attachment) -> None:
    play = Playbook(session(attachment)) >> duplex(attachment) >> body(BODY[:70_000], ends=False) << []
    assert (play.session.done, play.session.deadline) == (False, 10.0)
    play >> body(BODY[70_000:]) << [SAID[attachment], *frames(BODY)]
    assert (play.session.done, play.session.deadline) == (True, None)


@pytest.mark.parametrize("attachment", Attachment)
def test_the_trailers_come_last(attachment: Attachment) -> None:
    play = Playbook(session(attachment)) >> duplex(attachment) >> body(BODY, ends=False) << []
    play >> trailers() << [SAID[attachment], *frames(BODY, ends=False), kept_trailers()]
    assert play.session.done


def test_trailers_without_a_body_are_decided_on() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER) << []
    expected = goes_on(picked("", "", V1, V2, S1, reason="owner-absent"), sets={DEST: attempts(V1, V2, S1)})
    play >> trailers() << [expected, kept_trailers()]
    assert play.session.done


def test_what_was_decided_at_the_headers_is_echoed_piece_by_piece() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, SGLANG) << [PICKED]
    assert (play.session.done, play.session.deadline) == (False, None)
    play >> body(b"one", ends=False) << [frame(b"one")]
    play >> body(b"", ends=False) << []
    play >> body(BODY, ends=False) << frames(BODY, ends=False)
    play >> body(b"") << [frame(b"", ends=True)]
    assert play.session.done


def test_the_piece_that_ends_the_echo_is_followed_by_an_empty_one() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, SGLANG) << [PICKED]
    play >> body(b"one") << [frame(b"one"), frame(b"", ends=True)]
    assert play.session.done


def test_the_echo_ends_with_the_trailers() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, SGLANG) << [PICKED]
    play >> body(b"one", ends=False) << [frame(b"one")]
    play >> trailers() << [kept_trailers()]
    assert play.session.done


@pytest.mark.parametrize("attachment", Attachment)
def test_a_request_without_a_body_is_done_at_its_headers(attachment: Attachment) -> None:
    play = Playbook(session(attachment)) >> duplex(attachment, SGLANG, ends=True)
    assert (len(play.said), play.session.done) == (1, True)


def test_what_before_has_told_need_not_be_held() -> None:
    told = EPP | said("sglang", "", "owner-matched", 1, TO)
    play = Playbook(session(AFTER)) >> duplex(AFTER, metadata=told) << [SAID[AFTER]]
    play >> body(SMALL) << frames(SMALL)
    assert play.session.done


def test_a_refusal_echoes_nothing() -> None:
    run = session(PICKER)
    run.receive(duplex(PICKER))
    (answer,) = parsed(run.receive(body({"owned_by": "nobody"})))
    assert (answer.immediate_response.status.code, run.done) == (404, True)


def test_the_hint_narrows_the_pick() -> None:
    message = headers(("x-owned-by", "vllm"), metadata=hint(V2))
    Playbook(session(PICKER)) >> message << [goes_on(picked("vllm", "", V2), sets={DEST: attempts(V2)})]


def test_the_hint_of_the_last_message_holds() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, metadata=hint(V1)) << []
    last = body(b'{"owned_by": "vllm"}')
    last.metadata_context.CopyFrom(context(hint(V2)))
    expected = [goes_on(picked("vllm", "", V2), sets={DEST: attempts(V2)}), *frames(b'{"owned_by": "vllm"}')]
    play >> last << expected


# All of the body is asked for, on Envoy 1.40 and newer


def streaming(attachment: Attachment, policy_: PolicyConfig = DEFAULT) -> Session:
    return session(attachment, policy_=policy_, body=BodyMode.STREAM)


@pytest.mark.parametrize("attachment", Attachment)
def test_the_whole_body_is_asked_for_held_and_sent_on(attachment: Attachment) -> None:
    play = Playbook(streaming(attachment)) >> first(attachment, mode=NONE) << [streams()]
    assert (play.session.done, play.session.deadline, play.session.outcome) == (False, 10.0, None)
    play >> body(BODY[:70_000], ends=False) << []
    play >> body(BODY[70_000:]) << [SAID[attachment], *frames(BODY)]
    assert play.session.done


@pytest.mark.parametrize("attachment", Attachment)
def test_a_body_that_was_asked_for_may_end_with_trailers(attachment: Attachment) -> None:
    play = Playbook(streaming(attachment)) >> first(attachment) >> body(SMALL, ends=False) << [streams()]
    play >> trailers() << [SAID[attachment], *frames(SMALL, ends=False), kept_trailers()]
    assert play.session.done


@pytest.mark.parametrize("attachment", [BEFORE, AFTER, PICKER])
def test_no_body_is_asked_for_where_the_headers_suffice(attachment: Attachment) -> None:
    play = Playbook(streaming(attachment)) >> first(attachment, SGLANG) << [SAID[attachment]]
    assert play.session.done


def test_a_body_that_comes_through_us_anyway_need_not_be_asked_for() -> None:
    play = Playbook(streaming(BEFORE)) >> headers(mode=DUPLEX) << []
    play >> body(SMALL) << [SAID[BEFORE], *frames(SMALL)]


# Our own limits, where Envoy's do not hold

HELD: dict[str, tuple[dict[str, Any], Any]] = {
    "FULL_DUPLEX_STREAMED": ({}, DUPLEX),
    "asked for": ({"body": BodyMode.STREAM}, NONE),
}


def error(answer: pb.ProcessingResponse) -> tuple[int, dict[str, Any]]:
    immediate = answer.immediate_response
    return immediate.status.code, json.loads(immediate.body)["error"]


@pytest.mark.parametrize(("binding", "mode"), HELD.values(), ids=HELD)
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_body_beyond_the_limit_is_a_413(pieces: int, binding: dict[str, Any], mode: Any) -> None:
    run = session(PICKER, policy_=policy("body: {maxBytes: 10}\n"), **binding)
    run.receive(headers(mode=mode))
    for number in range(pieces):
        answers = parsed(run.receive(body(b"x" * (12 // pieces), ends=False)))
        assert bool(answers) is (number + 1 == pieces)
    expected = {
        "message": "the body is larger than 10 bytes",
        "type": "invalid_request_error",
        "param": None,
        "code": "body_too_large",
    }
    assert (error(answers[0]), run.done) == ((413, expected), True)


def test_a_body_of_just_the_limit_is_held() -> None:
    run = session(PICKER, policy_=policy("body: {maxBytes: 10}\n"))
    run.receive(headers(mode=DUPLEX))
    assert run.receive(body(b"x" * 10, ends=False)) == []


def test_what_need_not_be_held_has_no_limit() -> None:
    play = Playbook(session(PICKER, policy_=policy("body: {maxBytes: 10}\n"))) >> headers(SGLANG, mode=DUPLEX)
    play >> body(BODY) << [PICKED, *frames(BODY)]


@pytest.mark.parametrize(("binding", "mode"), HELD.values(), ids=HELD)
def test_a_body_that_does_not_come_in_time_is_a_408(binding: dict[str, Any], mode: Any) -> None:
    run = session(PICKER, **binding)
    run.receive(headers(mode=mode))
    run.receive(body(b"{", ends=False))
    (answer,) = parsed(run.expire())
    status, found = error(answer)
    assert (status, found["code"], run.done, run.deadline) == (408, "body_timeout", True, None)
    assert run.outcome
    assert (run.outcome.reply.reason, run.outcome.body_bytes) == ("body-timeout", 1)


EXPIRED: dict[str, tuple[Attachment, list[pb.ProcessingRequest]]] = {
    "at the beginning": (BEFORE, []),
    "asked for the body": (BEFORE, [headers()]),
    "echoing": (PICKER, [headers(SGLANG, mode=DUPLEX)]),
    "waiting for the answer": (PICKER, [headers(SGLANG, mode=DUPLEX, answers=NONE), body(b"")]),
    "done": (BEFORE, [headers(SGLANG)]),
}


@pytest.mark.parametrize(("attachment", "messages"), EXPIRED.values(), ids=EXPIRED)
def test_the_deadline_means_nothing_where_no_body_is_held(
    attachment: Attachment, messages: list[pb.ProcessingRequest]
) -> None:
    run = session(attachment)
    for message in messages:
        run.receive(message)
    done = run.done
    assert (run.deadline, run.expire(), run.done) == (None, [], done)


# The response


@pytest.mark.parametrize("bodiless", [False, True], ids=["with a body", "without a body"])
@pytest.mark.parametrize("attachment", Attachment)
def test_a_stream_that_could_carry_the_answer_is_done_before_it(
    attachment: Attachment,
    bodiless: bool,  # noqa: FBT001 - a column
) -> None:
    run = session(attachment)
    run.receive(duplex(attachment, SGLANG, ends=bodiless))
    if not bodiless:
        assert not run.done
        run.receive(body({"model": "m"}))
    assert run.done


ENDS = {
    "its last piece": (answer_body(b"", ends=True), answer_frame(b"", ends=True)),
    "its trailers": (pb.ProcessingRequest(response_trailers=pb.HttpTrailers()), KEPT_ANSWER_TRAILERS),
}


@pytest.mark.parametrize(("message", "expected"), ENDS.values(), ids=ENDS)
def test_an_answer_that_begins_before_the_request_has_ended_is_handed_back_and_ends_the_stream(
    message: pb.ProcessingRequest, expected: pb.ProcessingResponse
) -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, SGLANG) << [PICKED]
    play >> answer_headers() << [KEPT_HEADERS]
    play >> body(b"more", ends=False) << [frame(b"more")]
    play >> answer_body(b"data: one", ends=False) << [answer_frame(b"data: one", ends=False)]
    assert not play.session.done
    play >> message << [expected]
    assert play.session.done


def test_an_answer_that_has_begun_is_handed_back_after_the_request_has_ended() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, SGLANG) >> answer_headers()
    play << [PICKED, KEPT_HEADERS]
    play >> body(b"rest") << frames(b"rest")
    assert not play.session.done
    play >> answer_body(b"data: one", ends=False) >> answer_body(b"", ends=True)
    play << [answer_frame(b"data: one", ends=False), answer_frame(b"", ends=True)]
    assert play.session.done


def test_a_whole_answer_without_a_body_ends_the_stream() -> None:
    play = Playbook(session(PICKER)) >> duplex(PICKER, SGLANG) >> answer_headers(ends=True)
    play << [PICKED, KEPT_HEADERS]
    assert play.session.done


SERVED = {"envoy.lb": {"x-gateway-destination-endpoint-served": S1}}


@pytest.mark.parametrize("bodiless", [False, True], ids=["with a body", "without a body"])
def test_a_picker_that_is_shown_the_answers_headers_waits_for_them(bodiless: bool) -> None:  # noqa: FBT001 - a column
    play = Playbook(session(PICKER)) >> headers(SGLANG, mode=DUPLEX, answers=NONE, ends=bodiless) << [PICKED]
    if not bodiless:
        play >> body(SMALL) << frames(SMALL)
    assert (play.session.done, play.session.served) == (False, "")
    play >> answer_headers(metadata=SERVED) << [KEPT_HEADERS]
    assert (play.session.done, play.session.served) == (True, S1)


def test_a_picker_that_has_held_the_body_waits_for_the_answers_headers_too() -> None:
    play = Playbook(session(PICKER)) >> headers(mode=DUPLEX, answers=NONE) >> body(SMALL) << [PICKED, *frames(SMALL)]
    assert not play.session.done
    play >> answer_headers() << [KEPT_HEADERS]
    assert (play.session.done, play.session.served) == (True, "")


def test_an_early_answer_of_which_only_the_headers_come_does_not_end_the_request() -> None:
    play = Playbook(session(PICKER)) >> headers(SGLANG, mode=DUPLEX, answers=NONE) << [PICKED]
    play >> answer_headers(metadata=SERVED) << [KEPT_HEADERS]
    assert (play.session.done, play.session.served) == (False, S1)
    play >> body(SMALL) << frames(SMALL)
    assert play.session.done


def test_what_was_held_is_let_go_before_the_answer() -> None:
    run = session(PICKER)
    run.receive(headers(mode=DUPLEX, answers=NONE))
    run.receive(body(BODY, ends=False))
    assert len(run._held) == len(BODY)
    run.receive(body(b""))
    assert (run.done, len(run._held)) == (False, 0)


def test_a_refusal_waits_for_no_answer() -> None:
    run = session(PICKER)
    run.receive(headers(("x-owned-by", "nobody"), mode=DUPLEX, answers=NONE))
    assert run.done


@pytest.mark.parametrize("attachment", [BEFORE, AFTER, HEADER])
def test_only_a_picker_waits_for_the_answers_headers(attachment: Attachment) -> None:
    run = session(attachment)
    run.receive(first(attachment, SGLANG, mode=DUPLEX, answers=NONE, ends=True))
    assert run.done


def test_a_picker_that_is_sent_no_body_does_not_wait_for_the_answer() -> None:
    run = session(PICKER)
    run.receive(headers(SGLANG, mode=NONE, answers=NONE))
    assert run.done


# The answer of another filter, on its way back: the stream begins with it


@pytest.mark.parametrize("attachment", Attachment)
def test_an_answer_that_comes_first_is_handed_back(attachment: Attachment) -> None:
    play = Playbook(session(attachment)) >> answer_headers(duplex=True) << [KEPT_HEADERS]
    play >> answer_body(b"no", ends=False) << [answer_frame(b"no", ends=False)]
    assert not play.session.done
    play >> answer_body(b"!", ends=True) << [answer_frame(b"!", ends=True)]
    assert (play.session.done, play.session.outcome) == (True, None)


def test_an_answer_with_trailers_is_handed_back() -> None:
    play = Playbook(session(PICKER)) >> answer_headers(duplex=True) >> answer_body(b"no", ends=False)
    play << [KEPT_HEADERS, answer_frame(b"no", ends=False)]
    play >> pb.ProcessingRequest(response_trailers=pb.HttpTrailers()) << [KEPT_ANSWER_TRAILERS]
    assert play.session.done


@pytest.mark.parametrize(
    ("duplex", "ends"), [(True, True), (False, False), (False, True)], ids=["no body", "not sent to us", "neither"]
)
def test_an_answer_whose_body_does_not_come_is_done_at_its_headers(
    duplex: bool,  # noqa: FBT001 - a column
    ends: bool,  # noqa: FBT001 - a column
) -> None:
    play = Playbook(session(PICKER)) >> answer_headers(duplex=duplex, ends=ends) << [KEPT_HEADERS]
    assert play.session.done
