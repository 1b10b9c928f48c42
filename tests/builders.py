# SPDX-License-Identifier: Apache-2.0
"""Short ways to say what a test is about: a policy, endpoints, a snapshot, Envoy's messages."""

import json
from typing import Any, Self

from google.protobuf.struct_pb2 import Struct

from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig, parse_policy
from extproc.policy.extract import from_head
from extproc.policy.types import Endpoint, InferenceRequest, Model, Pool, Scope, Snapshot

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
    content_type: str = "application/json",
    metadata: dict[str, dict[str, Any]] | None = None,
) -> pb.ProcessingRequest:
    """The first message of a stream; `mode` is the request's configured body mode."""
    all_pairs = [(":method", method), (":path", path), (":authority", "gateway")]
    all_pairs += [("content-type", content_type)] if content_type else []
    message = pb.ProcessingRequest()
    message.request_headers.headers.CopyFrom(header_map([*all_pairs, *pairs]))
    message.request_headers.end_of_stream = ends
    message.protocol_config.SetInParent()
    if mode is not None:
        message.protocol_config.request_body_mode = mode
    for namespace, value in (metadata or {}).items():
        message.metadata_context.filter_metadata[namespace].CopyFrom(struct(value))
    return message


def body(data: bytes | dict[str, Any], *, ends: bool = True) -> pb.ProcessingRequest:
    """A request body message."""
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=ends))


def trailers() -> pb.ProcessingRequest:
    """A request trailers message."""
    return pb.ProcessingRequest(request_trailers=pb.HttpTrailers(trailers=header_map([("x-end", "1")])))


def said(owner: str, model: str, reason: str, endpoints: int, guard: str = "") -> dict[str, Any]:
    """Our own metadata namespace (design section 3)."""
    return {"owned_by": {"owner": owner, "model": model, "reason": reason, "endpoints": endpoints, "guard": guard}}


def hint(*destinations: str) -> dict[str, Any]:
    """The subset hint of `before`."""
    return {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": list(destinations)}}


def destination(value: str) -> dict[str, Any]:
    """The destination as metadata."""
    return {"envoy.lb": {"x-gateway-destination-endpoint": value}}


def goes_on(metadata: dict[str, Any], *, sets: dict[str, str] | None = None) -> pb.ProcessingResponse:
    """The answer to the headers: go on, without what only a gateway may say."""
    message = pb.ProcessingResponse(dynamic_metadata=struct(metadata))
    mutation = message.request_headers.response.header_mutation
    mutation.remove_headers.extend(SPOOFABLE)
    for name, value in (sets or {}).items():
        mutation.set_headers.append(_option(name, value))
    return message


def body_goes_on(metadata: dict[str, Any], *, sets: dict[str, str] | None = None) -> pb.ProcessingResponse:
    """The answer to a body that was asked for: go on, the body as it is."""
    message = pb.ProcessingResponse(dynamic_metadata=struct(metadata), request_body=pb.BodyResponse())
    for name, value in (sets or {}).items():
        message.request_body.response.header_mutation.set_headers.append(_option(name, value))
    return message


def asks() -> pb.ProcessingResponse:
    """The answer to the headers that asks for the body."""
    message = pb.ProcessingResponse(mode_override=pb.ProcessingMode(request_body_mode=MODE.BUFFERED_PARTIAL))
    message.request_headers.response.header_mutation.remove_headers.extend(SPOOFABLE)
    return message


def frame(data: bytes, *, ends: bool = False) -> pb.ProcessingResponse:
    """A piece of the request body as it came."""
    streamed = pb.StreamedBodyResponse(body=data, end_of_stream=ends)
    mutation = pb.BodyMutation(streamed_response=streamed)
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation)))


def kept_trailers() -> pb.ProcessingResponse:
    """The request's trailers as they came."""
    return pb.ProcessingResponse(request_trailers=pb.TrailersResponse())


def parsed(replies: list[bytes]) -> list[pb.ProcessingResponse]:
    """Answers as messages."""
    return [pb.ProcessingResponse.FromString(reply) for reply in replies]


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


def _option(name: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()))
