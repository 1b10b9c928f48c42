# SPDX-License-Identifier: Apache-2.0
"""The simulated engines."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from extproc.demo.client import Answer, send
from extproc.demo.engines import Engines, Simulated

JSON = {"content-type": "application/json"}


@pytest.fixture
async def engines() -> AsyncIterator[list[Simulated]]:
    async with Engines([Simulated("a", "vllm", "m"), Simulated("b", "sglang", "n")]) as running:
        yield running.endpoints


async def post(engine: Simulated, path: str, document: object) -> Answer:
    return await send(engine.port, "POST", path, JSON, msgspec.json.encode(document))


async def test_every_engine_has_a_port_of_its_own(engines: list[Simulated]) -> None:
    assert [(e.name, e.kind, e.model) for e in engines] == [("a", "vllm", "m"), ("b", "sglang", "n")]
    assert len({e.port for e in engines} - {0}) == 2
    assert engines[0].address == f"127.0.0.1:{engines[0].port}"


async def test_the_model_list_says_who_serves_it(engines: list[Simulated]) -> None:
    found = [(await send(engine.port, "GET", "/v1/models")).json() for engine in engines]
    created = [document["data"][0].pop("created") for document in found]

    assert all(isinstance(moment, int) for moment in created)
    assert found == [
        {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 8192}]},
        {"object": "list", "data": [{"id": "n", "object": "model", "owned_by": "sglang", "max_model_len": 4096}]},
    ]


async def test_a_chat_is_answered_by_the_engine_that_was_asked(engines: list[Simulated]) -> None:
    answer = await post(engines[1], "/v1/chat/completions", {"model": "n", "messages": []})

    document = answer.json()
    document.pop("created")
    message = {"role": "assistant", "content": "b says hello ."}
    assert (answer.status, document) == (
        200,
        {
            "id": "sim-1",
            "object": "chat.completion",
            "model": "n",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
        },
    )


async def test_a_streamed_chat_comes_in_chunks_and_ends_with_done(engines: list[Simulated]) -> None:
    answer = await post(engines[0], "/v1/chat/completions", {"model": "m", "messages": [], "stream": True})

    events = answer.body.decode().split("\n\n")
    deltas = [msgspec.json.decode(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta["content"] for delta in deltas) == "a says hello . "
    assert events[-2:] == ["data: [DONE]", ""]
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-served-by"] == "a"


async def test_a_completion_has_a_text(engines: list[Simulated]) -> None:
    answer = await post(engines[0], "/v1/completions", {"prompt": "hi"})

    assert answer.json()["choices"] == [{"index": 0, "text": "a says hello .", "finish_reason": "stop"}]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (
            b'{"model": "other"}',
            404,
            {"message": "The model `other` does not exist.", "type": "NotFoundError", "param": "model", "code": 404},
        ),
        (
            b"[]",
            400,
            {"message": "the body must be a JSON object", "type": "BadRequestError", "param": None, "code": 400},
        ),
        (
            b"",
            400,
            {
                "message": "the body is not JSON: Input data was truncated",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
    ],
)
async def test_what_it_cannot_serve_is_an_error_in_the_openai_shape(
    engines: list[Simulated], body: bytes, status: int, error: object
) -> None:
    answer = await send(engines[0].port, "POST", "/v1/chat/completions", JSON, body)

    assert (answer.status, answer.json()) == (status, {"error": error})


@pytest.mark.parametrize(
    ("number", "metrics"),
    [
        (0, ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]),
        (1, ["sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"]),
    ],
)
async def test_metrics_have_the_names_of_the_engine(engines: list[Simulated], number: int, metrics: list[str]) -> None:
    text = (await send(engines[number].port, "GET", "/metrics")).body.decode()

    assert [line.partition("{")[0] for line in text.splitlines() if line[0] != "#"] == metrics


async def figures(engine: Simulated) -> list[str]:
    text = (await send(engine.port, "GET", "/metrics")).body.decode()
    return [line.rpartition(" ")[2] for line in text.splitlines() if line[0] != "#"]


async def test_an_engine_is_idle_until_it_is_told_what_to_say_of_its_load() -> None:
    async with Engines([Simulated("a", "vllm", "m"), Simulated("b", "sglang", "n")]) as running:
        before = [await figures(engine) for engine in running.endpoints]
        running.load("a", waiting=3, kv_cache=0.5)
        running.load("b", waiting=7)
        told = [await figures(engine) for engine in running.endpoints]
        running.load("a")

        assert before == [["0", "0", "0.0"], ["0", "0", "0.0"]]
        assert told == [["0", "3", "0.5"], ["0", "7", "0.0"]]
        assert await figures(running.endpoints[0]) == ["0", "0", "0.0"]


def test_an_engine_that_is_not_there_has_no_load() -> None:
    with pytest.raises(KeyError, match="c"):
        Engines([Simulated("a", "vllm", "m")]).load("c", waiting=1)


async def test_every_answer_says_who_gave_it_and_what_arrived(engines: list[Simulated]) -> None:
    sent = b"\x00" * 100_000
    answer = await send(engines[0].port, "PUT", "/some/where?x=1", {"X-Two": "2", "a-one": "1"}, sent)

    marks = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
    assert marks == {
        "x-served-by": "a",
        "x-body-sha256": hashlib.sha256(sent).hexdigest(),
        "x-body-bytes": "100000",
        "x-seen-headers": "a-one,accept-encoding,content-length,host,x-two",
        "x-content-length": "100000",
    }
    assert answer.json() == {"served_by": "a", "method": "PUT", "path": "/some/where"}


async def test_health_is_well_and_has_no_length(engines: list[Simulated]) -> None:
    answer = await send(engines[0].port, "GET", "/health")

    assert (answer.status, answer.body, answer.headers["x-content-length"]) == (200, b"", "-")


async def test_an_upgrade_is_answered_as_an_ordinary_request(engines: list[Simulated]) -> None:
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "eA==",
    }
    answer = await send(engines[0].port, "GET", "/v1/realtime", headers)

    assert (answer.status, answer.headers["x-served-by"]) == (200, "a")


async def test_nothing_listens_any_more_when_the_engines_are_closed() -> None:
    async with Engines([Simulated("a", "vllm", "m")]) as running:
        port = running.endpoints[0].port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def owners(engines: list[Simulated]) -> list[str]:
    async with aiohttp.ClientSession(trust_env=False) as session:
        answers = [await session.get(f"http://{engine.address}/v1/models") for engine in engines]
        return [(await answer.json())["data"][0]["owned_by"] for answer in answers]


async def test_engines_on_different_addresses_share_a_port_as_pods_do() -> None:
    async with Engines([Simulated("a", "vllm", "m", host="127.1.2.3")]) as first:
        port = first.endpoints[0].port
        async with Engines([Simulated("b", "sglang", "m", port, "127.1.2.4")]) as second:
            engines = first.endpoints + second.endpoints

            assert [engine.address for engine in engines] == [f"127.1.2.3:{port}", f"127.1.2.4:{port}"]
            assert await owners(engines) == ["vllm", "sglang"]


async def test_an_engine_comes_back_at_the_port_that_it_had() -> None:
    wanted = Simulated("a", "vllm", "m")
    for _ in range(2):
        async with Engines([wanted]) as running:
            wanted = running.endpoints[0]

            assert await owners([wanted]) == ["vllm"]


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_listening() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = [Simulated("a", "vllm", "m", port, "127.1.2.3"), Simulated("b", "vllm", "m", port)]
        with pytest.raises(OSError, match="in use"):
            await Engines(wanted).__aenter__()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.1.2.3", port)


def test_an_engine_cannot_listen_for_other_machines() -> None:
    with pytest.raises(ValueError, match=r"`0\.0\.0\.0` is not of this machine alone: 127\.x\.y\.z"):
        Simulated("a", "vllm", "m", host="0.0.0.0")
