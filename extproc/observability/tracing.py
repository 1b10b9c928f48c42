# SPDX-License-Identifier: Apache-2.0
"""A span for each decision, handed to a collector by OpenTelemetry's SDK (OTLP over HTTP).

The SDK is an extra, and large: only who traces imports this module. Its variables hold (`OTEL_*`), with other defaults for
the service's name and the sampler. Bodies and credentials are never handed to it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Final

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from extproc import __version__
from extproc.envoy import names
from extproc.observability.logs import DecisionLine, Logger, Relay
from extproc.observability.metrics import Exemplar, Metrics
from extproc.policy.document import DocumentError
from extproc.policy.types import STATUS, Reason

SERVICE: Final = "owned-by"
"""What our spans say that they come from."""
SPAN: Final = "owned_by.decision"
"""What a span is called."""
RATIO: Final = 0.1
"""The share of requests that is traced where nobody has decided it before us."""
PATIENCE: Final = 1.0
"""Seconds that the collector has, when the process ends, to take what is left."""

_MOMENT: Final = 0.2
_FAILURE: Final = 500
_HEADERS_LOGGER: Final = "opentelemetry.util.re"

Metadata = Iterable[tuple[str, str | bytes]]


class TracingError(DocumentError):
    """Spans cannot be sent as the environment asks for; the text names the variable."""


class Tracing:
    """Makes spans and sends them from a thread of its own, until it is closed."""

    def __init__(self, metrics: Metrics, logger: Logger) -> None:
        """Ready to trace; nobody is dialled yet. Raises TracingError."""
        _refuse_what_is_not_spoken()
        sampler = _sampler()
        self._relay = Relay(logger, "opentelemetry", "tracing", _words)
        self._relay.attach()
        # The collector is dialled, and nobody else: no proxy, no credentials that a .netrc has for its host.
        session = requests.Session()
        session.trust_env = False
        self._exporter = _Counted(OTLPSpanExporter(session=session), metrics)
        # Closed by us, in time, and not when the interpreter ends.
        self._provider = TracerProvider(sampler, _resource(), shutdown_on_exit=False)
        try:
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        except ValueError as error:
            raise TracingError(f"OTEL_BSP_*: {error}") from error
        self._tracer = self._provider.get_tracer("extproc", __version__)

    def begin(self, metadata: Metadata) -> "Trace":
        """A stream begins; `metadata` is its initial gRPC metadata, whose `traceparent` names the parent."""
        return Trace(self._tracer, metadata)

    def close(self) -> None:
        """Send what is left; whatever the collector has not taken after PATIENCE is lost. Says nothing from then on."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        self._exporter.shutdown()  # who waits to try again gives up
        closing.join(_MOMENT)
        self._relay.detach()


class Trace:
    """One stream, from its begin to its decision: at most one span."""

    def __init__(self, tracer: Tracer, metadata: Metadata) -> None:
        """It begins now."""
        self._tracer = tracer
        self._metadata = metadata
        self._began = time.time_ns()
        self._ended = False

    def decided(self, line: DecisionLine, *, asked_body: bool) -> Exemplar | None:
        """End it with what is logged of the decision; what names its span, None if it is not sampled.

        An answer of ours of 500 or more is the one decision that is an error: a client's mistake is none of ours.
        """
        failed = line.decision == "reject" and STATUS[Reason(line.reason)] >= _FAILURE
        return self._end(
            {
                "owned_by.attachment": line.attachment,
                "owned_by.decision": line.decision,
                "owned_by.reason": line.reason,
                "owned_by.owner": line.owner,
                "owned_by.model": line.model,
                "owned_by.endpoints": line.endpoints,
                "owned_by.asked_body": asked_body,
                names.REQUEST_ID: line.request_id,
            },
            line.reason if failed else "",
        )

    def failed(self, cause: str) -> None:
        """End it, if it is not decided, as a stream that we abort: an error."""
        if not self._ended:
            self._end({"error.type": cause}, cause)

    def _end(self, attributes: dict[str, str | int | bool], error: str) -> Exemplar | None:
        self._ended = True
        parent = _PROPAGATOR.extract({key: value for key, value in self._metadata if key in _PARENT})
        span = self._tracer.start_span(SPAN, parent, SpanKind.SERVER, start_time=self._began)
        if not span.is_recording():
            return None
        span.set_attributes(attributes)
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end()
        context = span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


_PROPAGATOR: Final = TraceContextTextMapPropagator()
_PARENT: Final = _PROPAGATOR.fields


class _Counted(SpanExporter):
    """Another exporter, what came of whose spans is counted; it may be shut down twice."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._sent, self._failed = metrics.spans.labels("sent"), metrics.spans.labels("failed")
        self._shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        (self._sent if result is SpanExportResult.SUCCESS else self._failed).inc(len(spans))
        return result

    def shutdown(self) -> None:
        if not self._shut:
            self._shut = True
            self._exporter.shutdown()


def _words(record: logging.LogRecord) -> str:
    """What the SDK says; where its argument is a header, that may be a credential."""
    if record.name == _HEADERS_LOGGER:
        return "OTEL_EXPORTER_OTLP_HEADERS: a header that is not name=value is left out"
    return record.getMessage()


def _refuse_what_is_not_spoken() -> None:
    """See that the exporter's variables name what there is. Raises TracingError."""
    variable, protocol = _exporter_variable("PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        raise TracingError(f"{variable}: `{protocol}` is not spoken here, only `http/protobuf`")
    variable, endpoint = _exporter_variable("ENDPOINT")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"{variable}: `{endpoint}` is not a URL with http:// or https://")


def _exporter_variable(name: str) -> tuple[str, str]:
    """A variable of the exporter's and its value, "" if it is not set: the one for traces, else the one for everything."""
    specific, general = f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    if value := os.environ.get(specific):
        return specific, value
    return general, os.environ.get(general, "")


def _sampler() -> Sampler | None:
    """What chooses the requests to trace; None lets the SDK read OTEL_TRACES_SAMPLER. Raises TracingError."""
    if os.environ.get("OTEL_TRACES_SAMPLER"):
        return None
    ratio = os.environ.get("OTEL_TRACES_SAMPLER_ARG") or str(RATIO)
    try:
        return ParentBasedTraceIdRatio(float(ratio))
    except ValueError as error:
        raise TracingError(f"OTEL_TRACES_SAMPLER_ARG: `{ratio}` is not a number from 0 to 1") from error


def _resource() -> Resource:
    """Who we are: by our own name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say another."""
    ours: dict[str, AttributeValue] = {SERVICE_NAME: SERVICE, SERVICE_VERSION: __version__}
    found = Resource.create().attributes.items()
    return Resource(ours | {key: value for key, value in found if not str(value).startswith("unknown_service")})
