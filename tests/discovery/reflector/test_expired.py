# SPDX-License-Identifier: Apache-2.0
"""410 Gone, wherever the API server says it: everything is listed again, and only the difference is told."""

from typing import Any

import pytest

from tests.discovery.reflector.following import Following, bookmark, document, event, failure, page, pod, status

GONE = "too old resource version: 1 (9)"


@pytest.mark.parametrize("how", ["as a status", "as an event"])
async def test_an_expired_watch_leads_to_a_list_and_its_difference_is_applied(
    server: Any, follow: Any, how: str
) -> None:
    following: Following = follow()
    await following.lists(document("stays"), document("changes"), document("vanishes"))
    watch = await server.request()
    if how == "as a status":
        await watch.json(410, status(410, GONE, "Expired"))
    else:
        await watch.stream()
        await watch.line(failure(410, GONE))
    listing = await server.request()
    before = dict(following.reflector.objects)
    await listing.json(200, page(document("stays"), document("changes", 8), document("comes", 9), version="9"))
    again = await server.request()

    assert (listing.query, again.query["resourceVersion"]) == ({"limit": "500"}, "9")
    assert [name for _, name in before] == ["stays", "changes", "vanishes"]
    assert following.changes[3:] == [
        (pod("changes"), pod("changes", 8)),
        (pod("vanishes"), None),
        (None, pod("comes", 9)),
    ]
    assert following.restarts() == {"expired": 1.0}


async def test_a_list_that_expires_between_two_pages_begins_again(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists(document("a"), document("b"))
    watch = await server.request()
    await watch.stream()
    await watch.line(failure(410, GONE))
    await (await server.request()).json(200, page(document("c"), version="9", token="old"))
    expired = await server.request()
    await expired.json(410, status(410, "The provided continue parameter is too old", "Expired"))
    nap = await following.nap()
    begun = await server.request()
    kept = dict(following.reflector.objects)
    await begun.json(200, page(document("b"), version="10"))
    await server.request()

    assert (expired.query, begun.query) == ({"limit": "500", "continue": "old"}, {"limit": "500"})
    assert 0.5 <= nap <= 1.0
    assert kept == {("default", "a"): pod("a"), ("default", "b"): pod("b")}
    assert following.changes[2:] == [(pod("a"), None)]


async def test_the_old_objects_stay_until_the_new_list_is_complete(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists(document("a"))
    watch = await server.request()
    await watch.stream()
    await watch.line(failure(410, GONE))
    await (await server.request()).json(200, page(document("b"), version="9", token="more"))
    await (await server.request()).json(500, status(500, "etcd is busy"))
    await following.nap()
    begun = await server.request()

    assert (begun.query, following.changes) == ({"limit": "500"}, [(None, pod("a"))])
    assert following.reflector.objects == {("default", "a"): pod("a")}


async def test_what_expires_again_and_again_backs_off(
    server: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extproc.discovery.reflector.random.uniform", lambda _least, most: most)
    following: Following = follow()
    await following.lists()
    naps = []
    for number in range(5):
        await (await server.request()).json(410, status(410, GONE))
        if number:  # the first time there is no reason to wait
            naps.append(await following.nap())
        await following.lists()

    assert naps == [2.0, 4.0, 8.0, 16.0]


async def test_one_that_expires_after_each_piece_of_news_is_no_reason_to_list_without_a_pause(
    server: Any, follow: Any
) -> None:
    following: Following = follow()
    await following.lists(version="1")
    naps = []
    for number in range(5):
        watch = await server.request()
        await watch.stream()
        await watch.line(bookmark(f"{number + 2}"), failure(410, GONE))
        if number:  # the first time there is no reason to wait
            naps.append(await following.nap())
        await following.lists(version=f"{number + 2}")

    assert naps == [0.5] * 4


async def test_an_event_from_before_the_list_brings_nothing_back(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists(document("a", 3), version="20")
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "gone-since-long", 7), event("ADDED", "new", 21))

    assert await following.told(2) == [(None, pod("a", 3)), (None, pod("new", 21))]
