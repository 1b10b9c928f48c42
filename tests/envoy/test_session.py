# SPDX-License-Identifier: Apache-2.0
"""Whole streams: what Envoy says, what we answer."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.envoy.binding import Binding, ProtocolError
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.responses import Attachment, Replies
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Pool, Snapshot
from tests.builders import (
    CHAT,
    LLAMA,
    MODE,
    QWEN,
    Playbook,
    asks,
    body,
    body_goes_on,
    destination,
    endpoint,
    frame,
    goes_on,
    header_map,
    headers,
    hint,
    kept_trailers,
    parsed,
    policy,
    said,
    snapshot,
    trailers,
)

BEFORE, PICKER = Attachment.BEFORE, Attachment.PICKER
NONE, DUPLEX = MODE.NONE, MODE.FULL_DUPLEX_STREAMED
V1, V2, S1 = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"
# Nothing is known of the models: a named owner suffices.
PLAIN = snapshot(endpoint(1, "vllm", None), endpoint(2, "vllm", None), endpoint(3, "sglang", None))
# The endpoints differ in their models: the model matters too.
MIXED = snapshot(endpoint(1, "vllm"), endpoint(2, "vllm", (QWEN,)), endpoint(3, "sglang"))
DEFAULT = policy()
DEST = "x-gateway-destination-endpoint"


def session(attachment: Attachment = BEFORE, world: Snapshot = PLAIN, policy_: PolicyConfig = DEFAULT) -> Session:
    replies = Replies(world, policy_)
    return Session(Binding(attachment, CHAT), lambda: replies, itertools.count().__next__)


def before(owner: str, model: str, *to: str, reason: str = "owner-matched") -> dict[str, Any]:
    """The metadata of `before`: hint, guard, our namespace."""
    guard = ",".join(to)
    return hint(*to) | destination(guard) | said(owner, model, reason, len(to), guard)


def picked(owner: str, model: str, *to: str, reason: str = "owner-matched") -> dict[str, Any]:
    """The metadata of `picker`: destination and our namespace."""
    return destination(",".join(to)) | said(owner, model, reason, len(to))


def passed(play: Playbook) -> tuple[str | None, str, list[str]]:
    """How a request was let through: at which message, why, and which metadata namespaces were written."""
    (answer,) = play.said
    return (
        answer.WhichOneof("response"),
        answer.dynamic_metadata["owned_by"]["reason"],
        sorted(answer.dynamic_metadata.fields),
    )


SGLANG = ("x-owned-by", "sglang")


@pytest.mark.parametrize("mode", [None, NONE, MODE.BUFFERED_PARTIAL], ids=["absent", "NONE", "BUFFERED_PARTIAL"])
def test_before_decides_at_the_headers_when_they_suffice(mode: Any) -> None:
    play = Playbook(session()) >> headers(SGLANG, mode=mode) << [goes_on(before("sglang", "", S1))]
    assert play.session.done


def test_picker_decides_at_the_headers_when_they_suffice() -> None:
    expected = goes_on(picked("sglang", "", S1), sets={DEST: S1})
    play = Playbook(session(PICKER)) >> headers(SGLANG, mode=NONE) << [expected]
    assert play.session.done


@pytest.mark.parametrize("attachment", Attachment)
def test_without_an_owner_the_body_is_asked_for(attachment: Attachment) -> None:
    play = Playbook(session(attachment)) >> headers(mode=NONE) << [asks()]
    assert (play.session.done, play.session.deadline, play.session.outcome) == (False, None, None)


def test_before_decides_at_the_body_that_it_asked_for() -> None:
    play = Playbook(session()) >> headers() << [asks()]
    play >> body({"owned_by": "sglang", "model": LLAMA}) << [body_goes_on(before("sglang", LLAMA, S1))]
    assert play.session.done


def test_picker_decides_at_the_body_that_it_asked_for() -> None:
    play = Playbook(session(PICKER)) >> headers() << [asks()]
    expected = body_goes_on(picked("sglang", LLAMA, S1), sets={DEST: S1})
    play >> body({"owned_by": "sglang", "model": LLAMA}) << [expected]
    assert play.session.done


def test_a_named_owner_asks_for_the_body_when_the_model_matters() -> None:
    play = Playbook(session(world=MIXED)) >> headers(("x-owned-by", "vllm")) << [asks()]
    play >> body({"model": QWEN}) << [body_goes_on(before("vllm", QWEN, V2))]


def test_a_model_in_a_header_need_not_be_asked_for() -> None:
    message = headers(("x-owned-by", "vllm"), ("x-gateway-model-name", QWEN))
    Playbook(session(world=MIXED)) >> message << [goes_on(before("vllm", QWEN, V2))]


def test_a_body_that_names_nothing_passes() -> None:
    play = Playbook(session()) >> headers() << [asks()] >> body({"model": LLAMA})
    assert play.session.done
    assert passed(play) == ("request_body", "owner-absent", ["owned_by"])


def test_a_truncated_body_is_read_as_far_as_it_goes() -> None:
    play = Playbook(session()) >> headers() << [asks()]
    cut = b'{"owned_by": "sglang", "prompt": "lo'
    play >> body(cut, ends=False) << [body_goes_on(before("sglang", "", S1))]
    assert play.session.done


def test_a_truncated_body_is_refused_where_the_policy_says_so() -> None:
    run = session(policy_=policy("whenTruncated: {action: reject}\n"))
    run.receive(headers())
    (answer,) = parsed(run.receive(body(b'{"prompt": "lo', ends=False)))
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"]) == (413, "body_truncated")


BODILESS = {
    "ends at its headers": headers(SGLANG, method="GET", path="/v1/x", ends=True, content_type=""),
    "a POST without a body": headers(SGLANG, ends=True),
}


@pytest.mark.parametrize("message", BODILESS.values(), ids=BODILESS)
def test_a_bodiless_request_is_hinted_and_said_to_be(message: pb.ProcessingRequest) -> None:
    play = Playbook(session()) >> message << [goes_on(before("sglang", "", S1, reason="hint-without-body"))]
    assert play.session.done


UNREAD = {
    "no type": headers(content_type=""),
    "text": headers(content_type="text/plain"),
    "compressed": headers(("content-encoding", "gzip")),
    "upgrade": headers(("upgrade", "websocket")),
    "CONNECT": headers(method="CONNECT"),
    "ends": headers(ends=True),
}


@pytest.mark.parametrize("message", UNREAD.values(), ids=UNREAD)
def test_a_body_that_cannot_be_read_is_not_asked_for(message: pb.ProcessingRequest) -> None:
    play = Playbook(session()) >> message
    assert play.session.done
    assert passed(play) == ("request_headers", "owner-absent", ["owned_by"])


def test_a_path_that_is_not_interpreted_passes_with_its_owner() -> None:
    play = Playbook(session()) >> headers(SGLANG, path="/health")
    assert play.session.done
    assert passed(play) == ("request_headers", "path-not-interpreted", ["owned_by"])


def test_a_refusal_at_the_headers_ends_the_stream() -> None:
    run = session()
    (answer,) = parsed(run.receive(headers(("x-owned-by", "nobody"))))
    assert (answer.immediate_response.status.code, run.done) == (404, True)


def test_a_spoofed_header_changes_nothing() -> None:
    spoofed = [(DEST, "1.2.3.4:5"), (f"{DEST}-subset", "1.2.3.4:5"), ("x-prefiller-host-port", "1.2.3.4:5")]
    Playbook(session()) >> headers(SGLANG, *spoofed) << [goes_on(before("sglang", "", S1))]


def test_a_hint_for_before_is_not_read() -> None:
    message = headers(SGLANG, metadata=hint(V1))
    Playbook(session()) >> message << [goes_on(before("sglang", "", S1))]


def test_equal_header_lines_count_once() -> None:
    message = headers(SGLANG, ("x-owned-by", " SGLang "))
    Playbook(session()) >> message << [goes_on(before("sglang", "", S1))]


def test_different_header_lines_are_a_400() -> None:
    (answer,) = parsed(session().receive(headers(SGLANG, ("x-owned-by", "vllm"))))
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"], found["param"]) == (
        400,
        "owner_malformed",
        "x-owned-by",
    )


def test_a_header_in_value_is_read_as_one_in_raw_value() -> None:
    message = headers()
    message.request_headers.headers.headers.add(key="x-owned-by", value="sglang")
    Playbook(session()) >> message << [goes_on(before("sglang", "", S1))]


def test_the_pool_of_the_binding_is_the_only_one() -> None:
    replies = Replies(PLAIN, DEFAULT)
    run = Session(Binding(BEFORE, Pool("default", "gone")), lambda: replies, lambda: 0)
    (answer,) = parsed(run.receive(headers(SGLANG)))
    assert answer.immediate_response.status.code == 503


def test_the_rotation_goes_round() -> None:
    counter = itertools.count()
    replies = Replies(PLAIN, DEFAULT)
    firsts = []
    for _ in range(6):
        run = Session(Binding(PICKER, CHAT), lambda: replies, counter.__next__)
        run.receive(headers(("x-owned-by", "vllm")))
        assert run.outcome
        firsts.append(run.outcome.destination.split(",")[0])
    assert firsts == [V1, V2, V1, V2, V1, V2]


def test_the_rotation_is_not_turned_by_what_needs_none() -> None:
    turned: list[int] = []
    replies = Replies(PLAIN, policy("guard: false\n"))
    run = Session(Binding(BEFORE, CHAT), lambda: replies, lambda: turned.append(1) or 0)
    run.receive(headers(SGLANG))
    assert turned == []


def test_snapshot_and_policy_are_taken_when_deciding() -> None:
    worlds = [Replies(PLAIN, DEFAULT)]
    run = Session(Binding(BEFORE, CHAT), lambda: worlds[-1], lambda: 0)
    run.receive(headers())
    worlds.append(Replies(snapshot(endpoint(9, "sglang", None)), DEFAULT))
    assert parsed(run.receive(body({"owned_by": "sglang"}))) == [body_goes_on(before("sglang", "", "10.0.0.9:8000"))]


def test_the_outcome_tells_what_happened() -> None:
    run = session()
    run.receive(headers(("x-request-id", "r-1")))
    run.receive(body(b'{"owned_by": "sglang"}'))
    assert run.outcome
    assert (run.outcome.request.param, run.outcome.destination, run.outcome.request_id) == ("owned_by", S1, "r-1")
    assert (run.outcome.asked_body, run.outcome.body_bytes, run.outcome.reply.reason) == (True, 22, "owner-matched")


# FULL_DUPLEX_STREAMED

BODY = b'{"owned_by": "sglang", "prompt": "' + b"x" * 130_000 + b'"}'
PICKED = goes_on(picked("sglang", "", S1), sets={DEST: S1})


def frames(data: bytes, *, ends: bool = True) -> list[pb.ProcessingResponse]:
    pieces = [data[at : at + 62_000] for at in range(0, len(data), 62_000)] or [b""]
    return [frame(piece, ends=ends and number == len(pieces)) for number, piece in enumerate(pieces, 1)]


def test_picker_holds_headers_and_body_until_it_has_decided() -> None:
    play = Playbook(session(PICKER)) >> headers(mode=DUPLEX) >> body(BODY[:70_000], ends=False) << []
    assert (play.session.done, play.session.deadline) == (False, 10.0)
    play >> body(BODY[70_000:]) << [PICKED, *frames(BODY)]
    assert (play.session.done, play.session.deadline) == (True, None)


def test_before_holds_and_echoes_too_when_its_filter_is_duplex() -> None:
    play = Playbook(session()) >> headers(mode=DUPLEX) << []
    (
        play
        >> body(b'{"owned_by": "sglang"}')
        << [
            goes_on(before("sglang", "", S1)),
            frame(b'{"owned_by": "sglang"}', ends=True),
        ]
    )


def test_the_trailers_come_last() -> None:
    play = Playbook(session(PICKER)) >> headers(mode=DUPLEX) >> body(BODY, ends=False) << []
    play >> trailers() << [PICKED, *frames(BODY, ends=False), kept_trailers()]
    assert play.session.done


def test_trailers_without_a_body_are_decided_on() -> None:
    play = Playbook(session(PICKER)) >> headers(mode=DUPLEX) << []
    expected = goes_on(picked("", "", V1, V2, S1, reason="owner-absent"), sets={DEST: f"{V1},{V2},{S1}"})
    play >> trailers() << [expected, kept_trailers()]


def test_what_was_decided_at_the_headers_is_echoed_piece_by_piece() -> None:
    play = Playbook(session(PICKER)) >> headers(SGLANG, mode=DUPLEX) << [PICKED]
    assert (play.session.done, play.session.deadline) == (False, None)
    play >> body(b"one", ends=False) << [frame(b"one")]
    play >> body(BODY, ends=False) << frames(BODY, ends=False)
    play >> body(b"") << [frame(b"", ends=True)]
    assert play.session.done


def test_the_echo_ends_with_the_trailers() -> None:
    play = (
        Playbook(session(PICKER))
        >> headers(SGLANG, mode=DUPLEX)
        >> body(b"one", ends=False)
        << [
            PICKED,
            frame(b"one"),
        ]
    )
    play >> trailers() << [kept_trailers()]
    assert play.session.done


def test_a_duplex_request_without_a_body_is_done_at_its_headers() -> None:
    play = Playbook(session(PICKER)) >> headers(SGLANG, mode=DUPLEX, ends=True) << [PICKED]
    assert play.session.done


def test_a_refusal_in_duplex_echoes_nothing() -> None:
    run = session(PICKER)
    run.receive(headers(mode=DUPLEX))
    (answer,) = parsed(run.receive(body({"owned_by": "nobody"})))
    assert (answer.immediate_response.status.code, run.done) == (404, True)


def test_the_hint_narrows_the_pick() -> None:
    message = headers(("x-owned-by", "vllm"), metadata=hint(V2))
    Playbook(session(PICKER)) >> message << [goes_on(picked("vllm", "", V2), sets={DEST: V2})]


def test_the_hint_of_the_last_message_holds() -> None:
    play = Playbook(session(PICKER)) >> headers(mode=DUPLEX, metadata=hint(V1)) << []
    last = body(b'{"owned_by": "vllm"}')
    last.metadata_context.CopyFrom(headers(metadata=hint(V2)).metadata_context)
    (
        play
        >> last
        << [
            goes_on(picked("vllm", "", V2), sets={DEST: V2}),
            frame(b'{"owned_by": "vllm"}', ends=True),
        ]
    )


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_body_beyond_the_limit_is_a_413(pieces: int) -> None:
    run = session(PICKER, policy_=policy("body: {maxBytes: 10}\n"))
    run.receive(headers(mode=DUPLEX))
    for number in range(pieces):
        answers = parsed(run.receive(body(b"x" * (12 // pieces), ends=False)))
        assert bool(answers) is (number + 1 == pieces)
    found = json.loads(answers[0].immediate_response.body)["error"]
    assert (answers[0].immediate_response.status.code, found) == (
        413,
        {
            "message": "the body is larger than 10 bytes",
            "type": "invalid_request_error",
            "param": None,
            "code": "body_too_large",
        },
    )
    assert run.done


def test_a_body_of_just_the_limit_is_held() -> None:
    run = session(PICKER, policy_=policy("body: {maxBytes: 10}\n"))
    run.receive(headers(mode=DUPLEX))
    assert run.receive(body(b"x" * 10, ends=False)) == []


def test_a_body_that_does_not_come_in_time_is_a_408() -> None:
    run = session(PICKER)
    run.receive(headers(mode=DUPLEX))
    run.receive(body(b"{", ends=False))
    (answer,) = parsed(run.expire())
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"], run.done) == (408, "body_timeout", True)
    assert run.outcome
    assert run.outcome.reply.reason == "body-timeout"


EXPIRED = {
    "at the beginning": (BEFORE, []),
    "asked for the body": (BEFORE, [headers()]),
    "echoing": (PICKER, [headers(SGLANG, mode=DUPLEX)]),
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


# The answer of another filter, on its way back


def answer_headers(*, duplex: bool = True, ends: bool = False) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=header_map([(":status", "404")]), end_of_stream=ends)
    )
    message.protocol_config.response_body_mode = DUPLEX if duplex else NONE
    return message


@pytest.mark.parametrize("bodiless", [False, True], ids=["with a body", "without a body"])
def test_a_stream_that_is_to_carry_the_answer_ends_with_it(bodiless: bool) -> None:  # noqa: FBT001 - a column
    found = session(PICKER)
    first = headers(mode=DUPLEX, ends=bodiless, method="GET" if bodiless else "POST")
    first.protocol_config.response_body_mode = DUPLEX
    found.receive(first)
    if not bodiless:
        found.receive(body({"model": "m"}))
    states = [found.done]
    early = answer_headers()
    early.ClearField("protocol_config")
    replies = []
    for message in (early, answer_body(b"data: one", ends=False), answer_body(b"", ends=True)):
        replies += [pb.ProcessingResponse.FromString(text) for text in found.receive(message)]
        states.append(found.done)
    streamed = [r.response_body.response.body_mutation.streamed_response for r in replies[1:]]

    assert states == [False, False, False, True]
    assert replies[0] == pb.ProcessingResponse(response_headers=pb.HeadersResponse())
    assert [(frame.body, frame.end_of_stream) for frame in streamed] == [(b"data: one", False), (b"", True)]


def test_an_answer_that_begins_before_the_request_has_ended_goes_on() -> None:
    found = session(PICKER)
    found.receive(headers(("x-owned-by", "sglang"), ("x-gateway-model-name", "m"), mode=DUPLEX))
    early = answer_headers()
    replies = [pb.ProcessingResponse.FromString(text) for text in found.receive(early)]

    assert (replies, found.done) == ([pb.ProcessingResponse(response_headers=pb.HeadersResponse())], False)


def answer_body(data: bytes, *, ends: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=ends))


def answer_frame(data: bytes, *, ends: bool) -> pb.ProcessingResponse:
    message = pb.ProcessingResponse()
    streamed = message.response_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = data, ends
    return message


KEPT_HEADERS = pb.ProcessingResponse(response_headers=pb.HeadersResponse())


def test_an_answer_that_comes_first_is_handed_back() -> None:
    play = Playbook(session(PICKER)) >> answer_headers() << [KEPT_HEADERS]
    play >> answer_body(b"no", ends=False) << [answer_frame(b"no", ends=False)]
    assert not play.session.done
    play >> answer_body(b"!", ends=True) << [answer_frame(b"!", ends=True)]
    assert play.session.done


def test_an_answer_with_trailers_is_handed_back() -> None:
    play = Playbook(session(PICKER)) >> answer_headers() >> answer_body(b"no", ends=False)
    (
        play
        >> pb.ProcessingRequest(response_trailers=pb.HttpTrailers())
        << [
            KEPT_HEADERS,
            answer_frame(b"no", ends=False),
            pb.ProcessingResponse(response_trailers=pb.TrailersResponse()),
        ]
    )
    assert play.session.done


@pytest.mark.parametrize(("duplex", "ends"), [(True, True), (False, False)], ids=["no body", "no body is sent to us"])
def test_an_answer_whose_body_does_not_come_is_done_at_its_headers(
    duplex: bool,  # noqa: FBT001 - a column
    ends: bool,  # noqa: FBT001 - a column
) -> None:
    play = Playbook(session(PICKER)) >> answer_headers(duplex=duplex, ends=ends) << [KEPT_HEADERS]
    assert play.session.done


# What the protocol does not allow

WRONG: dict[str, list[pb.ProcessingRequest]] = {
    "nothing": [pb.ProcessingRequest()],
    "a body first": [body(b"")],
    "trailers first": [trailers()],
    "STREAMED": [headers(mode=MODE.STREAMED)],
    "GRPC": [headers(mode=MODE.GRPC)],
    "a mode that nobody knows": [headers(mode=99)],
    "headers twice": [headers(), headers()],
    "headers twice, held": [headers(mode=DUPLEX), headers()],
    "trailers instead of the body": [headers(), trailers()],
    "after the end": [headers(SGLANG), body(b"{}")],
    "headers after the end": [headers(SGLANG), headers(SGLANG)],
    "an answer after the end": [headers(SGLANG), answer_headers()],
    "a request after an answer": [answer_headers(), headers()],
}


@pytest.mark.parametrize("messages", WRONG.values(), ids=WRONG)
def test_what_is_not_expected_is_refused_and_changes_nothing(messages: list[pb.ProcessingRequest]) -> None:
    run = session()
    for message in messages[:-1]:
        run.receive(message)
    then = (run.done, run.outcome, run.deadline)
    with pytest.raises(ProtocolError):
        run.receive(messages[-1])
    assert (run.done, run.outcome, run.deadline) == then


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)] or [b""]


WHOLE = [b'{"owned_by": "sglang", "model": "m"}', b"", b"no JSON", BODY, b'{"engine": "vllm"}']
at_headers = st.sampled_from([(), (SGLANG,)])
cut_lists = st.lists(st.integers(0, 200_000), max_size=5)


@given(st.sampled_from(WHOLE), cut_lists, st.booleans(), at_headers)
def test_however_a_body_is_cut_the_same_goes_on(
    data: bytes,
    cuts: list[int],
    with_trailers: bool,  # noqa: FBT001 - drawn
    pairs: tuple[tuple[str, str], ...],
) -> None:
    def run(pieces: list[bytes], *, end_with_trailers: bool) -> tuple[Any, ...]:
        stream = session(PICKER)
        said_ = stream.receive(headers(*pairs, mode=DUPLEX))
        for number, piece in enumerate(pieces, 1):
            said_ += stream.receive(body(piece, ends=number == len(pieces) and not end_with_trailers))
        if end_with_trailers:
            said_ += stream.receive(trailers())
        first, *rest = parsed(said_)
        streamed = [r.request_body.response.body_mutation.streamed_response for r in rest if r.HasField("request_body")]
        assert all(len(piece.body) <= 62_000 for piece in streamed)
        assert [piece.end_of_stream for piece in streamed[:-1]].count(True) == 0
        ended = "trailers" if rest[-1] == kept_trailers() else streamed[-1].end_of_stream
        assert stream.done
        assert stream.outcome
        return first, b"".join(piece.body for piece in streamed), ended, stream.outcome.destination

    in_one = run([data], end_with_trailers=False)
    assert in_one[1:3] == (data, True)
    in_pieces = run(chunked(data, cuts), end_with_trailers=with_trailers)
    assert in_pieces == (*in_one[:2], "trailers" if with_trailers else True, in_one[3])


some_headers = st.builds(
    headers,
    st.tuples(st.sampled_from(["x-owned-by", "x-gateway-model-name", "upgrade"]), st.sampled_from(["vllm", "", "é,"])),
    method=st.sampled_from(["POST", "GET", ""]),
    path=st.sampled_from(["/v1/x", "/v1/models?engine=%ff", "", "?"]),
    ends=st.booleans(),
    mode=st.sampled_from([None, *MODE.BodySendMode.values(), 99]),
    metadata=st.sampled_from([{}, hint(V1), {"envoy.lb.subset_hint": {f"{DEST}-subset": 3}}]),
)
messages = st.lists(
    some_headers
    | st.builds(body, st.sampled_from(WHOLE) | st.binary(max_size=20), ends=st.booleans())
    | st.sampled_from([trailers(), pb.ProcessingRequest(), answer_headers(), answer_headers(ends=True)])
    | st.builds(answer_body, st.binary(max_size=3), ends=st.booleans()),
    max_size=6,
)
policies = st.sampled_from(
    [DEFAULT, policy("body: {maxBytes: 9}\n"), policy("sources: {body: []}\nwhenTruncated: {action: reject}\n")]
)


@given(messages, st.sampled_from(Attachment), st.sampled_from([PLAIN, MIXED, Snapshot()]), policies, st.integers(0, 6))
def test_no_messages_in_any_order_raise_anything_but_a_protocol_error(
    sequence: list[pb.ProcessingRequest], attachment: Attachment, world: Snapshot, policy_: PolicyConfig, expiry: int
) -> None:
    run = session(attachment, world, policy_)
    for number, message in enumerate(sequence):
        was_done = run.done
        try:
            answers = run.receive(message)
        except ProtocolError:
            continue
        assert not was_done
        assert parsed(answers) is not None
        if number == expiry:
            run.expire()
