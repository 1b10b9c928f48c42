# SPDX-License-Identifier: Apache-2.0
"""Routing entries in a ConfigMap, at an API server that refuses, forgets and hangs; a real one is in tests/kubernetes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.routingmap import ConfigMapRouting
from extproc.policy.config import Route, Selector
from extproc.policy.routing import Edit, Refused, Routing, plain, put, remove, routing_document
from tests.fakes.api_server import ApiServer, Exchange, write_kubeconfig

FOLDER = "/api/v1/namespaces/team-a/configmaps"
PATH = f"{FOLDER}/owned-by-routing"
UNSURE = "; it is not known whether it was stored"
IMMUTABLE = "is invalid: data: Forbidden: field is immutable when `immutable` is set"
TOO_LONG = "is invalid: []: Too long: may not be more than 1048576 bytes"


def route(model: str, app: str = "canary") -> Route:
    return Route(model, "vllm", Selector({"app": app}))


def stored(*models: str, version: str = "7", **more: Any) -> dict[str, Any]:
    """The ConfigMap as the API server has it, with something of everybody's."""
    metadata = {"name": "owned-by-routing", "namespace": "team-a", "resourceVersion": version, "uid": "u-1"}
    metadata |= {"labels": {"team": "a"}, "annotations": {"note": "x"}}
    data = {"other": "kept", "routing.yaml": routing_document(tuple(map(route, models)))}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data} | more


def status(code: int, message: str = "no") -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def shown(outcome: Routing | Refused) -> tuple[list[str], str] | Refused:
    """The models of the entries, and the version."""
    return outcome if isinstance(outcome, Refused) else ([each.model for each in outcome.routes], outcome.version)


class Rig:
    """A store, and the requests that it makes."""

    def __init__(self, server: ApiServer, api: KubernetesApi) -> None:
        self.server = server
        self.store = ConfigMapRouting(api, "team-a")

    def reads(self) -> asyncio.Task[Routing | Refused]:
        return asyncio.create_task(self.store.read())

    def changes(self, edit: Edit, version: str | None = None) -> asyncio.Task[Routing | Refused]:
        return asyncio.create_task(self.store.change(edit, version))

    async def asked(self, method: str, path: str, code: int, answer: Any) -> Exchange:
        """The next request, which must be this one, gets this answer."""
        exchange = await self.server.request()
        assert (exchange.method, exchange.path, exchange.query) == (method, path, {})
        await exchange.json(code, answer)
        return exchange

    async def gets(self, *models: str, version: str = "7") -> None:
        await self.asked("GET", PATH, 200, stored(*models, version=version))


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """No time passes between two attempts; the bounds that it was drawn from."""
    drawn: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        drawn.append((least, most))
        return 0.0

    monkeypatch.setattr("extproc.discovery.routingmap.random.uniform", draw)
    return drawn


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first")
    return path


@pytest.fixture
async def rig(tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with ApiServer() as server:
        api = KubernetesApi(write_kubeconfig(tmp_path / "kubeconfig", server.url, tokenFile=str(token)))
        await api.connect()
        yield Rig(server, api)
        await api.close()

        assert server.waiting == 0


class TestRead:
    """What is stored."""

    async def test_it_is_what_the_configmap_says_at_its_version(self, rig: Rig) -> None:
        reading = rig.reads()
        await rig.gets("m", "n")
        found = await reading

        assert isinstance(found, Routing)
        assert [plain(each) for each in found.routes] == [plain(route("m")), plain(route("n"))]
        assert found.version == "7"

    @pytest.mark.parametrize("data", [None, {}, {"other": "x"}, {"routing.yaml": ""}])
    async def test_a_configmap_without_a_document_has_no_entries(self, rig: Rig, data: Any) -> None:
        reading = rig.reads()
        await rig.asked("GET", PATH, 200, stored(data=data))

        assert shown(await reading) == ([], "7")

    async def test_no_configmap_has_no_entries_and_no_version(self, rig: Rig) -> None:
        reading = rig.reads()
        await rig.asked("GET", PATH, 404, status(404))

        assert shown(await reading) == ([], "")

    async def test_a_bad_document_is_told_with_its_place(self, rig: Rig) -> None:
        reading = rig.reads()
        await rig.asked("GET", PATH, 200, stored(data={"routing.yaml": "kind: OwnedByRouting\n"}))

        assert await reading == Refused(
            "unreadable",
            "the ConfigMap team-a/owned-by-routing, routing.yaml: line 1: Object missing required field `apiVersion`",
        )

    @pytest.mark.parametrize(
        ("code", "refused"),
        [
            (403, ("read_only", "the permission to get the ConfigMap team-a/owned-by-routing is missing: no")),
            (429, ("unavailable", "the API server fails: no")),
            (500, ("unavailable", "the API server fails: no")),
            (503, ("unavailable", "the API server fails: no")),
        ],
    )
    async def test_what_the_api_server_refuses_is_told(self, rig: Rig, code: int, refused: tuple[Any, str]) -> None:
        reading = rig.reads()
        await rig.asked("GET", PATH, code, status(code))

        assert await reading == Refused(*refused)

    async def test_an_api_server_that_is_away_is_told(self, rig: Rig) -> None:
        await rig.server.stop()
        refused = await rig.store.read()

        assert isinstance(refused, Refused)
        assert refused.code == "unavailable"
        assert refused.message.startswith("the API server fails: no connection to the API server: ")

    async def test_an_api_server_that_hangs_is_told(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("extproc.discovery.routingmap.PATIENCE", 0.05)
        reading = rig.reads()
        await rig.server.request()

        assert await reading == Refused("unavailable", "the API server fails: no answer within 0.05 s")

    async def test_an_answer_that_is_no_configmap_is_told(self, rig: Rig) -> None:
        reading = rig.reads()
        await (await rig.server.request()).text(200, b"<html>")
        refused = await reading

        assert isinstance(refused, Refused)
        assert refused.code == "unavailable"
        assert refused.message.startswith("the API server fails: its answer is no ConfigMap: ")

    async def test_a_token_that_is_refused_is_read_again(self, rig: Rig, token: Path) -> None:
        reading = rig.reads()
        token.write_text("second")  # noqa: ASYNC240
        await rig.asked("GET", PATH, 401, status(401))
        again = await rig.asked("GET", PATH, 200, stored("m"))

        assert (shown(await reading), again.headers["authorization"]) == ((["m"], "7"), "Bearer second")

    async def test_a_token_that_is_refused_again_is_told(self, rig: Rig) -> None:
        reading = rig.reads()
        for _ in range(2):
            await rig.asked("GET", PATH, 401, status(401, "Unauthorized"))

        assert await reading == Refused("unavailable", "the API server fails: Unauthorized")


class TestChange:
    """What is written."""

    async def test_the_entry_is_written_and_all_else_stays(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")))
        await rig.gets("m")
        written = await rig.asked("PUT", PATH, 200, stored("m", "n", version="8"))

        assert json.loads(written.body) == stored("m", "n")
        assert shown(await changing) == (["m", "n"], "8")

    async def test_one_that_is_removed_leaves_the_others(self, rig: Rig) -> None:
        changing = rig.changes(remove("m", "vllm"), "7")
        await rig.gets("m", "n")
        written = await rig.asked("PUT", PATH, 200, stored("n", version="8"))

        assert json.loads(written.body) == stored("n")
        assert shown(await changing) == (["n"], "8")

    async def test_a_configmap_that_held_nothing_gets_its_key(self, rig: Rig) -> None:
        changing = rig.changes(put(route("m")))
        await rig.asked("GET", PATH, 200, stored(data=None))
        written = await rig.asked("PUT", PATH, 200, stored("m", version="8"))

        assert json.loads(written.body) == stored(data={"routing.yaml": routing_document((route("m"),))})
        assert shown(await changing) == (["m"], "8")

    async def test_what_is_so_already_is_not_written(self, rig: Rig) -> None:
        changing = [rig.changes(put(route("m"))), rig.changes(remove("n", "vllm"), "7")]
        for _ in changing:
            await rig.gets("m")

        assert [shown(await each) for each in changing] == [(["m"], "7")] * 2

    async def test_a_configmap_is_made_if_there_is_none(self, rig: Rig) -> None:
        changing = rig.changes(put(route("m")))
        await rig.asked("GET", PATH, 404, status(404))
        written = await rig.asked("POST", FOLDER, 201, stored("m", version="8"))

        assert json.loads(written.body) == {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "owned-by-routing", "namespace": "team-a"},
            "data": {"routing.yaml": routing_document((route("m"),))},
        }
        assert shown(await changing) == (["m"], "8")

    async def test_none_is_made_to_remove_something(self, rig: Rig) -> None:
        changing = rig.changes(remove("m", "vllm"))
        await rig.asked("GET", PATH, 404, status(404))

        assert shown(await changing) == ([], "")

    async def test_entries_that_nobody_could_read_are_not_written(self, rig: Rig) -> None:
        changing = rig.changes(lambda routes: (*routes, *routes))
        await rig.gets("m")

        assert await changing == Refused(
            "invalid", "the entries would be refused: line 14, routing[1]: the same model and owner as in routing[0]"
        )

    async def test_a_bad_document_is_not_overwritten(self, rig: Rig) -> None:
        changing = rig.changes(put(route("m")))
        await rig.asked("GET", PATH, 200, stored(data={"routing.yaml": "routing: {}"}))
        refused = await changing

        assert isinstance(refused, Refused)
        assert refused.code == "unreadable"


class TestConflict:
    """Others write too."""

    async def test_who_was_slower_adds_to_what_the_faster_one_wrote(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")))
        await rig.gets("m")
        await rig.asked("PUT", PATH, 409, status(409, "the object has been modified"))
        await rig.gets("m", "theirs", version="8")
        written = await rig.asked("PUT", PATH, 200, stored("m", "theirs", "n", version="9"))

        assert json.loads(written.body) == stored("m", "theirs", "n", version="8")
        assert shown(await changing) == (["m", "theirs", "n"], "9")

    async def test_one_that_somebody_else_has_made_is_added_to(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")))
        await rig.asked("GET", PATH, 404, status(404))
        await rig.asked("POST", FOLDER, 409, status(409, "already exists"))
        await rig.gets("theirs")
        await rig.asked("PUT", PATH, 200, stored("theirs", "n", version="9"))

        assert shown(await changing) == (["theirs", "n"], "9")

    async def test_one_that_somebody_else_has_deleted_is_made_again(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")))
        await rig.gets("m")
        await rig.asked("PUT", PATH, 404, status(404))
        await rig.asked("GET", PATH, 404, status(404))
        await rig.asked("POST", FOLDER, 201, stored("n", version="9"))

        assert shown(await changing) == (["n"], "9")

    async def test_it_is_not_tried_for_ever(self, rig: Rig, no_chance: list[tuple[float, float]]) -> None:
        changing = rig.changes(put(route("n")))
        for number in range(10):
            await rig.gets(version=str(number))
            await rig.asked("PUT", PATH, 409, status(409))

        assert await changing == Refused(
            "conflict",
            "the ConfigMap team-a/owned-by-routing changed each time that it was to be written; try again",
        )
        assert no_chance == [(0, most) for most in (0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5, 0.5)]

    async def test_at_another_version_than_was_meant_nothing_is_written(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")), "6")
        await rig.gets("m")

        assert await changing == Refused(
            "conflict", "the ConfigMap team-a/owned-by-routing is at version 7; version 6 was meant"
        )

    async def test_one_that_is_gone_is_at_no_version(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")), "6")
        await rig.asked("GET", PATH, 404, status(404))

        assert await changing == Refused(
            "conflict", "the ConfigMap team-a/owned-by-routing does not exist; version 6 was meant"
        )

    async def test_who_meant_a_version_does_not_add_to_another(self, rig: Rig) -> None:
        changing = rig.changes(put(route("n")), "7")
        await rig.gets("m")
        await rig.asked("PUT", PATH, 409, status(409))
        await rig.gets("m", "theirs", version="8")

        assert await changing == Refused(
            "conflict", "the ConfigMap team-a/owned-by-routing is at version 8; version 7 was meant"
        )

    async def test_those_of_one_process_come_one_after_the_other(self, rig: Rig) -> None:
        first, second = rig.changes(put(route("a"))), rig.changes(put(route("b")))
        await rig.gets()
        alone = rig.server.waiting
        await rig.asked("PUT", PATH, 200, stored("a", version="8"))
        await rig.gets("a", version="8")
        await rig.asked("PUT", PATH, 200, stored("a", "b", version="9"))

        assert (alone, shown(await first), shown(await second)) == (0, (["a"], "8"), (["a", "b"], "9"))

    async def test_who_leaves_lets_the_next_one_in(self, rig: Rig) -> None:
        first, second = rig.changes(put(route("a"))), rig.changes(put(route("b")))
        hangs = await rig.server.request()
        first.cancel()
        await hangs.left()
        await rig.gets()
        await rig.asked("PUT", PATH, 200, stored("b", version="8"))

        assert shown(await second) == (["b"], "8")
        assert first.cancelled()


class TestRefused:
    """What an API server does not let be written."""

    @pytest.mark.parametrize(
        ("code", "said", "why", "words"),
        [
            (403, "no", "read_only", "the permission to update the ConfigMap team-a/owned-by-routing is missing: no"),
            (422, IMMUTABLE, "read_only", f"the ConfigMap team-a/owned-by-routing cannot be written: {IMMUTABLE}"),
            (422, TOO_LONG, "too_large", f"the ConfigMap team-a/owned-by-routing would be too large: {TOO_LONG}"),
            (413, "limit", "too_large", "the ConfigMap team-a/owned-by-routing would be too large: limit"),
            (429, "wait", "unavailable", "the API server fails: wait"),
            (500, "leader changed", "unavailable", f"the API server fails: leader changed{UNSURE}"),
        ],
    )
    async def test_the_reason_is_told(self, rig: Rig, code: int, said: str, why: Any, words: str) -> None:
        changing = rig.changes(put(route("m")))
        await rig.gets()
        await rig.asked("PUT", PATH, code, status(code, said))

        assert await changing == Refused(why, words)

    async def test_the_permission_to_make_one_may_be_missing(self, rig: Rig) -> None:
        changing = rig.changes(put(route("m")))
        await rig.asked("GET", PATH, 404, status(404))
        await rig.asked("POST", FOLDER, 403, status(403))

        assert await changing == Refused(
            "read_only", "the permission to create the ConfigMap team-a/owned-by-routing is missing: no"
        )

    async def test_a_connection_that_breaks_leaves_it_open_whether_it_was_stored(self, rig: Rig) -> None:
        changing = rig.changes(put(route("m")))
        await rig.gets()
        for _ in range(2):  # the client tries once more by itself
            (await rig.server.request()).reset()
        refused = await changing

        assert isinstance(refused, Refused)
        assert (refused.code, refused.message.endswith(UNSURE)) == ("unavailable", True)

    async def test_so_does_one_that_hangs(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("extproc.discovery.routingmap.PATIENCE", 0.5)
        changing = rig.changes(put(route("m")))
        await rig.gets()
        await rig.server.request()

        assert await changing == Refused("unavailable", f"the API server fails: no answer within 0.5 s{UNSURE}")
