# SPDX-License-Identifier: Apache-2.0
"""A whole process: ready, reloading, draining, gone."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.demo.client import LOOPBACK, send
from extproc.demo.engines import Engines, Simulated
from extproc.demo.processes import Server, ServerError
from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb
from tests.fakes.api_server import write_kubeconfig
from tests.streams import call, first

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ENDPOINTS = "pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:9', ready: %s}]}]\n"
POLICY = "{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, destinations: %s}\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "endpoints.yaml").write_text(ENDPOINTS % "true")
    (tmp_path / "policy.yaml").write_text(POLICY % 2)
    return tmp_path


def flags(files: Path) -> tuple[str, ...]:
    return ("--endpoints-file", str(files / "endpoints.yaml"), "--config-file", str(files / "policy.yaml"))


def stub(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def status(channel: grpc.aio.Channel, service: str) -> int:
    return int((await stub(channel).Check(health_pb2.HealthCheckRequest(service=service))).status)


async def page(server: Server, path: str) -> Any:
    return (await send(server.admin_port, "GET", path)).json()


async def open_stream(channel: grpc.aio.Channel) -> Any:
    """A stream that waits for a body, so that it stays open."""
    stream = call(channel)
    await stream.write(first(content_type="application/json"))
    answer = await stream.read()
    assert answer.mode_override.request_body_mode == pb.ProcessingMode.BUFFERED_PARTIAL
    return stream


async def test_every_health_name_is_serving_on_both_ports_once_it_is_ready(files: Path) -> None:
    async with Server(*flags(files)) as server:
        seen = []
        for port in (server.grpc_port, server.grpc_health_port):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                seen += [await status(channel, name) for name in ("", "liveness", "readiness", names.SERVICE)]
        ready = await send(server.admin_port, "GET", "/readyz")

    assert (seen, ready.status) == ([SERVING] * 8, 200)


async def test_a_drain_lets_open_streams_end_and_new_ones_in_for_a_while(files: Path) -> None:
    async with Server(*flags(files), "--drain-delay", "1s", "--drain-timeout", "30s") as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            watch = stub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
            first = (await watch.read()).status
            early = await open_stream(channel)
            server.terminate()
            then = (await watch.read()).status
            alive = await status(channel, "liveness")
            late = await open_stream(channel)
            watch.cancel()
            ends = []
            for stream in (early, late):
                await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=b"{}", end_of_stream=True)))
                ends.append((await stream.read()).WhichOneof("response"))
        code = await asyncio.wait_for(server.wait(), 20)

    assert (first, then, alive) == (SERVING, NOT_SERVING, SERVING)
    assert (ends, code) == (["request_body"] * 2, 0)


async def test_a_stream_that_does_not_end_is_ended_by_the_drain_timeout(files: Path) -> None:
    async with Server(*flags(files), "--drain-delay", "0s", "--drain-timeout", "200ms") as server:  # noqa: SIM117 - its port is needed
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stream = await open_stream(channel)
            server.terminate()
            code = await asyncio.wait_for(server.wait(), 20)
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()

    assert code == 0


async def test_changed_files_take_effect_and_bad_ones_are_refused_and_told(files: Path) -> None:
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def on_line(line: str) -> None:
        told.put_nowait(json.loads(line))

    async def next_line(message: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while (line := await told.get())["msg"] != message:
                pass
        return line

    async with Server(*flags(files), on_line=on_line) as server:
        await next_line("ready")
        (files / "endpoints.yaml").write_text(ENDPOINTS % "false")
        await next_line("loaded")
        (files / "policy.yaml").write_text("kind: [")
        refused = await next_line("not loaded, the last good one stays")
        shown = await page(server, "/configz")
        ready = await page(server, "/statusz")
        metrics = (await send(server.metrics_port, "GET", "/metrics")).body.decode()
        endpoints = await page(server, "/endpointz")
        (files / "policy.yaml").write_text(POLICY % 5)
        await next_line("loaded")
        after = await page(server, "/configz")

    assert (refused["source"], refused["error"]) == ("policy", shown["error"])
    assert shown["policy"]["destinations"] == 2
    assert ready["pools"] == {"default/chat": {"not_ready": 1, "ready": 0}}
    assert [entry["ready"] for entry in endpoints["pools"]["default/chat"]] == [False]
    assert 'owned_by_config_last_reload_successful{source="policy"} 0.0' in metrics.splitlines()
    assert (after["policy"]["destinations"], after["error"]) == (5, None)


async def test_endpoints_whose_models_are_not_given_are_asked_before_it_is_ready(tmp_path: Path) -> None:
    wanted = [Simulated("one", "vllm", "llama"), Simulated("two", "sglang", "qwen", host="127.0.3.2")]
    async with Engines(wanted) as engines:
        members = [{"name": one.name, "address": one.address} for one in engines.endpoints]
        path = tmp_path / "endpoints.yaml"
        path.write_text(json.dumps({"pools": [{"name": "chat", "endpoints": members}]}))
        async with Server("--endpoints-file", str(path)) as server:
            endpoints = (await page(server, "/endpointz"))["pools"]["default/chat"]
            probe = (await page(server, "/statusz"))["probe"]

    assert [(e["owned_by"], [m["id"] for m in e["models"]]) for e in endpoints] == [
        ("vllm", ["llama"]),
        ("sglang", ["qwen"]),
    ]
    assert probe.pop("age_seconds") >= 0
    assert probe == {"followed": 2, "answered": 2, "failing": 0, "failures": []}


@pytest.mark.slow
async def test_it_waits_ten_seconds_for_an_engine_that_says_nothing_and_no_longer(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:  # it takes connections and says nothing
        path = tmp_path / "endpoints.yaml"
        member = {"name": "one", "address": f"{LOOPBACK}:{silent.getsockname()[1]}"}
        path.write_text(json.dumps({"pools": [{"name": "chat", "endpoints": [member]}]}))
        started = time.monotonic()
        async with Server("--endpoints-file", str(path), "--probe-timeout", "1h") as server:
            took = time.monotonic() - started
            (endpoint,) = (await page(server, "/endpointz"))["pools"]["default/chat"]

    assert took >= 10
    assert (endpoint["ready"], endpoint["models"], endpoint["owned_by"]) == (True, None, None)


@pytest.mark.slow
async def test_it_listens_before_it_is_ready_and_can_be_ended_then(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with socket.create_server((LOOPBACK, 0)) as silent:  # it takes connections and says nothing
        write_kubeconfig(kubeconfig, f"http://{LOOPBACK}:{silent.getsockname()[1]}")
        async with Server("--kubeconfig", str(kubeconfig), until="listening") as server:
            seen = [(await send(server.admin_port, "GET", path)).status for path in ("/healthz", "/readyz")]
            components = (await page(server, "/statusz"))["components"]
            server.terminate()
            code = await asyncio.wait_for(server.wait(), 20)

    assert (seen, code) == ([200, 503], 0)
    assert components == {
        "routing": False,
        "endpoints": False,
        "pods": False,
        "policy": True,
        "pools": False,
        "rewrites": False,
        "serving": True,
    }


async def test_a_taken_port_is_a_clear_error(files: Path) -> None:
    async with Server(*flags(files)) as server:
        with pytest.raises(ServerError, match=rf"cannot listen on 127\.0\.0\.1:{server.grpc_port}"):
            async with Server(*flags(files), "--grpc-port", str(server.grpc_port)):
                pass
