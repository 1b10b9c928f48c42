# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus that scrapes the real server behind the real Envoy, asked what dashboard and alerts ask."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
import pytest_asyncio
import yaml

from extproc.demo.bootstrap import Plan
from extproc.demo.client import LOOPBACK, send
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.stage import MODEL, Stage, hosts, stage
from tests.fakes.collector import Collector
from tests.kubernetes.daemon import Daemon, free_port
from tests.promtool import find
from tests.test_monitoring import EXPRESSIONS

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

ALERTS = Path(__file__).parents[2] / "monitoring" / "alerts.yaml"
JSON = ("content-type", "application/json")
EMPTY = {
    "Watch staleness, A",
    "Last change that the API server told of, A",
    "Watches begun anew, A",
    "Watches begun anew, B",
    "Who served, A",
    "Engines that are asked, A",
}
"""What is nothing here: no API server is watched, no picker is told who served, all models are known."""


class Prometheus:
    """One that scrapes a port twice a second, and has our alerts. Comes out: `port`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.port = 0
        self._folder = folder
        self._daemon = Daemon(program, folder / "prometheus.log")

    async def start(self, target: int) -> None:
        """Start it and wait until it is ready."""
        job = {"job_name": "owned-by", "scrape_interval": "500ms", "honor_labels": True}
        job["static_configs"] = [{"targets": [f"{LOOPBACK}:{target}"]}]
        config = {"scrape_configs": [job], "rule_files": [str(ALERTS)]}
        (self._folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        await self._daemon.start_on_free_ports(self._flags, self._is_ready)

    async def stop(self) -> None:
        """End it and wait until it is gone."""
        await self._daemon.stop()

    async def ask(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        """An instant query (`query`) or its exemplars (`query_exemplars`)."""
        answer = (await send(self.port, "GET", f"/api/v1/{what}?{urlencode(parameters)}")).json()
        assert answer["status"] == "success", answer
        data = answer["data"]
        return data["result"] if what == "query" else data

    def _flags(self) -> list[str]:
        self.port = free_port()
        return [
            f"--config.file={self._folder}/prometheus.yaml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address={LOOPBACK}:{self.port}",
            "--enable-feature=exemplar-storage",
        ]

    async def _is_ready(self) -> bool:
        return (await send(self.port, "GET", "/-/ready")).status == 200


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scraped(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Prometheus, Collector]]:
    """A Prometheus after some seconds of requests, and the collector of the server's spans."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    prometheus = Prometheus(find("prometheus"), folder)
    async with contextlib.AsyncExitStack() as stack:
        collector = await stack.enter_async_context(Collector())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            patch.setenv("OTEL_TRACES_SAMPLER", "always_on")
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            flags = ("--tracing", "--secure-serving", "--refresh-metrics-interval", "1s")
            made = await stage(stack, folder, hosts(2), hold=False, flags=flags)
        await prometheus.start(made.server.metrics_port)
        stack.push_async_callback(prometheus.stop)
        await play(made, prometheus)
        yield prometheus, collector


async def play(made: Stage, prometheus: Prometheus) -> None:
    """Requests of every kind until Prometheus has scraped as often as a rate needs."""
    ours = made.server.grpc_port
    plan = Plan(endpoints=made.pool, before_port=ours, picker_port=made.epp.port, after_port=ours, secure=True)
    envoy = await made.envoy(plan)
    scrapes = "count_over_time(owned_by_streams_in_flight[1m]) >= 6"
    async with asyncio.timeout(60):
        while not await prometheus.ask("query", query=scrapes):
            for owner in ("sglang", "tgi", "*"):
                body = msgspec.json.encode({"model": MODEL, "owned_by": owner})
                async with exchange(envoy.port, Request(headers=(JSON,), body=body)) as answer:
                    await answer.rest()
            await asyncio.sleep(0.1)


async def test_every_panel_shows_something_and_no_alert_is_about_to_fire_without_a_cause(
    scraped: tuple[Prometheus, Collector],
) -> None:
    prometheus, _ = scraped
    found = {
        name: await prometheus.ask("query", query=asked.replace("$__rate_interval", "10s").replace("$job", "owned-by"))
        for name, asked in EXPRESSIONS.items()
    }
    alerts = {name for name, result in found.items() if name.startswith("OwnedBy") and result}
    empty = {name for name, result in found.items() if not name.startswith("OwnedBy") and not result}

    assert empty == EMPTY
    assert alerts == {"OwnedByLoadUnknown"}  # these pods have no /metrics


async def test_prometheus_keeps_the_exemplars_of_spans_that_the_collector_has(
    scraped: tuple[Prometheus, Collector],
) -> None:
    prometheus, collector = scraped
    for name in ("owned_by_decisions_total", "owned_by_decision_duration_seconds_bucket"):
        series = await prometheus.ask("query_exemplars", query=name, start=time.time() - 60, end=time.time())
        found = {tuple(each["labels"].values()) for one in series for each in one["exemplars"]}

        assert found
        await collector.until(lambda spans, found=found: found <= {(span.id, span.trace) for span in spans})
