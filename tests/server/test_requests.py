# SPDX-License-Identifier: Apache-2.0
"""What an admin request says, and what is said of one that cannot be read."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from extproc.server import requests
from extproc.server.answers import HANDLERS, as_json
from extproc.server.requests import MAX_BODY, Explain, RoutingChange, decoded, parameters
from tests.server.serving import raw, served

ENTRY = {"model": "m", "owned_by": "vllm", "selector": {"matchLabels": {"app": "canary"}}}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server that answers what it has read."""

    async def change(request: Request) -> Response:
        return as_json(await decoded(request, RoutingChange))

    async def explain(request: Request) -> Response:
        return as_json(await decoded(request, Explain))

    def query(request: Request) -> Response:
        return as_json(parameters(request, required=("model",), optional=("pool",)))

    routes = [
        Route("/change", change, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
        Route("/query", query),
    ]
    async with served(Starlette(routes=routes, exception_handlers=HANDLERS)) as address:
        yield address


async def ask(url: str, content: Any = None) -> Any:
    async with httpx2.AsyncClient() as client:
        answer = await (client.get(url) if content is None else client.post(url, content=content))
    if answer.status_code == 200:
        return answer.json()
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"], error["message"]


def bad(message: str, param: str | None = None) -> tuple[int, str, str | None, str]:
    return 400, "bad_request", param, message


CHANGES: dict[str, tuple[Any, Any]] = {
    "no object": ([], bad("Expected `object`, got `array`")),
    "no model": ({"owned_by": "v"}, bad("Object missing required field `model`")),
    "a model that is none": (ENTRY | {"model": 1}, bad("Expected `str`, got `int`", "model")),
    "an empty model": (ENTRY | {"model": ""}, bad("Expected `str` of length >= 1", "model")),
    "an unknown key": (ENTRY | {"weight": 1}, bad("Object contains unknown field `weight`")),
    "a selector that is none": (ENTRY | {"selector": "app=canary"}, bad("Expected `object`, got `str`", "selector")),
    "a label that is none": (
        ENTRY | {"selector": {"matchLabels": {"app": 1}}},
        bad("Expected `str`, got `int`", "selector.matchLabels[...]"),
    ),
    "a version that is none": (
        ENTRY | {"resourceVersion": 7},
        bad("Expected `str | null`, got `int`", "resourceVersion"),
    ),
}


@pytest.mark.parametrize(("content", "expected"), CHANGES.values(), ids=CHANGES)
async def test_a_change_that_cannot_be_read_names_the_field(url: str, content: Any, expected: Any) -> None:
    assert await ask(url + "/change", json.dumps(content).encode()) == expected


@pytest.mark.parametrize("owner", ["", "any", "ANY", "*", "v llm", "a" * 129])
async def test_what_is_no_owner_is_refused(url: str, owner: str) -> None:
    expected = bad("Expected an owner: 1 to 128 letters, digits and . _ / -, and not `any`", "owned_by")

    assert await ask(url + "/change", json.dumps(ENTRY | {"owned_by": owner}).encode()) == expected


PATTERNS = {
    "path": ({"path": "v1"}, bad("Expected a path, which begins with /", "path")),
    "method": ({"path": "/", "method": "get"}, bad("Expected a method, in capital letters", "method")),
    "pool": ({"path": "/", "pool": "chat"}, bad("Expected `namespace/name`", "pool")),
    "a header's name": ({"path": "/", "headers": {"a b": ""}}, bad("Expected the name of a header", "headers")),
    "a header's value": (
        {"path": "/", "headers": {"a": "b\n"}},
        bad("Expected a header's value, which is one line", "headers[...]"),
    ),
}


@pytest.mark.parametrize(("content", "expected"), PATTERNS.values(), ids=PATTERNS)
async def test_a_text_that_does_not_match_is_told_in_words(url: str, content: Any, expected: Any) -> None:
    assert await ask(url + "/explain", json.dumps(content).encode()) == expected


async def test_a_change_that_can_be_read_is_what_it_says(url: str) -> None:
    read = await ask(url + "/change", json.dumps(ENTRY | {"resourceVersion": "7"}).encode())

    assert read == ENTRY | {"resourceVersion": "7"}


BODIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Input data was truncated"),
    "no JSON": (b"model=m", "JSON is malformed: invalid character (byte 0)"),
    "cut": (b'{"path": "/"', "Input data was truncated"),
    "more than one": (b'{"path": "/"} {}', "JSON is malformed: trailing characters (byte 15)"),
}


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES)
async def test_a_body_that_is_no_json_is_refused(url: str, body: bytes, message: str) -> None:
    assert await ask(url + "/explain", body) == bad(f"the body is not JSON: {message}")


@pytest.mark.parametrize("body", [b'{"path": "/\xff"}', b"[" * 100_000])
async def test_a_body_that_is_hostile_is_refused(url: str, body: bytes) -> None:
    assert (await ask(url + "/explain", body))[:3] == (400, "bad_request", None)


async def test_a_body_that_is_too_long_is_refused(url: str) -> None:
    body = b'{"path": "/", "body": "' + b"x" * MAX_BODY + b'"}'

    assert await ask(url + "/explain", body) == (413, "body_too_large", None, "the body is longer than 1048576 bytes")


async def test_a_body_that_does_not_come_is_waited_for_only_so_long(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PATIENCE", 0.05)
    head = b"POST /explain HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 9\r\n\r\n"

    answer = await raw(url, head + b"{")

    assert answer.splitlines()[0] == b"HTTP/1.1 408 Request Timeout"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"


QUERIES: dict[str, tuple[str, Any]] = {
    "what is needed": ("model=a%2Fb", {"model": "a/b"}),
    "all": ("model=m&pool=p", {"model": "m", "pool": "p"}),
    "nothing": ("", bad("`model` is missing", "model")),
    "an empty one": ("model=", bad("`model` is missing", "model")),
    "an unknown one": ("model=m&owner=v", bad("there is no parameter `owner`", "owner")),
    "one twice": ("model=m&model=n", bad("`model` is given more than once", "model")),
}


@pytest.mark.parametrize(("query", "expected"), QUERIES.values(), ids=QUERIES)
async def test_a_query_is_read_strictly(url: str, query: str, expected: Any) -> None:
    assert await ask(f"{url}/query?{query}") == expected
