# SPDX-License-Identifier: Apache-2.0
"""The policy or its routing entries in a ConfigMap: what is put in force, what is refused, and the Event that says so."""

import contextlib
import io
import json
import socket
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.discovery.configmap import PolicyMap
from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.objects import ConfigMap
from extproc.observability.logs import make_logger
from extproc.policy.document import DocumentError
from tests.fakes.api_server import ApiServer, write_kubeconfig

GOOD, BETTER, BAD = "good", "better", "bad"
REFUSED = "policy.yaml: line 1: bad"


def config_map(text: str | None = GOOD, version: str = "7", key: str = "policy.yaml", **annotations: str) -> ConfigMap:
    metadata = {"name": "owned-by", "namespace": "default", "uid": "u-1", "resourceVersion": version}
    document = {"metadata": metadata | {"annotations": annotations}, "data": {"another": "x"}}
    if text is not None:
        document["data"][key] = text
    return msgspec.convert(document, ConfigMap)


class Rig:
    """A PolicyMap, what it put in force, and what it told."""

    def __init__(self, server: ApiServer, api: KubernetesApi, **options: Any) -> None:
        self.server = server
        self.applied: list[bytes] = []
        self.told: list[str | None] = []
        self.logged = io.BytesIO()
        logger = make_logger("json", "info", self.logged)
        self.map = PolicyMap(
            api, "default", "owned-by", self._apply, lambda _map, error: self.told.append(error), logger, **options
        )
        self._last: ConfigMap | None = None

    def _apply(self, text: bytes) -> None:
        if text == BAD.encode():
            raise DocumentError("line 1: bad")
        self.applied.append(text)

    def becomes(self, *versions: ConfigMap | None) -> None:
        """It changes, as a reflector tells it."""
        for new in versions:
            self.map.changed(self._last, new)
            self._last = new

    async def event(self, status: int = 201) -> dict[str, Any]:
        """The next Event that is written, without its times."""
        exchange = await self.server.request()
        assert (exchange.method, exchange.path) == ("POST", "/api/v1/namespaces/default/events")
        assert exchange.headers["content-type"] == "application/json"
        document = json.loads(exchange.body)
        await exchange.json(status, {"message": "no", "code": status} if status >= 400 else document)
        first, last = document.pop("firstTimestamp"), document.pop("lastTimestamp")
        assert first == last
        assert msgspec.convert(first, datetime)
        return document

    async def messages(self, number: int) -> set[str]:
        """The messages of so many Events; they are written at the same time."""
        return {(await self.event())["message"] for _ in range(number)}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("POD_NAME", "owned-by-0")


@contextlib.asynccontextmanager
async def rigged(folder: Path, **options: Any) -> AsyncIterator[Rig]:
    async with ApiServer() as server:
        api = KubernetesApi(write_kubeconfig(folder / "kubeconfig", server.url))
        await api.connect()
        yield Rig(server, api, **options)
        await api.close()

        assert server.waiting == 0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as rig:
        yield rig


@pytest.fixture
async def routing(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path, key="routing.yaml", optional=True) as rig:
        yield rig


def entries(text: str | None, version: str = "7", **annotations: str) -> ConfigMap:
    return config_map(text, version, "routing.yaml", **annotations)


async def test_a_good_version_is_put_in_force(rig: Rig) -> None:
    before = (rig.map.error, rig.map.loaded.is_set())
    rig.becomes(config_map(GOOD), config_map(BETTER))

    assert before == ("not read yet", False)
    assert (rig.map.error, rig.map.loaded.is_set()) == (None, True)
    assert (rig.applied, rig.told) == ([b"good", b"better"], [None, None])


async def test_a_bad_version_is_refused_and_told_to_the_cluster(rig: Rig) -> None:
    rig.becomes(config_map(GOOD), config_map(BAD, "8"))

    assert (rig.applied, rig.told, rig.map.error) == ([b"good"], [None, REFUSED], REFUSED)
    assert await rig.event() == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "owned-by.", "namespace": "default"},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "namespace": "default",
            "name": "owned-by",
            "uid": "u-1",
            "resourceVersion": "8",
        },
        "type": "Warning",
        "reason": "PolicyRefused",
        "message": f"the last good policy stays: {REFUSED}",
        "source": {"component": "owned-by", "host": "owned-by-0"},
        "count": 1,
    }


async def test_without_a_pods_name_the_host_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POD_NAME")
    rig.becomes(config_map(BAD))

    assert (await rig.event())["source"] == {"component": "owned-by", "host": socket.gethostname()}


async def test_a_bad_version_that_stays_bad_is_told_once(rig: Rig) -> None:
    rig.becomes(config_map(GOOD), config_map(BAD), config_map(BAD, "8", note="x"), config_map(BAD, "9"))
    await rig.event()

    assert rig.told == [None, REFUSED]


async def test_one_that_stays_without_the_key_is_told_once(rig: Rig) -> None:
    rig.becomes(config_map(GOOD), config_map(None), config_map(None, "8", note="x"))
    await rig.event()

    assert rig.told == [None, "it has no key `policy.yaml`"]


async def test_a_good_version_after_a_bad_one_is_put_in_force_even_if_it_is_the_old_one(rig: Rig) -> None:
    rig.becomes(config_map(GOOD), config_map(BAD), config_map(GOOD), config_map(BAD))
    messages = await rig.messages(2)

    assert (rig.applied, rig.told) == ([b"good", b"good"], [None, REFUSED, None, REFUSED])
    assert messages == {f"the last good policy stays: {REFUSED}"}


async def test_the_same_text_with_another_annotation_is_nothing(rig: Rig) -> None:
    rig.becomes(config_map(GOOD), config_map(GOOD, "8", note="x"))

    assert (rig.applied, rig.told) == ([b"good"], [None])


@pytest.mark.parametrize(
    ("becomes", "error"),
    [
        (config_map(None), "it has no key `policy.yaml`"),
        (msgspec.convert({"metadata": {"name": "owned-by"}}, ConfigMap), "it has no key `policy.yaml`"),
        (None, "it was deleted"),
    ],
    ids=["without the key", "without data", "deleted"],
)
async def test_what_is_taken_away_leaves_the_last_good_one_in_force(
    rig: Rig, becomes: ConfigMap | None, error: str
) -> None:
    rig.becomes(config_map(GOOD), becomes)
    event = await rig.event()
    held = (list(rig.applied), rig.map.error, rig.map.loaded.is_set())
    rig.becomes(config_map(GOOD))

    assert event["message"] == f"the last good policy stays: {error}"
    assert ("uid" in event["involvedObject"]) is (becomes is not None)
    assert held == ([b"good"], error, True)
    assert (rig.applied, rig.told, rig.map.error) == ([b"good", b"good"], [None, error, None], None)


async def test_an_empty_text_is_judged_as_any_other(rig: Rig) -> None:
    rig.becomes(config_map(""))

    assert rig.applied == [b""]


async def test_one_that_is_absent_at_the_start_is_told_and_waited_for(rig: Rig) -> None:
    rig.map.absent()
    event = await rig.event()
    before = (rig.map.error, rig.map.loaded.is_set(), event["message"], event["involvedObject"])
    rig.becomes(config_map(GOOD))

    about = {"apiVersion": "v1", "kind": "ConfigMap", "namespace": "default", "name": "owned-by"}
    assert before == ("it does not exist", False, "there is no policy yet: it does not exist", about)
    assert (rig.applied, rig.told, rig.map.loaded.is_set()) == ([b"good"], ["it does not exist", None], True)


async def test_one_that_is_bad_at_the_start_leaves_nothing_in_force(rig: Rig) -> None:
    rig.becomes(config_map(BAD))

    assert (await rig.event())["message"] == f"there is no policy yet: {REFUSED}"
    assert (rig.map.error, rig.map.loaded.is_set()) == (REFUSED, False)


async def test_a_long_error_is_cut(rig: Rig) -> None:
    rig.map._refuse("x" * 5000, None)

    assert len((await rig.event())["message"]) == 1024


async def test_an_event_that_cannot_be_written_is_a_warning(rig: Rig) -> None:
    rig.becomes(config_map(BAD))
    (task,) = rig.map._events
    await rig.event(403)
    await task
    rig.becomes(config_map(GOOD))

    line = json.loads(rig.logged.getvalue())
    del line["ts"]
    assert line == {
        "level": "warning",
        "logger": "configmap",
        "msg": "no Event could be written",
        "configmap": "default/owned-by",
        "error": "no",
    }
    assert (rig.told, rig.map._events) == ([REFUSED, None], set())


async def test_it_is_called_by_its_namespace_and_name(rig: Rig) -> None:
    assert str(rig.map) == "default/owned-by"


class TestOptional:
    """The routing entries, which may as well not be there."""

    async def test_what_is_stored_is_put_in_force(self, routing: Rig) -> None:
        routing.becomes(entries(GOOD), entries(BETTER, "8"), entries(BETTER, "9", note="x"))

        assert (routing.applied, routing.told, routing.map.error) == ([b"good", b"better"], [None, None], None)

    async def test_one_that_is_absent_is_empty_and_no_error(self, routing: Rig) -> None:
        routing.map.absent()
        before = (list(routing.applied), list(routing.told), routing.map.error, routing.map.loaded.is_set())
        routing.map.absent()
        routing.becomes(entries(None), entries(GOOD, "8"))

        assert before == ([b""], [None], None, True)
        assert (routing.applied, routing.told) == ([b"", b"good"], [None, None])

    @pytest.mark.parametrize(
        "becomes",
        [entries(None), entries(""), msgspec.convert({"metadata": {"name": "owned-by-routing"}}, ConfigMap), None],
        ids=["without the key", "empty", "without data", "deleted"],
    )
    async def test_what_is_taken_away_is_no_longer_in_force(self, routing: Rig, becomes: ConfigMap | None) -> None:
        routing.becomes(entries(GOOD), becomes, entries(GOOD, "9"))

        assert (routing.applied, routing.told) == ([b"good", b"", b"good"], [None, None, None])
        assert (routing.map.error, routing.map._events) == (None, set())

    async def test_a_bad_one_is_refused_and_told_to_the_cluster(self, routing: Rig) -> None:
        routing.becomes(entries(GOOD), entries(BAD, "8"))
        event = await routing.event()
        held = (list(routing.applied), routing.map.error)
        routing.becomes(None)

        assert {name: event[name] for name in ("reason", "message")} == {
            "reason": "RoutingRefused",
            "message": "the last good routing stays: routing.yaml: line 1: bad",
        }
        assert held == ([b"good"], "routing.yaml: line 1: bad")
        assert (routing.applied, routing.map.error) == ([b"good", b""], None)

    async def test_one_that_is_bad_at_the_start_leaves_nothing_in_force(self, routing: Rig) -> None:
        routing.becomes(entries(BAD))

        assert (await routing.event())["message"] == "there is no routing yet: routing.yaml: line 1: bad"
        assert (routing.applied, routing.map.loaded.is_set()) == ([], False)
