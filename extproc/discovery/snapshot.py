# SPDX-License-Identifier: Apache-2.0
"""The current Snapshot: sources replace what they know, readers take the reference. No locks: one assignment is atomic."""

from collections.abc import Callable, Mapping, Sequence

from extproc.policy.types import Endpoint, Pool, Snapshot


class SnapshotStore:
    """Publishes snapshots; `on_change` hears of each new one."""

    def __init__(self, on_change: Callable[[Snapshot], None] = lambda _: None) -> None:
        """Nothing is known yet: generation 0."""
        self._current = Snapshot()
        self._on_change = on_change

    def current(self) -> Snapshot:
        """The latest snapshot."""
        return self._current

    def replace(self, endpoints: Mapping[Pool, Sequence[Endpoint]]) -> None:
        """Publish what there is now; nothing happens if it is what there was."""
        frozen = {pool: tuple(members) for pool, members in endpoints.items()}
        if self._current.generation and frozen == self._current.endpoints:
            return
        self._current = Snapshot(self._current.generation + 1, tuple(frozen), frozen)
        self._on_change(self._current)
