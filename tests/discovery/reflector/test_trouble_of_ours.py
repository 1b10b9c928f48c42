# SPDX-License-Identifier: Apache-2.0
"""Objects that cannot be read, and listeners that raise: the others are followed all the same."""

from typing import Any

from extproc.discovery.objects import REWRITES
from tests.discovery.reflector.following import PATIENT, Following, document, event, failure, pod, status

BAD = {"metadata": {"name": "bad", "namespace": "default", "resourceVersion": "4"}, "status": {"podIP": 7}}


def unreadable(following: Following) -> float | None:
    return following.metrics.registry.get_sample_value("owned_by_unreadable_objects_total", {"resource": "pods"})


async def test_an_object_that_is_not_what_it_should_be_is_left_out_of_a_list(follow: Any) -> None:
    following: Following = follow()
    await following.lists(document("a"), BAD, document("b"))

    assert await following.told(2) == [(None, pod("a")), (None, pod("b"))]
    assert unreadable(following) == 1
    assert following.lines() == [
        {
            "level": "warning",
            "logger": "reflector",
            "msg": "object left out",
            "resource": "pods",
            "namespace": "default",
            "name": "bad",
            "error": "Expected `str`, got `int` - at `$.status.podIP`",
        }
    ]


async def test_an_object_that_becomes_unreadable_is_gone_until_it_can_be_read_again(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists(document("bad", 3), version="3")
    watch = await server.request()
    await watch.stream()
    await watch.line({"type": "MODIFIED", "object": BAD}, event("ADDED", "b", 5), event("MODIFIED", "bad", 6))
    await watch.end()
    again = await server.request()

    assert again.query["resourceVersion"] == "6"
    assert following.changes == [
        (None, pod("bad", 3)),
        (pod("bad", 3), None),
        (None, pod("b", 5)),
        (None, pod("bad", 6)),
    ]
    assert unreadable(following) == 1


async def test_the_version_of_an_unreadable_object_counts(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.line({"type": "ADDED", "object": BAD})
    await watch.end()

    assert (await server.request()).query["resourceVersion"] == "4"
    assert following.changes == []


class Listener:
    """Raises for the objects of some names, once each."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def __call__(self, old: Any, new: Any) -> None:
        name = (new or old).metadata.name
        if name in self.names:
            self.names.remove(name)
            raise RuntimeError(name)


async def test_a_listener_that_raises_is_logged_and_all_is_listed_again(server: Any, follow: Any) -> None:
    following: Following = follow(on_change=Listener("b"))
    await following.lists(document("a"))
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "b", 2))
    nap = await following.nap()
    error = following.reflector.status()["error"]
    await following.lists(document("a"), document("b", 2), document("c", 3), version="3")
    await server.request()

    assert (nap, error) == (0.5, "internal error: RuntimeError('b')")
    assert following.changes == [(None, pod("a")), (None, pod("b", 2)), (None, pod("c", 3))]
    assert [line["msg"] for line in following.lines()] == [
        "internal error",
        "the API server fails",
        "the API server answers again",
    ]


async def test_a_listener_that_raises_in_the_middle_of_a_list_hears_of_the_rest_later(server: Any, follow: Any) -> None:
    following: Following = follow(on_change=Listener("a"))
    await following.lists(document("a"), document("b"))
    await following.nap()
    synced = following.reflector.synced.is_set()
    await following.lists(document("a"), document("b"))
    await server.request()

    assert (synced, following.reflector.synced.is_set()) == (False, True)
    assert following.changes == [(None, pod("a")), (None, pod("b"))]


async def test_a_listener_that_raises_as_a_resource_goes_does_not_end_the_reflector(server: Any, follow: Any) -> None:
    rewrite = {"metadata": {"name": "a", "resourceVersion": "1"}, "spec": {"poolRef": {"name": "chat"}}}
    listener = Listener()
    following: Following = follow(REWRITES, on_change=listener)
    await following.lists(rewrite)
    watch = await server.request()
    listener.names = ["a"]
    await watch.json(404, status(404, "not found"))
    await following.nap()
    for _ in REWRITES.kinds:
        await (await server.request()).json(404, status(404, "not found"))
    await following.nap()

    assert [(old is None, new is None) for old, new in following.changes] == [(True, False), (False, True)]
    assert (await server.request()).query == {"limit": "500"}


async def test_a_watch_that_fails_after_a_listener_raised_is_followed_on(server: Any, follow: Any) -> None:
    following: Following = follow(on_change=Listener("b"))
    await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.line(event("ADDED", "b", 2))
    await following.nap()
    await following.lists(document("b", 2), version="2")
    watch = await server.request()
    await watch.stream()
    await watch.line(failure(500, "no leader"))
    await following.nap()

    assert (await server.request()).query["resourceVersion"] == "2"
    assert following.restarts() == {"broken": 1.0, "error": 1.0}
