# SPDX-License-Identifier: Apache-2.0
"""The HTTP ports, over real HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from extproc.server import listener
from extproc.server.listener import HttpServer, metrics_app
from tests.server.serving import raw, served


async def test_metrics_are_served_in_prometheus_format() -> None:
    registry = CollectorRegistry()
    Counter("owned_by_things", "Things.", registry=registry).inc()
    async with served(metrics_app(registry)) as url, httpx2.AsyncClient() as client:
        answer = await client.get(url + "/metrics")

    assert "owned_by_things_total 1.0" in answer.text.splitlines()


async def test_an_answer_without_an_end_is_told_that_the_server_stops() -> None:
    stopping = asyncio.Event()

    async def forever(_request: Request) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield "first\n"
            await stopping.wait()
            yield "last\n"

        return StreamingResponse(lines())

    server = HttpServer(Starlette(routes=[Route("/", forever)]), "127.0.0.1", 0, stopping.set)
    task = asyncio.create_task(server.run_until_stopped())
    async with httpx2.AsyncClient() as client, client.stream("GET", f"http://127.0.0.1:{server.port}/") as answer:
        lines = answer.aiter_lines()
        heard = [await anext(lines)]
        server.should_exit = True
        heard += [line async for line in lines]
    await task

    assert heard == ["first", "last"]


async def test_nobody_can_say_that_somebody_else_is_asking() -> None:
    async def who(request: Request) -> PlainTextResponse:
        assert request.client is not None
        return PlainTextResponse(request.client.host)

    forwarded = {"x-forwarded-for": "203.0.113.7"}
    async with served(Starlette(routes=[Route("/", who)])) as url, httpx2.AsyncClient() as client:
        answer = await client.get(url, headers=forwarded)

    assert answer.text == "127.0.0.1"


async def test_what_is_no_http_is_told_in_our_shape_of_an_error() -> None:
    async with served(metrics_app(CollectorRegistry())) as url:
        head, _, body = (await raw(url, b"nonsense\r\n\r\n")).partition(b"\r\n\r\n")

    error = {"message": "Invalid HTTP request received.", "type": "invalid_request_error", "param": None}
    assert head.splitlines()[:2] == [b"HTTP/1.1 400 Bad Request", b"content-type: application/json"]
    assert json.loads(body) == {"error": error | {"code": "bad_request"}}


async def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SILENCE", 0.05)
    async with served(metrics_app(CollectorRegistry())) as url:
        assert await raw(url, b"GET /metr") == b""


async def test_there_are_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS", 1)
    async with served(metrics_app(CollectorRegistry())) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
        first = await reader.readline()
        with contextlib.suppress(ConnectionError):
            assert await raw(url, b"") == b""
        writer.close()
        await writer.wait_closed()

    assert first == b"HTTP/1.1 200 OK\r\n"


def test_a_taken_port_is_an_error_at_once() -> None:
    first = HttpServer(metrics_app(CollectorRegistry()), "127.0.0.1", 0)
    with pytest.raises(OSError, match="Address already in use"):
        HttpServer(metrics_app(CollectorRegistry()), "127.0.0.1", first.port)
    first.socket.close()
