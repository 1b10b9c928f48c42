# SPDX-License-Identifier: Apache-2.0
"""What holds for every stream, however Envoy cuts and interleaves its messages."""

import itertools
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from extproc.envoy.binding import Attachment, BodyMode, ProtocolError
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Snapshot
from tests.builders import (
    DEFAULT,
    DEST,
    DUPLEX,
    KEPT_HEADERS,
    MIXED,
    MODE,
    NONE,
    PLAIN,
    answer_body,
    answer_headers,
    attempts,
    body,
    destination,
    headers,
    hint,
    kept_trailers,
    parsed,
    policy,
    said,
    session,
    streams,
    trailers,
)

PICKER = Attachment.PICKER
V1, S1 = "10.0.0.1:8000", "10.0.0.3:8000"
LONG = b'{"owned_by": "sglang", "prompt": "' + b"x" * 130_000 + b'"}'
STRIP = policy("body: {strip: true}\n")
RULES = policy(
    "whenAbsent: {action: split, weights: {vllm: 1, sglang: 1}}\n"
    "models:\n- {model: m, allow: [sglang], whenAbsent: {action: prefer, owners: [tgi, sglang]}}\n"
    "routing:\n- {model: m, owned_by: tgi, selector: {matchLabels: {llm-d.ai/engine-type: vllm}}}\n"
)
BODIES = [
    b'{"owned_by": "sglang", "model": "m"}',
    b'{"model": "m", "prompt": [{"engine": "vllm"}], "engine": "vllm"}',
    b'{"prompt": "\\u00e9\xc3\xa9", "owned_by": ["nobody", "sglang"]}',
    b'{"owned_by": "nobody"}',
    b'{"owned_by": 7}',
    b"",
    b"no JSON",
    LONG,
]


class Upstream(NamedTuple):
    """What Envoy makes of our answers: the answer to the headers, the body that goes on and how it ended."""

    head: pb.ProcessingResponse
    body: bytes
    ended: bool
    trailers: bool


def upstream(answers: list[pb.ProcessingResponse]) -> Upstream:
    """Read answers as Envoy does: headers, pieces of at most 62,000 bytes, then one end or the trailers."""
    head, *rest = [answer for answer in answers if answer not in (KEPT_HEADERS, streams())]
    rest = [answer for answer in rest if not answer.HasField("response_body")]
    with_trailers = bool(rest) and rest[-1] == kept_trailers()
    pieces = [
        answer.request_body.response.body_mutation.streamed_response for answer in rest[: -1 if with_trailers else None]
    ]
    ends = [number for number, piece in enumerate(pieces) if piece.end_of_stream]
    assert head.WhichOneof("response") in ("request_headers", "immediate_response")
    assert all(answer.HasField("request_body") for answer in rest[: len(pieces)])
    assert all(len(piece.body) <= 62_000 for piece in pieces)
    assert ends in ([], [len(pieces) - 1])
    assert not (ends and (with_trailers or pieces[-1].body))
    return Upstream(head, b"".join(piece.body for piece in pieces), bool(ends), with_trailers)


class Request(NamedTuple):
    """A request with a body and everything that may be set up for it."""

    data: bytes
    attachment: Attachment
    pairs: tuple[tuple[str, str], ...]
    metadata: dict[str, dict[str, Any]]
    policy: PolicyConfig
    asked: bool

    def run(self, pieces: list[bytes], *, with_trailers: bool = False, early: int = -1) -> tuple[Upstream, Any]:
        """Take it through a stream; `early` is the piece after which the engine begins to answer."""
        run = session(self.attachment, policy_=self.policy, body=BodyMode.STREAM if self.asked else BodyMode.PARTIAL)
        mode = NONE if self.asked else DUPLEX
        answers = parsed(run.receive(headers(*self.pairs, mode=mode, answers=DUPLEX, metadata=self.metadata)))
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1 and not with_trailers
            if not run.done:
                answers += parsed(run.receive(body(piece, ends=last)))
            if number == early and not run.done and any(answer.HasField("request_headers") for answer in answers):
                answers += parsed(run.receive(answer_headers()))
                answers += parsed(run.receive(answer_body(b"data: one", ends=False)))
        if with_trailers and not run.done:
            answers += parsed(run.receive(trailers()))
        assert run.outcome
        return upstream(answers), (run.outcome.reply.decision, run.outcome.destination, run.outcome.correction)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, some of them empty."""
    edges = sorted([0, len(data), *(at % (len(data) + 1) for at in cuts)])
    return [data[start:end] for start, end in itertools.pairwise(edges)]


requests = st.builds(
    Request,
    data=st.sampled_from(BODIES),
    attachment=st.sampled_from(Attachment),
    pairs=st.sampled_from([(), (("x-owned-by", "sglang"),), (("x-owned-by", "vllm"), ("x-gateway-model-name", "m"))]),
    metadata=st.sampled_from(
        [
            {},
            destination(V1),
            destination(f"{V1},{S1}") | said("sglang", "m", "owner-matched", 1, attempts(S1)),
            destination(S1) | said("", "", "owner-absent", 0),
        ]
    ),
    policy=st.sampled_from([DEFAULT, STRIP, RULES]),
    asked=st.booleans(),
)
cut_lists = st.lists(st.integers(0, 200_000), max_size=6)


@given(requests, cut_lists, st.booleans(), st.integers(-1, 3))
def test_however_a_body_is_cut_the_same_goes_on(
    request: Request,
    cuts: list[int],
    with_trailers: bool,  # noqa: FBT001 - drawn
    early: int,
) -> None:
    whole, decided = request.run([request.data])
    pieces, decided_in_pieces = request.run(cut(request.data, cuts), with_trailers=with_trailers, early=early)

    assert decided_in_pieces == decided
    assert pieces[:2] == whole[:2]
    if whole.head.HasField("request_headers") and (whole.body or whole.ended):
        assert (whole.ended, whole.trailers) == (True, False)
        assert (pieces.ended, pieces.trailers) == (not with_trailers, with_trailers)
        assert request.policy is STRIP or whole.body == request.data


some_metadata = st.sampled_from(
    [
        {},
        hint(V1),
        {"envoy.lb.subset_hint": {f"{DEST}-subset": 3}},
        destination(V1),
        destination("") | said("vllm", "m", "owner-matched", 2, attempts(V1)),
        destination("nonsense,") | {"owned_by": {"reason": "owner-any", "endpoints": "many", "owner": 3}},
        {"owned_by": {"reason": "of another version"}, "envoy.lb": {DEST: [V1]}},
    ]
)
some_headers = st.builds(
    headers,
    st.tuples(
        st.sampled_from(["x-owned-by", "x-gateway-model-name", "upgrade", DEST, "x-data-parallel-host-port"]),
        st.sampled_from(["vllm", "", "é,", V1]),
    ),
    method=st.sampled_from(["POST", "GET", ""]),
    path=st.sampled_from(["/v1/x", "/v1/models?engine=%ff", "", "?"]),
    ends=st.booleans(),
    mode=st.sampled_from([None, *MODE.BodySendMode.values(), 99]),
    answers=st.sampled_from([None, *MODE.BodySendMode.values()]),
    metadata=some_metadata,
    cluster=st.sampled_from(["", "outbound|80||web.default.svc.cluster.local", "outbound|54321|||"]),
)
messages = st.lists(
    some_headers
    | st.builds(body, st.sampled_from(BODIES) | st.binary(max_size=20), ends=st.booleans())
    | st.sampled_from([trailers(), pb.ProcessingRequest()])
    | st.builds(answer_headers, duplex=st.none() | st.booleans(), ends=st.booleans(), metadata=some_metadata)
    | st.builds(answer_body, st.binary(max_size=3), ends=st.booleans()),
    max_size=6,
)
policies = st.sampled_from(
    [
        DEFAULT,
        policy("body: {maxBytes: 9}\n"),
        policy("sources: {body: []}\nwhenTruncated: {action: reject}\n"),
        policy("body: {strip: true}\npromote: {header: x-owner, model: x-model, reroute: true}\n"),
        RULES,
    ]
)


@given(
    messages,
    st.sampled_from(Attachment),
    st.sampled_from(BodyMode),
    st.sampled_from([PLAIN, MIXED, Snapshot()]),
    policies,
    st.integers(0, 6),
)
def test_no_messages_in_any_order_raise_anything_but_a_protocol_error(  # noqa: PLR0917 - drawn
    sequence: list[pb.ProcessingRequest],
    attachment: Attachment,
    asked: BodyMode,
    world: Snapshot,
    policy_: PolicyConfig,
    expiry: int,
) -> None:
    run = session(attachment, world, policy_, body=asked)
    for number, message in enumerate(sequence):
        was_done = run.done
        try:
            answers = run.receive(message)
        except ProtocolError:
            continue
        assert not was_done
        assert parsed(answers) is not None
        assert answers or not run.done  # the server ends a stream with its last answer
        if number == expiry:
            run.expire()
