# SPDX-License-Identifier: Apache-2.0
"""The servicer, called over real gRPC."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import msgspec
import pytest

from extproc.envoy import names
from extproc.envoy.binding import Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.observability.logs import DecisionLog, make_logger
from extproc.observability.metrics import Metrics
from extproc.observability.tracing import Tracing
from extproc.policy.config import PolicyConfig, default_policy
from extproc.policy.loading import parse_policy
from extproc.policy.pick import Load
from extproc.policy.types import Endpoint, Model, Pool, Snapshot
from extproc.server import extproc
from extproc.server.extproc import ExternalProcessor
from tests.builders import DUPLEX, KEPT_HEADERS, answer_headers, context, destination, hint, streams
from tests.fakes.collector import Collector, Span
from tests.streams import call

POOL = Pool("default", "chat")
SNAPSHOT = Snapshot(
    1,
    (POOL,),
    {
        POOL: tuple(
            Endpoint(name, "default", "127.0.0.1", port, {"llm-d.ai/engine-type": name}, models=(Model("m"),))
            for name, port in (("vllm", 1), ("sglang", 2))
        )
    },
)
IMPATIENT = parse_policy(b"{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, body: {timeout: 100ms}}")


class Running:
    """A server on a free port, and what it wrote and counted."""

    def __init__(
        self,
        policy: PolicyConfig | None = None,
        *,
        snapshot: Any = lambda: SNAPSHOT,
        loads: Any = dict,
        traced: bool = False,
    ) -> None:
        policy = policy or default_policy()
        self.stream = io.BytesIO()
        self.metrics = Metrics()
        logger = make_logger("json", "info", self.stream)
        self.tracing = Tracing(self.metrics, logger) if traced else None
        self.processor = ExternalProcessor(
            Binding(),
            snapshot,
            lambda: policy,
            logger,
            DecisionLog(logger, "json", "info", lambda _, flush: flush(), self.stream),
            self.metrics,
            loads,
            self.tracing,
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.stream.getvalue().splitlines()]


@asynccontextmanager
async def serving(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((running.processor.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(0)


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(running) as opened:
        yield opened


@pytest.fixture
def running() -> Running:
    return Running()


def headers(
    *, mode: int = 0, end: bool = False, metadata: dict[str, dict[str, Any]] | None = None, **given: str
) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration(request_body_mode=mode))
    message.metadata_context.CopyFrom(context(metadata or {}))
    fields = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"} | given
    for name, value in fields.items():
        header = pb.HeaderValue(key=name.replace("_", "-"), raw_value=value.encode())
        message.request_headers.headers.headers.append(header)
    message.request_headers.end_of_stream = end
    return message


async def test_the_server_ends_the_stream_after_its_last_answer(channel: grpc.aio.Channel, running: Running) -> None:
    stream = call(channel)
    await stream.write(headers(x_owned_by="sglang", x_gateway_model_name="m", x_request_id="r-1"))
    answer = await stream.read()
    end = await stream.read()

    assert answer.WhichOneof("response") == "request_headers"
    assert end is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    assert [(line["msg"], line["x-request-id"], line["reason"], line["owner"]) for line in running.lines] == [
        ("decision", "r-1", "owner-matched", "sglang")
    ]
    labels = {"attachment": "before", "decision": "restrict", "reason": "owner-matched", "owner": "sglang"}
    assert running.metrics.registry.get_sample_value("owned_by_decisions_total", labels) == 1


async def test_an_unexpected_exception_aborts_the_stream() -> None:
    broken = Running()
    broken.processor._snapshot = None  # type: ignore[assignment]
    async with serving(broken) as opened:
        stream = call(opened)
        await stream.write(headers(x_owned_by="sglang"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()

    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert [line["msg"] for line in broken.lines] == ["internal error"]
    assert broken.metrics.registry.get_sample_value("owned_by_stream_errors_total", {"cause": "internal"}) == 1


@pytest.mark.parametrize(
    ("metadata", "details"),
    [
        (
            {names.ATTACHMENT: "behind"},
            "x-owned-by-attachment: `behind` is not one of `before`, `after`, `picker`, `header`",
        ),
        ({names.POOL: "chat"}, "x-owned-by-pool: `chat` is not namespace/name"),
        ({names.BODY: "buffered"}, "x-owned-by-body: `buffered` is not one of `partial`, `stream`"),
    ],
)
async def test_initial_metadata_that_is_not_understood_aborts_the_stream(
    channel: grpc.aio.Channel, metadata: dict[str, str], details: str
) -> None:
    stream = call(channel, metadata)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()

    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, details)


async def test_a_client_that_goes_away_is_no_error(channel: grpc.aio.Channel, running: Running) -> None:
    stream = call(channel)
    await stream.write(headers())
    answer = await stream.read()
    stream.cancel()
    async with asyncio.timeout(10):
        while running.processor.open_streams:  # noqa: ASYNC110 - the server says nothing
            await asyncio.sleep(0)

    assert answer.mode_override.request_body_mode == pb.ProcessingMode.BUFFERED_PARTIAL
    assert running.lines == []


ENDS: dict[str, list[pb.ProcessingRequest]] = {
    "before any message": [],
    "instead of the body": [headers()],
    "within the body": [headers(mode=DUPLEX), pb.ProcessingRequest(request_body=pb.HttpBody(body=b"{"))],
}


@pytest.mark.parametrize("messages", ENDS.values(), ids=ENDS)
async def test_an_end_by_envoy_is_no_error_and_answered_with_nothing(
    messages: list[pb.ProcessingRequest], channel: grpc.aio.Channel, running: Running
) -> None:
    stream = call(channel)
    for message in messages:
        await stream.write(message)
    await stream.done_writing()
    answers = await rest(stream)

    assert answers[-1] == pb.ProcessingResponse()
    assert (await stream.code(), running.lines) == (grpc.StatusCode.OK, [])
    assert sample(running, "owned_by_streams_in_flight") == 0


async def rest(stream: grpc.aio.StreamStreamCall[Any, Any]) -> list[pb.ProcessingResponse]:
    """Everything that the server still says."""
    answers = []
    while (answer := await stream.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


async def test_all_answers_to_one_message_arrive_in_order_with_the_status(channel: grpc.aio.Channel) -> None:
    data = b'{"owned_by": "sglang", "model": "m", "prompt": "' + b"x" * 100_000 + b'"}'
    stream = call(channel)
    await stream.write(headers(mode=DUPLEX))
    await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=True)))
    head, *pieces = await rest(stream)
    streamed = [piece.request_body.response.body_mutation.streamed_response for piece in pieces]

    assert head.WhichOneof("response") == "request_headers"
    assert b"".join(piece.body for piece in streamed) == data
    assert [piece.end_of_stream for piece in streamed] == [False, False, True]
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_goes_on_for_as_long_as_there_is_something_to_say(channel: grpc.aio.Channel) -> None:
    stream = call(channel)
    await stream.write(headers(mode=DUPLEX, x_owned_by="sglang", x_gateway_model_name="m"))
    first = await stream.read()
    await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=b"one")))
    second = await stream.read()
    await stream.write(pb.ProcessingRequest(request_trailers=pb.HttpTrailers()))
    answers = [first, second, *(await rest(stream))]

    kinds = [answer.WhichOneof("response") for answer in answers]
    assert kinds == ["request_headers", "request_body", "request_trailers"]
    assert await stream.code() is grpc.StatusCode.OK


async def test_the_body_is_asked_for_as_the_filter_says(channel: grpc.aio.Channel) -> None:
    stream = call(channel, {names.BODY: "stream"})
    await stream.write(headers())
    asked = await stream.read()
    body = pb.HttpBody(body=b'{"engine": "sglang", "model": "m"}', end_of_stream=True)
    await stream.write(pb.ProcessingRequest(request_body=body))
    answers = [answer.WhichOneof("response") for answer in await rest(stream)]

    assert asked == streams()
    assert answers == ["request_headers", "request_body", "request_body"]


@pytest.fixture
async def impatient() -> AsyncIterator[grpc.aio.Channel]:
    async with serving(Running(IMPATIENT)) as opened:
        yield opened


async def test_a_body_that_comes_byte_by_byte_is_a_408(impatient: grpc.aio.Channel) -> None:
    stream = call(impatient, {names.ATTACHMENT: "picker"})
    await stream.write(headers(mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED))

    async def trickle() -> None:
        while True:
            await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=b" ")))
            await asyncio.sleep(0.02)

    sender = asyncio.create_task(trickle())
    answer = await asyncio.wait_for(stream.read(), 10)
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)

    assert answer.immediate_response.status.code == 408


async def test_a_body_that_does_not_come_is_a_408(impatient: grpc.aio.Channel) -> None:
    stream = call(impatient, {names.ATTACHMENT: "picker"})
    await stream.write(headers(mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED))
    answer = await stream.read()

    assert answer.immediate_response.status.code == 408
    assert msgspec.json.decode(answer.immediate_response.body)["error"]["code"] == "body_timeout"


def sample(running: Running, name: str) -> float | None:
    return running.metrics.registry.get_sample_value(name)


def labelled(running: Running, name: str, label: str) -> dict[str, float]:
    """The values of a metric that has one label, by that label."""
    samples = (sample for metric in running.metrics.registry.collect() for sample in metric.samples)
    return {sample.labels[label]: sample.value for sample in samples if sample.name == name}


async def ask(channel: grpc.aio.Channel, first: pb.ProcessingRequest, text: bytes, *, whole: bool = True) -> None:
    stream = call(channel)
    await stream.write(first)
    await stream.read()
    await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=text, end_of_stream=whole)))
    assert (await stream.read()).WhichOneof("response") == "request_body"


async def test_truncated_bodies_and_mismatched_models_are_counted(channel: grpc.aio.Channel, running: Running) -> None:
    cut, whole = b'{"model": "m", "prompt": "cut', b'{"model": "m"}'
    await ask(channel, headers(), cut, whole=False)
    await ask(channel, headers(x_gateway_model_name="other"), whole)
    async with asyncio.timeout(10):
        while running.processor.open_streams:  # noqa: ASYNC110 - the server says nothing
            await asyncio.sleep(0)

    assert sample(running, "owned_by_truncated_bodies_total") == 1
    assert sample(running, "owned_by_model_mismatches_total") == 1
    assert sample(running, "owned_by_request_body_bytes_count") == 2
    assert sample(running, "owned_by_request_body_bytes_sum") == len(cut) + len(whole)


async def test_a_long_hint_is_counted_each_time_and_told_once_a_generation() -> None:
    many = tuple(
        Endpoint(
            f"pod-{number}", "default", "127.0.0.1", number, {"llm-d.ai/engine-type": "vllm"}, models=(Model("m"),)
        )
        for number in range(1, 202)
    )
    world = Snapshot(1, (POOL,), {POOL: many})
    long = Running(snapshot=lambda: world)
    async with serving(long) as opened:
        for _ in range(2):
            stream = call(opened)
            await stream.write(headers(x_owned_by="vllm", x_gateway_model_name="m"))
            await stream.read()
            assert await stream.read() is grpc.aio.EOF

    assert sample(long, "owned_by_long_hints_total") == 2
    assert [line["entries"] for line in long.lines if line["msg"] == "long hint"] == [201]
    assert long.processor.longest_hint == 201


# Behind and in place of the EPP

VLLM, SGLANG = "127.0.0.1:1", "127.0.0.1:2"
OUTCOMES = {
    "kept": (destination(SGLANG), {"kept": 1.0}, 0),
    "narrowed": (destination(f"{VLLM},{SGLANG}"), {"narrowed": 1.0}, 0),
    "rewritten": (destination(VLLM), {"rewritten": 1.0}, 0),
    "no pick": ({}, {"epp-bypassed": 1.0}, 0),
    "outside the hint": (destination("10.0.0.1:1") | hint(SGLANG), {"rewritten": 1.0}, 1),
    "inside the hint": (destination(SGLANG) | hint(SGLANG), {"kept": 1.0}, 0),
}


@pytest.mark.parametrize(("metadata", "outcomes", "outside"), OUTCOMES.values(), ids=OUTCOMES)
async def test_what_becomes_of_the_epps_picks_is_counted(
    metadata: dict[str, Any], outcomes: dict[str, float], outside: int, channel: grpc.aio.Channel, running: Running
) -> None:
    stream = call(channel, {names.ATTACHMENT: "after"})
    await stream.write(headers(metadata=metadata, x_owned_by="sglang", x_gateway_model_name="m"))
    await rest(stream)

    assert labelled(running, "owned_by_epp_picks_total", "outcome") == outcomes
    assert sample(running, "owned_by_epp_picks_outside_hint_total") == outside
    assert [(line["attachment"], line["destination"]) for line in running.lines] == [("after", ",".join([SGLANG] * 3))]


async def test_where_there_is_no_pick_to_correct_none_is_counted(channel: grpc.aio.Channel, running: Running) -> None:
    for attachment in ("before", "picker", "header"):
        stream = call(channel, {names.ATTACHMENT: attachment})
        await stream.write(headers(x_owned_by="sglang", x_gateway_model_name="m", metadata=destination(SGLANG)))
        await rest(stream)
    stream = call(channel, {names.ATTACHMENT: "after"})
    await stream.write(headers(x_owned_by="nobody", x_gateway_model_name="m", metadata=destination(SGLANG)))
    await rest(stream)

    assert labelled(running, "owned_by_epp_picks_total", "outcome") == {}
    assert [line["attachment"] for line in running.lines] == ["before", "picker", "header", "after"]


SERVED = {
    "the first": (f"{VLLM}", {"first": 1.0}),
    "the next": (f"{SGLANG}", {"next": 1.0}),
    "another": ("10.0.0.1:1", {"other": 1.0}),
    "not told": ("", {}),
}


@pytest.mark.parametrize(("served", "counted"), SERVED.values(), ids=SERVED)
async def test_who_served_is_counted_where_envoy_tells_it(
    served: str, counted: dict[str, float], channel: grpc.aio.Channel, running: Running
) -> None:
    stream = call(channel, {names.ATTACHMENT: "picker"})
    await stream.write(headers(mode=DUPLEX, end=True, x_owned_by="*", x_gateway_model_name="m"))
    picked = await stream.read()
    told = {"envoy.lb": {"x-gateway-destination-endpoint-served": served}} if served else {}
    await stream.write(answer_headers(metadata=told))
    answers = await rest(stream)

    assert picked.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == f"{VLLM},{SGLANG},{VLLM}"
    assert answers == [KEPT_HEADERS]
    assert labelled(running, "owned_by_served_total", "endpoint") == counted
    assert [line["destination"] for line in running.lines] == [f"{VLLM},{SGLANG},{VLLM}"]


async def test_the_engines_figures_order_what_is_picked() -> None:
    figures = [{VLLM: Load(1, 0), SGLANG: Load(0, 0)}, {VLLM: Load(0, 0), SGLANG: Load(1, 0)}]
    loaded = Running(loads=lambda: figures[0])
    found = []
    async with serving(loaded) as opened:
        while figures:
            stream = call(opened, {names.ATTACHMENT: "picker"})
            await stream.write(headers(x_owned_by="*", x_gateway_model_name="m"))
            await rest(stream)
            found.append(loaded.lines[-1]["destination"])
            figures.pop(0)

    assert found == [f"{SGLANG},{VLLM},{SGLANG}", f"{VLLM},{SGLANG},{VLLM}"]


async def test_an_answer_that_begins_before_the_request_is_through_is_handed_back_whole(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a long body gives an engine the time for: it refuses while the frames are still on their way to it."""
    monkeypatch.setattr(extproc, "_PATIENCE", 30)  # this machine may be slower than an engine
    stream = call(channel, {names.ATTACHMENT: "picker"})
    first = headers(mode=DUPLEX, x_owned_by="vllm", x_gateway_model_name="m")
    first.protocol_config.response_body_mode = DUPLEX
    body = pb.HttpBody(body=b'{"prompt": "' + b"p" * 150_000 + b'"}', end_of_stream=True)
    refusal = pb.HttpBody(body=b"not allowed", end_of_stream=True)
    await stream.write(first)
    await stream.write(pb.ProcessingRequest(request_body=body))
    await stream.write(answer_headers())
    kinds = [(await stream.read()).WhichOneof("response") for _ in range(6)]
    await stream.write(pb.ProcessingRequest(response_body=refusal))
    (last,) = await rest(stream)

    assert kinds == ["request_headers", *["request_body"] * 4, "response_headers"]
    assert last.response_body.response.body_mutation.streamed_response.body == b"not allowed"


async def test_a_stream_that_ends_before_it_is_decided_is_counted(channel: grpc.aio.Channel, running: Running) -> None:
    stream = call(channel)
    await stream.write(headers())
    await stream.read()
    await stream.done_writing()
    await rest(stream)

    assert sample(running, "owned_by_undecided_streams_total") == 1


PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@asynccontextmanager
async def tracing(monkeypatch: pytest.MonkeyPatch, **how: Any) -> AsyncIterator[tuple[grpc.aio.Channel, list[Span]]]:
    """A server that traces, and the spans that have arrived once the context has ended."""
    async with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        running = Running(**how, traced=True)
        assert running.tracing is not None
        async with serving(running) as opened:
            yield opened, collector.spans
        await asyncio.to_thread(running.tracing.close)


async def test_a_stream_is_one_span_whose_parent_is_in_its_initial_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tracing(monkeypatch) as (opened, spans):
        stream = call(opened, PARENT)
        await stream.write(headers(x_request_id="r-1"))
        await stream.read()
        data = b'{"owned_by": "sglang", "model": "m"}'
        await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=True)))
        await rest(stream)

    assert [(f"00-{span.trace}-{span.parent}-01", span.error, span.attributes) for span in spans] == [
        (
            PARENT["traceparent"],
            None,
            {
                "owned_by.attachment": "before",
                "owned_by.decision": "restrict",
                "owned_by.reason": "owner-matched",
                "owned_by.owner": "sglang",
                "owned_by.model": "m",
                "owned_by.endpoints": 1,
                "owned_by.asked_body": True,
                "x-request-id": "r-1",
            },
        )
    ]


async def test_a_stream_that_ends_undecided_is_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tracing(monkeypatch) as (opened, spans):
        stream = call(opened, PARENT)
        await stream.write(headers())
        await stream.done_writing()
        await rest(stream)

    assert spans == []


@pytest.mark.parametrize(
    ("how", "metadata", "cause"), [({}, {names.POOL: "chat"}, "protocol"), ({"loads": None}, {}, "internal")]
)
async def test_a_stream_that_is_aborted_is_a_span_with_an_error(
    how: dict[str, Any], metadata: dict[str, str], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tracing(monkeypatch, **how) as (opened, spans):
        stream = call(opened, metadata | PARENT)
        with contextlib.suppress(grpc.aio.AioRpcError):  # it may be aborted before the message is on its way
            await stream.write(headers(x_owned_by="sglang", x_gateway_model_name="m"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()

    assert [(span.error, span.attributes) for span in spans] == [(cause, {"error.type": cause})]
