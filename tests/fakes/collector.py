# SPDX-License-Identifier: Apache-2.0
"""A collector of traces as OpenTelemetry's exporters and Envoy's tracer see it: OTLP over HTTP, on loopback."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import h11
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

PATIENCE = 20.0
"""Seconds until a test that waits in vain fails."""
Attributes = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A span as it arrived: ids in hexadecimal, `parent` "" for a root, `error` its message if its status is one."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    attributes: Attributes
    error: str | None
    started: int
    ended: int


class Collector:
    """Listens at a free port while the context is open; `spans` are those that have arrived, `requests` the headers.

    It answers each request with `status`, or with None not at all.
    """

    def __init__(self, status: int | None = 200) -> None:
        self.spans: list[Span] = []
        self.resources: list[Attributes] = []
        self.requests: list[dict[str, str]] = []
        self.port = 0
        self._status = status
        self._news = asyncio.Condition()
        self._connections = set[asyncio.Task[None]]()

    @property
    def url(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT takes."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def until(self, told: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans, once `told` is true of them."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: told(self.spans))
            return list(self.spans)

    async def asked(self, times: int = 1) -> None:
        """Wait for so many requests."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.requests) >= times)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h11.Connection(h11.SERVER)
        with contextlib.suppress(OSError, h11.RemoteProtocolError), contextlib.closing(writer):  # the client left
            while (request := await _next(protocol, reader)) is not None:
                body = b""
                while isinstance(piece := await _next(protocol, reader), h11.Data):
                    body += piece.data
                await self._arrived(request, body)
                if self._status is None:
                    await asyncio.Event().wait()
                writer.write(
                    protocol.send(
                        h11.Response(status_code=self._status, reason=b"Said", headers=[("content-length", "0")])
                    )
                )
                writer.write(protocol.send(h11.EndOfMessage()))
                await writer.drain()
                protocol.start_next_cycle()

    async def _arrived(self, request: h11.Request, body: bytes) -> None:
        async with self._news:
            self.requests.append({name.decode(): value.decode("latin-1") for name, value in request.headers})
            if (request.method, request.target, self._status) == (b"POST", b"/v1/traces", 200):
                self._take(ExportTraceServiceRequest.FromString(body))
            self._news.notify_all()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            self.resources.append(resource)
            spans = [span for scope in group.scope_spans for span in scope.spans]
            self.spans += [_span(resource["service.name"], span) for span in spans]


async def _next(protocol: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """The next event of a request, None once the client has closed."""
    while (event := protocol.next_event()) is h11.NEED_DATA:
        protocol.receive_data(await reader.read(65_536))
    return None if isinstance(event, h11.ConnectionClosed) else event


def _span(service: str, span: trace_pb2.Span) -> Span:
    return Span(
        service=service,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        state=span.trace_state,
        attributes=_attributes(span.attributes),
        error=span.status.message if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR else None,
        started=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> Attributes:
    found: Attributes = {}
    pair: KeyValue
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind) if kind else None
    return found
