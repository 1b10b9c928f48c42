# SPDX-License-Identifier: Apache-2.0
"""Who may ask the admin port, over real HTTP."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from extproc.observability.logs import make_logger
from extproc.server.access import Access
from tests.server.serving import served

TOKEN = {"authorization": "Bearer sesame"}
JSON = {"content-type": "application/json"}


class Admin:
    """A page that answers what it was sent, behind the rules; `log` is what was written down."""

    def __init__(self, level: str = "info", **rules: Any) -> None:
        self.log = io.BytesIO()
        self.url = ""

        async def echo(request: Request) -> PlainTextResponse:
            request.state.audit = {"model": "m"}
            return PlainTextResponse((await request.body()).decode() or "done")

        paths = ("/", "/healthz", "/readyz", "/statusz", "/admin/discover")
        routes = [Route(path, echo, methods=["GET", "POST"]) for path in paths]
        rules = {"audit": make_logger("json", "info", self.log), "address": "127.0.0.1", "open_paths": ("/",)} | rules
        self.app = Access(Starlette(routes=routes), make_logger("json", level, self.log), **rules)

    @property
    def lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [
            {name: value for name, value in line.items() if name not in {"ts", "level", "logger"}} for line in lines
        ]

    async def ask(self, method: str, path: str, headers: dict[str, str] | None = None, content: Any = None) -> Any:
        """The status, and the text or the error's code and message."""
        async with httpx2.AsyncClient() as client:
            answer = await client.request(method, self.url + path, headers=headers, content=content)
        if answer.headers["content-type"] != "application/json":
            return answer.status_code, answer.text
        assert list(answer.json()) == ["error"]
        error = answer.json()["error"]
        kind = "service_unavailable" if answer.status_code >= 500 else "invalid_request_error"
        assert (error.pop("type"), error.pop("param")) == (kind, None)
        return answer.status_code, error["code"], error["message"]


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    one = Admin(hosts=("admin.example",))
    async with served(one.app) as one.url:
        yield one


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("sesame\n")
    return path


def rewrite(token_file: Path, token: str) -> None:
    token_file.write_text(token)


@pytest.fixture
async def guarded(token_file: Path) -> AsyncIterator[Admin]:
    one = Admin(token_file=token_file)
    async with served(one.app) as one.url:
        yield one


FOREIGN = "the Host `{}` is not this server's"
REQUESTS: dict[str, tuple[dict[str, str], Any]] = {
    "our address": ({}, (200, "done")),
    "localhost, any port": ({"host": "LOCALHOST:1"}, (200, "done")),
    "the loopback of IPv6": ({"host": "[::1]:9091"}, (200, "done")),
    "a name that it was given": ({"host": "admin.example"}, (200, "done")),
    "a foreign Host": ({"host": "evil.example:9091"}, (403, "forbidden", FOREIGN.format("evil.example:9091"))),
    "no Host": ({"host": ""}, (403, "forbidden", FOREIGN.format(""))),
    "another site": ({"sec-fetch-site": "cross-site"}, (403, "forbidden", "a request from another site is refused")),
    "a sister of the site": (
        {"sec-fetch-site": "same-site"},
        (403, "forbidden", "a request from another site is refused"),
    ),
    "the page itself": ({"sec-fetch-site": "same-origin"}, (200, "done")),
    "the same origin": ({"host": "localhost:7", "origin": "http://localhost:7"}, (200, "done")),
    "another origin": (
        {"origin": "http://evil.example"},
        (403, "forbidden", "a request from another origin is refused"),
    ),
    "an origin that hides": ({"origin": "null"}, (403, "forbidden", "a request from another origin is refused")),
    "an origin that is none": ({"origin": "http://[x"}, (403, "forbidden", "a request from another origin is refused")),
    "another port of ours": (
        {"host": "localhost:7", "origin": "http://localhost:8"},
        (403, "forbidden", "a request from another origin is refused"),
    ),
}


@pytest.mark.parametrize(("headers", "expected"), REQUESTS.values(), ids=REQUESTS)
async def test_only_our_own_pages_may_ask(admin: Admin, headers: dict[str, str], expected: Any) -> None:
    assert await admin.ask("GET", "/statusz", headers) == expected


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_probe_needs_nothing(guarded: Admin, path: str) -> None:
    assert await guarded.ask("GET", path, {"host": "pod.example"}) == (200, "done")


NEEDED = (401, "unauthorized", "a bearer token is needed: `authorization: Bearer ...`")
WRONG = (401, "unauthorized", "the bearer token is wrong")
TOKENS: dict[str, tuple[dict[str, str], Any]] = {
    "the token": (TOKEN, (200, "done")),
    "its scheme in small letters": ({"authorization": "bearer  sesame"}, (200, "done")),
    "none": ({}, NEEDED),
    "an empty one": ({"authorization": "Bearer"}, NEEDED),
    "a wrong one": ({"authorization": "Bearer sesamf"}, WRONG),
    "a longer one": ({"authorization": "Bearer sesames"}, WRONG),
    "beyond ASCII": ({"authorization": "Bearer ses\u00e4me"}, WRONG),
    "another scheme": ({"authorization": "Basic sesame"}, WRONG),
}


@pytest.mark.parametrize(("headers", "expected"), TOKENS.values(), ids=TOKENS)
async def test_a_token_is_needed_where_there_is_one(guarded: Admin, headers: dict[str, str], expected: Any) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert await guarded.ask("GET", "/statusz", encoded) == expected  # type: ignore[arg-type]


async def test_the_page_comes_without_a_token(guarded: Admin) -> None:
    assert await guarded.ask("GET", "/") == (200, "done")


async def test_a_refusal_says_which_scheme_is_spoken(guarded: Admin) -> None:
    async with httpx2.AsyncClient() as client:
        answer = await client.get(guarded.url + "/statusz")

    assert answer.headers["www-authenticate"] == 'Bearer realm="owned-by admin"'


async def test_a_token_that_is_rotated_is_read_again(guarded: Admin, token_file: Path) -> None:
    rewrite(token_file, "other")

    assert await guarded.ask("GET", "/statusz", TOKEN) == WRONG
    assert await guarded.ask("GET", "/statusz", {"authorization": "Bearer other"}) == (200, "done")


async def test_without_a_readable_token_nobody_is_let_in(guarded: Admin, token_file: Path) -> None:
    rewrite(token_file, "")

    answer = await guarded.ask("GET", "/statusz", TOKEN)

    assert answer == (503, "token_unreadable", "this server cannot read its own token now")
    assert guarded.lines == [
        {
            "msg": "no admin token can be checked",
            "error": "the token file is not one word of visible ASCII characters",
        }
    ]


TYPES: dict[str, tuple[dict[str, str], Any, Any]] = {
    "JSON": (JSON, b"{}", (200, "{}")),
    "JSON with a charset": ({"content-type": "Application/JSON; charset=utf-8"}, b"{}", (200, "{}")),
    "a form": (
        {"content-type": "application/x-www-form-urlencoded"},
        b"a=b",
        (415, "unsupported_media_type", "the content type of a body must be application/json"),
    ),
    "text": (
        {"content-type": "text/plain"},
        b"{}",
        (415, "unsupported_media_type", "the content type of a body must be application/json"),
    ),
    "no type": ({}, b"{}", (415, "unsupported_media_type", "the content type of a body must be application/json")),
    "no body": ({}, None, (200, "done")),
}


@pytest.mark.parametrize(("headers", "body", "expected"), TYPES.values(), ids=TYPES)
async def test_a_body_must_be_called_json(admin: Admin, headers: dict[str, str], body: Any, expected: Any) -> None:
    assert await admin.ask("POST", "/admin/discover", headers, body) == expected


async def test_a_body_of_unknown_length_must_be_called_json_too(admin: Admin) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}"

    assert (await admin.ask("POST", "/admin/discover", {}, pieces()))[0] == 415


@pytest.mark.parametrize(("headers", "status"), [(TOKEN, 200), ({}, 401), ({"host": "evil.example"}, 403)])
async def test_a_write_is_written_down_whatever_came_of_it(
    guarded: Admin, headers: dict[str, str], status: int
) -> None:
    await guarded.ask("POST", "/admin/discover?model=x", headers)

    said = {"model": "m"} if status == 200 else {}
    line = {"msg": "admin write", "method": "POST", "path": "/admin/discover", "status": status, "client": "127.0.0.1"}
    assert guarded.lines == [line | said]


async def test_a_look_is_not_written_down(admin: Admin) -> None:
    await admin.ask("GET", "/admin/discover")
    await admin.ask("POST", "/statusz", JSON, b"{}")

    assert admin.lines == []


async def test_a_write_is_written_down_whatever_the_level() -> None:
    quiet = Admin("error")
    async with served(quiet.app) as quiet.url:
        await quiet.ask("POST", "/admin/discover")

    assert [line["msg"] for line in quiet.lines] == ["admin write"]


@pytest.mark.parametrize("host", ["fd00::1", "[FD00::1]"])
async def test_an_address_of_ipv6_is_a_host_in_brackets(host: str) -> None:
    one = Admin(hosts=(host,))
    async with served(one.app) as one.url:
        assert await one.ask("GET", "/statusz", {"host": "[fd00::1]:9091"}) == (200, "done")
