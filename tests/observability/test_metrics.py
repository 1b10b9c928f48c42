# SPDX-License-Identifier: Apache-2.0
"""The metrics."""

import re
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from extproc.demo.client import send
from extproc.demo.processes import Server
from extproc.observability.metrics import Metrics
from extproc.policy.types import Endpoint, Pool, Snapshot
from tests.promtool import promtool

POOL = Pool("default", "chat")
ENDPOINTS = "pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:9', models: []}]}]"
SUFFIX = {"counter": "_total", "info": "_info"}


def test_decisions_are_counted_by_what_they_were() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.decided("before", "restrict", "owner-matched", "vllm")

    labels = {"attachment": "before", "decision": "restrict", "reason": "owner-matched", "owner": "vllm"}
    assert metrics.registry.get_sample_value("owned_by_decisions_total", labels) == 2


def test_a_pool_that_is_gone_is_not_shown_any_more() -> None:
    metrics = Metrics()
    endpoints = (Endpoint("a", "default", "127.0.0.1", 1), Endpoint("b", "default", "127.0.0.1", 2, ready=False))
    metrics.show(Snapshot(1, (POOL,), {POOL: endpoints}))
    shown = [
        metrics.registry.get_sample_value("owned_by_endpoints", {"pool": "default/chat", "ready": ready})
        for ready in ("true", "false")
    ]
    metrics.show(Snapshot(2))

    assert shown == [1, 1]
    assert metrics.registry.get_sample_value("owned_by_endpoints", {"pool": "default/chat", "ready": "true"}) is None


def test_the_catalogue_has_each_metric_once_with_its_type_labels_and_meaning() -> None:
    metrics = Metrics()
    there = [
        (family.name + SUFFIX.get(family.type, ""), family.type, family.documentation)
        for family in metrics.registry.collect()
    ]

    assert [(each.name, each.type, each.meaning) for each in metrics.catalogue] == there
    assert {each.bound for each in metrics.catalogue} > {"1"}


def test_no_series_has_other_labels_than_the_catalogue_says() -> None:
    metrics = Metrics()
    collectors = {
        name: collector for collector, names in metrics.registry._collector_to_names.items() for name in names
    }
    labels = {each.name: getattr(collectors[each.name], "_labelnames", ()) for each in metrics.catalogue}
    labels["owned_by_build_info"] = ("version",)

    assert labels == {each.name: each.labels for each in metrics.catalogue}


def test_a_histogram_has_as_many_series_as_its_bound_says() -> None:
    metrics = Metrics()
    shown = re.findall(
        r"^(owned_by_[a-z_]+?)_(?:bucket|sum|count)\b", generate_latest(metrics.registry).decode(), re.MULTILINE
    )
    bounds = {each.name: each.bound for each in metrics.catalogue if each.type == "histogram"}

    assert {name: f"{shown.count(name)}: its buckets, sum and count" for name in bounds} == bounds


def test_the_causes_of_stream_errors_are_shown_before_the_first_one() -> None:
    registry = Metrics().registry

    assert [
        registry.get_sample_value("owned_by_stream_errors_total", {"cause": c}) for c in ("protocol", "internal")
    ] == [0, 0]


def test_an_exemplar_is_shown_to_who_understands_it() -> None:
    metrics = Metrics()
    metrics.decided("before", "passthrough", "owner-absent", "", {"trace_id": "a" * 32, "span_id": "b" * 16})
    (line,) = [
        line
        for line in openmetrics.generate_latest(metrics.registry).decode().splitlines()
        if line.startswith("owned_by_decisions_total{")
    ]

    assert re.fullmatch(r'.*} 1\.0 # {span_id="b{16}",trace_id="a{32}"} 1\.0 \d+\.\d+', line)


def test_when_a_series_began_is_not_shown() -> None:
    metrics = Metrics()
    metrics.decided("before", "restrict", "owner-matched", "vllm")
    texts = [generate_latest(metrics.registry), openmetrics.generate_latest(metrics.registry)]

    assert [b"owned_by_decisions_total{" in text for text in texts] == [True, True]
    assert [b"_created" in text for text in texts] == [False, False]


async def test_promtool_has_nothing_to_say_of_the_metrics_of_a_running_server(tmp_path: Path) -> None:
    (tmp_path / "endpoints.yaml").write_text(ENDPOINTS)
    async with Server("--endpoints-file", str(tmp_path / "endpoints.yaml")) as server:
        text = (await send(server.metrics_port, "GET", "/metrics")).body.decode()

    assert re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE) == [each.name for each in Metrics().catalogue]
    assert promtool("check", "metrics", text=text) == (0, "")
