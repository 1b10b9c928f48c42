# SPDX-License-Identifier: Apache-2.0
"""Spans, sent to a collector over real HTTP."""

import asyncio
import io
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc import __version__
from extproc.observability.logs import DecisionLine, make_logger
from extproc.observability.metrics import Metrics
from extproc.observability.tracing import Metadata, Tracing, TracingError
from extproc.policy.types import STATUS, Reason
from tests.builders import decision_line
from tests.fakes.collector import Collector, Span

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("x-owned-by-attachment", "before"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))
UNSAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)


def line(decision: str = "restrict", reason: str = "owner-matched", owner: str = "sglang") -> DecisionLine:
    return decision_line(decision=decision, reason=reason, owner=owner)


class Traced:
    """A Tracing, and what it wrote and counted."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        self.metrics = Metrics()
        self.tracing = Tracing(self.metrics, make_logger("json", "info", self.stream))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it wrote, without the times."""
        found = [msgspec.json.decode(each) for each in self.stream.getvalue().splitlines()]
        return [{key: value for key, value in each.items() if key != "ts"} for each in found]

    @property
    def counts(self) -> list[float | None]:
        """The spans that are sent, and those that failed."""
        sample = self.metrics.registry.get_sample_value
        return [sample("owned_by_spans_total", {"result": result}) for result in ("sent", "failed")]

    def decide(self, metadata: Metadata = SAMPLED, said: DecisionLine | None = None) -> dict[str, str] | None:
        """One stream that is decided."""
        return self.tracing.begin(metadata).decided(said or line(), asked_body=True)

    async def close(self) -> float:
        """Close it; how many seconds that took."""
        began = time.monotonic()
        await asyncio.to_thread(self.tracing.close)
        return time.monotonic() - began


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = logging.getLogger("opentelemetry")
    monkeypatch.setattr(theirs, "handlers", [])
    monkeypatch.setattr(theirs, "propagate", theirs.propagate)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    async with Collector() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        yield made


@asynccontextmanager
async def traced() -> AsyncIterator[Traced]:
    made = Traced()
    try:
        yield made
    finally:
        await made.close()


async def sent(collector: Collector, *streams: tuple[Metadata, DecisionLine]) -> list[Span]:
    """The spans of some decisions."""
    async with traced() as made:
        for metadata, said in streams:
            made.decide(metadata, said)
    return collector.spans


async def test_a_decision_is_a_span_below_envoys_with_what_the_log_line_says(collector: Collector) -> None:
    before = time.time_ns()
    async with traced() as made:
        exemplar = made.decide((*SAMPLED, ("tracestate", "a=1,b=2")))
    (span,) = collector.spans

    assert before <= span.started <= span.ended <= time.time_ns()
    assert span == Span(
        service="owned-by",
        name="owned_by.decision",
        kind="server",
        trace=TRACE,
        id=span.id,
        parent=PARENT,
        state="a=1,b=2",
        attributes={
            "owned_by.attachment": "before",
            "owned_by.decision": "restrict",
            "owned_by.reason": "owner-matched",
            "owned_by.owner": "sglang",
            "owned_by.model": "m",
            "owned_by.endpoints": 2,
            "owned_by.asked_body": True,
            "x-request-id": "r-1",
        },
        error=None,
        started=span.started,
        ended=span.ended,
    )
    assert exemplar == {"trace_id": TRACE, "span_id": span.id}
    assert (made.counts, made.lines) == ([1, 0], [])


@pytest.mark.parametrize("parent", [(), (("traceparent", "00-0-0-01"),), (("tracestate", "a=1"),)])
async def test_without_a_parent_that_can_be_read_a_trace_begins(
    collector: Collector, parent: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    (span,) = await sent(collector, (parent, line()))

    assert (span.parent, span.state, len(span.trace)) == ("", "", 32)


async def test_what_the_parent_does_not_sample_has_neither_span_nor_exemplar(collector: Collector) -> None:
    async with traced() as made:
        exemplar = made.decide(UNSAMPLED)

    assert (exemplar, collector.requests, made.counts) == (None, [], [0, 0])


@pytest.mark.parametrize("reason", STATUS)
async def test_a_refusal_is_an_error_if_it_is_a_failure_of_ours(collector: Collector, reason: Reason) -> None:
    (span,) = await sent(collector, (SAMPLED, line("reject", reason, "")))

    assert span.error == (reason if reason in ("no-ready-endpoint", "pool-unknown") else None)


async def test_what_is_passed_through_is_no_error(collector: Collector) -> None:
    (span,) = await sent(collector, (SAMPLED, line("passthrough", Reason.POOL_UNKNOWN, "")))

    assert span.error is None


async def test_a_stream_that_is_aborted_is_an_error(collector: Collector) -> None:
    async with traced() as made:
        made.tracing.begin(SAMPLED).failed("internal")
        after = made.tracing.begin(SAMPLED)
        after.decided(line(), asked_body=False)
        after.failed("internal")

    assert [(span.parent, span.error, span.attributes.get("error.type")) for span in collector.spans] == [
        (PARENT, "internal", "internal"),
        (PARENT, None, None),
    ]


@pytest.mark.parametrize(
    ("variables", "sampler"),
    [
        ({}, "ParentBased{root:TraceIdRatioBased{0.1}"),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, "ParentBased{root:TraceIdRatioBased{0.5}"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "AlwaysOffSampler"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, "TraceIdRatioBased{0.25}"),
    ],
)
async def test_a_tenth_is_traced_unless_the_variables_say_else(
    variables: dict[str, str], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with traced() as made:
        described = made.tracing._provider.sampler.get_description()

    assert described.partition(",")[0] == sampler


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, {"service.name": "owned-by", "service.version": __version__}),
        ({"OTEL_SERVICE_NAME": "ours"}, {"service.name": "ours", "service.version": __version__}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,service.version=7,k8s.pod.name=p"},
            {"service.name": "theirs", "service.version": "7", "k8s.pod.name": "p"},
        ),
    ],
)
async def test_the_service_is_called_as_the_variables_say(
    variables: dict[str, str], named: dict[str, str], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    await sent(collector, (SAMPLED, line()))
    (resource,) = collector.resources

    resource.pop("service.instance.id")

    assert {key: value for key, value in resource.items() if not key.startswith("telemetry.")} == named


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "OTEL_EXPORTER_OTLP_PROTOCOL: `grpc` is not spoken here, only `http/protobuf`",
        ),
        (
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "http/json",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: `http/json` is not spoken here, only `http/protobuf`",
        ),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "collector:4318",
            "OTEL_EXPORTER_OTLP_ENDPOINT: `collector:4318` is not a URL with http:// or https://",
        ),
        ("OTEL_TRACES_SAMPLER_ARG", "ten", "OTEL_TRACES_SAMPLER_ARG: `ten` is not a number from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "OTEL_TRACES_SAMPLER_ARG: `1.5` is not a number from 0 to 1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "OTEL_BSP_*: max_queue_size must be a positive integer."),
    ],
)
def test_a_variable_that_cannot_be_followed_is_named(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(TracingError) as raised:
        Traced()

    assert str(raised.value) == message


async def test_a_collector_that_is_not_there_costs_a_second_at_the_end_and_a_few_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as bound:  # bound and not listening: who connects is refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{bound.getsockname()[1]}")
        made = Traced()
        for _ in range(20):
            made.decide()
        took = await made.close()

    assert took < 5  # the exporter alone tries for ten seconds
    assert made.counts == [0, 20]
    assert {(each["level"], each["logger"]) for each in made.lines} <= {("warning", "tracing"), ("error", "tracing")}
    assert "Connection refused" in made.lines[0]["msg"]
    assert len({each["msg"] for each in made.lines}) == len(made.lines) < 5


async def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Collector(status=None) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent.url)
        made = Traced()
        made.decide()
        took = await made.close()
        await silent.asked()

    assert took < 5


async def test_what_a_collector_refuses_is_said_once_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    async with Collector(status=400) as refusing:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", refusing.url)
        async with traced() as made:
            made.decide()
            await refusing.asked(1)
            made.decide()
            await refusing.asked(2)

    assert made.counts == [0, 2]
    assert made.lines == [
        {"level": "error", "logger": "tracing", "msg": "Failed to export spans batch code: 400, reason: Said"}
    ]


async def test_a_header_that_cannot_be_read_is_not_shown(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Bearer secret,x-token=other")
    async with traced() as made:
        made.decide()

    assert collector.requests[0]["x-token"] == "other"
    assert [each["msg"] for each in made.lines] == [
        "OTEL_EXPORTER_OTLP_HEADERS: a header that is not name=value is left out"
    ]


async def test_nobody_but_the_collector_is_dialled(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Collector() as proxy:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        await sent(collector, (SAMPLED, line()))

        assert (len(collector.spans), proxy.requests) == (1, [])


async def test_an_sdk_that_is_disabled_traces_nothing(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with traced() as made:
        exemplar = made.decide()

    assert (exemplar, collector.requests) == (None, [])


def test_who_does_not_trace_does_not_load_the_sdk() -> None:
    code = "import sys, extproc.cli; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout == "[]\n"


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "endpoints.yaml").write_text("pools: [{name: chat, endpoints: []}]")
    code = "import sys; sys.modules['opentelemetry'] = None; from extproc.cli import main; main()"
    flags = ["serve", "--endpoints-file", str(tmp_path / "endpoints.yaml"), "--tracing"]
    said = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)

    assert said.returncode == 1
    assert "pip install 'owned-by-extproc[otel]'" in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr
