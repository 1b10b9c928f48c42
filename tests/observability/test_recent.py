# SPDX-License-Identifier: Apache-2.0
"""The last decisions, and how many there were in each second."""

import itertools

from extproc.observability.metrics import Metrics
from extproc.observability.recent import Rates, Recent
from tests.builders import decision_line


def decide(metrics: Metrics, reason: str, times: int, owner: str = "") -> None:
    for _ in range(times):
        metrics.decided("before", "restrict", reason, owner)


def test_a_decision_is_shown_with_its_own_time_and_the_fields_of_its_line() -> None:
    recent = Recent(clock=lambda: 12.3456)
    recent(decision_line())

    assert recent.latest() == [
        {
            "at": 12.346,
            "x-request-id": "r-1",
            "attachment": "before",
            "decision": "restrict",
            "reason": "owner-matched",
            "owner": "sglang",
            "owners": ["sglang"],
            "model": "m",
            "endpoints": 2,
            "destination": "127.0.0.1:1",
            "microseconds": 40,
        }
    ]


def test_the_newest_comes_first_and_no_more_are_kept_than_there_is_place_for() -> None:
    recent = Recent(kept=3, clock=itertools.count(1).__next__)
    for number in range(5):
        recent(decision_line(request_id=f"r-{number}"))

    assert [(one["at"], one["x-request-id"]) for one in recent.latest()] == [(5, "r-4"), (4, "r-3"), (3, "r-2")]


def test_long_texts_are_cut() -> None:
    recent = Recent()
    recent(decision_line(destination="d" * 1000, owners=("o" * 1000,)))
    (shown,) = recent.latest()

    assert (shown["destination"], shown["owners"]) == ("d" * 256, ["o" * 256])


def test_rates_are_what_was_counted_between_two_looks_by_reason() -> None:
    metrics = Metrics()
    rates = Rates(metrics.registry)
    decide(metrics, "owner-matched", 3, "vllm")
    decide(metrics, "owner-matched", 2, "sglang")
    rates.sample(1.0)
    decide(metrics, "owner-absent", 3)
    rates.sample(2.0)
    rates.sample(1.0)
    found = rates.latest()

    assert found.pop("at") > 0
    assert found == {"seconds": 120, "reasons": {"owner-absent": [0, 1.5, 0], "owner-matched": [5, 0, 0]}}


def test_what_was_counted_before_and_what_is_too_old_is_in_no_rate() -> None:
    metrics = Metrics()
    decide(metrics, "owner-absent", 7)
    rates = Rates(metrics.registry, seconds=2)
    decide(metrics, "owner-matched", 1)
    for _ in range(3):
        rates.sample(1.0)

    assert rates.latest()["reasons"] == {}
