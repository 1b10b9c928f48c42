# SPDX-License-Identifier: Apache-2.0
"""The messages that we send, as bytes. What they say is decided elsewhere.

Two serialised messages one after the other are their merge: protobuf's encoding says so. Header mutations add up, and so
do the entries of a metadata struct.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import msgspec
from google.protobuf.struct_pb2 import Struct

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb

FRAME: Final = 62_000
"""The largest body frame that we send, in bytes: the EPP's own limit (facts/epp.md 1.2)."""


class Phase(StrEnum):
    """Which message is answered: the request's headers or its body."""

    HEADERS = "request_headers"
    BODY = "request_body"


def go_on(
    phase: Phase,
    metadata: Mapping[str, object] = {},
    *,
    sets: Mapping[str, str] = {},
    removes: Iterable[str] = (),
    reroute: bool = False,
) -> bytes:
    """Let the request go on, its headers changed; removals come before sets (facts/envoy.md 3)."""
    message = pb.ProcessingResponse()
    if metadata:
        message.dynamic_metadata.CopyFrom(struct(metadata))
    answer = getattr(message, phase)
    answer.SetInParent()
    for name, value in sets.items():
        answer.response.header_mutation.set_headers.append(_header(name, value))
    if removes:
        answer.response.header_mutation.remove_headers.extend(removes)
    if reroute:
        answer.response.clear_route_cache = True
    return message.SerializeToString()


def stripped(phase: Phase, body: bytes) -> bytes:
    """Beside an answer: another body. Its length must go, in every mode (facts/envoy.md 2.4)."""
    message = pb.ProcessingResponse()
    answer = getattr(message, phase)
    answer.response.header_mutation.remove_headers.append(names.CONTENT_LENGTH)
    if phase is Phase.BODY:
        answer.response.body_mutation.body = body
    return message.SerializeToString()


@lru_cache(maxsize=8)
def ask_body(removes: tuple[str, ...], *, reroute: bool) -> bytes:
    """The headers answer that asks for the body: what fits into Envoy's buffer, the rest flows by itself.

    Both body modes are taken literally (facts/envoy.md 2.1), and the response's stays NONE. Whether the route is to be
    chosen anew must be said here: in the answer to a body Envoy heeds it only now and then (1.40 does where the body was
    larger than its buffer or had trailers), while no filter asks for the route before that answer.
    """
    message = pb.ProcessingResponse()
    message.request_headers.response.header_mutation.remove_headers.extend(removes)
    message.mode_override.request_body_mode = pb.ProcessingMode.BUFFERED_PARTIAL
    message.request_headers.response.clear_route_cache = reroute
    return message.SerializeToString()


STREAM_BODY: Final = pb.ProcessingResponse(
    mode_override=pb.ProcessingMode(
        request_body_mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED, request_trailer_mode=pb.ProcessingMode.SEND
    )
).SerializeToString()
"""Instead of a headers answer, on Envoy 1.40 and newer: the whole body is to come, and Envoy's own timer stops
(facts/envoy.md 2.3)."""

TRAILERS: Final = pb.ProcessingResponse(request_trailers=pb.TrailersResponse()).SerializeToString()
"""The request's trailers as they came."""


def body_frames(body: bytes, *, end: bool) -> list[bytes]:
    """FULL_DUPLEX_STREAMED: a piece of the request body in frames; the last one ends the stream if `end`.

    The one that ends it is empty: what is small arrives in one piece with the end of our stream, so that Envoy cannot have
    begun to send us the answer of a quick engine in between.
    """
    frames = [_frame(body[start : start + FRAME], end=False) for start in range(0, len(body), FRAME)]
    if end:
        frames.append(_frame(b"", end=True))
    return frames


def unchanged(message: pb.ProcessingRequest) -> list[bytes]:
    """A message of the response phase handed back as it came: headers, a body frame or trailers."""
    reply = pb.ProcessingResponse()
    match message.WhichOneof("request"):
        case "response_headers":
            reply.response_headers.SetInParent()
        case "response_body":
            streamed = reply.response_body.response.body_mutation.streamed_response
            streamed.body, streamed.end_of_stream = message.response_body.body, message.response_body.end_of_stream
        case _:
            reply.response_trailers.SetInParent()
    return [reply.SerializeToString()]


def immediate(
    status: int, document: object, details: str, headers: Sequence[tuple[str, str]], metadata: Mapping[str, object]
) -> bytes:
    """An answer of our own: JSON with a status and headers; `details` is for access logs."""
    message = pb.ProcessingResponse(dynamic_metadata=struct(metadata))
    answer = message.immediate_response
    answer.status.code = pb.StatusCode.Name(status)  # type: ignore[assignment] # protobuf takes the name too
    answer.body = msgspec.json.encode(document)
    answer.details = details
    for name, value in ((names.CONTENT_TYPE, names.JSON), *headers):
        answer.headers.set_headers.append(_header(name, value))
    return message.SerializeToString()


def _frame(piece: bytes, *, end: bool) -> bytes:
    message = pb.ProcessingResponse()
    streamed = message.request_body.response.body_mutation.streamed_response
    streamed.body = piece
    streamed.end_of_stream = end
    return message.SerializeToString()


def _header(name: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()))


def struct(value: Mapping[str, Any]) -> Struct:
    """A mapping as protobuf has it."""
    made = Struct()
    made.update(value)
    return made
