# SPDX-License-Identifier: Apache-2.0
"""The HTTP pages, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter

from extproc.server.admin import HttpServer, admin_app, metrics_app


@pytest.fixture
async def admin() -> AsyncIterator[str]:
    app = admin_app(lambda: False, {"/statusz": lambda: {"streams": 3}}, "127.0.0.1")
    async for url in serve(HttpServer(app, "127.0.0.1", 0)):
        yield url


async def serve(server: HttpServer) -> AsyncIterator[str]:
    task = asyncio.create_task(server.run_until_stopped())
    yield f"http://127.0.0.1:{server.port}"
    server.should_exit = True
    await task


@pytest.mark.parametrize(
    ("path", "headers", "status", "body"),
    [
        ("/healthz", {}, 200, "ok\n"),
        ("/readyz", {}, 503, "not ready\n"),
        ("/healthz", {"host": "pod.example"}, 200, "ok\n"),
        ("/statusz", {}, 200, '{\n  "streams": 3\n}\n'),
        ("/statusz", {"host": "localhost:1"}, 200, '{\n  "streams": 3\n}\n'),
        (
            "/statusz",
            {"host": "evil.example:9091"},
            403,
            '{"error":{"code":"forbidden","message":"the Host `evil.example:9091` is not this server\'s"}}',
        ),
        (
            "/statusz",
            {"sec-fetch-site": "cross-site"},
            403,
            '{"error":{"code":"forbidden","message":"a request from another site is refused"}}',
        ),
    ],
)
async def test_each_page_answers_as_it_must(
    admin: str, path: str, headers: dict[str, str], status: int, body: str
) -> None:
    async with httpx2.AsyncClient() as client:
        answer = await client.get(admin + path, headers=headers)

    assert (answer.status_code, answer.text) == (status, body)


async def test_metrics_are_served_in_prometheus_format() -> None:
    registry = CollectorRegistry()
    Counter("owned_by_things", "Things.", registry=registry).inc()
    async for url in serve(HttpServer(metrics_app(registry), "127.0.0.1", 0)):
        async with httpx2.AsyncClient() as client:
            answer = await client.get(url + "/metrics")

        assert "owned_by_things_total 1.0" in answer.text.splitlines()


def test_a_taken_port_is_an_error_at_once() -> None:
    first = HttpServer(metrics_app(CollectorRegistry()), "127.0.0.1", 0)
    with pytest.raises(OSError, match="Address already in use"):
        HttpServer(metrics_app(CollectorRegistry()), "127.0.0.1", first.port)
    first.socket.close()
