# SPDX-License-Identifier: Apache-2.0
"""Whole messages as bytes, and what becomes of two of them one after the other."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.envoy.messages import (
    FRAME,
    STREAM_BODY,
    TRAILERS,
    Phase,
    ask_body,
    body_frames,
    go_on,
    immediate,
    stripped,
    unchanged,
)
from extproc.envoy.pb import external_processor_pb2 as pb
from tests.builders import (
    KEPT_ANSWER_TRAILERS,
    KEPT_HEADERS,
    SPOOFABLE,
    answer_body,
    answer_frame,
    answer_headers,
    asks,
    body_goes_on,
    frame,
    goes_on,
    kept_trailers,
    parsed,
    streams,
)

HEADERS, BODY = Phase.HEADERS, Phase.BODY
SAID = {"owned_by": {"owner": "vllm", "endpoints": 2}}


def read(message: bytes) -> pb.ProcessingResponse:
    return pb.ProcessingResponse.FromString(message)


GOES_ON: dict[str, dict[str, Any]] = {
    "as it is": {},
    "with metadata": {"metadata": SAID},
    "with headers": {"sets": {"x-a": "1", "x-b": "é"}},
    "without some": {"removes": ("x-a", "x-b")},
    "with and without": {"sets": {"x-a": "1"}, "removes": ("x-a",)},
    "by another route": {"reroute": True},
    "all of it": {"metadata": SAID, "sets": {"x-a": "1"}, "removes": ("x-b",), "reroute": True},
}


@pytest.mark.parametrize("change", GOES_ON.values(), ids=GOES_ON)
def test_a_request_goes_on_at_its_headers(change: dict[str, Any]) -> None:
    assert read(go_on(HEADERS, **change)) == goes_on(**({"metadata": {}, "removes": ()} | change))


@pytest.mark.parametrize("change", GOES_ON.values(), ids=GOES_ON)
def test_a_request_goes_on_at_its_body(change: dict[str, Any]) -> None:
    assert read(go_on(BODY, **change)) == body_goes_on(**({"metadata": {}} | change))


def test_two_messages_one_after_the_other_are_one() -> None:
    first = go_on(HEADERS, {"owned_by": {"owner": "vllm"}}, removes=("x-a",), sets={"x-b": "1"}, reroute=True)
    then = go_on(HEADERS, {"envoy.lb": {"k": "v"}}, removes=("x-c",), sets={"x-d": "2"})
    expected = goes_on(
        {"owned_by": {"owner": "vllm"}, "envoy.lb": {"k": "v"}},
        sets={"x-b": "1", "x-d": "2"},
        removes=("x-a", "x-c"),
        reroute=True,
    )
    assert read(first + then) == expected


STRIPPED = {
    HEADERS: goes_on(SAID, removes=("x-a", "content-length")),
    BODY: body_goes_on(SAID, removes=("x-a", "content-length"), body=b"{}"),
}


@pytest.mark.parametrize("phase", Phase)
def test_another_body_goes_without_the_length_of_the_first(phase: Phase) -> None:
    assert read(go_on(phase, SAID, removes=("x-a",)) + stripped(phase, b"{}")) == STRIPPED[phase]


@pytest.mark.parametrize("reroute", [False, True])
@pytest.mark.parametrize("removes", [(), SPOOFABLE], ids=["nothing", "what only a gateway may say"])
def test_the_body_is_asked_for_as_far_as_it_fits_into_a_buffer(
    removes: tuple[str, ...],
    reroute: bool,  # noqa: FBT001 - a column
) -> None:
    assert read(ask_body(removes, reroute=reroute)) == asks(removes, reroute=reroute)


def test_all_of_the_body_is_asked_for_without_an_answer_to_the_headers() -> None:
    assert read(STREAM_BODY) == streams()


def test_trailers_are_kept() -> None:
    assert read(TRAILERS) == kept_trailers()


# Frames

FRAMES = {
    "empty, the end": (b"", True, [(b"", True)]),
    "empty, not the end": (b"", False, []),
    "small": (b"abc", True, [(b"abc", False), (b"", True)]),
    "small, not the end": (b"abc", False, [(b"abc", False)]),
    "exactly one": (bytes(62_000), True, [(bytes(62_000), False), (b"", True)]),
    "one byte more": (bytes(62_000) + b"x", True, [(bytes(62_000), False), (b"x", False), (b"", True)]),
    "not the end": (bytes(125_000), False, [(bytes(62_000), False), (bytes(62_000), False), (bytes(1_000), False)]),
}


@pytest.mark.parametrize(("data", "ends", "expected"), FRAMES.values(), ids=FRAMES)
def test_a_body_goes_on_in_frames_of_62000_and_an_empty_one_ends_it(
    data: bytes,
    ends: bool,  # noqa: FBT001 - a column
    expected: list[tuple[bytes, bool]],
) -> None:
    assert parsed(body_frames(data, end=ends)) == [frame(piece, ends=last) for piece, last in expected]


@given(st.integers(0, 400_000), st.booleans())
def test_frames_are_all_of_the_body_and_none_is_larger_than_the_epps(length: int, ends: bool) -> None:  # noqa: FBT001 - drawn
    data = (b"0123456789abcdef" * (length // 16 + 1))[:length]
    found = parsed(body_frames(data, end=ends))
    pieces = [answer.request_body.response.body_mutation.streamed_response for answer in found]

    assert FRAME == 62_000
    assert b"".join(piece.body for piece in pieces) == data
    assert all(0 < len(piece.body) <= FRAME for piece in pieces[: -1 if ends else None])
    assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - ends) + [True] * ends


# The response

RESPONSES: dict[str, tuple[pb.ProcessingRequest, pb.ProcessingResponse]] = {
    "headers": (answer_headers(), KEPT_HEADERS),
    "a piece": (answer_body(b"data: one", ends=False), answer_frame(b"data: one", ends=False)),
    "an empty piece": (answer_body(b"", ends=False), answer_frame(b"", ends=False)),
    "the last piece": (answer_body(b"[DONE]", ends=True), answer_frame(b"[DONE]", ends=True)),
    "trailers": (pb.ProcessingRequest(response_trailers=pb.HttpTrailers()), KEPT_ANSWER_TRAILERS),
}


@pytest.mark.parametrize(("message", "expected"), RESPONSES.values(), ids=RESPONSES)
def test_the_response_is_handed_back_as_it_came(message: pb.ProcessingRequest, expected: pb.ProcessingResponse) -> None:
    assert parsed(unchanged(message)) == [expected]


# Answers of our own

STATUSES = [200, 400, 403, 404, 408, 413, 503]


@pytest.mark.parametrize("status", STATUSES)
def test_an_answer_of_our_own_is_json_with_a_status(status: int) -> None:
    message = read(immediate(status, {"é": [1]}, "why", [("x-a", "é")], SAID))
    answer = message.immediate_response
    found = {option.header.key: option.header.raw_value.decode() for option in answer.headers.set_headers}

    assert message.WhichOneof("response") == "immediate_response"
    assert (answer.status.code, json.loads(answer.body), answer.details) == (status, {"é": [1]}, "why")
    assert found == {"content-type": "application/json", "x-a": "é"}
    assert message.dynamic_metadata == goes_on(SAID).dynamic_metadata
