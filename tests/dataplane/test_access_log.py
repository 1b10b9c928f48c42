# SPDX-License-Identifier: Apache-2.0
"""The access log of docs/guides/observe.md, written by the real Envoy."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.envoy import Envoy
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.stage import MODEL, hosts, stage
from tests.fakes.collector import Collector

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "observe.md").read_text()
JSON = ("content-type", "application/json")
PATH = "/v1/chat/completions"
REQUESTS = {
    "restricted": Request(headers=(JSON, ("x-owned-by", "sglang")), body=msgspec.json.encode({"model": MODEL})),
    "refused": Request(headers=(JSON,), body=msgspec.json.encode({"model": MODEL, "owned_by": "tgi"})),
    "passed": Request(path=f"{PATH}?api_key=secret", headers=(JSON,), body=msgspec.json.encode({"model": MODEL})),
}
CHANGING = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "request_id": r"[0-9a-f-]{36}",
    "trace_id": r"[0-9a-f]{32}",
    "milliseconds": r"\d+",
}
"""What is another value each time, and what it looks like."""


def recipe(path: Path) -> list[dict[str, Any]]:
    """The guide's access log, into a file."""
    (block,) = re.findall(r"```yaml\n(access_log:\n.*?)```", GUIDE, re.DOTALL)
    (entry,) = yaml.safe_load(block)["access_log"]
    return [entry | {"typed_config": entry["typed_config"] | {"path": str(path)}}]


def shown() -> dict[str, dict[str, Any]]:
    """What the guide says that the three requests look like: by request, by field."""
    head, _, *rows = GUIDE[GUIDE.index("| field | restricted |") :].partition("\n\n")[0].splitlines()
    (_, *requests), *cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    return {
        request: {row[0].strip("`"): msgspec.json.decode(row[column].strip("`")) for row in cells}
        for column, request in enumerate(requests, 1)
    }


async def test_the_access_log_of_the_guide_shows_each_decision(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with contextlib.AsyncExitStack() as stack:
        collector = await stack.enter_async_context(Collector())
        made = await stage(stack, tmp_path, hosts(2), hold=False)
        document = bootstrap(
            Plan(
                endpoints=made.pool,
                before_port=made.server.grpc_port,
                picker_port=made.epp.port,
                collector_port=collector.port,
            )
        )
        (listener,) = document["static_resources"]["listeners"]
        listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = recipe(log)
        async with Envoy(document, tmp_path, made.program) as envoy:
            for request in REQUESTS.values():
                async with exchange(envoy.port, request) as answer:
                    await answer.rest()
            async with asyncio.timeout(20):
                while log.read_text().count("\n") < len(REQUESTS):  # noqa: ASYNC110 - Envoy writes it
                    await asyncio.sleep(0.05)
        addresses = {made.pods.address(name) for name in made.pods.endpoints}
    lines = [msgspec.json.decode(line) for line in log.read_text().splitlines()]

    changing = [{field: str(line.pop(field)) for field in CHANGING} for line in lines]
    assert [
        (field, value) for each in changing for field, value in each.items() if not re.fullmatch(CHANGING[field], value)
    ] == []
    assert [line["upstream"] in addresses for line in lines] == [True, False, True]
    for line in lines:
        line["upstream"] = line["upstream"] and "ip:port"
    fixed = {"method": "POST", "path": PATH}
    assert dict(zip(REQUESTS, lines, strict=True)) == {request: fixed | said for request, said in shown().items()}


@pytest.mark.parametrize("name", ["owner", "model", "reason", "endpoints"])
def test_every_word_of_the_metadata_is_in_the_recipe(name: str) -> None:
    assert f"%DYNAMIC_METADATA(owned_by:{name})%" in GUIDE
