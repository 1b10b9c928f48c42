# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the llm-d Endpoint Picker: it picks at random and says so exactly as the real one does.

What it reads and answers is facts/epp.md 1.1 (the hint), 1.2 (the messages) and 1.4 (the refusals), where the facts leave
something open the router's own `pkg/epp/handlers`. Only FULL_DUPLEX_STREAMED is spoken, both ways. Two things are not as
there: a body is not parsed, so that none is refused, and request trailers end a request, which the real one lets wait.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.json_format import MessageToDict

from extproc.envoy.pb import external_processor_pb2 as pb

# Spelt out and not taken from the code under test, so that a slip there does not repeat itself here.
SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD = "Process"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
DESTINATION_NAMESPACE = "envoy.lb"
DESTINATION = "x-gateway-destination-endpoint"

FRAME = 62_000
"""The largest body frame, in bytes (facts/epp.md 1.2, `pkg/common/envoy/chunking.go`)."""
NO_CANDIDATES = "failed to find endpoint candidates for serving the request"
NO_PODS = "no pods available in datastore"
DROPPED = "x-llm-d-request-dropped-reason"
RESPONSE_MARK = "x-went-into-resp-headers"

SYSTEM_OWNED = frozenset(
    {
        *("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id"),
        *("x-llm-d-inference-objective", "x-gateway-inference-objective"),
        *("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"),
        *("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"),
        *("x-llm-d-video-fps", "x-llm-d-video-duration-seconds", "x-llm-d-video-resolution"),
        *(SUBSET, DESTINATION, f"{DESTINATION}-served", DROPPED, "content-length"),
    }
)
"""Never echoed (facts/epp.md 1.2 and 1.3, old names included)."""
REFUSED = (":", "x-envoy-")
"""The EPP echoes these, too, to no effect: Envoy ignores and counts them (`rejected_header_mutations`, facts/envoy.md 3).
They are left out so that the counter stays at 0."""

Context = grpc.aio.ServicerContext[pb.ProcessingRequest, pb.ProcessingResponse]


@dataclass
class Seen:
    """What one stream showed, filled in as it goes on.

    `hint` is the list that ended the body and `early_hint` the one in the headers message, None where it is no list;
    `pick` is the destination that was answered, "" if none was; `headers` are the request's names as they came.
    """

    hint: list[Any] | None = None
    early_hint: list[Any] | None = None
    pick: str = ""
    body_bytes: int = 0
    headers: tuple[str, ...] = ()
    began_at_response: bool = False


class EndpointPicker:
    """An EPP for `pool` ("ip:port" of every pod) on a free port of 127.0.0.1, in the loop of its `async with`.

    `destinations` is the picker's maxNumOfEndpoints, `headers` are what its plugins add to a request with a body (P/D);
    with `credentials` it speaks TLS, as the real one does by default.
    The attributes may be changed while it runs; `seen` has one entry for each stream, oldest first.
    """

    def __init__(
        self,
        pool: Sequence[str],
        *,
        destinations: int = 1,
        headers: Mapping[str, str] | None = None,
        seed: int | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.port = 0
        self.pool = pool
        self.destinations = destinations
        self.headers = headers or {}
        self.ignores_hint = False
        """It picks among the pods that the hint does not name: of all, some would be right by chance."""
        self.seen: list[Seen] = []
        self.random = random.Random(seed)
        self._credentials = credentials
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        handler = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        # Envoy's messages grow with its buffer limit, which a test may raise above gRPC's own 4 MiB.
        self._server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        if self._credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop(None)

    def candidates(self, hint: list[Any] | None) -> Sequence[str]:
        """The pods that a hint leaves: their IPs alone are compared, with what stands before a member's last colon."""
        if hint is None:
            return self.pool
        wanted = {member.rpartition(":")[0] or member for member in hint if isinstance(member, str)}
        return [pod for pod in self.pool if (pod.rpartition(":")[0].strip("[]") in wanted) is not self.ignores_hint]

    async def _process(self, _requests: object, context: Context) -> None:
        stream = _Stream(self)
        while not stream.refused and (message := await context.read()) is not grpc.aio.EOF:
            for reply in stream.receive(message):
                await context.write(reply)


class _Stream:
    """One HTTP request: Envoy's messages in, the EPP's out."""

    def __init__(self, picker: EndpointPicker) -> None:
        self.refused = False
        self._picker = picker
        self._seen = Seen()
        picker.seen.append(self._seen)
        self._request_headers: dict[str, bytes] = {}
        self._body = bytearray()
        self._answer = bytearray()
        self._sse = False

    def receive(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        match kind := message.WhichOneof("request"):
            case "request_headers":
                return self._on_request_headers(message)
            case "request_body":
                self._body += message.request_body.body
                self._seen.body_bytes = len(self._body)
                return self._schedule(message) if message.request_body.end_of_stream else []
            case "request_trailers":
                replies = self._schedule(message)
                return replies if self.refused else [*replies, pb.ProcessingResponse(request_trailers={})]
            case "response_headers":
                self._seen.began_at_response = not self._seen.headers
                return [self._on_response_headers(message.response_headers)]
            case "response_body":
                return self._on_response_body(message.response_body)
            case "response_trailers":
                # What is held goes without an end of stream: that is the trailers'.
                held = _frames("response_body", self._answer, end=False) if self._answer else ()
                return [*held, pb.ProcessingResponse(response_trailers={})]
        raise ValueError(f"the stand-in does not know {kind}")

    def _on_request_headers(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        received = message.request_headers
        self._seen.headers = tuple(header.key for header in received.headers.headers)
        self._seen.early_hint = _hint(message)
        if not received.end_of_stream:
            self._request_headers = _fields(received)
            return []
        # No body: any pod, whatever the hint, and the headers are not even looked at.
        if not self._picker.pool:
            return [self._refuse(500, "Internal", NO_PODS)]
        self._seen.pick = self._picker.random.choice(self._picker.pool)
        return [self._destination(self._seen.pick, {})]

    def _schedule(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        """The request is there to its end: all answers that it waits for."""
        self._seen.hint = _hint(message)
        candidates = self._picker.candidates(self._seen.hint)
        if not candidates:
            return [self._refuse(503, "ServiceUnavailable", NO_CANDIDATES, **{DROPPED: "rejected-no-endpoints"})]
        count = min(self._picker.destinations, len(candidates))
        self._seen.pick = ",".join(self._picker.random.sample(candidates, count))
        length = {"Content-Length": str(len(self._body)).encode()} if self._body else {}
        added = {name: value.encode() for name, value in self._picker.headers.items()}
        ends = message.HasField("request_body")
        frames = _frames("request_body", self._body, end=ends) if ends or self._body else ()
        return [self._destination(self._seen.pick, length | self._request_headers | added), *frames]

    def _destination(self, pick: str, headers: dict[str, bytes]) -> pb.ProcessingResponse:
        """The answer to the request's headers: the pick, as a header and as metadata."""
        reply = pb.ProcessingResponse(dynamic_metadata={DESTINATION_NAMESPACE: {DESTINATION: pick}})
        reply.request_headers.response.clear_route_cache = True
        _set(reply.request_headers.response.header_mutation, {DESTINATION: pick.encode()} | headers)
        return reply

    def _refuse(self, status: int, code: str, text: str, **headers: str) -> pb.ProcessingResponse:
        self.refused = True
        reply = pb.ProcessingResponse()
        reply.immediate_response.status.code = status
        reply.immediate_response.body = f"inference error: {code} - {text}".encode()
        _set(reply.immediate_response.headers, {name: value.encode() for name, value in headers.items()})
        return reply

    def _on_response_headers(self, received: pb.HttpHeaders) -> pb.ProcessingResponse:
        fields = _fields(received)
        self._sse = b"text/event-stream" in fields.get("content-type", b"")
        reply = pb.ProcessingResponse()
        _set(reply.response_headers.response.header_mutation, {RESPONSE_MARK: b"true"} | fields)
        return reply

    def _on_response_body(self, received: pb.HttpBody) -> list[pb.ProcessingResponse]:
        """Server-sent events as they come, any other body at its end."""
        if self._sse:
            return list(_frames("response_body", received.body, end=received.end_of_stream))
        self._answer += received.body
        return list(_frames("response_body", self._answer, end=True)) if received.end_of_stream else []


def _hint(message: pb.ProcessingRequest) -> list[Any] | None:
    namespaces = message.metadata_context.filter_metadata
    if SUBSET_NAMESPACE not in namespaces:
        return None
    value = MessageToDict(namespaces[SUBSET_NAMESPACE]).get(SUBSET)
    return value if isinstance(value, list) else None


def _fields(received: pb.HttpHeaders) -> dict[str, bytes]:
    """What is echoed. Of headers that are there twice the last one stays, since the EPP keeps them in a map."""
    return {
        header.key: header.raw_value
        for header in received.headers.headers
        if header.key not in SYSTEM_OWNED and not header.key.startswith(REFUSED)
    }


def _set(mutation: pb.HeaderMutation, headers: Mapping[str, bytes]) -> None:
    for name, value in headers.items():
        mutation.set_headers.add(header=pb.HeaderValue(key=name, raw_value=value))


def _frames(kind: str, body: bytes | bytearray, *, end: bool) -> Iterator[pb.ProcessingResponse]:
    starts = range(0, len(body), FRAME) or [0]
    for start in starts:
        reply = pb.ProcessingResponse()
        streamed = getattr(reply, kind).response.body_mutation.streamed_response
        streamed.body = bytes(body[start : start + FRAME])
        streamed.end_of_stream = end and start == starts[-1]
        yield reply
