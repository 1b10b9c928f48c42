# SPDX-License-Identifier: Apache-2.0
"""The current Snapshot: sources replace what they know, readers take the reference. No locks: one assignment is atomic."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from extproc.policy.types import Endpoint, Pool, Rewrites, Snapshot

PAUSE: Final = 0.1
"""Seconds between two snapshots at the least: what is derived from one is worth something only if it lives for a while."""


class SnapshotStore:
    """Publishes snapshots; `on_change` hears of each new one."""

    def __init__(self, on_change: Callable[[Snapshot], None] = lambda _: None) -> None:
        """Nothing is known yet: generation 0."""
        self._current = Snapshot()
        self._on_change = on_change

    def current(self) -> Snapshot:
        """The latest snapshot."""
        return self._current

    def replace(
        self, endpoints: Mapping[Pool, Sequence[Endpoint]], rewrites: Mapping[Pool, Rewrites] | None = None
    ) -> None:
        """Publish what there is now; nothing happens if it is what there was."""
        frozen = {pool: tuple(members) for pool, members in endpoints.items()}
        rewrites = dict(rewrites or {})
        current = self._current
        if current.generation and frozen == current.endpoints and rewrites == current.rewrites:
            return
        self._current = Snapshot(current.generation + 1, tuple(frozen), frozen, rewrites, former=current.memo)
        self._on_change(self._current)


def changes(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """What is another in `after`: pools by name, endpoints by pool, name and destination, the latter's `generation`."""
    old, new = _places(before), _places(after)

    def shown(keys: Iterable[_Place]) -> list[dict[str, str]]:
        return [{"pool": pool, "name": name, "destination": destination} for pool, name, destination in sorted(keys)]

    return {
        "generation": after.generation,
        "pools": {
            "added": sorted({str(pool) for pool in after.pools} - {str(pool) for pool in before.pools}),
            "removed": sorted({str(pool) for pool in before.pools} - {str(pool) for pool in after.pools}),
        },
        "endpoints": {
            "added": shown(new.keys() - old.keys()),
            "removed": shown(old.keys() - new.keys()),
            "changed": shown(key for key in new.keys() & old.keys() if new[key] != old[key]),
        },
    }


_Place = tuple[str, str, str]


def _places(snapshot: Snapshot) -> dict[_Place, Endpoint]:
    return {
        (str(pool), endpoint.name, endpoint.destination): endpoint
        for pool, endpoints in snapshot.endpoints.items()
        for endpoint in endpoints
    }


class Coalescer:
    """Calls an action soon after each poke, once for all the pokes of a pause; the first after a quiet time at once."""

    def __init__(self, action: Callable[[], None], pause: float = PAUSE) -> None:
        """`pause` is the least time between two calls, in seconds."""
        self._action = action
        self._pause = pause
        self._due: asyncio.TimerHandle | None = None
        self._last = float("-inf")

    def poke(self) -> None:
        """Something changed. To be called in the loop's thread, however often."""
        if self._due is None:
            wait = max(self._last + self._pause - time.monotonic(), 0.0)
            self._due = asyncio.get_running_loop().call_later(wait, self._act)

    def _act(self) -> None:
        self._due = None
        self._last = time.monotonic()
        self._action()
