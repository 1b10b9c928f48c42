# SPDX-License-Identifier: Apache-2.0
"""Failures after which the watch goes on from where it was: nothing is listed again, and nothing is lost."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.discovery.reflector.following import PATIENT, SHORT, Following, document, event, failure, pod, status
from tests.fakes.api_server import Exchange


async def _error_event(watch: Exchange) -> None:
    await watch.line(failure(500, "etcdserver: no leader"))


async def _cut_in_a_chunk(watch: Exchange) -> None:
    await watch.cut(b'{"type":"ADDED","object":{"meta')


async def _reset(watch: Exchange) -> None:
    watch.reset()


async def _ends_in_a_line(watch: Exchange) -> None:
    await watch.raw(b'{"type":"ADDED","object":{"meta')
    await watch.end()


async def _no_json(watch: Exchange) -> None:
    await watch.raw(b"<html>\n")


async def _no_event(watch: Exchange) -> None:
    await watch.line({"kind": "Pod"})


async def _no_object(watch: Exchange) -> None:
    await watch.line({"type": "ADDED", "object": []})


async def _deep(watch: Exchange) -> None:
    await watch.raw(b'{"type":"ADDED","object":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")


FAILURES: list[tuple[Callable[[Exchange], Awaitable[None]], str, str]] = [
    (_error_event, "error", "etcdserver: no leader"),
    (_cut_in_a_chunk, "broken", "no connection to the API server: "),
    (_reset, "broken", "no connection to the API server: "),
    (_ends_in_a_line, "broken", "the watch ended inside an event"),
    (_no_json, "broken", "the watch sent what is no event: "),
    (_no_event, "broken", "the watch sent what is no event: "),
    (_no_object, "broken", "the watch sent what is no event: "),
    (_deep, "broken", "the watch sent what is no event: "),
]


@pytest.mark.parametrize(("fails", "reason", "text"), FAILURES, ids=[fails.__name__ for fails, _, _ in FAILURES])
async def test_a_watch_that_fails_goes_on_from_the_latest_version(
    server: Any, follow: Any, fails: Callable[[Exchange], Awaitable[None]], reason: str, text: str
) -> None:
    following: Following = follow()
    await following.lists(document("a"))
    watch = await server.request()
    await watch.stream()
    await watch.line(event("MODIFIED", "a", 2))
    await following.told(2)
    await fails(watch)
    nap = await following.nap()
    error = following.reflector.status()["error"]
    again = await server.request()
    await again.stream()
    await again.line(event("ADDED", "b", 3))
    changes = await following.told(3)

    assert (nap, again.query["watch"], again.query["resourceVersion"]) == (0.5, "1", "2")
    assert error.startswith(text)
    assert changes == [(None, pod("a")), (pod("a"), pod("a", 2)), (None, pod("b", 3))]
    assert following.restarts() == {reason: 1.0}
    assert following.reflector.status()["error"] is None
    assert [(line["level"], line["msg"]) for line in following.lines()] == [
        ("warning", "the API server fails"),
        ("info", "the API server answers again"),
    ]


async def test_a_watch_that_is_refused_with_500_goes_on_too(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists(document("a"), version="4")
    await (await server.request()).json(500, status(500, "the server is not ready"))
    error = (await following.nap(), following.reflector.status()["error"])
    again = await server.request()

    assert error == (0.5, "the server is not ready")
    assert (again.query["watch"], again.query["resourceVersion"]) == ("1", "4")
    assert following.changes == [(None, pod("a"))]


async def test_an_api_server_that_is_away_is_asked_until_it_is_back(
    server: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extproc.discovery.reflector.random.uniform", lambda _least, most: most)
    following: Following = follow()
    await following.lists(document("a"), version="4")
    await (await server.request()).stream()
    await server.stop()
    naps = [await following.nap() for _ in range(4)]
    known = dict(following.reflector.objects)
    naps.append(await following.nap(meanwhile=server.start()))
    again = await server.request()
    await again.stream()
    await again.line(event("DELETED", "a", 5))

    assert naps == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert (again.query["watch"], again.query["resourceVersion"]) == ("1", "4")
    assert known == {("default", "a"): pod("a")}
    assert await following.told(2) == [(None, pod("a")), (pod("a"), None)]


async def test_the_same_failure_is_logged_once(server: Any, follow: Any) -> None:
    following: Following = follow()
    for _ in range(3):
        await (await server.request()).json(503, status(503, "starting"))
        await following.nap()
    await following.lists()
    await server.request()

    assert [(line["msg"], line.get("error")) for line in following.lines()] == [
        ("the API server fails", "starting"),
        ("the API server answers again", None),
    ]


async def test_a_silent_watch_is_given_up_and_followed_by_another(server: Any, follow: Any) -> None:
    following: Following = follow(timing=SHORT)
    await following.lists(document("a"))
    silent = await server.request()
    await silent.stream()
    await silent.left()
    nap, error = await following.nap(), following.reflector.status()["error"]
    again = await server.request()

    assert (nap, error) == (0.5, "the API server said nothing in time")
    assert (again.query["resourceVersion"], again.query["timeoutSeconds"]) == ("1", "1")
    assert following.changes == [(None, pod("a"))]


async def test_a_watch_that_is_not_even_answered_is_given_up_too(server: Any, follow: Any) -> None:
    following: Following = follow(timing=SHORT)
    await following.lists()
    silent = await server.request()
    await silent.left()

    assert await following.nap() == 0.5
    assert following.reflector.status()["error"] == "the API server said nothing in time"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"metadata": {}, "items": [{}]}', b"[" * 100_000])
async def test_a_list_that_cannot_be_read_is_asked_for_again(server: Any, follow: Any, body: bytes) -> None:
    following: Following = follow()
    await (await server.request()).text(200, body)
    nap, error = await following.nap(), following.reflector.status()["error"]
    await following.lists(document("a"))

    assert nap == 0.5
    assert error.startswith("the list cannot be read: ")
    assert await following.told(1) == [(None, pod("a"))]


async def test_a_port_where_nobody_listens_is_a_failure_like_any_other(server: Any, follow: Any) -> None:
    await server.stop()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", server.port))
        following: Following = follow()
        nap = await following.nap()

    assert nap == 0.5
    assert following.reflector.status() == {
        "objects": 0,
        "synced": False,
        "age_seconds": None,
        "error": following.reflector.error,
    }
    assert str(following.reflector.error).startswith("no connection to the API server: ")


async def test_a_refusal_is_no_watch_however_long_it_took(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)  # for which any time is long
    await following.lists()
    naps = []
    for _ in range(4):
        await (await server.request()).json(503, status(503, "the server is not ready"))
        naps.append(await following.nap())

    assert naps == [0.5, 1.0, 2.0, 4.0]
