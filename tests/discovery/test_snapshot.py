# SPDX-License-Identifier: Apache-2.0
"""The store that swaps snapshots, and the pause between two of them."""

import asyncio
from typing import Self

import msgspec
import pytest

from extproc.discovery.snapshot import Coalescer, SnapshotStore, changes
from extproc.policy.types import Endpoint, Pool, Rewrites, Snapshot

POOL = Pool("default", "chat")
ONE = Endpoint("one", "default", "127.0.0.1", 1)
TWO = Endpoint("two", "default", "127.0.0.1", 2)
REWRITES = {POOL: Rewrites({"llama": ("lora",)}, ("base",))}


def test_a_replacement_is_a_new_generation_and_the_old_snapshot_stays_as_it_was() -> None:
    heard: list[Snapshot] = []
    store = SnapshotStore(heard.append)
    store.replace({POOL: [ONE]})
    first = store.current()
    store.replace({POOL: [ONE, TWO]})

    assert heard == [first, store.current()]
    assert (first.generation, first.endpoints) == (1, {POOL: (ONE,)})
    assert (store.current().generation, store.current().endpoints) == (2, {POOL: (ONE, TWO)})


def test_what_was_derived_from_the_last_snapshot_is_there_for_the_next_one_and_no_longer() -> None:
    store = SnapshotStore()
    store.replace({POOL: [ONE]})
    store.current().memo["derived"] = "from one"
    store.replace({POOL: [TWO]})
    second = (dict(store.current().memo), store.current().former)
    store.replace({POOL: [ONE, TWO]})

    assert second == ({}, {"derived": "from one"})
    assert store.current().former == {}


def test_the_same_endpoints_again_are_no_new_generation() -> None:
    store = SnapshotStore()
    store.replace({POOL: [ONE]})
    before = store.current()
    store.replace({POOL: [ONE]})

    assert store.current() is before


def test_the_first_replacement_is_one_even_if_it_is_empty() -> None:
    store = SnapshotStore()
    store.replace({})

    assert (store.current().generation, store.current().pools) == (1, ())


def test_the_changes_between_two_snapshots_are_named() -> None:
    gone, new = Pool("default", "gone"), Pool("default", "new")
    before = Snapshot(1, (POOL, gone), {POOL: (ONE, TWO), gone: (ONE,)})
    waiting = msgspec.structs.replace(ONE, ready=False)
    after = Snapshot(2, (POOL, new), {POOL: (waiting,), new: (ONE,)})

    assert changes(before, after) == {
        "generation": 2,
        "pools": {"added": ["default/new"], "removed": ["default/gone"]},
        "endpoints": {
            "added": [{"pool": "default/new", "name": "one", "destination": "127.0.0.1:1"}],
            "removed": [
                {"pool": "default/chat", "name": "two", "destination": "127.0.0.1:2"},
                {"pool": "default/gone", "name": "one", "destination": "127.0.0.1:1"},
            ],
            "changed": [{"pool": "default/chat", "name": "one", "destination": "127.0.0.1:1"}],
        },
    }


def test_a_change_of_the_rewrites_alone_is_a_new_generation() -> None:
    store = SnapshotStore()
    seen: list[Snapshot] = []
    for rewrites in (None, {}, REWRITES, dict(REWRITES), {POOL: Rewrites()}, None):
        store.replace({POOL: [ONE]}, rewrites)
        seen.append(store.current())

    assert [(one.generation, one.rewrites) for one in seen] == [
        (1, {}),
        (1, {}),
        (2, REWRITES),
        (2, REWRITES),
        (3, {POOL: Rewrites()}),
        (4, {}),
    ]


def test_what_the_caller_does_with_its_dicts_later_changes_no_snapshot() -> None:
    store = SnapshotStore()
    endpoints, rewrites = {POOL: [ONE]}, dict(REWRITES)
    store.replace(endpoints, rewrites)
    endpoints[POOL].append(TWO)
    endpoints.clear()
    rewrites.clear()

    assert (store.current().endpoints, store.current().rewrites) == ({POOL: (ONE,)}, REWRITES)


class Clock:
    """Time as the coalescer sees it: it stands still until it is moved, and calls what is due then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, object]] = []
        monkeypatch.setattr("extproc.discovery.snapshot.time.monotonic", lambda: self.now)
        monkeypatch.setattr("extproc.discovery.snapshot.asyncio.get_running_loop", lambda: self)

    def call_later(self, seconds: float, action: object) -> Self:
        self.timers.append((self.now + seconds, action))
        return self

    def move(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        due, self.timers = (
            [timer for timer in self.timers if timer[0] <= self.now],
            [timer for timer in self.timers if timer[0] > self.now],
        )
        for _, action in due:
            assert callable(action)
            action()


class TestCoalescer:
    """Pokes in, fewer calls out."""

    async def test_the_first_poke_is_acted_on_at_once(self) -> None:
        acted = asyncio.Event()
        Coalescer(acted.set, pause=3600.0).poke()

        await asyncio.wait_for(acted.wait(), 10)

    async def test_pokes_after_the_first_are_acted_on_too(self) -> None:
        calls = 0
        acted = asyncio.Event()

        def action() -> None:
            nonlocal calls
            calls += 1
            acted.set()

        coalescer = Coalescer(action, pause=0.01)
        for number in range(1, 4):
            coalescer.poke()
            coalescer.poke()
            await asyncio.wait_for(acted.wait(), 10)
            acted.clear()
            assert calls == number

    def test_the_pokes_of_a_pause_are_one_call_at_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, calls = Clock(monkeypatch), list[float]()
        coalescer = Coalescer(lambda: calls.append(clock.now), pause=2.0)
        coalescer.poke()
        clock.move(0)
        for _ in range(3):
            clock.move(0.5)
            coalescer.poke()
        clock.move(0.5)
        clock.move(10)

        assert calls == [1000.0, 1002.0]

    def test_a_poke_after_a_quiet_time_does_not_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, calls = Clock(monkeypatch), list[float]()
        coalescer = Coalescer(lambda: calls.append(clock.now), pause=2.0)
        for _ in range(2):
            coalescer.poke()
            clock.move(0)
            clock.move(5)

        assert calls == [1000.0, 1005.0]

    def test_a_poke_from_within_the_action_is_not_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, calls = Clock(monkeypatch), list[float]()

        def action() -> None:
            calls.append(clock.now)
            if len(calls) < 3:
                coalescer.poke()

        coalescer = Coalescer(action, pause=2.0)
        coalescer.poke()
        for _ in range(10):
            clock.move(1)

        assert calls == [1001.0, 1003.0, 1005.0]

    def test_an_action_that_raises_does_not_end_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, calls = Clock(monkeypatch), list[float]()

        def action() -> None:
            calls.append(clock.now)
            raise RuntimeError

        coalescer = Coalescer(action, pause=2.0)
        for _ in range(2):
            coalescer.poke()
            with pytest.raises(RuntimeError):
                clock.move(2)

        assert calls == [1002.0, 1004.0]
