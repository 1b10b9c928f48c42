# SPDX-License-Identifier: Apache-2.0
"""One trace of a request: the real Envoy's spans, and ours below them, at one collector."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from extproc.demo.bootstrap import LISTENER, Plan
from extproc.demo.client import send
from extproc.demo.envoy import Envoy
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.stage import MODEL, Stage, hosts, stage
from tests.fakes.collector import Collector, Span

pytestmark = pytest.mark.asyncio(loop_scope="session")

JSON = ("content-type", "application/json")
CALL = "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress"
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


@dataclass
class Traced:
    """A gateway with `before` and `after`, whose Envoy and whose server have the same collector."""

    stage: Stage
    envoy: Envoy
    collector: Collector

    async def trace(self, request: Request, ours: int) -> list[Span]:
        """The spans of one request, once `ours` of them are ours and all of them have their parents."""
        known = {span.trace for span in self.collector.spans}
        async with exchange(self.envoy.port, request) as answer:
            await answer.rest()

        def news(spans: list[Span]) -> list[Span]:
            # Envoy reports the span of a call when it is reset, and again when it is destroyed.
            return list({span.id: span for span in spans if span.trace not in known}.values())

        def whole(spans: list[Span]) -> bool:
            there = {span.id for span in news(spans)} | {""}
            counted = sum(span.service == "owned-by" for span in news(spans))
            return counted == ours and all(span.parent in there for span in news(spans))

        return news(await self.collector.until(whole))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traced]:
    folder: Path = tmp_path_factory.mktemp("traces")
    async with contextlib.AsyncExitStack() as stack:
        collector = await stack.enter_async_context(Collector())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            made = await stage(stack, folder, hosts(2), hold=False, flags=("--tracing",))
        ours = made.server.grpc_port
        plan = Plan(
            endpoints=made.pool,
            before_port=ours,
            picker_port=made.epp.port,
            after_port=ours,
            collector_port=collector.port,
        )
        yield Traced(made, await made.envoy(plan), collector)


def chat(**fields: str) -> Request:
    return Request(headers=(JSON,), body=msgspec.json.encode({"model": MODEL} | fields))


async def test_our_spans_are_below_envoys_calls_of_us_in_its_trace(gateway: Traced) -> None:
    spans = await gateway.trace(chat(owned_by="sglang"), ours=2)
    by_id = {span.id: span for span in spans}
    (root,) = [span for span in spans if not span.parent]
    before, after = sorted((span for span in spans if span.service == "owned-by"), key=lambda span: span.started)

    assert {span.trace for span in spans} == {root.trace}
    assert (root.service, root.name, root.kind) == (LISTENER, "ingress", "server")
    for ours, cluster in ((before, "owned_by"), (after, "owned_by_after")):
        call = by_id[ours.parent]
        assert (call.service, call.name, call.kind, call.parent) == (LISTENER, CALL, "client", root.id)
        assert call.attributes["upstream_cluster"] == cluster
        assert (ours.name, ours.kind, ours.error) == ("owned_by.decision", "server", None)
    said = {
        "owned_by.decision": "restrict",
        "owned_by.reason": "owner-matched",
        "owned_by.owner": "sglang",
        "owned_by.model": MODEL,
        "owned_by.endpoints": 2,
        "x-request-id": root.attributes["guid:x-request-id"],
    }
    assert before.attributes == {"owned_by.attachment": "before", "owned_by.asked_body": True, **said}
    assert after.attributes == {"owned_by.attachment": "after", "owned_by.asked_body": False, **said}


@pytest.mark.parametrize(
    ("owner", "error"), [("tgi", None), ("vllm", "no-ready-endpoint")], ids=["a client's mistake", "a failure of ours"]
)
async def test_a_refusal_ends_the_trace(owner: str, error: str | None, gateway: Traced) -> None:
    if error is not None:
        path = gateway.stage.folder / "endpoints.yaml"
        known = msgspec.json.decode(path.read_bytes())
        for endpoint in known["pools"][0]["endpoints"]:
            endpoint["ready"] = not endpoint["name"].startswith(owner)
        path.write_bytes(msgspec.json.encode(known))
        await told(gateway.stage, 'owned_by_endpoints{pool="default/chat",ready="false"} 2.0')
    (ours,) = [span for span in await gateway.trace(chat(owned_by=owner), ours=1) if span.service == "owned-by"]

    assert (ours.attributes["owned_by.decision"], ours.error) == ("reject", error)


async def told(stage: Stage, line: str) -> None:
    """Wait until the server's metrics have a line: files are looked at every half second."""
    async with asyncio.timeout(10):
        while line not in (await send(stage.server.metrics_port, "GET", "/metrics")).body.decode():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_sampled_decision_is_an_exemplar_of_its_metrics(gateway: Traced) -> None:
    spans = await gateway.trace(Request("GET", "/v1/models", (), None), ours=1)
    (ours,) = [span for span in spans if span.service == "owned-by"]
    text = (await send(gateway.stage.server.metrics_port, "GET", "/metrics", OPENMETRICS)).body.decode()
    plain = (await send(gateway.stage.server.metrics_port, "GET", "/metrics")).body.decode()
    of = re.findall(rf'^(\w+)\S* \S+ # {{span_id="{ours.id}",trace_id="{ours.trace}"}} ', text, re.MULTILINE)

    assert of == ["owned_by_decisions_total", "owned_by_decision_duration_seconds_bucket"]
    assert ours.trace not in plain


@pytest.mark.slow
async def test_a_collector_that_is_away_neither_holds_up_the_end_nor_breaks_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        collector = await stack.enter_async_context(Collector(status=503))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
        made = await stage(stack, tmp_path, hosts(1), hold=False, flags=("--tracing",))
        envoy = await made.envoy(Plan(endpoints=made.pool, before_port=made.server.grpc_port))
        async with exchange(envoy.port, chat(owned_by="vllm")) as answer:
            await answer.rest()
        began = time.monotonic()
        made.server.terminate()
        code = await made.server.wait()
        took = time.monotonic() - began
    lines = [msgspec.json.decode(line) for line in made.server.lines]

    said = [line["msg"].partition(",")[0] for line in lines if line["logger"] == "tracing"]

    assert code == 0
    assert took < 6  # the exporter alone would try for ten seconds
    assert said == ["Transient error Said encountered while exporting spans batch", "Shutdown in progress"]
