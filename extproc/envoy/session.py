# SPDX-License-Identifier: Apache-2.0
"""One ext_proc stream, without its socket: receive(ProcessingRequest) -> the messages to send.

    body modes NONE, BUFFERED, BUFFERED_PARTIAL        FULL_DUPLEX_STREAMED
    HEAD --decided--------------------> DONE           HEAD --decided--> ECHO --end--> DONE
    HEAD --asks for the body--> BODY -> DONE           HEAD --undecided-> HOLD --decided--> ECHO

A response that is sent to us is handed back as it comes, from any state; once the request has left us whole, a stream
that is to carry the response waits for it in RESPONSE and is DONE at its end.

Snapshot and policy are taken when the decision is made, not when the stream begins. The session never waits: the server
tells it when its deadline has passed.
"""

from collections.abc import Callable
from enum import Enum, auto

import msgspec

from extproc.envoy import names
from extproc.envoy.binding import Binding, ProtocolError
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.responses import (
    ASK_BODY,
    TRAILERS,
    Attachment,
    Phase,
    Replies,
    Reply,
    body_frames,
    compose,
    unchanged,
)
from extproc.policy.decide import asks_body
from extproc.policy.extract import from_body, from_head, header_names, readable_body
from extproc.policy.types import InferenceRequest, Reason, Scope, reject

_DUPLEX = int(pb.ProcessingMode.FULL_DUPLEX_STREAMED)
_RESPONSE = ("response_headers", "response_body", "response_trailers")
_READABLE = {
    int(mode) for mode in (pb.ProcessingMode.NONE, pb.ProcessingMode.BUFFERED, pb.ProcessingMode.BUFFERED_PARTIAL)
}


_SHORT = 512
"""Requests whose headers (those that are read) are longer than this are not remembered, in bytes."""

Fields = tuple[tuple[str, bytes], ...]


class Outcome(msgspec.Struct, frozen=True):
    """What a stream came to, for logs and metrics; `destination` is what was written, "" if nothing was."""

    request: InferenceRequest
    reply: Reply
    destination: str
    attachment: Attachment
    request_id: str
    asked_body: bool
    body_bytes: int


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    HOLD = auto()
    ECHO = auto()
    RESPONSE = auto()
    DONE = auto()


class Session:
    """One HTTP request, from Envoy's first message to our last.

    `world` gives the current replies, `rotation` a number that grows with each call; both are asked when deciding.
    """

    def __init__(self, binding: Binding, world: Callable[[], Replies], rotation: Callable[[], int]) -> None:
        """A session that has received nothing."""
        self.outcome: Outcome | None = None
        self._binding = binding
        self._world = world
        self._rotation = rotation
        self._state = _State.HEAD
        self._request: InferenceRequest | None = None
        self._held = bytearray()
        self._read_bytes = 0
        self._duplex = False
        self._bodiless = False
        self._answering = False
        self._request_id = ""

    @property
    def done(self) -> bool:
        """Whether nothing more is to be said: the server ends the stream then."""
        return self._state is _State.DONE

    @property
    def _echoing(self) -> bool:
        return self._state is _State.ECHO

    @property
    def deadline(self) -> float | None:
        """How many seconds the rest of the body may take while Envoy's own timer does not run; None if it does."""
        return self._world().policy.body.timeout if self._state is _State.HOLD else None

    def receive(self, message: pb.ProcessingRequest) -> list[bytes]:
        """The serialised answers to one message, in order. Raises ProtocolError, and nothing else, for a wrong one."""
        kind = message.WhichOneof("request")
        if kind in _RESPONSE and not self.done:
            return self._response(message, kind)
        match self._state, kind:
            case _State.HEAD, "request_headers":
                return self._head(message)
            case _State.BODY, "request_body":
                return self._body(message)
            case _State.HOLD, "request_body":
                return self._hold(message)
            case _State.HOLD, "request_trailers":
                replies = self._release(message, end=False)
                return [*replies, *self._sent([TRAILERS])] if self._echoing else replies
            case _State.ECHO, "request_body":
                frames = body_frames(message.request_body.body, end=message.request_body.end_of_stream)
                return self._sent(frames) if message.request_body.end_of_stream else frames
            case _State.ECHO, "request_trailers":
                return self._sent([TRAILERS])
        raise ProtocolError(f"{kind or 'an empty message'} is not expected in state {self._state.name}")

    def expire(self) -> list[bytes]:
        """The deadline has passed: a 408 if the body is still awaited, else nothing."""
        if self._state is not _State.HOLD:
            return []
        return self._refuse(Reason.BODY_TIMEOUT, "the body did not arrive in time")

    def _head(self, message: pb.ProcessingRequest) -> list[bytes]:
        mode = message.protocol_config.request_body_mode
        if mode not in _READABLE and mode != _DUPLEX:
            raise ProtocolError("request_body_mode must be NONE, BUFFERED, BUFFERED_PARTIAL or FULL_DUPLEX_STREAMED")
        world = self._world()
        self._duplex = mode == _DUPLEX
        self._bodiless = message.request_headers.end_of_stream
        # Ending early would lose the body of an answer that Envoy has begun to send us: an engine can be that fast.
        self._answering = message.protocol_config.response_body_mode == _DUPLEX
        fields = self._fields(message.request_headers, header_names(world.policy))
        self._request, reply = self._settle(fields, self._binding.scope(message.metadata_context), world)
        if reply is not None:
            return self._say(self._request, reply, Phase.HEADERS, world)
        self._state = _State.HOLD if self._duplex else _State.BODY
        return [] if self._duplex else [ASK_BODY]

    def _settle(self, fields: Fields, scope: Scope, world: Replies) -> tuple[InferenceRequest, Reply | None]:
        """What the headers ask for and the reply to it, None if the body is to be read first; kept for known names."""
        key = (self._binding.attachment, scope, self._bodiless, fields)
        if (kept := world.heads.get(key)) is not None:
            return kept
        headers: dict[str, list[str]] = {}
        for name, value in fields:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        request = from_head(headers, scope, world.policy)
        reply = None
        readable = readable_body(headers, end_of_stream=self._bodiless)
        if not readable or not asks_body(request, world.snapshot, world.policy):
            reply = world.reply(request, self._binding.attachment, Phase.HEADERS, bodiless=self._bodiless)
        if world.knows(request) and sum(len(value) for _, value in fields) <= _SHORT:
            world.keep_head(key, (request, reply))
        return request, reply

    def _body(self, message: pb.ProcessingRequest) -> list[bytes]:
        assert self._request is not None
        body = message.request_body
        self._read_bytes = len(body.body)
        request = from_body(self._request, body.body, self._world().policy, ended=body.end_of_stream)
        return self._decided(request, Phase.BODY)

    def _hold(self, message: pb.ProcessingRequest) -> list[bytes]:
        self._held += message.request_body.body
        self._read_bytes = len(self._held)
        limit = self._world().policy.body.max_bytes
        if len(self._held) > limit:
            return self._refuse(Reason.BODY_TOO_LARGE, f"the body is larger than {limit} bytes")
        if not message.request_body.end_of_stream:
            return []
        return self._release(message, end=True)

    def _release(self, message: pb.ProcessingRequest, *, end: bool) -> list[bytes]:
        """All of the body is there: the headers answer, then the body as it came."""
        assert self._request is not None
        scope = self._request.scope
        if message.HasField("metadata_context"):  # the latest word of the filters before us
            scope = self._binding.scope(message.metadata_context)
        held = bytes(self._held)
        self._held.clear()  # the stream may stay open as long as the answer takes
        request = msgspec.structs.replace(self._request, scope=scope)
        request = from_body(request, held, self._world().policy, ended=True)
        replies = self._decided(request, Phase.HEADERS)
        if not self._echoing:
            return replies
        frames = body_frames(held, end=end) if held or end else []
        return [*replies, *(self._sent(frames) if end else frames)]

    def _decided(self, request: InferenceRequest, phase: Phase) -> list[bytes]:
        world = self._world()
        reply = world.reply(request, self._binding.attachment, phase, bodiless=self._bodiless)
        return self._say(request, reply, phase, world)

    def _refuse(self, reason: Reason, message: str) -> list[bytes]:
        assert self._request is not None
        world = self._world()
        refusal = reject(reason, message)
        reply = compose(
            refusal, self._request, world.policy, self._binding.attachment, Phase.HEADERS, bodiless=self._bodiless
        )
        return self._say(self._request, reply, Phase.HEADERS, world)

    def _say(self, request: InferenceRequest, reply: Reply, phase: Phase, world: Replies) -> list[bytes]:
        rotation = self._rotation() if reply.destinations else 0
        text, destination = reply.message(rotation, self._binding.attachment, phase, world.policy.destinations)
        asked = self._state in (_State.BODY, _State.HOLD)
        self.outcome = Outcome(
            request, reply, destination, self._binding.attachment, self._request_id, asked, self._read_bytes
        )
        echoes = self._duplex and not self._bodiless and not reply.final
        after = _State.RESPONSE if self._answering and not reply.final else _State.DONE
        self._state = _State.ECHO if echoes else after
        return [text]

    def _response(self, message: pb.ProcessingRequest, kind: str) -> list[bytes]:
        """The response goes on as it came.

        It comes here where the filter's mode is to send it, also when a filter before us answered by itself
        (facts/envoy.md 5, "ImmediateResponse and the next filter") or an engine answers before the request has ended.
        Refusing it would turn it into an empty 500, and ending early would cut its body.
        """
        if kind == "response_headers":
            self._answering = True
            if message.HasField("protocol_config"):
                self._duplex = message.protocol_config.response_body_mode == _DUPLEX
            ends = message.response_headers.end_of_stream or not self._duplex
        else:
            ends = kind == "response_trailers" or message.response_body.end_of_stream
        if ends:
            self._state = _State.DONE
        elif self._state is not _State.ECHO:
            self._state = _State.RESPONSE
        return unchanged(message)

    def _sent(self, replies: list[bytes]) -> list[bytes]:
        """The request has left us whole: the stream may end, unless the answer comes through it."""
        self._state = _State.RESPONSE if self._answering else _State.DONE
        return replies

    def _fields(self, received: pb.HttpHeaders, wanted: frozenset[str]) -> Fields:
        """The headers that are read, in their order, each value as Envoy sends it: raw, or as text before 1.27."""
        fields = []
        for header in received.headers.headers:
            name = header.key
            if name in wanted:
                fields.append((name, header.raw_value or header.value.encode()))
            elif name == names.REQUEST_ID:
                self._request_id = (header.raw_value or header.value.encode()).decode("latin-1")
        return tuple(fields)
