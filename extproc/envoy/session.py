# SPDX-License-Identifier: Apache-2.0
"""One ext_proc stream, without its socket: receive(ProcessingRequest) -> the messages to send.

    body modes NONE, BUFFERED, BUFFERED_PARTIAL        FULL_DUPLEX_STREAMED (configured, or asked for with `stream`)
    HEAD --decided--------------------> DONE           HEAD --decided--> ECHO --end--> DONE
    HEAD --asks for the body--> BODY -> DONE           HEAD --undecided-> HOLD --decided--> ECHO

DONE ends the stream: the response does not come here. If it has begun before that (an engine may refuse a request that
is still on its way), it is handed back as it comes, from any state, and the stream is DONE at its end (RESPONSE); so is
one that a filter before us gave. Where a picker's filter may be set up to see the response's headers and nothing else of
it, the stream waits for those, or for Envoy to end it.

Snapshot and policy are taken when the decision is made, not when the stream begins. The session never waits: the server
tells it when its deadline has passed.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType

import msgspec

from extproc.envoy import names
from extproc.envoy.binding import Attachment, Binding, BodyMode, ProtocolError
from extproc.envoy.messages import STREAM_BODY, TRAILERS, Phase, ask_body, body_frames, stripped, unchanged
from extproc.envoy.metadata import Pick, Told, outside, read_hint, read_pick, read_served, read_told
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import NOT_OURS, Moment, Replies, Reply, Turn, compose
from extproc.policy.decide import asks_body, reroutes
from extproc.policy.extract import JSON, body_format, from_body, from_filter, from_head, header_names
from extproc.policy.pick import NO_LOADS, Correction, Loads
from extproc.policy.rules import drawn
from extproc.policy.strip import strip
from extproc.policy.types import InferenceRequest, Reason, Scope, reject

_DUPLEX = int(pb.ProcessingMode.FULL_DUPLEX_STREAMED)
_NONE = int(pb.ProcessingMode.NONE)
_RESPONSE = ("response_headers", "response_body", "response_trailers")
_READABLE = {_NONE, int(pb.ProcessingMode.BUFFERED), int(pb.ProcessingMode.BUFFERED_PARTIAL)}
_SHORT = 512
"""Requests whose headers (those that are read) are longer than this are not remembered, in bytes."""

Fields = tuple[tuple[str, bytes], ...]


class Outcome(msgspec.Struct, frozen=True):
    """What a stream came to, for logs and metrics.

    `destination` is what was written, "" if nothing was; `correction` what `after` made of the EPP's pick, and `outside`
    whether that was outside the hint.
    """

    request: InferenceRequest
    reply: Reply
    destination: str
    attachment: Attachment
    request_id: str
    asked_body: bool
    body_bytes: int
    correction: Correction | None = None
    outside: bool = False


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    HOLD = auto()
    ECHO = auto()
    RESPONSE = auto()
    DONE = auto()


class Session:
    """One HTTP request, from Envoy's first message to our last.

    `world` gives the current replies, `rotation` a number that grows with each call, `loads` the engines' latest figures;
    all are asked when deciding.
    """

    outcome: Outcome | None = None
    """What it came to, once that is decided."""
    served = ""
    """The endpoint that served, where Envoy tells us of the response."""
    _state = _State.HEAD
    _request: InferenceRequest | None = None
    _format = JSON
    _read_bytes = 0
    _duplex = False
    _bodiless = False
    _answering = False
    _whole_answer = False
    _request_id = ""
    _told: Told | None = None
    _pick = Pick()
    _hosts: Mapping[str, str] = MappingProxyType({})
    _outside = False

    def __init__(
        self,
        binding: Binding,
        world: Callable[[], Replies],
        rotation: Callable[[], int],
        loads: Callable[[], Loads] = lambda: NO_LOADS,
    ) -> None:
        """A session that has received nothing."""
        self._binding = binding
        self._world = world
        self._rotation = rotation
        self._loads = loads
        self._held = bytearray()

    @property
    def done(self) -> bool:
        """Whether nothing more is to be said: the server ends the stream then."""
        return self._state is _State.DONE

    @property
    def whole_answer(self) -> bool:
        """Whether the answer would come through us, too, if the stream did not end before it."""
        return self._whole_answer

    @property
    def begun(self) -> bool:
        """Whether the request's headers have come."""
        return self._request is not None

    def reopen(self) -> None:
        """The answer has begun to come although the request was only about to leave us whole: the stream goes on."""
        self._answering, self._state = True, _State.RESPONSE

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
        if message.HasField("protocol_config"):  # the first message has it
            self._whole_answer = message.protocol_config.response_body_mode == _DUPLEX
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

    # the request's headers

    def _head(self, message: pb.ProcessingRequest) -> list[bytes]:
        mode = message.protocol_config.request_body_mode
        if mode not in _READABLE and mode != _DUPLEX:
            raise ProtocolError("request_body_mode must be NONE, BUFFERED, BUFFERED_PARTIAL or FULL_DUPLEX_STREAMED")
        world = self._world()
        self._duplex = mode == _DUPLEX
        self._bodiless = message.request_headers.end_of_stream
        picker = self._binding.attachment is Attachment.PICKER
        self._answering = picker and self._duplex and message.protocol_config.response_body_mode == _NONE
        fields = self._fields(message.request_headers, header_names(world.policy))
        if self._binding.attachment is Attachment.AFTER:
            self._read_filters(message)
        scope = self._binding.scope(message, world.snapshot.pools)
        self._request, reply = self._settle(fields, scope, world)
        if reply is not None:
            return self._say(self._request, reply, Phase.HEADERS, world)
        if self._duplex or self._binding.body is BodyMode.STREAM:
            asked = [] if self._duplex else [STREAM_BODY]
            self._duplex, self._state = True, _State.HOLD
            return asked
        self._state = _State.BODY
        removes = () if self._binding.attachment is Attachment.AFTER else names.SPOOFABLE
        return [ask_body(removes, reroute=reroutes(self._request, world.policy))]

    def _settle(self, fields: Fields, scope: Scope, world: Replies) -> tuple[InferenceRequest, Reply | None]:
        """What the headers ask for and the reply to it, None if the body is to be read first; kept for known names."""
        key = (self._binding.attachment, scope, self._told, self._bodiless, fields)
        if (kept := world.heads.get(key)) is not None:
            return kept
        headers: dict[str, list[str]] = {}
        for name, value in fields:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        request = from_head(headers, scope, world.policy)
        readable = body_format(headers, end_of_stream=self._bodiless)
        if (told := self._told) is not None:
            request = from_filter(request, told.owner, told.model, told.reason if told.passed else None)
            readable = None  # it has been read
        request = drawn(request, world.policy, self._identity)
        self._format = readable or JSON
        reply = None
        if readable is None or not asks_body(request, world.snapshot, world.policy):
            reply = world.reply(request, self._turn(Phase.HEADERS))
            if readable is JSON and _strips(request, reply, world):
                reply = None
        known = world.knows(request) and sum(len(value) for _, value in fields) <= _SHORT
        if known and not self._format.boundary and not request.drawn:  # each form has another one, each request draws
            world.keep_head(key, (request, reply))
        return request, reply

    def _read_filters(self, message: pb.ProcessingRequest) -> None:
        """What `before` and the EPP have said of the request."""
        wanted = {names.DESTINATION, *names.DISAGGREGATED}
        said = {
            header.key: (header.raw_value or header.value.encode()).decode("latin-1")
            for header in message.request_headers.headers.headers
            if header.key in wanted
        }
        header = said.pop(names.DESTINATION, "")
        metadata = message.metadata_context
        self._told = read_told(metadata)
        self._pick = read_pick(metadata, header)
        # Without a body the EPP picks at random, whatever it is told.
        self._outside = not self._bodiless and outside(self._pick, read_hint(metadata))
        self._hosts = said

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

    # the request's body

    def _body(self, message: pb.ProcessingRequest) -> list[bytes]:
        assert self._request is not None
        body = message.request_body
        self._read_bytes = len(body.body)
        return self._decided(self._request, body.body, Phase.BODY, ended=body.end_of_stream)[0]

    def _hold(self, message: pb.ProcessingRequest) -> list[bytes]:
        limit = self._world().policy.body.max_bytes
        self._read_bytes += len(message.request_body.body)
        if self._read_bytes > limit:
            return self._refuse(Reason.BODY_TOO_LARGE, f"the body is larger than {limit} bytes")
        self._held += message.request_body.body
        if not message.request_body.end_of_stream:
            return []
        return self._release(message, end=True)

    def _release(self, message: pb.ProcessingRequest, *, end: bool) -> list[bytes]:
        """All of the body is there: the headers answer, then the body."""
        assert self._request is not None
        request = self._request
        if self._binding.attachment is Attachment.PICKER and message.HasField("metadata_context"):
            scope = msgspec.structs.replace(request.scope, hint=read_hint(message.metadata_context))  # the latest word
            request = msgspec.structs.replace(request, scope=scope)
        held = bytes(self._held)
        self._held.clear()  # the stream may stay open as long as the answer takes
        replies, body = self._decided(request, held, Phase.HEADERS, ended=True)
        if not self._echoing:
            return replies
        frames = body_frames(body, end=end)
        return [*replies, *(self._sent(frames) if end else frames)]

    def _decided(
        self, request: InferenceRequest, body: bytes, phase: Phase, *, ended: bool
    ) -> tuple[list[bytes], bytes]:
        """The answer once the body (or its prefix) is there, and the body that goes on."""
        world = self._world()
        request = from_body(request, body, world.policy, ended=ended, form=self._format)
        request = drawn(request, world.policy, self._identity)
        reply = world.reply(request, self._turn(phase))
        other = body
        if not self._format.boundary and _strips(request, reply, world):
            other = strip(body, world.policy.sources.body)
        (answer,) = self._say(request, reply, phase, world)
        return [answer if other is body else answer + stripped(phase, other)], other

    def _refuse(self, reason: Reason, message: str) -> list[bytes]:
        assert self._request is not None
        world = self._world()
        reply = compose(reject(reason, message), self._request, world, self._turn(Phase.HEADERS))
        self._held.clear()
        return self._say(self._request, reply, Phase.HEADERS, world)

    def _say(self, request: InferenceRequest, reply: Reply, phase: Phase, world: Replies) -> list[bytes]:
        rotation = reply.ranking.turn(self._rotation) if reply.ranking else 0
        moment = Moment(rotation, self._loads(), self._pick, self._hosts)
        spoken = reply.message(self._turn(phase), world.policy.destinations, moment)
        self.outcome = Outcome(
            request=request,
            reply=reply,
            destination=spoken.destination,
            attachment=self._binding.attachment,
            request_id=self._request_id,
            asked_body=self._state in (_State.BODY, _State.HOLD),
            body_bytes=self._read_bytes,
            correction=spoken.correction,
            outside=self._outside,
        )
        if self._duplex and not self._bodiless and not reply.final:
            self._state = _State.ECHO
        else:
            self._state = _State.RESPONSE if self._answering and not reply.final else _State.DONE
        return [spoken.text]

    def _identity(self) -> str:
        """What `split` draws by: the same for each replica and each retry, if Envoy gives requests an id."""
        return self._request_id or str(self._rotation())

    def _turn(self, phase: Phase) -> Turn:
        return Turn(self._binding.attachment, phase, self._bodiless)

    def _sent(self, replies: list[bytes]) -> list[bytes]:
        """The request has left us whole: the stream may end, unless the answer comes through it."""
        self._state = _State.RESPONSE if self._answering else _State.DONE
        return replies

    # the response

    def _response(self, message: pb.ProcessingRequest, kind: str) -> list[bytes]:
        """The response goes on as it came.

        It comes here where the filter's mode is to send it, also when a filter before us answered by itself
        (facts/envoy.md 5, "ImmediateResponse and the next filter") or an engine answers before the request has ended.
        Refusing it would turn it into an empty 500, and ending early would cut its body.
        """
        if kind == "response_headers":
            self.served = read_served(message.metadata_context)
            self._answering = self._whole_answer
            if not self._whole_answer:  # nothing of it follows
                if self._state in (_State.HEAD, _State.RESPONSE):
                    self._state = _State.DONE
                return unchanged(message)
            ends = message.response_headers.end_of_stream
        else:
            ends = kind == "response_trailers" or message.response_body.end_of_stream
        if ends:
            self._state = _State.DONE
        elif self._state is not _State.ECHO:
            self._state = _State.RESPONSE
        return unchanged(message)


def _strips(request: InferenceRequest, reply: Reply, world: Replies) -> bool:
    """Whether the owner's keys are to go from a JSON body: it goes on, and the request is one of ours."""
    policy = world.policy
    if not policy.body.strip or not policy.sources.body or reply.final:
        return False
    return reply.reason not in NOT_OURS or (reply.reason is Reason.POOL_UNKNOWN and request.scope.promotes)
