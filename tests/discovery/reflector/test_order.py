# SPDX-License-Identifier: Apache-2.0
"""Events that come twice, late, or with resource versions that are no numbers."""

from typing import Any

from tests.discovery.reflector.following import PATIENT, Following, document, event, failure, pod


async def heard(server: Any, following: Following, *events: Any) -> list[Any]:
    """What is told of these events, after a list of nothing and before an event that shows that they were taken."""
    await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.line(*events, event("ADDED", "last", 1000))
    while (None, pod("last", 1000)) not in following.changes:
        await following.told(len(following.changes) + 1)
    return following.changes[:-1]


async def test_an_event_that_comes_twice_is_told_once(server: Any, follow: Any) -> None:
    twice = [event("ADDED", "a", 2)] * 2 + [event("MODIFIED", "a", 3)] * 2 + [event("DELETED", "a", 4)] * 2

    assert await heard(server, follow(), *twice) == [
        (None, pod("a", 2)),
        (pod("a", 2), pod("a", 3)),
        (pod("a", 3), None),
    ]


async def test_an_older_change_after_a_newer_one_is_nothing(server: Any, follow: Any) -> None:
    assert await heard(server, follow(), event("ADDED", "a", 10), event("MODIFIED", "a", 9)) == [(None, pod("a", 10))]


async def test_late_news_of_a_deleted_object_does_not_bring_it_back(server: Any, follow: Any) -> None:
    events = [event("ADDED", "a", 2), event("DELETED", "a", 4), event("ADDED", "a", 2), event("MODIFIED", "a", 3)]

    assert await heard(server, follow(), *events) == [(None, pod("a", 2)), (pod("a", 2), None)]


async def test_a_late_deletion_does_not_take_what_was_created_again(server: Any, follow: Any) -> None:
    events = [event("ADDED", "a", 2), event("DELETED", "a", 3), event("ADDED", "a", 4), event("DELETED", "a", 3)]

    assert await heard(server, follow(), *events) == [(None, pod("a", 2)), (pod("a", 2), None), (None, pod("a", 4))]


async def test_a_deletion_may_bear_the_version_of_the_last_change(server: Any, follow: Any) -> None:
    events = [event("ADDED", "a", 2), event("DELETED", "a", 2), event("ADDED", "a", 2)]

    assert await heard(server, follow(), *events) == [(None, pod("a", 2)), (pod("a", 2), None)]


async def test_the_deletion_of_what_was_never_seen_is_nothing(server: Any, follow: Any) -> None:
    assert await heard(server, follow(), event("DELETED", "a", 2)) == []


async def test_versions_that_are_no_numbers_are_taken_in_the_order_of_their_events(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists(document("a", "zz"), version="list")
    watch = await server.request()
    await watch.stream()
    await watch.line(event("MODIFIED", "a", "bb"), event("MODIFIED", "a", "bb"), event("DELETED", "a", "aa"))
    await watch.line(event("ADDED", "a", "00x"))
    await watch.end()
    again = await server.request()

    assert (watch.query["resourceVersion"], again.query["resourceVersion"]) == ("list", "00x")
    assert following.changes == [
        (None, pod("a", "zz")),
        (pod("a", "zz"), pod("a", "bb")),
        (pod("a", "bb"), None),
        (None, pod("a", "00x")),
    ]


async def test_a_store_that_was_set_back_may_bring_back_what_was_deleted(server: Any, follow: Any) -> None:
    following: Following = follow()
    await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "a", 90), event("DELETED", "a", 100), failure(410, "too old"))
    await following.lists(version="50")
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "a", 60))

    assert await following.told(3) == [(None, pod("a", 90)), (pod("a", 90), None), (None, pod("a", 60))]


async def test_only_the_latest_deletions_are_remembered(server: Any, follow: Any) -> None:
    events = [event("DELETED", f"pod-{number}", number) for number in range(2, 2000)]
    following: Following = follow()

    assert await heard(server, following, *events) == []
    assert len(following.reflector._buried) == 1024
