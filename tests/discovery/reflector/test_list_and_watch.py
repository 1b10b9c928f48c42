# SPDX-License-Identifier: Apache-2.0
"""The ordinary course: pages of a list, events, bookmarks, and a watch whose time is up."""

from typing import Any

import pytest

from extproc.discovery.reflector import Timing
from tests.discovery.reflector.following import (
    PATIENT,
    PODS_PATH,
    Following,
    bookmark,
    document,
    event,
    page,
    pod,
    status,
)


async def test_a_list_of_several_pages_leads_to_a_watch_from_its_version(server: Any, follow: Any) -> None:
    following: Following = follow()
    first = await server.request()
    await first.json(200, page(document("a"), version="10", token="x/y+z="))
    second = await server.request()
    await second.json(200, page(document("b", 2), version="10"))
    watch = await server.request()
    seconds = int(watch.query.pop("timeoutSeconds"))

    assert [(one.method, one.path, one.query) for one in (first, second, watch)] == [
        ("GET", PODS_PATH, {"limit": "500"}),
        ("GET", PODS_PATH, {"limit": "500", "continue": "x/y+z="}),
        ("GET", PODS_PATH, {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": "10"}),
    ]
    assert 30 <= seconds <= 40
    assert following.changes == [(None, pod("a")), (None, pod("b", 2))]


async def test_nothing_is_known_until_the_last_page(server: Any, follow: Any) -> None:
    following: Following = follow()
    await (await server.request()).json(200, page(document("a"), version="10", token="more"))
    last = await server.request()

    assert (following.changes, following.reflector.synced.is_set()) == ([], False)
    await last.json(200, page(document("b"), version="10"))
    await server.request()
    assert (following.changes, following.reflector.synced.is_set()) == ([(None, pod("a")), (None, pod("b"))], True)


async def test_events_are_applied_as_they_come(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists(document("a"), document("b"))
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "c", 2), event("MODIFIED", "a", 3, app="x"), event("DELETED", "b", 4))

    assert (await following.told(5))[2:] == [
        (None, pod("c", 2)),
        (pod("a"), pod("a", 3, app="x")),
        (pod("b"), None),
    ]
    assert following.reflector.objects == {("default", "a"): pod("a", 3, app="x"), ("default", "c"): pod("c", 2)}


async def test_lines_may_be_split_and_joined_at_will(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.raw(b'{"type":"ADDED","object":{"metadata":{"na')
    await watch.raw(
        b'me":"a","namespace":"default","resourceVersion":"2"}}}\n\n\n{"type":"DELETED","object":{"metadata":'
    )
    await watch.raw(b'{"name":"a","namespace":"default","resourceVersion":"3"}}}\n')

    (_, came), (went, _) = await following.told(2)
    assert (came, went) == (went, came)
    assert came.metadata.key == ("default", "a")


async def test_an_event_of_megabytes_is_an_event(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "a", 2, note="x" * 5_000_000))

    assert [new.metadata.name for _, new in await following.told(1)] == ["a"]


async def test_a_bookmark_moves_the_version_that_the_next_watch_starts_from_and_is_no_change(
    server: Any, follow: Any
) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists(document("a"))
    watch = await server.request()
    await watch.stream()
    await watch.line(bookmark("77"))
    await watch.end()
    again = await server.request()

    assert (again.query["watch"], again.query["resourceVersion"]) == ("1", "77")
    assert following.changes == [(None, pod("a"))]


async def test_a_bookmark_from_the_past_does_not_move_it_back(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists(version="20")
    watch = await server.request()
    await watch.stream()
    await watch.line(bookmark("9"))
    await watch.end()

    assert (await server.request()).query["resourceVersion"] == "20"


async def test_a_watch_whose_time_is_up_is_followed_by_another_from_the_latest_version(
    server: Any, follow: Any
) -> None:
    following: Following = follow()
    await following.lists(version="5")
    versions = []
    for version in (6, 7, 8):
        watch = await server.request()
        versions.append((watch.query["watch"], watch.query["resourceVersion"]))
        await watch.stream()
        await watch.line(event("ADDED", f"pod-{version}", version))
        await watch.end()
    await server.request()

    assert versions == [("1", "5"), ("1", "6"), ("1", "7")]
    assert following.restarts() == {"ended": 3.0}
    assert following.lines() == []


async def test_a_silent_watch_may_end_too(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists(version="5")
    for _ in range(3):
        watch = await server.request()
        await watch.stream()
        await watch.end()

    assert (await server.request()).query["resourceVersion"] == "5"
    assert following.restarts() == {"ended": 3.0}


@pytest.mark.parametrize(
    "sends", [[], [event("ADDED", "a", 5)], [bookmark("5")]], ids=["nothing", "news of old", "a bookmark"]
)
async def test_a_watch_that_ends_at_once_again_and_again_backs_off(
    server: Any, follow: Any, monkeypatch: pytest.MonkeyPatch, sends: list[Any]
) -> None:
    monkeypatch.setattr("extproc.discovery.reflector.random.uniform", lambda _least, most: most)
    following: Following = follow()
    await following.lists(document("a", 5), version="5")
    naps = []
    for _ in range(8):
        watch = await server.request()
        await watch.stream()
        await watch.line(*sends)
        await watch.end()
        naps.append(await following.nap())

    assert naps == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert server.waiting <= 1
    assert following.restarts() == {"broken": 8.0}
    assert following.reflector.status()["error"] == "the watch ended as soon as it began"


async def test_each_wait_is_drawn_between_half_and_all_of_twice_the_last(
    server: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []
    following: Following = follow(timing=Timing(watch=0.0))  # what is drawn for a watch's length is 0 to 0

    def draw(least: float, most: float) -> float:
        drawn.append((least, most))
        return least

    monkeypatch.setattr("extproc.discovery.reflector.random.uniform", draw)
    for _ in range(7):
        await (await server.request()).json(500, status(500, "no"))
        await following.nap()

    assert drawn == [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (15.0, 30.0), (15.0, 30.0)]


async def test_a_watch_that_is_cut_after_a_while_is_no_reason_to_wait_longer_than_the_last_time(
    server: Any, follow: Any
) -> None:
    following: Following = follow(timing=PATIENT)  # for which any time is long
    await following.lists(version="5")
    naps = []
    for _ in range(5):
        watch = await server.request()
        await watch.stream()
        await watch.cut()
        naps.append(await following.nap())

    assert naps == [0.5] * 5
