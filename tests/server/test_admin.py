# SPDX-License-Identifier: Apache-2.0
"""The admin port of the real program: what it shows, what it changes, and what it refuses."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.client import send
from extproc.demo.processes import Server
from tests.builders import HEAD
from tests.heard import Heard

ENDPOINTS = """pools:
- name: chat
  endpoints:
  - {name: a, address: "127.0.0.1:8001", labels: {llm-d.ai/engine-type: vllm, app: canary}, models: [m, a/b]}
  - {name: b, address: "127.0.0.1:8002", labels: {llm-d.ai/engine-type: sglang}, models: [m]}
"""
TOKEN = {"authorization": "Bearer sesame"}
JSON = {"content-type": "application/json"}
ROUTING = "/admin/api/routing"
CANARY = {"model": "m", "owned_by": "sglang", "selector": {"matchLabels": {"app": "canary"}}}


class Admin:
    """A running program with its files; `heard` is what it logs."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.heard = Heard()
        for name, text in (("endpoints.yaml", ENDPOINTS), ("policy.yaml", HEAD), ("token", "sesame\n")):
            self.write(name, text)
        files = (("endpoints-file", "endpoints.yaml"), ("config-file", "policy.yaml"), ("admin-token-file", "token"))
        given = [word for flag, name in files for word in (f"--{flag}", str(folder / name))]
        self.server = Server(*given, *flags, on_line=self.heard)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    async def ask(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        """The status, and the JSON or, of an error, its code, its param and its message."""
        body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        given = TOKEN | (JSON if body else {}) | {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await send(self.server.admin_port, method, path, given, body)
        if not answer.body:
            return answer.status, None
        found = answer.json()
        if answer.status < 400:
            return answer.status, found
        error = found["error"]
        return answer.status, (error["code"], error["param"], error["message"])

    async def routing(self) -> Any:
        return (await self.ask("GET", ROUTING))[1]["routing"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    tmp_path.chmod(0o755)


@pytest.fixture
async def admin(folder: Path) -> AsyncIterator[Admin]:
    one = Admin(folder)
    async with one.server:
        yield one


async def test_an_entry_is_stored_shown_used_changed_and_forgotten(admin: Admin) -> None:
    question = {"path": "/v1/completions", "headers": {"x-owned-by": "sglang"}, "body": {"model": "m"}}

    async def destinations() -> Any:
        return (await admin.ask("POST", "/explain", question))[1]["endpoints"]

    facts = (await admin.ask("POST", "/explain", question))[1]["facts"]
    before = await destinations()
    admin.heard.said.clear()
    created, stored = await admin.ask("POST", ROUTING, CANARY | {"owned_by": "SGLang"})
    shown = await admin.ask("GET", ROUTING)
    await admin.heard.line(msg="loaded", source="routing")
    used = await destinations()
    other = CANARY | {"selector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}
    changed, again = await admin.ask("POST", ROUTING, other)
    gone = await admin.ask("DELETE", ROUTING + "?model=m&owned_by=SGLANG")
    after = await admin.ask("GET", ROUTING)

    version = stored.pop("resourceVersion")
    assert ["endpoints", "127.0.0.1:8002"] in facts
    assert (before, used) == (["127.0.0.1:8002"], ["127.0.0.1:8001"])
    assert (created, stored, shown) == (201, CANARY, (200, {"routing": [CANARY], "resourceVersion": version}))
    assert (changed, again.pop("resourceVersion") == version, again) == (200, False, other)
    assert (gone, after[1]["routing"]) == ((204, None), [])


async def test_what_is_stored_outlives_the_program(folder: Path) -> None:
    first = Admin(folder)
    async with first.server:
        await first.ask("POST", ROUTING, CANARY)
    second = Admin(folder)
    async with second.server:
        status, config = await second.ask("GET", "/configz")
        stored = await second.routing()

    assert (stored, status) == ([CANARY], 200)
    assert [entry["owned_by"] for entry in config["policy"]["routing"]] == ["sglang"]


async def test_a_change_for_another_version_is_a_conflict_and_changes_nothing(admin: Admin) -> None:
    _, first = await admin.ask("POST", ROUTING, CANARY)
    _, second = await admin.ask(
        "POST", ROUTING, CANARY | {"owned_by": "tgi", "resourceVersion": first["resourceVersion"]}
    )
    late = CANARY | {"owned_by": "other", "resourceVersion": first["resourceVersion"]}

    posted = await admin.ask("POST", ROUTING, late)
    deleted = await admin.ask("DELETE", f"{ROUTING}?model=m&owned_by=tgi&resourceVersion={first['resourceVersion']}")
    stored = await admin.ask("GET", ROUTING)

    assert [(status, answer[0]) for status, answer in (posted, deleted)] == [(409, "conflict")] * 2
    assert stored[1] == {
        "routing": [CANARY, CANARY | {"owned_by": "tgi"}],
        "resourceVersion": second["resourceVersion"],
    }


async def test_the_version_of_nothing_is_one_too(admin: Admin) -> None:
    _, nothing = await admin.ask("GET", ROUTING)
    await admin.ask("POST", ROUTING, CANARY)

    late = await admin.ask("POST", ROUTING, CANARY | {"owned_by": "tgi", "resourceVersion": nothing["resourceVersion"]})
    gone = await admin.ask("DELETE", f"{ROUTING}?model=m&owned_by=sglang&resourceVersion=")

    assert [(status, answer[0]) for status, answer in (late, gone)] == [(409, "conflict")] * 2
    assert await admin.routing() == [CANARY]


async def test_what_get_shows_can_be_deleted_whatever_an_alias_makes_of_it(admin: Admin) -> None:
    await admin.ask("POST", ROUTING, CANARY | {"owned_by": "foo"})
    admin.heard.said.clear()
    admin.write("policy.yaml", HEAD + "match: {aliases: {foo: sglang}}\n")
    await admin.heard.line(msg="loaded", source="policy")

    assert await admin.ask("DELETE", ROUTING + "?model=m&owned_by=foo") == (204, None)
    assert await admin.routing() == []


REFUSED: dict[str, tuple[str, str, Any, dict[str, str], tuple[int, str, str | None]]] = {
    "no token": ("POST", ROUTING, CANARY, {"authorization": ""}, (401, "unauthorized", None)),
    "a wrong token": ("POST", ROUTING, CANARY, {"authorization": "Bearer x"}, (401, "unauthorized", None)),
    "a foreign Host": ("POST", ROUTING, CANARY, {"host": "evil.example"}, (403, "forbidden", None)),
    "a foreign Origin": ("POST", ROUTING, CANARY, {"origin": "http://evil.example"}, (403, "forbidden", None)),
    "another site": ("POST", ROUTING, CANARY, {"sec_fetch_site": "cross-site"}, (403, "forbidden", None)),
    "a form": ("POST", ROUTING, CANARY, {"content_type": "text/plain"}, (415, "unsupported_media_type", None)),
    "no JSON": ("POST", ROUTING, b"model=m", {}, (400, "bad_request", None)),
    "a wrong type": ("POST", ROUTING, CANARY | {"model": 7}, {}, (400, "bad_request", "model")),
    "an unknown key": ("POST", ROUTING, CANARY | {"weight": 1}, {}, (400, "bad_request", None)),
    "an empty selector": ("POST", ROUTING, CANARY | {"selector": {}}, {}, (400, "bad_request", "selector")),
    "an operator without values": (
        "POST",
        ROUTING,
        CANARY | {"selector": {"matchExpressions": [{"key": "app", "operator": "In"}]}},
        {},
        (400, "bad_request", "selector.matchExpressions[0]"),
    ),
    "an unknown model": ("POST", ROUTING, CANARY | {"model": "x"}, {}, (404, "model_not_found", "model")),
    "a huge body": ("POST", ROUTING, b'"' + b"x" * 1_048_577, {}, (413, "body_too_large", None)),
    "nothing to delete": ("DELETE", ROUTING + "?model=m&owned_by=x", None, {}, (404, "route_not_found", "model")),
    "a delete of nothing": ("DELETE", ROUTING, None, {}, (400, "bad_request", "model")),
    "a delete with a typo": ("DELETE", ROUTING + "?model=m&owner=x", None, {}, (400, "bad_request", "owner")),
    "another method": ("PUT", ROUTING, CANARY, {}, (405, "method_not_allowed", None)),
    "a slash too many": ("POST", ROUTING + "/", CANARY, {}, (404, "not_found", None)),
    "another page": ("POST", "/admin/api/routes", CANARY, {}, (404, "not_found", None)),
    "no token to discover": ("POST", "/admin/discover", None, {"authorization": ""}, (401, "unauthorized", None)),
    "a body to discover": ("POST", "/admin/discover", {"all": True}, {}, (400, "bad_request", None)),
    "a GET of discover": ("GET", "/admin/discover", None, {}, (405, "method_not_allowed", None)),
    "a relative path to explain": ("POST", "/explain", {"path": "v1"}, {}, (400, "bad_request", "path")),
    "an attachment that is none": (
        "POST",
        "/explain",
        {"path": "/", "attachment": "x"},
        {},
        (400, "bad_request", "attachment"),
    ),
    "a pool that is none": ("POST", "/explain", {"path": "/", "pool": "chat"}, {}, (400, "bad_request", "pool")),
    "a header that is none": (
        "POST",
        "/explain",
        {"path": "/", "headers": {"a b": "c"}},
        {},
        (400, "bad_request", "headers"),
    ),
    "a header of two lines": (
        "POST",
        "/explain",
        {"path": "/", "headers": {"a": "b\nc: d"}},
        {},
        (400, "bad_request", "headers[...]"),
    ),
    "an unknown model of the list": ("GET", "/v1/models/x", None, {}, (404, "model_not_found", "model")),
    "an unknown owner of the list": ("GET", "/v1/models?owned_by=x", None, {}, (404, "owner_not_found", "owned_by")),
    "an owner of the list that is none": (
        "GET",
        "/v1/models?owned_by=a%20b",
        None,
        {},
        (400, "owner_malformed", "owned_by"),
    ),
    "an unknown pool of the list": ("GET", "/v1/models?pool=a/b", None, {}, (404, "pool_unknown", "pool")),
    "a pool of the list that is none": ("GET", "/v1/models?pool=chat", None, {}, (400, "bad_request", "pool")),
    "no token for a page": ("GET", "/statusz", None, {"authorization": ""}, (401, "unauthorized", None)),
    "a page that is not there": ("GET", "/nowhere", None, {}, (404, "not_found", None)),
}


async def test_bad_input_is_a_clear_error_in_one_shape_and_changes_nothing(admin: Admin) -> None:
    await admin.ask("POST", ROUTING, CANARY)
    before = await admin.ask("GET", ROUTING)

    found = {}
    for name, (method, path, content, headers, _) in REFUSED.items():
        status, (code, param, message) = await admin.ask(method, path, content, **headers)
        assert message
        found[name] = (status, code, param)

    assert found == {name: expected for name, (*_, expected) in REFUSED.items()}
    assert await admin.ask("GET", ROUTING) == before


async def test_every_write_is_in_the_log_with_what_it_changed_and_what_came_of_it(admin: Admin) -> None:
    await admin.ask("POST", ROUTING, CANARY)
    await admin.ask("DELETE", ROUTING + "?model=m&owned_by=sglang")
    await admin.ask("DELETE", ROUTING + "?model=m&owned_by=sglang", authorization="Bearer x")
    await admin.heard.line(msg="admin write", status=401)

    names = {"method", "path", "status", "client", "model", "owned_by", "selector"}
    written = [
        {k: v for k, v in line.items() if k in names} for line in admin.heard.said if line["msg"] == "admin write"
    ]
    line = {"method": "POST", "path": ROUTING, "status": 201, "client": "127.0.0.1"}
    delete = line | {"method": "DELETE", "status": 204}
    assert written == [
        line | CANARY,
        delete | {"model": "m", "owned_by": "sglang"},
        delete | {"status": 401},
    ]
    assert "sesame" not in json.dumps(admin.heard.said)


async def test_discover_says_what_it_found(admin: Admin) -> None:
    quiet = await admin.ask("POST", "/admin/discover")
    admin.write("endpoints.yaml", ENDPOINTS.replace("name: b,", "name: c,").replace("[m, a/b]", "[m]"))
    found = await admin.ask("POST", "/admin/discover", {})

    nothing: dict[str, Any] = {"added": [], "removed": []}
    generation = quiet[1]["generation"]
    assert quiet == (
        200,
        {"generation": generation, "pools": nothing, "endpoints": nothing | {"changed": []}, "errors": {}},
    )
    place = {"pool": "default/chat", "destination": "127.0.0.1:8002"}
    assert found == (
        200,
        {
            "generation": generation + 1,
            "pools": nothing,
            "endpoints": {
                "added": [place | {"name": "c"}],
                "removed": [place | {"name": "b"}],
                "changed": [{"pool": "default/chat", "name": "a", "destination": "127.0.0.1:8001"}],
            },
            "errors": {},
        },
    )


async def test_discover_says_what_could_not_be_looked_at(admin: Admin) -> None:
    admin.write("endpoints.yaml", "pools: 7")

    found = [(await admin.ask("POST", "/admin/discover"))[1]["errors"] for _ in range(2)]

    assert found == [{"endpoints": "line 1, pools: Expected `array`, got `int`"}] * 2


async def test_the_list_is_that_of_the_gateway(admin: Admin) -> None:
    entry = {"object": "model", "created": 0}
    vllm = [entry | {"id": "a/b", "owned_by": "vllm"}, entry | {"id": "m", "owned_by": "vllm"}]

    assert await admin.ask("GET", "/v1/models?owned_by=vLLM&pool=default/chat") == (
        200,
        {"object": "list", "data": vllm},
    )
    assert await admin.ask("GET", "/v1/models/a%2Fb") == (200, vllm[0])
    assert await admin.ask("GET", "/v1/models/a/b") == (200, vllm[0])


async def test_the_flags_are_those_that_it_runs_with(admin: Admin) -> None:
    status, shown = await admin.ask("GET", "/flagz")

    wanted = {
        "--endpoints-file": str(admin.folder / "endpoints.yaml"),
        "--admin-token-file": str(admin.folder / "token"),
        "--drain-timeout": 1.0,
        "--config-map": None,
    }
    assert (status, {flag: shown[flag] for flag in wanted}) == (200, wanted)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--admin-read-only",), "--admin-read-only is set")],
)
async def test_where_nothing_may_be_changed_that_is_said(folder: Path, flags: tuple[str, ...], message: str) -> None:
    one = Admin(folder, *flags)
    async with one.server:
        posted = await one.ask("POST", ROUTING, CANARY)
        deleted = await one.ask("DELETE", ROUTING + "?model=m&owned_by=sglang")
        stored = await one.routing()

    assert (posted, deleted, stored) == ((409, ("read_only", None, message)), (409, ("read_only", None, message)), [])
