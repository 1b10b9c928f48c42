# SPDX-License-Identifier: Apache-2.0
"""The servicer, called over real gRPC."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest

from extproc.envoy import names
from extproc.envoy.binding import Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.observability.logs import DecisionLog, make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.config import parse_policy
from extproc.policy.types import Endpoint, Model, Pool, Snapshot
from extproc.server.extproc import ExternalProcessor

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
POLICY = parse_policy(b"{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, body: {timeout: 100ms}}")


class Running:
    """A server on a free port, and what it wrote and counted."""

    def __init__(self, *, snapshot: Any = lambda: SNAPSHOT) -> None:
        self.stream = io.BytesIO()
        self.metrics = Metrics()
        logger = make_logger("json", "info", self.stream)
        self.processor = ExternalProcessor(
            Binding(),
            snapshot,
            lambda: POLICY,
            logger,
            DecisionLog(logger, "json", "info", lambda _, flush: flush(), self.stream),
            self.metrics,
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((running.processor.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(0)


@pytest.fixture
def running() -> Running:
    return Running()


def call(channel: grpc.aio.Channel, metadata: dict[str, str] | None = None) -> grpc.aio.StreamStreamCall[Any, Any]:
    method = channel.stream_stream(
        f"/{names.SERVICE}/{names.METHOD}",
        request_serializer=pb.ProcessingRequest.SerializeToString,
        response_deserializer=pb.ProcessingResponse.FromString,
    )
    return method(metadata=tuple((metadata or {}).items()))


def headers(*, mode: int = 0, end: bool = False, **given: str) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration(request_body_mode=mode))
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
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((broken.processor.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        stream = call(opened)
        await stream.write(headers(x_owned_by="sglang"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
    await server.stop(0)

    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert [line["msg"] for line in broken.lines] == ["internal error"]
    assert broken.metrics.registry.get_sample_value("owned_by_stream_errors_total", {"cause": "internal"}) == 1


@pytest.mark.parametrize(
    ("metadata", "details"),
    [
        ({names.ATTACHMENT: "after"}, "x-owned-by-attachment: `after` is not one of `before`, `picker`"),
        ({names.POOL: "chat"}, "x-owned-by-pool: `chat` is not namespace/name"),
        ({names.BODY: "stream"}, "x-owned-by-body: only `partial` is supported yet"),
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


async def test_an_end_before_any_message_is_no_error(channel: grpc.aio.Channel, running: Running) -> None:
    stream = call(channel)
    await stream.done_writing()
    end = await stream.read()

    assert (end, await stream.code(), running.lines) == (grpc.aio.EOF, grpc.StatusCode.OK, [])


async def test_a_body_that_comes_byte_by_byte_is_a_408(channel: grpc.aio.Channel) -> None:
    stream = call(channel, {names.ATTACHMENT: "picker"})
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


async def test_a_body_that_does_not_come_is_a_408(channel: grpc.aio.Channel) -> None:
    stream = call(channel, {names.ATTACHMENT: "picker"})
    await stream.write(headers(mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED))
    answer = await stream.read()

    assert answer.immediate_response.status.code == 408
    assert msgspec.json.decode(answer.immediate_response.body)["error"]["code"] == "body_timeout"


def sample(running: Running, name: str) -> float | None:
    return running.metrics.registry.get_sample_value(name)


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
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((long.processor.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        for _ in range(2):
            stream = call(opened)
            await stream.write(headers(x_owned_by="vllm", x_gateway_model_name="m"))
            await stream.read()
            assert await stream.read() is grpc.aio.EOF
    await server.stop(0)

    assert sample(long, "owned_by_long_hints_total") == 2
    assert [line["entries"] for line in long.lines if line["msg"] == "long hint"] == [201]
    assert long.processor.longest_hint == 201
