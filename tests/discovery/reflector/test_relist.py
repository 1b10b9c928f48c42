# SPDX-License-Identifier: Apache-2.0
"""A list that somebody asks for: it comes at once, whatever the reflector was at, and nothing is lost by it."""

import asyncio
from typing import Any

from extproc.discovery.objects import REWRITES
from tests.discovery.reflector.following import Following, document, event, failure, page, pod, status

BUSY = status(500, "etcd is busy")
FORBIDDEN = status(403, 'User "me" cannot list resource', "Forbidden")


async def watching(server: Any, following: Following) -> Any:
    """The watch that stands after a list of one pod."""
    await following.lists(document("a"))
    watch = await server.request()
    await watch.stream()
    return watch


async def test_what_changed_while_the_watch_was_dead_is_found(server: Any, follow: Any) -> None:
    following: Following = follow()
    dead = await watching(server, following)
    asked = following.relists()
    listing = await server.request()
    await dead.left()
    await listing.json(200, page(document("a", 5), document("b", 6), version="7"))
    error = await asked
    changes = list(following.changes)
    again = await server.request()

    assert (listing.query, error) == ({"limit": "500"}, None)
    assert changes == [(None, pod("a")), (pod("a"), pod("a", 5)), (None, pod("b", 6))]
    assert (again.query["watch"], again.query["resourceVersion"]) == ("1", "7")
    assert following.restarts() == {"asked": 1.0}
    assert following.lines() == []


async def test_what_vanished_while_the_watch_was_dead_is_gone(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    asked = following.relists()
    await following.lists(version="7")

    assert await asked is None
    assert following.changes == [(None, pod("a")), (pod("a"), None)]


async def test_events_from_before_the_list_are_old_and_those_after_it_are_news(server: Any, follow: Any) -> None:
    following: Following = follow()
    watch = await watching(server, following)
    await watch.line(event("MODIFIED", "a", 2))
    await following.told(2)
    asked = following.relists()
    await following.lists(document("a", 4), version="5")
    await asked
    again = await server.request()
    await again.stream()
    await again.line(event("MODIFIED", "a", 3), event("ADDED", "b", 6))

    assert await following.told(4) == [
        (None, pod("a")),
        (pod("a"), pod("a", 2)),
        (pod("a", 2), pod("a", 4)),
        (None, pod("b", 6)),
    ]


async def test_a_wait_after_a_failure_is_cut_short(server: Any, follow: Any) -> None:
    following: Following = follow()
    await (await server.request()).json(500, BUSY)
    seconds = await following.waits()
    asked = following.relists()
    await following.lists(document("a"))

    assert (seconds, await asked) == (0.5, None)
    assert (following.reflector.error, following.changes) == (None, [(None, pod("a"))])


async def test_a_list_that_fails_says_why_and_the_watch_goes_on_from_where_it_was(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    asked = following.relists()
    await (await server.request()).json(500, BUSY)
    error, nap = await asked, await following.nap()
    again = await server.request()
    await again.stream()
    await again.line(event("ADDED", "b", 2))

    assert (error, nap) == ("etcd is busy", 0.5)
    assert (again.query["watch"], again.query["resourceVersion"]) == ("1", "1")
    assert await following.told(2) == [(None, pod("a")), (None, pod("b", 2))]


async def test_the_permission_that_it_lacks_is_that_to_list(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    asked = following.relists()
    await (await server.request()).json(403, FORBIDDEN)

    assert await asked == f"the permission to list pods in namespace default is missing: {FORBIDDEN['message']}"


async def test_one_that_expires_between_two_pages_begins_again_before_it_is_answered(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    asked = following.relists()
    await (await server.request()).json(200, page(document("b"), version="9", token="old"))
    await (await server.request()).json(410, status(410, "too old"))
    await following.lists(document("c", 10), version="10")

    assert await asked is None
    assert following.changes == [(None, pod("a")), (pod("a"), None), (None, pod("c", 10))]


async def test_those_who_ask_at_the_same_time_share_a_list(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    asked = [following.relists() for _ in range(5)]
    await following.lists(document("b"))
    answers = await asyncio.gather(*asked)
    again = await server.request()

    assert answers == [None] * 5
    assert ("watch" in again.query, server.waiting, following.restarts()) == (True, 0, {"asked": 1.0})


async def test_who_asks_while_it_is_listed_gets_the_next_list(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    first = following.relists()
    one = await server.request()
    late = [following.relists() for _ in range(3)]
    await asyncio.sleep(0)  # they have asked
    await one.json(200, page(document("a"), version="3"))
    answer = await first
    two = await server.request()
    waiting = [task.done() for task in late]
    await two.json(200, page(document("b", 4), version="4"))

    assert (answer, waiting, await asyncio.gather(*late)) == (None, [False] * 3, [None] * 3)
    assert "watch" in (await server.request()).query
    assert (list(following.reflector.objects), server.waiting) == ([("default", "b")], 0)


async def test_who_asks_during_a_list_that_fails_does_not_wait_as_long_as_the_reflector_would(
    server: Any, follow: Any
) -> None:
    following: Following = follow()
    await watching(server, following)
    first = following.relists()
    one = await server.request()
    late = following.relists()
    await asyncio.sleep(0)
    await one.json(500, BUSY)
    answer = await first
    await following.lists(document("b"))

    assert (answer, await late) == ("etcd is busy", None)


async def test_a_list_that_nobody_asked_for_begins_anew(server: Any, follow: Any) -> None:
    following: Following = follow()
    await (await server.request()).json(200, page(document("old"), version="3", token="more"))
    hangs = await server.request()
    asked = following.relists()
    await hangs.left()
    await following.lists(document("new"), version="4")

    assert await asked is None
    assert following.changes == [(None, pod("new"))]


async def test_who_leaves_takes_nothing_from_the_others(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    leaves, stays = following.relists(), following.relists()
    listing = await server.request()
    leaves.cancel()
    await asyncio.wait([leaves])
    await listing.json(200, page(document("b"), version="2"))

    assert await stays is None
    assert leaves.cancelled()
    assert (await server.request()).query["resourceVersion"] == "2"


async def test_if_all_have_left_the_list_is_applied_all_the_same(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    leaves = following.relists()
    listing = await server.request()
    leaves.cancel()
    await asyncio.wait([leaves])
    await listing.json(200, page(document("b"), version="2"))

    assert await following.told(3) == [(None, pod("a")), (pod("a"), None), (None, pod("b"))]


async def test_a_list_that_hangs_until_all_have_left_makes_room_for_the_next(server: Any, follow: Any) -> None:
    following: Following = follow()
    await watching(server, following)
    leaves = following.relists()
    hangs = await server.request()
    leaves.cancel()
    await asyncio.wait([leaves])
    asked = following.relists()
    await hangs.left()
    await following.lists(document("b"))

    assert await asked is None


async def test_before_it_runs_it_waits_for_the_first_list(server: Any, follow: Any) -> None:
    following: Following = follow(runs=False)
    asked = following.relists()
    await asyncio.sleep(0)
    before = (asked.done(), server.waiting)
    running = asyncio.create_task(following.reflector.run())
    await following.lists(document("a"))
    answer = await asked
    watch = await server.request()
    running.cancel()
    await asyncio.wait([running])

    assert (before, answer) == ((False, 0), None)
    assert "watch" in watch.query


async def test_when_it_ends_nobody_waits_for_ever(server: Any, follow: Any) -> None:
    following: Following = follow(runs=False)
    running = asyncio.create_task(following.reflector.run())
    await watching(server, following)
    asked = following.relists()
    await server.request()
    late = following.relists()
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()
    assert await asyncio.gather(asked, late) == ["it is not followed any more"] * 2


async def test_a_resource_that_a_cluster_may_do_without_is_listed_though_it_is_not_there(
    server: Any, follow: Any
) -> None:
    following: Following = follow(REWRITES)
    for _ in REWRITES.kinds:
        await (await server.request()).json(404, status(404, "not found"))
    await following.waits()
    asked = following.relists()
    for _ in REWRITES.kinds:
        await (await server.request()).json(404, status(404, "not found"))

    assert await asked is None


async def test_a_listener_that_raises_is_told_to_who_asked(server: Any, follow: Any) -> None:
    def refuse(_old: Any, new: Any) -> None:
        if new.metadata.name == "b":
            raise RuntimeError("b")

    following: Following = follow(on_change=refuse)
    await watching(server, following)
    asked = following.relists()
    await following.lists(document("a"), document("b"))

    assert await asked == "internal error: RuntimeError('b')"


async def test_a_watch_that_fails_as_somebody_asks_is_followed_by_a_list(server: Any, follow: Any) -> None:
    following: Following = follow()
    watch = await watching(server, following)
    asked = following.relists()
    await watch.line(failure(500, "no leader"))
    listing = await server.request()
    await listing.json(200, page(document("b"), version="2"))

    assert ("watch" in listing.query, await asked) == (False, None)
