# SPDX-License-Identifier: Apache-2.0
"""The order in which equally eligible endpoints are taken, and what becomes of a pick."""

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policy.pick import NO_LOADS, Correction, Load, Loads, Ranking, correct, filled

# Nothing is known of the load

TURNS: dict[str, tuple[str, int, int, str]] = {
    "from the first": ("abc", 0, 2, "ab"),
    "from the second": ("abc", 1, 2, "bc"),
    "round the end": ("abc", 2, 2, "ca"),
    "all": ("abc", 4, 3, "bca"),
    "more than there are": ("ab", 1, 5, "ba"),
    "one": ("a", 7, 3, "a"),
    "none is asked for": ("abc", 1, 0, ""),
    "a negative rotation": ("abc", -1, 1, "c"),
    "a large rotation": ("abc", 3 * 10**20 + 1, 1, "b"),
    "of none": ("", 7, 3, ""),
}


@pytest.mark.parametrize("loads", [NO_LOADS, {}, {"elsewhere": Load(0, 0)}], ids=["none", "empty", "of others"])
@pytest.mark.parametrize(("destinations", "rotation", "count", "expected"), TURNS.values(), ids=TURNS)
def test_without_figures_the_order_begins_at_the_rotation(
    destinations: str, rotation: int, count: int, expected: str, loads: Loads
) -> None:
    assert Ranking(destinations).take(rotation, count, loads) == tuple(expected)


@pytest.mark.parametrize("place", [0, 1])
def test_without_figures_everyone_stands_equally_often_at_each_place(place: int) -> None:
    ranking = Ranking("abc")
    assert Counter(ranking.take(rotation, 2)[place] for rotation in range(12)) == {"a": 4, "b": 4, "c": 4}


# Figures

ORDERS: dict[str, tuple[dict[str, Load], str]] = {
    "fewest waiting": ({"a": Load(2, 0), "b": Load(0, 0), "c": Load(1, 0)}, "bca"),
    "then the emptiest cache": ({"a": Load(0, 0.9), "b": Load(0, 0.1), "c": Load(0, 0.5)}, "bca"),
    "waiting before the cache": ({"a": Load(1, 0), "b": Load(0, 0.99), "c": Load(2, 0)}, "bac"),
    "caches in the same tenth are equals": ({"a": Load(0, 0.49), "b": Load(0, 0.5), "c": Load(0, 0.41)}, "acb"),
    "a full cache is worse than the last tenth": ({"a": Load(0, 1.0), "b": Load(0, 0.99), "c": Load(0, 0.9)}, "bca"),
    "a part of a request waits": ({"a": Load(0.5, 0), "b": Load(0.25, 0), "c": Load(1, 0)}, "bac"),
    "no figures come last": ({"b": Load(9, 1.0), "c": Load(8, 1.0)}, "acb"),
}


@pytest.mark.parametrize(("loads", "expected"), ORDERS.values(), ids=ORDERS)
def test_the_least_loaded_is_taken_first(loads: dict[str, Load], expected: str) -> None:
    assert Ranking("abc").take(0, 3, loads) == tuple(expected)


def test_who_has_no_figures_is_last_except_in_its_turn() -> None:
    loads = {"b": Load(9, 0), "d": Load(0, 0)}
    ranking = Ranking("abcd")
    found = ["".join(ranking.take(rotation, 4, loads)) for rotation in range(4)]
    assert found == ["adbc", "dbca", "cdba", "dbac"]


def firsts(ranking: Ranking, rotations: range, loads: Loads) -> dict[str, int]:
    return dict(Counter(ranking.take(rotation, 1, loads)[0] for rotation in rotations))


def test_equals_share_evenly() -> None:
    loads = {"a": Load(0, 0.11), "b": Load(3, 0), "c": Load(0, 0.19), "d": Load(0, 0.15), "e": Load(0, 0.2)}
    assert firsts(Ranking("abcde"), range(30), loads) == {"a": 10, "c": 10, "d": 10}


def test_who_has_no_figures_takes_exactly_its_turns_and_equals_share_the_others() -> None:
    loads = {"a": Load(0, 0), "b": Load(0, 0), "d": Load(5, 0)}
    assert firsts(Ranking("abcde"), range(10), loads) == {"c": 2, "e": 2, "a": 3, "b": 3}


def test_the_next_ones_are_spread_too() -> None:
    loads = {"a": Load(0, 0), "b": Load(1, 0), "c": Load(1, 0)}
    ranking = Ranking("abc")
    assert Counter(ranking.take(rotation, 2, loads) for rotation in range(6)) == {("a", "b"): 3, ("a", "c"): 3}


def test_new_figures_sort_anew_and_none_forget_them() -> None:
    ranking = Ranking("ab")
    found = [ranking.take(0, 2, loads) for loads in ({"a": Load(1, 0), "b": Load(0, 0)}, {"a": Load(0, 0)}, NO_LOADS)]
    assert found == [("b", "a"), ("a", "b"), ("a", "b")]


class Counted(dict[str, Load]):
    """Figures that count how often they are looked at."""

    looked_at = 0

    def get(self, *args: object) -> Load | None:  # type: ignore[override]
        self.looked_at += 1
        return super().get(*args)  # type: ignore[call-overload, no-any-return]


def test_the_same_figures_are_sorted_once() -> None:
    loads, ranking = Counted(a=Load(1, 0), b=Load(0, 0)), Ranking("abc")
    for rotation in range(9):
        ranking.take(rotation, 2, loads)
    assert loads.looked_at == 3


# Who is first already

FIRST: dict[str, tuple[str, int, str]] = {
    "others follow": ("b", 3, "bac"),
    "as many as are asked for": ("c", 2, "ca"),
    "all are there": ("cb", 2, "cb"),
    "it is never cut": ("cab", 1, "cab"),
    "none is asked for": ("b", 0, "b"),
    "nobody": ("", 2, "ab"),
}


@pytest.mark.parametrize(("first", "count", "expected"), FIRST.values(), ids=FIRST)
def test_who_is_first_stays_and_is_not_taken_again(first: str, count: int, expected: str) -> None:
    assert Ranking("abc").take(0, count, first=tuple(first)) == tuple(expected)


def test_those_who_follow_are_ranked() -> None:
    loads = {"a": Load(3, 0), "b": Load(2, 0), "c": Load(1, 0)}
    assert Ranking("abc").take(0, 3, loads, ("b",)) == ("b", "c", "a")


def test_the_members_are_all_of_them() -> None:
    assert Ranking("abc").members == frozenset("abc")


# What holds for all of them

destinations = st.lists(st.sampled_from("abcdefgh"), unique=True)
figures = st.builds(Load, st.integers(0, 2), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
loads_of = st.dictionaries(st.sampled_from("abcdefghxyz"), figures)
rotations = st.integers(-(10**6), 10**6)


@st.composite
def ranked(draw: st.DrawFn) -> tuple[list[str], dict[str, Load]]:
    return draw(destinations), draw(loads_of)


@given(ranked(), rotations, st.integers(0, 12), st.data())
def test_whoever_is_taken_is_taken_once_and_first_stay_first(
    given_: tuple[list[str], dict[str, Load]], rotation: int, count: int, data: st.DataObject
) -> None:
    members, loads = given_
    first = data.draw(st.lists(st.sampled_from(members), unique=True)) if members else []
    taken = Ranking(members).take(rotation, count, loads, first)

    assert taken[: len(first)] == tuple(first)
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(members)
    assert len(taken) == max(len(first), min(count, len(members)))


@given(ranked(), rotations, st.integers(0, 12))
def test_fewer_are_the_beginning_of_more(given_: tuple[list[str], dict[str, Load]], rotation: int, count: int) -> None:
    members, loads = given_
    ranking = Ranking(members)
    assert ranking.take(rotation, count, loads) == ranking.take(rotation, len(members), loads)[:count]


@given(ranked(), rotations)
def test_the_order_is_never_from_more_to_less_loaded(given_: tuple[list[str], dict[str, Load]], rotation: int) -> None:
    members, loads = given_
    taken = Ranking(members).take(rotation, len(members), loads)
    known = [(loads[one].waiting, int(loads[one].kv_cache * 10)) for one in taken if one in loads]
    assert known == sorted(known)


def tier(members: list[str], loads: Mapping[str, Load]) -> set[str]:
    """The least loaded of those whose figures are known."""
    keys = {one: (loads[one].waiting, int(loads[one].kv_cache * 10)) for one in members if one in loads}
    return {one for one, key in keys.items() if key == min(keys.values())}


@given(ranked(), st.integers(0, 1000))
def test_over_a_full_cycle_everyone_has_its_exact_share(given_: tuple[list[str], dict[str, Load]], start: int) -> None:
    members, loads = given_
    best = tier(members, loads)
    unknown = [one for one in members if one not in loads]
    cycle = len(members) * max(1, len(best))
    share = (len(members) - len(unknown)) if best else 0
    expected = dict.fromkeys(unknown, max(1, len(best))) | dict.fromkeys(best, share)
    begin = start * len(members)

    assert firsts(Ranking(members), range(begin, begin + cycle), loads) == expected


@given(destinations, st.lists(loads_of, max_size=4), rotations)
def test_earlier_figures_leave_nothing_behind(
    members: list[str], history: list[dict[str, Load]], rotation: int
) -> None:
    ranking = Ranking(members)
    for loads in (*history, NO_LOADS, *history):
        assert ranking.take(rotation, 9, loads) == Ranking(members).take(rotation, 9, loads)


# One for each attempt

FILLED: dict[str, tuple[str, int, str]] = {
    "one": ("a", 3, "aaa"),
    "two": ("ab", 3, "aba"),
    "two, more often": ("ab", 5, "ababa"),
    "as many": ("abc", 3, "abc"),
    "more are not cut": ("abcd", 3, "abcd"),
    "a single attempt": ("a", 1, "a"),
    "none is asked for": ("ab", 0, "ab"),
    "of none": ("", 3, ""),
}


@pytest.mark.parametrize(("chosen", "count", "expected"), FILLED.values(), ids=FILLED)
def test_every_attempt_has_a_destination(chosen: str, count: int, expected: str) -> None:
    assert filled(tuple(chosen), count) == tuple(expected)


@given(destinations, st.integers(0, 20))
def test_what_is_filled_is_the_same_again_and_again(chosen: list[str], count: int) -> None:
    found = filled(chosen, count)
    assert list(found[: len(chosen)]) == chosen
    assert len(found) == (max(count, len(chosen)) if chosen else 0)
    assert all(one == chosen[at % len(chosen)] for at, one in enumerate(found))


# What becomes of a pick

KEPT, NARROWED, REWRITTEN, BYPASSED = Correction
PICKS: dict[str, tuple[str, str, str, Correction]] = {
    "all": ("ba", "abc", "ba", KEPT),
    "all, one of them twice": ("aba", "abc", "ab", KEPT),
    "a part": ("bxa", "abc", "ba", NARROWED),
    "the last": ("xya", "abc", "a", NARROWED),
    "none": ("xy", "abc", "", REWRITTEN),
    "nobody is eligible": ("ab", "", "", REWRITTEN),
    "no pick": ("", "abc", "", BYPASSED),
    "no pick, and nobody is eligible": ("", "", "", BYPASSED),
}


@pytest.mark.parametrize(("pick", "eligible", "kept", "correction"), PICKS.values(), ids=PICKS)
def test_of_a_pick_stays_what_is_eligible(pick: str, eligible: str, kept: str, correction: Correction) -> None:
    assert correct(tuple(pick), frozenset(eligible)) == (tuple(kept), correction)


def test_a_ranking_counts_its_own_turns_from_where_it_began() -> None:
    shared = itertools.count(5).__next__
    one, other = Ranking(["a", "b"]), Ranking(["c", "d"])

    assert [(one.turn(shared), other.turn(shared)) for _ in range(3)] == [(5, 6), (6, 7), (7, 8)]
