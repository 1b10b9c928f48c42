# SPDX-License-Identifier: Apache-2.0
"""Decision -> the bytes of a ProcessingResponse.

What is the same for every request with the same answer is serialised once and kept (`Replies`); what rotates, the
destination, is a few bytes behind it. Two serialised messages one after the other are their merge: protobuf's encoding
says so, and the entries of a metadata struct add up.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import msgspec
from google.protobuf.struct_pb2 import Struct

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.policy.candidates import candidates
from extproc.policy.config import PolicyConfig
from extproc.policy.decide import decide
from extproc.policy.pick import order
from extproc.policy.types import (
    Answer,
    Decision,
    InferenceRequest,
    ModelEntry,
    PassThrough,
    Pool,
    Reason,
    Reject,
    Restrict,
    Snapshot,
)

KEPT: Final = 4096
"""How many replies are kept for one snapshot under one policy."""
FRAME: Final = 62_000
"""The largest body frame that we send, in bytes: the EPP's own limit (facts/epp.md 1.2)."""
_SHOWN: Final = 128


class Attachment(StrEnum):
    """Where the filter sits (design section 2)."""

    BEFORE = "before"
    PICKER = "picker"


class Phase(StrEnum):
    """Which message is answered: the request's headers or its body."""

    HEADERS = "request_headers"
    BODY = "request_body"


class Reply(msgspec.Struct, frozen=True):
    """A decision and how it is said: `prefix` and, where a destination is written, one that is chosen per request."""

    decision: Decision
    reason: Reason
    prefix: bytes
    destinations: tuple[str, ...] = ()
    owner: str = ""
    model: str = ""
    hinted: int = 0
    known: bool = False

    @property
    def final(self) -> bool:
        """Whether it ends the request: no upstream is contacted and no body goes on."""
        return isinstance(self.decision, Reject | Answer)

    def message(self, rotation: int, attachment: Attachment, phase: Phase, count: int) -> tuple[bytes, str]:
        """The bytes of the message, and the destinations that it names, `ip:port,ip:port`."""
        if not self.destinations:
            return self.prefix, ""
        value = ",".join(order(self.destinations, rotation, count))
        chosen = isinstance(self.decision, Restrict) and len(self.decision.endpoints)
        build = _destination if self.known else _destination.__wrapped__
        return self.prefix + build(attachment, phase, value, self.owner, self.model, self.reason, chosen), value


class Replies:
    """The replies of one snapshot under one policy, built on first use. Names that nobody serves are not kept."""

    def __init__(self, snapshot: Snapshot, policy: PolicyConfig) -> None:
        """Nothing is built yet."""
        self.snapshot = snapshot
        self.policy = policy
        self.heads: dict[Hashable, tuple[InferenceRequest, Reply | None]] = {}
        self._kept = lru_cache(maxsize=KEPT)(self._build_known)

    def keep_head(self, key: Hashable, settled: tuple[InferenceRequest, Reply | None]) -> None:
        """Remember what headers of known names come to; all is forgotten when there is too much of it."""
        if len(self.heads) >= KEPT:
            self.heads.clear()
        self.heads[key] = settled

    def reply(self, request: InferenceRequest, attachment: Attachment, phase: Phase, *, bodiless: bool) -> Reply:
        """The reply to a request; `bodiless` says that it has no body at all."""
        if self.knows(request):
            return self._kept(_essence(request), attachment, phase, bodiless)
        return self._build(request, attachment, phase, bodiless)

    def knows(self, request: InferenceRequest) -> bool:
        """Whether all that the request names is known, so that few requests can differ from it."""
        if request.malformed or request.truncated or request.method in ("GET", "HEAD"):
            return False
        pool = request.scope.pool or (self.snapshot.pools[0] if len(self.snapshot.pools) == 1 else None)
        if (pool and pool not in self.snapshot.endpoints) or not self.snapshot.pools:
            return False
        if request.scope.hint.endpoints is not None or not request.interpreted:
            return False
        found = candidates(self.snapshot, self.policy, pool, decoding=request.scope.destination)
        model = request.model
        known = not model or model in found.listed or self._rewritten(pool, model)
        return known and all(map(found.knows, request.owners))

    def _rewritten(self, pool: Pool | None, model: str) -> bool:
        return pool is not None and pool in self.snapshot.rewrites and model in self.snapshot.rewrites[pool].exact

    def _build(self, request: InferenceRequest, attachment: Attachment, phase: Phase, bodiless: bool) -> Reply:  # noqa: FBT001 - the cache's key is by position
        decision = decide(request, self.snapshot, self.policy)
        return compose(decision, request, self.policy, attachment, phase, bodiless=bodiless)

    def _build_known(
        self,
        request: InferenceRequest,
        attachment: Attachment,
        phase: Phase,
        bodiless: bool,  # noqa: FBT001
    ) -> Reply:
        return msgspec.structs.replace(self._build(request, attachment, phase, bodiless), known=True)


def compose(  # noqa: PLR0913 - what a reply depends on
    decision: Decision,
    request: InferenceRequest,
    policy: PolicyConfig,
    attachment: Attachment,
    phase: Phase,
    *,
    bodiless: bool,
) -> Reply:
    """How the attachment says the decision."""
    match decision:
        case Reject() as refusal:
            return Reply(refusal, refusal.reason, _error(refusal, request))
        case Answer() as answer:
            return Reply(answer, answer.reason, _model_list(answer, request))
        case PassThrough(reason):
            said = _said("", request.model, reason, 0, "")
            return Reply(decision, reason, _message(phase, {names.NAMESPACE: said}))
        case Restrict():
            if attachment is Attachment.PICKER:
                return _picked(decision, request, phase)
            return _hinted(decision, request, policy, phase, bodiless=bodiless)


def _hinted(
    decision: Restrict, request: InferenceRequest, policy: PolicyConfig, phase: Phase, *, bodiless: bool
) -> Reply:
    """`before`: the endpoints as a list for the EPP, and a destination in case that the EPP is not there."""
    hint = [endpoint.destination for endpoint in decision.endpoints if not endpoint.is_ipv6]
    reason = decision.reason
    if not hint:
        reason = Reason.HINT_IPV6
    elif bodiless:
        reason = Reason.HINT_WITHOUT_BODY
    metadata: dict[str, object] = {names.SUBSET_NAMESPACE: {names.SUBSET: hint}} if hint else {}
    guard = tuple(e.destination for e in decision.endpoints if e.decodes) if policy.guard else ()
    if not guard:
        metadata[names.NAMESPACE] = _said(decision.owner, request.model, reason, len(decision.endpoints), "")
    return Reply(
        decision, reason, _message(phase, metadata), guard, decision.owner, request.model[:_SHOWN], hinted=len(hint)
    )


def _picked(decision: Restrict, request: InferenceRequest, phase: Phase) -> Reply:
    """`picker`: the destination, as header and as metadata."""
    every = tuple(endpoint.destination for endpoint in decision.endpoints)
    return Reply(decision, decision.reason, _message(phase, {}), every, decision.owner, request.model[:_SHOWN])


@lru_cache(maxsize=KEPT)
def _destination(  # noqa: PLR0913, PLR0917 - the cache's key
    attachment: Attachment, phase: Phase, value: str, owner: str, model: str, reason: Reason, endpoints: int
) -> bytes:
    """What rotates: the destination, and our own namespace that repeats it as the guard."""
    guard = value if attachment is Attachment.BEFORE else ""
    metadata = {
        names.DESTINATION_NAMESPACE: {names.DESTINATION: value},
        names.NAMESPACE: _said(owner, model, reason, endpoints, guard),
    }
    message = pb.ProcessingResponse(dynamic_metadata=_struct(metadata))
    if attachment is Attachment.PICKER:
        mutation = getattr(message, phase).response.header_mutation
        mutation.set_headers.append(_header(names.DESTINATION, value))
    return message.SerializeToString()


def _said(owner: str, model: str, reason: Reason, endpoints: int, guard: str) -> dict[str, object]:
    """Our own namespace: for access logs, and for a filter of ours further on."""
    return {"owner": owner, "model": model[:_SHOWN], "reason": reason.value, "endpoints": endpoints, "guard": guard}


def _message(phase: Phase, metadata: dict[str, object]) -> bytes:
    """Go on, without what only a gateway may say (a body answer comes after the headers answer that removed it)."""
    message = pb.ProcessingResponse()
    if metadata:
        message.dynamic_metadata.CopyFrom(_struct(metadata))
    if phase is Phase.HEADERS:
        message.request_headers.response.header_mutation.remove_headers.extend(names.SPOOFABLE)
    else:
        message.request_body.SetInParent()
    return message.SerializeToString()


def _ask_body() -> bytes:
    message = pb.ProcessingResponse()
    message.request_headers.response.header_mutation.remove_headers.extend(names.SPOOFABLE)
    message.mode_override.request_body_mode = pb.ProcessingMode.BUFFERED_PARTIAL
    return message.SerializeToString()


ASK_BODY: Final = _ask_body()
"""The headers answer that asks for the body: what fits into Envoy's buffer, the rest flows by itself. Both body modes are
taken literally (facts/envoy.md 2.1), and the response's stays NONE."""


def body_frames(body: bytes, *, end: bool) -> list[bytes]:
    """FULL_DUPLEX_STREAMED: a piece of the request body as it came, in frames; the last one ends the stream if `end`."""
    pieces = [body[start : start + FRAME] for start in range(0, len(body), FRAME)] or [b""]
    frames = []
    for number, piece in enumerate(pieces, 1):
        message = pb.ProcessingResponse()
        streamed = message.request_body.response.body_mutation.streamed_response
        streamed.body = piece
        streamed.end_of_stream = end and number == len(pieces)
        frames.append(message.SerializeToString())
    return frames


TRAILERS: Final = pb.ProcessingResponse(request_trailers=pb.TrailersResponse()).SerializeToString()
"""The request's trailers as they came."""


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


def _error(refusal: Reject, request: InferenceRequest) -> bytes:
    """The refusal as an OpenAI error."""
    error = {
        "message": refusal.message,
        "type": "invalid_request_error" if refusal.status < 500 else "service_unavailable",  # noqa: PLR2004
        "param": refusal.param or None,
        "code": refusal.reason.replace("-", "_"),
    }
    headers = [(names.REASON, refusal.reason.value)]
    if refusal.status == 503:  # noqa: PLR2004
        headers.append((names.RETRY_AFTER, "1"))
    return _immediate(refusal.status, {"error": error}, refusal.reason, headers, request)


def _model_list(answer: Answer, request: InferenceRequest) -> bytes:
    entries = [_entry(entry) for entry in answer.models]
    document = entries[0] if answer.single else {"object": "list", "data": entries}
    return _immediate(200, document, answer.reason, [], request)


def _entry(entry: ModelEntry) -> dict[str, object]:
    """A model as OpenAI clients expect it; `created` is a number for them, 0 where no engine said one."""
    found: dict[str, object] = {"id": entry.id, "object": "model", "created": entry.created or 0}
    found["owned_by"] = entry.owned_by
    if entry.max_model_len is not None:
        found["max_model_len"] = entry.max_model_len
    return found


def _immediate(
    status: int, document: object, reason: Reason, headers: Sequence[tuple[str, str]], request: InferenceRequest
) -> bytes:
    said = _said("", request.model, reason, 0, "")
    message = pb.ProcessingResponse(dynamic_metadata=_struct({names.NAMESPACE: said}))
    answer = message.immediate_response
    answer.status.code = pb.StatusCode.Name(status)  # type: ignore[assignment] # protobuf takes the name too
    answer.body = msgspec.json.encode(document)
    answer.details = f"{names.NAMESPACE}_{reason.replace('-', '_')}"
    for name, value in ((names.CONTENT_TYPE, names.JSON), *headers):
        answer.headers.set_headers.append(_header(name, value))
    return message.SerializeToString()


def _header(name: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()))


def _struct(value: dict[str, Any]) -> Struct:
    struct = Struct()
    struct.update(value)
    return struct


def _essence(request: InferenceRequest) -> InferenceRequest:
    """What the decision on known names depends on, so that requests that differ in the rest share a reply."""
    return InferenceRequest(
        request.scope, "POST", "", request.owners, request.param, request.model, fixed_model=request.fixed_model
    )
