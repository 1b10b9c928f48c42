# SPDX-License-Identifier: Apache-2.0
"""What was decided lately: the last decisions one by one, and how many there were in each second, by reason.

Both are small and of a fixed size, and nothing in them was ever in a body or a credential (see DecisionLine).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry

from extproc.envoy import names
from extproc.observability.logs import DecisionLine

KEPT: Final = 200
"""How many decisions are kept."""
SECONDS: Final = 120
"""For how many seconds rates are kept."""

_LONGEST: Final = 256
"""Characters of a text that are shown."""
_DECISIONS: Final = "owned_by_decisions_total"


class Recent:
    """The last decisions. Called with each of them, on its way: it keeps the line and the time, and nothing more."""

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        """`clock` says the seconds since 1970."""
        self._lines: deque[tuple[float, DecisionLine]] = deque(maxlen=kept)
        self._clock = clock

    def __call__(self, line: DecisionLine) -> None:
        """Keep a decision; the oldest one goes when there are too many."""
        self._lines.append((self._clock(), line))

    def latest(self) -> list[dict[str, Any]]:
        """The newest first: `at` in seconds since 1970, then what the line says, no text longer than 256 characters."""
        return [
            {
                "at": round(at, 3),
                names.REQUEST_ID: line.request_id[:_LONGEST],
                "attachment": line.attachment,
                "decision": line.decision,
                "reason": line.reason,
                "owner": line.owner[:_LONGEST],
                "owners": [owner[:_LONGEST] for owner in line.owners],
                "model": line.model[:_LONGEST],
                "endpoints": line.endpoints,
                "destination": line.destination[:_LONGEST],
                "microseconds": line.microseconds,
            }
            for at, line in reversed(self._lines)
        ]


class Rates:
    """Decisions per second by reason, for the last two minutes: read off the counter once a second, not on the way."""

    def __init__(self, registry: CollectorRegistry, seconds: int = SECONDS) -> None:
        """The counter of `registry` (Metrics has it) stands where it stands: what was counted before is nobody's rate."""
        self._counter = registry.restricted_registry((_DECISIONS,))
        self._columns: deque[dict[str, float]] = deque(maxlen=seconds)
        self._counted = self._count()
        self._at = time.time()

    async def run(self) -> None:
        """Look once a second, for ever."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            self.sample(now - last)
            last = now

    def sample(self, elapsed: float) -> None:
        """Look now, `elapsed` seconds after the last time."""
        counted = self._count()
        more = {reason: count - self._counted.get(reason, 0.0) for reason, count in counted.items()}
        self._columns.append({reason: round(count / elapsed, 1) for reason, count in more.items() if count})
        self._counted = counted
        self._at = time.time()

    def latest(self) -> dict[str, Any]:
        """`at`: when the last look was, in seconds since 1970; `reasons`: each one's figures, the oldest first.

        A reason without a decision in that time is left out; before two minutes have passed there are fewer figures.
        """
        reasons = sorted({reason for column in self._columns for reason in column})
        figures = {reason: [column.get(reason, 0.0) for column in self._columns] for reason in reasons}
        return {"at": round(self._at, 1), "seconds": self._columns.maxlen, "reasons": figures}

    def _count(self) -> dict[str, float]:
        counted: dict[str, float] = {}
        for family in self._counter.collect():
            for sample in family.samples:
                reason = sample.labels["reason"]
                counted[reason] = counted.get(reason, 0.0) + sample.value
        return counted
