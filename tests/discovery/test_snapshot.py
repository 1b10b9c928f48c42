# SPDX-License-Identifier: Apache-2.0
"""The store that swaps snapshots."""

from extproc.discovery.snapshot import SnapshotStore
from extproc.policy.types import Endpoint, Pool, Snapshot

POOL = Pool("default", "chat")
ONE = Endpoint("one", "default", "127.0.0.1", 1)
TWO = Endpoint("two", "default", "127.0.0.1", 2)


def test_a_replacement_is_a_new_generation_and_the_old_snapshot_stays_as_it_was() -> None:
    heard: list[Snapshot] = []
    store = SnapshotStore(heard.append)
    store.replace({POOL: [ONE]})
    first = store.current()
    store.replace({POOL: [ONE, TWO]})

    assert heard == [first, store.current()]
    assert (first.generation, first.endpoints) == (1, {POOL: (ONE,)})
    assert (store.current().generation, store.current().endpoints) == (2, {POOL: (ONE, TWO)})


def test_the_same_endpoints_again_are_no_new_generation() -> None:
    store = SnapshotStore()
    store.replace({POOL: [ONE]})
    before = store.current()
    store.replace({POOL: [ONE]})

    assert store.current() is before
