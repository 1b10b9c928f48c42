# SPDX-License-Identifier: Apache-2.0
"""What operators see: restarts by reason, when something was last heard, and the status page."""

import time
from typing import Any

import pytest

from tests.discovery.reflector.following import PATIENT, Following, bookmark, document, event, failure, status

LABELS = {"resource": "pods", "namespace": "default"}


async def test_restarts_are_counted_by_their_reason(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)
    await following.lists()
    for code in (401, 403, 404, 429, 500):
        await (await server.request()).json(code, status(code, "no"))
        await following.nap()
        if code == 404:
            await following.lists()
    watch = await server.request()
    await watch.stream()
    await watch.cut()
    await following.nap()
    watch = await server.request()
    await watch.stream()
    await watch.line(bookmark("2"), failure(410, "old"))
    await following.lists(version="3")
    watch = await server.request()
    await watch.stream()
    await watch.end()
    await server.request()

    assert following.restarts() == {
        "unauthorized": 1.0,
        "forbidden": 1.0,
        "not-found": 1.0,
        "throttled": 1.0,
        "error": 1.0,
        "broken": 1.0,
        "expired": 1.0,
        "ended": 1.0,
    }


async def test_the_last_event_is_dated_and_a_bookmark_is_none(server: Any, follow: Any) -> None:
    following: Following = follow(timing=PATIENT)

    def last_event() -> float | None:
        return following.metrics.registry.get_sample_value("owned_by_watch_last_event_timestamp_seconds", LABELS)

    await following.lists(document("a"))
    watch = await server.request()
    await watch.stream()
    await watch.line(bookmark("5"))
    await watch.end()
    watch = await server.request()
    before = last_event()
    await watch.stream()
    await watch.line(event("DELETED", "a", 6))
    await following.told(2)

    assert before == 0
    assert last_event() == pytest.approx(time.time(), abs=10)


async def test_staleness_begins_anew_with_all_that_is_heard(
    server: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    following: Following = follow(timing=PATIENT)

    def staleness() -> float | None:
        return following.metrics.registry.get_sample_value("owned_by_watch_staleness_seconds", LABELS)

    await following.lists()
    watch = await server.request()
    with monkeypatch.context() as patched:
        patched.setattr("extproc.discovery.reflector.time.monotonic", lambda: now[0])
        following.reflector._heard()
        heard = staleness()
        now[0] = 142.25
        later = (staleness(), following.reflector.status())
    await watch.stream()
    await watch.line(bookmark("5"))
    await watch.end()
    await server.request()

    assert (heard, later) == (0.0, (42.25, {"objects": 0, "synced": True, "age_seconds": 42.2, "error": None}))
    assert 0 <= (staleness() or 0) < 10
