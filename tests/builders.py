# SPDX-License-Identifier: Apache-2.0
"""Short ways to say what a test is about: a policy, endpoints, a snapshot, Envoy's messages."""

import itertools
import json
from collections.abc import Iterable
from typing import Any, Self

from google.protobuf.struct_pb2 import Struct

from extproc.envoy.binding import Attachment, Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.observability.logs import DecisionLine
from extproc.policy.config import PolicyConfig
from extproc.policy.extract import from_head
from extproc.policy.loading import parse_policy
from extproc.policy.pick import Loads
from extproc.policy.types import (
    Answer,
    Decision,
    Endpoint,
    InferenceRequest,
    Model,
    PassThrough,
    Pool,
    Reject,
    Restrict,
    Scope,
    Snapshot,
)

CHAT = Pool("default", "chat")
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
HEAD = "apiVersion: owned-by/v1alpha1\nkind: OwnedByPolicy\n"
SPOOFABLE = (
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
    "test-epp-endpoint-selection",
)
MODE = pb.ProcessingMode
NONE, DUPLEX = MODE.NONE, MODE.FULL_DUPLEX_STREAMED
DEST = "x-gateway-destination-endpoint"


def policy(text: str = "") -> PolicyConfig:
    """A policy document without its first two lines."""
    return parse_policy((HEAD + text).encode())


def endpoint(  # noqa: PLR0917 - a row of a table
    number: int,
    owner: str = "",
    models: tuple[str, ...] | None = (LLAMA,),
    ready: bool = True,  # noqa: FBT001, FBT002 - a row of a table
    role: str = "",
    address: str = "",
) -> Endpoint:
    """The endpoint `10.0.0.<number>:8000`; `owner` is its engine label."""
    return Endpoint(
        name=f"pod-{number}",
        namespace="default",
        address=address or f"10.0.0.{number}",
        port=8000,
        labels={"llm-d.ai/engine-type": owner} if owner else {},
        role=role,
        models=None if models is None else tuple(Model(name) for name in models),
        ready=ready,
    )


def snapshot(*endpoints: Endpoint, generation: int = 1, **others: tuple[Endpoint, ...]) -> Snapshot:
    """A snapshot with the pool `default/chat`, and further pools by their names."""
    pools = {CHAT: endpoints} | {Pool("default", name): members for name, members in others.items()}
    return Snapshot(generation, tuple(pools), pools)


def head(policy_: PolicyConfig | None = None, scope: Scope | None = None, **headers: str) -> InferenceRequest:
    """What a POST to /v1/chat/completions with these headers asks for (`_` stands for `-`)."""
    said = {":method": ["POST"], ":path": ["/v1/chat/completions"]}
    said |= {name.replace("_", "-"): [value] for name, value in headers.items()}
    return from_head(said, scope or Scope(CHAT), policy_ or policy())


def asking(*owners: str, model: str = "", **more: Any) -> InferenceRequest:
    """What a client asks for that names these owners in the header x-owned-by."""
    given = {"scope": Scope(CHAT), "method": "POST", "path": "/v1/x", "param": "x-owned-by" if owners else ""} | more
    return InferenceRequest(owners=owners, model=model, **given)


def outcome(decision: Decision) -> tuple[Any, ...]:
    """A decision in short: where to, why, for whom."""
    match decision:
        case Restrict(endpoints, reason, owner):
            return (*(each.name for each in endpoints), reason.value, owner)
        case PassThrough(reason):
            return ("pass", reason.value)
        case Reject(status, reason, _, param):
            return (status, reason.value, param)
        case Answer(models):
            return tuple((model.id, model.owned_by) for model in models)


def struct(value: dict[str, Any]) -> Struct:
    """A protobuf struct."""
    made = Struct()
    made.update(value)
    return made


def header_map(pairs: list[tuple[str, str]]) -> pb.HeaderMap:
    """Headers as Envoy sends them."""
    return pb.HeaderMap(headers=[pb.HeaderValue(key=key, raw_value=value.encode("latin-1")) for key, value in pairs])


def headers(  # what the first message may say
    *pairs: tuple[str, str],
    method: str = "POST",
    path: str = "/v1/chat/completions",
    ends: bool = False,
    mode: Any = None,
    answers: Any = None,
    content_type: str = "application/json",
    metadata: dict[str, dict[str, Any]] | None = None,
    cluster: str = "",
) -> pb.ProcessingRequest:
    """The first message of a stream; `mode` and `answers` are the configured body modes of request and response."""
    all_pairs = [(":method", method), (":path", path), (":authority", "gateway")]
    all_pairs += [("content-type", content_type)] if content_type else []
    message = pb.ProcessingRequest()
    message.request_headers.headers.CopyFrom(header_map([*all_pairs, *pairs]))
    message.request_headers.end_of_stream = ends
    message.protocol_config.SetInParent()
    if mode is not None:
        message.protocol_config.request_body_mode = mode
    if answers is not None:
        message.protocol_config.response_body_mode = answers
    message.metadata_context.CopyFrom(context(metadata or {}))
    if not metadata:
        message.ClearField("metadata_context")
    if cluster:
        message.attributes["envoy.filters.http.ext_proc"].CopyFrom(struct({"xds.cluster_name": cluster}))
    return message


def context(metadata: dict[str, dict[str, Any]]) -> pb.Metadata:
    """The dynamic metadata that Envoy forwards with a message, by namespace."""
    return pb.Metadata(filter_metadata={namespace: struct(value) for namespace, value in metadata.items()})


def body(data: bytes | dict[str, Any], *, ends: bool = True) -> pb.ProcessingRequest:
    """A request body message."""
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=ends))


def trailers() -> pb.ProcessingRequest:
    """A request trailers message."""
    return pb.ProcessingRequest(request_trailers=pb.HttpTrailers(trailers=header_map([("x-end", "1")])))


def said(owner: str, model: str, reason: str, endpoints: int, guard: str | None = "") -> dict[str, Any]:
    """Our own metadata namespace (design section 3); None leaves the guard of an earlier filter as it is."""
    found = {"owner": owner, "model": model, "reason": reason, "endpoints": endpoints}
    return {"owned_by": found if guard is None else found | {"guard": guard}}


def hint(*destinations: str) -> dict[str, Any]:
    """The subset hint of `before`."""
    return {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": list(destinations)}}


def destination(value: str) -> dict[str, Any]:
    """The destination as metadata."""
    return {"envoy.lb": {"x-gateway-destination-endpoint": value}}


def attempts(*to: str, count: int = 3) -> str:
    """A destination that we write: these, from the beginning again until each of Envoy's attempts has one."""
    return ",".join(to[at % len(to)] for at in range(max(count, len(to)))) if to else ""


def before(owner: str, model: str, *to: str, reason: str = "owner-matched") -> dict[str, Any]:
    """The metadata of `before`: the hint, the guard that says the same for each attempt, our namespace."""
    guard = attempts(*to)
    return hint(*to) | destination(guard) | said(owner, model, reason, len(to), guard)


def picked(owner: str, model: str, *to: str, reason: str = "owner-matched") -> dict[str, Any]:
    """The metadata of `picker`: the destination and our namespace."""
    return destination(attempts(*to)) | said(owner, model, reason, len(to))


def goes_on(
    metadata: dict[str, Any],
    *,
    sets: dict[str, str] | None = None,
    removes: Iterable[str] = SPOOFABLE,
    reroute: bool = False,
) -> pb.ProcessingResponse:
    """The answer to the headers: go on, without what only a gateway may say."""
    message = pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=_change(sets, removes, reroute)))
    if message.request_headers.response == pb.CommonResponse():
        message.request_headers.ClearField("response")
    return _with(message, metadata)


def body_goes_on(
    metadata: dict[str, Any],
    *,
    sets: dict[str, str] | None = None,
    removes: Iterable[str] = (),
    reroute: bool = False,
    body: bytes | None = None,
) -> pb.ProcessingResponse:
    """The answer to a body that was asked for: go on, the body as it is, or another one."""
    message = pb.ProcessingResponse(request_body=pb.BodyResponse(response=_change(sets, removes, reroute)))
    if body is not None:
        message.request_body.response.body_mutation.body = body
    if message.request_body.response == pb.CommonResponse():
        message.request_body.ClearField("response")
    return _with(message, metadata)


def asks(removes: Iterable[str] = SPOOFABLE, *, reroute: bool = False) -> pb.ProcessingResponse:
    """The answer to the headers that asks for the body."""
    message = pb.ProcessingResponse(mode_override=pb.ProcessingMode(request_body_mode=MODE.BUFFERED_PARTIAL))
    message.request_headers.response.header_mutation.remove_headers.extend(removes)
    message.request_headers.response.clear_route_cache = reroute
    return message


def streams() -> pb.ProcessingResponse:
    """Instead of an answer to the headers: all of the body is to come (facts/envoy.md 2.3)."""
    mode = pb.ProcessingMode(request_body_mode=DUPLEX, request_trailer_mode=MODE.SEND)
    return pb.ProcessingResponse(mode_override=mode)


def frame(data: bytes, *, ends: bool = False) -> pb.ProcessingResponse:
    """A piece of the request body as it came."""
    streamed = pb.StreamedBodyResponse(body=data, end_of_stream=ends)
    mutation = pb.BodyMutation(streamed_response=streamed)
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation)))


def frames(data: bytes, *, ends: bool = True) -> list[pb.ProcessingResponse]:
    """The request body in pieces; the one that ends it is always empty."""
    pieces = [frame(data[at : at + 62_000]) for at in range(0, len(data), 62_000)]
    return [*pieces, frame(b"", ends=True)] if ends else pieces


def kept_trailers() -> pb.ProcessingResponse:
    """The request's trailers as they came."""
    return pb.ProcessingResponse(request_trailers=pb.TrailersResponse())


def answer_headers(
    *, duplex: bool | None = None, ends: bool = False, metadata: dict[str, dict[str, Any]] | None = None
) -> pb.ProcessingRequest:
    """The response's headers; `duplex` where it is the first message of the stream, which tells the modes."""
    message = pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=header_map([(":status", "404")]), end_of_stream=ends)
    )
    if duplex is not None:
        message.protocol_config.response_body_mode = DUPLEX if duplex else NONE
    if metadata:
        message.metadata_context.CopyFrom(context(metadata))
    return message


def answer_body(data: bytes, *, ends: bool) -> pb.ProcessingRequest:
    """A piece of the response's body."""
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=ends))


def answer_frame(data: bytes, *, ends: bool) -> pb.ProcessingResponse:
    """A piece of the response's body as it came."""
    message = pb.ProcessingResponse()
    streamed = message.response_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = data, ends
    return message


KEPT_HEADERS = pb.ProcessingResponse(response_headers=pb.HeadersResponse())
KEPT_ANSWER_TRAILERS = pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


def parsed(replies: list[bytes]) -> list[pb.ProcessingResponse]:
    """Answers as messages."""
    return [pb.ProcessingResponse.FromString(reply) for reply in replies]


PLAIN = snapshot(endpoint(1, "vllm", None), endpoint(2, "vllm", None), endpoint(3, "sglang", None))
"""Nothing is known of the models: a named owner suffices."""
MIXED = snapshot(endpoint(1, "vllm"), endpoint(2, "vllm", (QWEN,)), endpoint(3, "sglang"))
"""The endpoints differ in their models: the model matters too."""
DEFAULT = policy()


def session(
    attachment: Attachment = Attachment.BEFORE,
    world: Snapshot = PLAIN,
    policy_: PolicyConfig = DEFAULT,
    loads: Loads | None = None,
    **more: Any,
) -> Session:
    """A stream of the pool `default/chat`, or of what `more` says of its binding; rotations count up from 0."""
    replies = Replies(world, policy_)
    binding = Binding(attachment, **({"pool": CHAT} | more))
    return Session(binding, lambda: replies, itertools.count().__next__, lambda: loads or {})


class Playbook:
    """A session's script: `Playbook(session) >> message << [answers]`; the answers are compared whole."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.said: list[pb.ProcessingResponse] = []

    def __rshift__(self, message: pb.ProcessingRequest) -> Self:
        self.said += parsed(self.session.receive(message))
        return self

    def __lshift__(self, expected: list[pb.ProcessingResponse]) -> Self:
        answers, self.said = self.said, []
        assert answers == expected
        return self


def _change(sets: dict[str, str] | None, removes: Iterable[str], reroute: bool) -> pb.CommonResponse:  # noqa: FBT001
    change = pb.CommonResponse(clear_route_cache=reroute)
    for name, value in (sets or {}).items():
        change.header_mutation.set_headers.append(_option(name, value))
    if removes:
        change.header_mutation.remove_headers.extend(removes)
    return change


def _with(message: pb.ProcessingResponse, metadata: dict[str, Any]) -> pb.ProcessingResponse:
    if metadata:
        message.dynamic_metadata.CopyFrom(struct(metadata))
    return message


def _option(name: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()))


def decision_line(**fields: Any) -> DecisionLine:
    """The line of a decision that has nothing special but what is said."""
    given: dict[str, Any] = {
        "request_id": "r-1",
        "attachment": "before",
        "decision": "restrict",
        "reason": "owner-matched",
        "owner": "sglang",
        "owners": ("sglang",),
        "model": "m",
        "endpoints": 2,
        "destination": "127.0.0.1:1",
        "microseconds": 40,
    }
    return DecisionLine(**given | fields)
