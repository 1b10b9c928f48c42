# SPDX-License-Identifier: Apache-2.0
"""What the page is told."""

import io
import time
from typing import Any

import msgspec
import pytest

from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from extproc.observability.recent import Rates, Recent
from extproc.policy.config import default_policy
from extproc.policy.pick import NO_LOADS, Load, Loads
from extproc.policy.types import Endpoint, Model, Snapshot
from extproc.server.live import Live
from extproc.server.views import Source, Views, sources
from tests.builders import LLAMA, endpoint, policy, snapshot

NOBODY: dict[str, Any] = {"followed": 0, "answered": 0, "fresh": 0, "age_seconds": None, "failing": 0, "failures": []}


def status(**fields: Any) -> dict[str, Any]:
    """What `/statusz` says; the page needs only a part of it."""
    return {
        "version": "1.2.3",
        "uptime_seconds": 60.0,
        "ready": True,
        "components": {"policy": True},
        "streams": 3,
        "generation": 7,
        "pools": {},
        "sources": {},
        "probe": NOBODY,
        "load": NOBODY,
    } | fields


class World:
    """What there is to see, and the views of it."""

    def __init__(self, *endpoints: Endpoint, loads: Loads = NO_LOADS, **fields: Any) -> None:
        self.snapshot: Snapshot = snapshot(*endpoints)
        self.policy = default_policy()
        self.loads = loads
        self.views = Views(
            status=lambda: status(**fields),
            snapshot=lambda: self.snapshot,
            policy=lambda: self.policy,
            loads=lambda: self.loads,
            recent=Recent(),
            rates=Rates(Metrics().registry),
        )


def plain(value: object) -> Any:
    """As it arrives at the page."""
    return msgspec.json.decode(msgspec.json.encode(value))


def test_the_overview_says_how_the_process_is_and_who_serves_what() -> None:
    world = World(endpoint(1, "vllm"), endpoint(2, "sglang", ready=False))
    before = time.time()
    found = plain(world.views.overview())

    assert found.pop("started_at") == pytest.approx(before - 60, abs=2)
    assert found == {
        "version": "1.2.3",
        "ready": True,
        "components": {"policy": True},
        "generation": 7,
        "streams": 3,
        "matrix": [
            {
                "pool": "default/chat",
                "engines": ["sglang", "vllm"],
                "more_engines": 0,
                "rows": [{"model": LLAMA, "cells": [{"ready": 0, "known": 1}, {"ready": 1, "known": 1}]}],
                "more_models": 0,
                "total": [{"ready": 0, "known": 1}, {"ready": 1, "known": 1}],
            }
        ],
        "more_pools": 0,
        "sources": [
            {
                "name": "models",
                "where": "/v1/models of endpoints",
                "state": "nobody is asked",
                "since": None,
                "error": None,
            },
            {
                "name": "load",
                "where": "/metrics of endpoints",
                "state": "nobody is asked",
                "since": None,
                "error": None,
            },
        ],
    }


def test_an_endpoint_is_shown_with_what_it_is_and_how_busy_it_says_it_is() -> None:
    world = World(
        Endpoint(
            "a",
            "default",
            "10.0.0.1",
            8000,
            {"llm-d.ai/engine-type": "SGLang"},
            "decode",
            models=(Model("m"),),
            uid="u",
        ),
        Endpoint("b", "default", "", 8000, ready=False),
        loads={"10.0.0.1:8000": Load(3.0, 0.123456)},
    )

    assert plain(world.views.endpoints()) == {
        "total": 2,
        "endpoints": [
            {
                "name": "a",
                "namespace": "default",
                "pool": "default/chat",
                "destination": "10.0.0.1:8000",
                "owner": "sglang",
                "role": "decode",
                "ready": True,
                "labels": {"llm-d.ai/engine-type": "SGLang"},
                "models": ["m"],
                "more_models": 0,
                "waiting": 3.0,
                "kv_cache": 0.123,
            },
            {
                "name": "b",
                "namespace": "default",
                "pool": "default/chat",
                "destination": "",
                "owner": "vllm",
                "role": "",
                "ready": False,
                "labels": {},
                "models": None,
                "more_models": 0,
                "waiting": None,
                "kv_cache": None,
            },
        ],
    }


def test_of_very_many_endpoints_the_first_are_shown_those_that_are_not_ready_before_all() -> None:
    world = World(*(endpoint(number, ready=number != 600) for number in range(1, 701)))
    found: Any = world.views.endpoints()

    assert (found["total"], len(found["endpoints"])) == (700, 500)
    assert [one["name"] for one in found["endpoints"][:2]] == ["pod-600", "pod-1"]


def test_of_very_many_models_and_labels_the_first_are_shown() -> None:
    names = tuple(f"m{number:03}" for number in range(300))
    labels = {f"l{number:03}": "" for number in range(50)}
    world = World(Endpoint("a", "default", "10.0.0.1", 1, labels, models=tuple(map(Model, names))))
    (one,) = world.views.endpoints()["endpoints"]
    (table,) = world.views.overview()["matrix"]

    assert (one["models"], one["more_models"], len(one["labels"])) == ([*names[:10]], 290, 40)
    assert ([row["model"] for row in table["rows"]], table["more_models"]) == ([*names[:200]], 100)


def test_of_very_many_engines_the_largest_are_shown_and_the_others_are_counted_as_one() -> None:
    many = [endpoint(number, f"e{number:02}") for number in range(1, 40)]
    world = World(*many, endpoint(40, "e39"), endpoint(41, "e39", ready=False))
    (table,) = plain(world.views.overview()["matrix"])
    one = {"ready": 1, "known": 1}
    shown = [*[one] * 29, {"ready": 2, "known": 3}, {"ready": 9, "known": 9}]

    assert table["engines"] == [*[f"e{number:02}" for number in range(1, 30)], "e39"]
    assert (table["more_engines"], table["total"]) == (9, shown)
    assert table["rows"] == [{"model": LLAMA, "cells": shown}]


def test_of_very_many_pools_the_first_are_shown_with_a_share_of_the_rows_each() -> None:
    models = tuple(f"m{number:03}" for number in range(30))
    world = World()
    world.snapshot = snapshot(**{f"p{number:02}": (endpoint(number, "vllm", models),) for number in range(60)})
    overview: Any = world.views.overview()

    assert [table["pool"] for table in overview["matrix"]][-1] == "default/p48"
    assert (len(overview["matrix"]), overview["more_pools"]) == (50, 11)
    assert [(len(table["rows"]), table["more_models"]) for table in overview["matrix"]][1:] == [(20, 10)] * 49


def test_a_text_of_any_length_is_cut() -> None:
    long = "x" * 300
    cut = "x" * 199 + "\N{HORIZONTAL ELLIPSIS}"
    one = Endpoint(long, long, "10.0.0.1", 1, {long: long}, long, models=(Model(long),))
    world = World()
    world.snapshot = snapshot(**{long: (one,)})
    (found,) = world.views.endpoints()["endpoints"]
    table = plain(world.views.overview()["matrix"])[1]

    assert (found["name"], found["namespace"], found["role"]) == (cut, cut, cut)
    assert (found["labels"], found["models"]) == ({cut: cut}, [cut])
    assert found["pool"] == table["pool"] == f"default/{long}"[:199] + "\N{HORIZONTAL ELLIPSIS}"
    assert [row["model"] for row in table["rows"]] == [cut]


def test_an_engine_label_that_is_another_at_every_endpoint_makes_a_small_frame_in_no_time() -> None:
    world = World(*(endpoint(number, f"hash-{number:05}") for number in range(1, 5001)))
    live = Live(world.views.all, make_logger("json", "info", io.BytesIO()))
    begun = time.process_time()
    live.look()
    took = time.process_time() - begun
    size = len(msgspec.json.encode(plain(world.views.overview())))

    assert took < 0.5
    assert size < 5_000


def test_what_has_not_changed_is_the_identical_object() -> None:
    world = World(endpoint(1))
    views = world.views
    first, table = views.endpoints(), views.overview()["matrix"]
    same = (views.endpoints() is first, views.overview()["matrix"] is table)
    world.loads = {"10.0.0.1:8000": Load(1, 0)}
    loaded = views.endpoints()
    world.policy = policy('match: {unlabeledAs: "tgi"}')
    judged = views.endpoints()
    world.snapshot = snapshot(endpoint(1), endpoint(2))

    assert same == (True, True)
    assert [one["waiting"] for one in loaded["endpoints"]] == [1]
    assert [one["owner"] for one in judged["endpoints"]] == ["tgi"]
    assert views.endpoints()["total"] == 2
    assert views.overview()["matrix"][0]["total"][0].known == 2


def test_every_source_is_shown_with_its_age_and_what_is_wrong_with_it() -> None:
    def watch(**fields: Any) -> dict[str, Any]:
        return {"objects": 4, "synced": True, "age_seconds": 2.5, "error": None} | fields

    failures = [{"destination": f"10.0.0.{n}:1", "error": "no"} for n in range(5)]
    given = status(
        sources={
            "endpoints": {"file": "e.yaml", "age_seconds": 10.0, "error": "x" * 600},
            "config": {"file": "c.yaml", "age_seconds": None, "error": "it is empty"},
            "certificate": {
                "folder": "/certs",
                "age_seconds": 20.0,
                "serial": "1F",
                "not_after": "2030-01-01T00:00:00+00:00",
                "error": "tls.key is not a file",
            },
            "made": {"folder": None, "age_seconds": 1.0, "serial": "2", "not_after": "2040-01-01", "error": None},
            "pods": {"a": watch(), "b": watch(objects=1), "*": watch(synced=False, age_seconds=None, error="403")},
            "policy": {"configmap": "ns/owned-by", "error": "it was deleted", "watch": watch(objects=0)},
            "routing": {
                "configmap": "ns/owned-by-routing",
                "error": None,
                "watch": watch(objects=1, error="no connection"),
            },
            "other": {"configmap": "ns/other", "error": "line 1: no", "watch": watch(objects=1)},
            "late": {"configmap": "ns/late", "error": None, "watch": watch(synced=False, age_seconds=None)},
        },
        probe=NOBODY | {"followed": 7, "answered": 2, "failing": 5, "failures": failures, "age_seconds": 30.2},
        load=NOBODY | {"followed": 3, "fresh": 3, "age_seconds": 0.4},
    )

    assert sources(given, 1000.0) == [
        Source("endpoints", "e.yaml", "loaded", 990, "x" * 500),
        Source("config", "c.yaml", "not loaded", None, "it is empty"),
        Source("certificate", "/certs", "valid until 2030-01-01T00:00:00+00:00", 980, "tls.key is not a file"),
        Source("made", "made at the start", "valid until 2040-01-01", 999, None),
        Source("pods", "namespace a", "4 objects", 998, None),
        Source("pods", "namespace b", "1 object", 998, None),
        Source("pods", "all namespaces", "not synced", None, "403"),
        Source("policy", "ConfigMap ns/owned-by", "absent", 998, "it was deleted"),
        Source("routing", "ConfigMap ns/owned-by-routing", "loaded", 998, "no connection"),
        Source("other", "ConfigMap ns/other", "refused", 998, "line 1: no"),
        Source("late", "ConfigMap ns/late", "not synced", None, None),
        Source(
            "models",
            "/v1/models of endpoints",
            "2 of 7 answer",
            970,
            "10.0.0.0:1: no; 10.0.0.1:1: no; 10.0.0.2:1: no; and 2 more",
        ),
        Source("load", "/metrics of endpoints", "3 of 3 fresh", 1000),
    ]
