# SPDX-License-Identifier: Apache-2.0
"""The members of a pool whose answers a test holds open, behind a real Envoy."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.client import send
from extproc.demo.envoy import Envoy
from tests.dataplane.wire import chunks, digest, exchange, head, post
from tests.fakes.backend import FIRST, LAST, Backend, opened
from tests.fakes.epp import EndpointPicker

CHAT = "/v1/chat/completions"
ACTIVE = "cluster.pool.upstream_rq_active"


@asynccontextmanager
async def through_envoy(backend: Backend, folder: Path, **more: int) -> AsyncIterator[Envoy]:
    plan = Plan(endpoints=tuple(backend.endpoints.values()), **more)
    async with Envoy(bootstrap(plan), folder) as envoy:
        yield envoy


class TestTold:
    """What an answer says of the request that arrived."""

    @pytest.fixture
    async def port(self, tmp_path: Path) -> AsyncIterator[int]:
        async with Backend({"one": "127.0.0.2"}, hold=False) as backend, through_envoy(backend, tmp_path) as envoy:
            yield envoy.port

    @staticmethod
    def framing(told: dict[str, str]) -> dict[str, str]:
        wanted = ("content-length", "transfer-encoding", "trailers", "body-bytes", "body-sha256")
        return {name: told[f"x-{name}"] for name in wanted}

    async def test_a_body_with_a_length(self, port: int) -> None:
        sent = b"x" * 3_000_000
        answer = await exchange(port, post(CHAT, sent))

        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/event-stream", FIRST + LAST)
        assert self.framing(answer.headers) == {
            "content-length": "3000000",
            "transfer-encoding": "-",
            "trailers": "-",
            "body-bytes": "3000000",
            "body-sha256": digest(sent),
        }

    async def test_a_body_in_chunks_with_trailers(self, port: int) -> None:
        lines = ["transfer-encoding: chunked", "trailer: x-a, x-b"]
        answer = await exchange(port, head(CHAT, *lines), chunks(b"12345", 2, trailer="x-a: 1\r\nx-b: 2"))

        assert self.framing(answer.headers) == {
            "content-length": "-",
            "transfer-encoding": "chunked",
            "trailers": "x-a=1,x-b=2",
            "body-bytes": "5",
            "body-sha256": digest(b"12345"),
        }

    async def test_the_headers(self, port: int) -> None:
        lines = ["x-request-id: 1", "x-twice: a", "x-twice: b", "x-latin: \u00e9"]
        answer = await exchange(port, head("/v1/models", *lines, method="GET"))

        assert json.loads(answer.headers["x-seen"]) == {
            "host": "gateway",
            "x-request-id": "1",
            "x-twice": "a, b",
            "x-latin": "\u00c3\u00a9",  # bytes, one by one
            "x-forwarded-proto": "http",
            "x-envoy-expected-rq-timeout-ms": "300000",
        }

    async def test_the_request_after_it_on_the_same_connection(self, tmp_path: Path) -> None:
        async with Backend({"one": "127.0.0.2"}, hold=False) as backend, through_envoy(backend, tmp_path) as envoy:
            answers = [await exchange(envoy.port, post(CHAT, b"x" * size)) for size in (1, 2)]
            stats = await envoy.stats("cluster.pool.upstream_cx_total")

        assert [answer.headers["x-body-bytes"] for answer in answers] == ["1", "2"]
        assert stats == {"cluster.pool.upstream_cx_total": 1}

    async def test_head_has_no_body(self, port: int) -> None:
        answer = await send(port, "HEAD", "/v1/models")

        assert (answer.status, answer.headers["x-served-by"], answer.body) == (200, "one", b"")


class TestHeld:
    """Answers that stay open."""

    @pytest.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        async with Backend({"one": "127.0.0.2", "two": "127.0.0.3"}) as started:
            yield started

    @pytest.fixture
    async def envoy(self, backend: Backend, tmp_path: Path) -> AsyncIterator[Envoy]:
        async with through_envoy(backend, tmp_path) as started:
            yield started

    async def test_one_is_open_from_its_first_event_until_it_is_released(self, backend: Backend, envoy: Envoy) -> None:
        async with opened(envoy.port) as answer:
            first = await answer.content.readuntil(b"\n\n")
            active = await envoy.stats(ACTIVE + "$")
            backend.release()
            rest = await answer.read()

        assert (first, active, rest) == (FIRST, {ACTIVE: 1}, LAST)

    async def test_one_member_is_released_alone(self, backend: Backend, envoy: Envoy) -> None:
        async with opened(envoy.port) as a, opened(envoy.port) as b:  # round robin: one each
            by_name = {answer.headers["x-served-by"]: answer for answer in (a, b)}
            later = asyncio.create_task(by_name["two"].read())
            backend.release("one")
            one = await by_name["one"].read()
            waited = not later.done()
            backend.release("two")
            two = await later

        assert (one, waited, two) == (FIRST + LAST, True, FIRST + LAST)

    async def test_a_release_is_not_for_later_requests(self, backend: Backend, envoy: Envoy) -> None:
        backend.release()
        async with opened(envoy.port) as answer:
            await answer.content.readuntil(b"\n\n")
            active = await envoy.stats(ACTIVE + "$")

        assert active == {ACTIVE: 1}

    async def test_a_client_that_leaves_disturbs_nobody(self, backend: Backend, envoy: Envoy) -> None:
        async with opened(envoy.port) as answer:
            await answer.content.readuntil(b"\n\n")
        backend.release()
        answers = [await exchange(envoy.port, post(CHAT, b"{}", "x-test-hold: no")) for _ in range(2)]

        assert {answer.headers["x-served-by"] for answer in answers} == {"one", "two"}

    async def test_a_request_may_ask_not_to_be_held(self, envoy: Envoy) -> None:
        answer = await exchange(envoy.port, post(CHAT, b"{}", "x-test-hold: no"))

        assert answer.body == FIRST + LAST


class TestRefusing:
    """A member that is not there."""

    async def test_it_refuses_connections_while_the_others_serve(self) -> None:
        async with Backend({"one": "127.0.0.2", "dead": "127.0.0.3"}, refusing=["dead"]) as backend:
            _, writer = await asyncio.open_connection(*backend.endpoints["one"])
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*backend.endpoints["dead"])

    async def test_envoy_answers_for_it_when_it_is_picked(self, tmp_path: Path) -> None:
        async with (
            Backend({"one": "127.0.0.2", "dead": "127.0.0.3"}, refusing=["dead"], hold=False) as backend,
            EndpointPicker([backend.address("dead")]) as picker,
            through_envoy(backend, tmp_path, picker_port=picker.port) as envoy,
        ):
            answers = [await exchange(envoy.port, post(CHAT, b"{}")) for _ in range(4)]

        assert [answer.status for answer in answers] == [503] * 4
