# SPDX-License-Identifier: Apache-2.0
"""The current Snapshot: sources replace what they know, readers take the reference. No locks: one assignment is atomic."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

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
