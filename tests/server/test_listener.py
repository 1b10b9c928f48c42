# SPDX-License-Identifier: Apache-2.0
"""The HTTP ports, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from extproc.server.listener import HttpServer, metrics_app
from tests.server.serving import served


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


def test_a_taken_port_is_an_error_at_once() -> None:
    first = HttpServer(metrics_app(CollectorRegistry()), "127.0.0.1", 0)
    with pytest.raises(OSError, match="Address already in use"):
        HttpServer(metrics_app(CollectorRegistry()), "127.0.0.1", first.port)
    first.socket.close()
