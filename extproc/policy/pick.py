# SPDX-License-Identifier: Apache-2.0
"""Which of the eligible endpoints, and in which order: the least loaded first, and each as often as its equals."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import cycle, islice
from typing import Final, NamedTuple


class Load(NamedTuple):
    """How busy an endpoint says it is: requests that wait, and the part of its KV cache that is in use (0 to 1)."""

    waiting: float
    kv_cache: float


Loads = Mapping[str, Load]
"""The figures by destination (`ip:port`), only such as are fresh; never changed, replaced by another mapping."""
NO_LOADS: Final[Loads] = {}

_GRAIN: Final = 10
"""KV caches whose use is within the same tenth count as equal, or the emptiest one would get every request until its
next figures come."""


class Ranking:
    """Destinations that are equally eligible, in the order in which they are taken.

    They are sorted when there are new figures, not with every request: taking a few does not grow with their number.
    """

    def __init__(self, destinations: Sequence[str]) -> None:
        """`destinations` in any order, each once."""
        self.destinations = tuple(destinations)
        self._members: frozenset[str] | None = None
        self._turn: int | None = None
        self._loads: Loads = NO_LOADS
        self._tiers: tuple[tuple[str, ...], ...] = ()
        self._unknown: frozenset[str] = frozenset()
        self._known_before: list[int] = []

    @property
    def members(self) -> frozenset[str]:
        """The destinations as a set, built on first use."""
        if self._members is None:
            self._members = frozenset(self.destinations)
        return self._members

    def turn(self, seed: Callable[[], int]) -> int:
        """The rotation of the next request: they count up here, and begin at `seed()`.

        A counter that several rankings shared would show each of them a part of its numbers only, and a pattern among
        the requests would be one among the endpoints.
        """
        self._turn = seed() if self._turn is None else self._turn + 1
        return self._turn

    def take(self, rotation: int, count: int, loads: Loads = NO_LOADS, first: Collection[str] = ()) -> tuple[str, ...]:
        """`first`, then others up to `count` in all (fewer if there are fewer; `first` is never cut).

        Counting `rotation` up makes each of several equals the first equally often. Without figures all are equals. An
        endpoint without figures beside others that have some takes its turns as if nobody had any; the others share theirs
        by load.
        """
        if not loads and not first:  # the common case, at the price of one or two slices
            start = rotation % len(self.destinations) if self.destinations else 0
            found = self.destinations[start : start + count]
            return found + self.destinations[: min(start, count - len(found))]
        others = (one for one in self._order(rotation, loads) if one not in first)
        return (*first, *islice(others, max(0, count - len(first))))

    def _order(self, rotation: int, loads: Loads) -> Iterator[str]:
        if loads is not self._loads:
            self._sort(loads)
        if not self._tiers:
            yield from _rotated(self.destinations, rotation)
            return
        size = len(self.destinations)
        turn = rotation % size
        known = size - len(self._unknown)
        at_turn = self.destinations[turn]
        if at_turn in self._unknown:
            yield at_turn
        # Counts up by one with each turn that is not taken by an endpoint without figures: every tier is spread evenly.
        share = rotation // size * known + self._known_before[turn]
        for tier in self._tiers:
            yield from _rotated(tier, share)
        yield from (one for one in _rotated(self.destinations, turn) if one in self._unknown and one != at_turn)

    def _sort(self, loads: Loads) -> None:
        self._loads = loads
        tiers: dict[tuple[float, int], list[str]] = {}
        unknown: list[str] = []
        known_before: list[int] = []
        for destination in self.destinations:
            known_before.append(len(known_before) - len(unknown))
            if (load := loads.get(destination)) is None:
                unknown.append(destination)
            else:
                tiers.setdefault((load.waiting, int(load.kv_cache * _GRAIN)), []).append(destination)
        self._tiers = tuple(tuple(tiers[key]) for key in sorted(tiers))
        self._unknown = frozenset(unknown)
        self._known_before = known_before


def filled(chosen: Sequence[str], count: int) -> tuple[str, ...]:
    """The same, from the beginning again and again until there are `count`: one for each attempt that Envoy makes.

    Behind the last one it would try any pod of the pool (facts/envoy.md 4.1).
    """
    return (*chosen, *islice(cycle(chosen), max(0, count - len(chosen))))


class Correction(StrEnum):
    """What became of the EPP's pick: all of it eligible, a part, nothing; or it made none."""

    KEPT = "kept"
    NARROWED = "narrowed"
    REWRITTEN = "rewritten"
    BYPASSED = "epp-bypassed"


def correct(pick: Sequence[str], eligible: Collection[str]) -> tuple[tuple[str, ...], Correction]:
    """The members of the EPP's pick that are eligible, in its order, and what that makes of the pick."""
    kept = tuple(dict.fromkeys(one for one in pick if one in eligible))
    if not pick:
        return (), Correction.BYPASSED
    if not kept:
        return (), Correction.REWRITTEN
    return kept, Correction.KEPT if all(one in eligible for one in pick) else Correction.NARROWED


def _rotated(members: Sequence[str], rotation: int) -> Iterator[str]:
    start = rotation % len(members) if members else 0
    yield from islice(members, start, None)
    yield from islice(members, start)
