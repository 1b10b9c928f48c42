# SPDX-License-Identifier: Apache-2.0
"""Every attachment in every body mode, for every way to name the owner, size of body and framing, through a real Envoy.

A row of the table is one request; what must come of it follows from the row alone. The fast tests take rows in which each
pair of values occurs; the slow ones all of them.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pytest
import pytest_asyncio
from allpairspy import AllPairs

from extproc.demo.bootstrap import Bodies, Plan, Route
from extproc.demo.envoy import Envoy
from tests.dataplane.exchange import Framing, Request, exchange
from tests.dataplane.stage import MODEL, Stage, hosts, stage
from tests.fakes.backend import FIRST, LAST

pytestmark = pytest.mark.asyncio(loop_scope="session")

Attachment = Literal["before", "after", "picker", "header"]
Mode = Literal["partial", "stream", "duplex", "both ways"]
Place = Literal["header", "query", "first key", "last key", "absent"]
COLUMNS = (get_args(Attachment), get_args(Mode), get_args(Place), (0, 2_000, 100_000, 3_000_000), get_args(Framing))
PREFIX = {"before": "owned_by", "after": "owned_by_after", "picker": "epp", "header": "owned_by_header"}
"""The statistics of the filter that is ours."""


class Row(NamedTuple):
    """One request: `size` is the body's, about, in bytes; 0 is a body that is empty."""

    attachment: Attachment
    mode: Mode
    place: Place
    size: int
    framing: Framing

    @property
    def request(self) -> Request:
        """The request of this row, for SGLang unless its place is `absent`."""
        path, headers = "/v1/chat/completions", [("content-type", "application/json")]
        before, after = "", ""
        match self.place:
            case "header":
                headers.append(("x-owned-by", "SGLang"))
            case "query":
                path += "?owned_by=sglang"
            case "first key":
                before = '"owned_by": "sglang", '
            case "last key":
                after = ', "owned_by": "sglang"'
        text = f'{{{before}"model": "{MODEL}", "prompt": "{"p" * self.size}"{after}}}' if self.size else ""
        return Request("POST", path, tuple(headers), text.encode(), self.framing)

    @property
    def has_body(self) -> bool:
        """Whether Envoy tells its filters of a body: one that is chunked may be empty, which is known at its end only."""
        return bool(self.size) or self.framing != "content-length"

    @property
    def steered(self) -> bool:
        """Whether the request must reach an engine of SGLang, and not any engine."""
        if self.place == "absent":
            return False
        if self.attachment == "before" and not self.has_body:
            return False  # the EPP picks at random (facts/epp.md 1.1)
        # Only the first one or two buffers of a body are seen where it is not streamed (facts/envoy.md 2.2).
        return not (self.mode == "partial" and self.place == "last key" and self.size > 2_097_152)

    @property
    def length(self) -> str:
        """The content-length that the engine must see: it goes where a filter streams the body (facts/envoy.md 2.2)."""
        streamed = self.attachment in ("before", "after") or self.mode in ("duplex", "both ways")
        if self.framing != "content-length" or (streamed and self.has_body):
            return "-"
        return str(len(self.request.body or b""))


def possible(values: list[object]) -> bool:
    """Whether a row that begins with these values can be."""
    row = dict(zip(Row._fields, values, strict=False))
    if row.get("mode") == "both ways" and row["attachment"] != "picker":
        return False  # that is how Istio sets up a picker
    if row.get("framing") == "trailers" and row["attachment"] == "after" and row["size"] > 2_000:
        return False  # Envoy cuts such a body between two filters, now and then (facts/envoy.md 2.5, its issue 47449)
    if (row.get("framing"), row.get("size"), row.get("mode", "")) == ("trailers", 0, "partial"):
        return False  # Envoy tells of no body where there is none before the trailers: it is asked for in vain
    return not (row.get("size") == 0 and row["place"] in ("first key", "last key"))


PAIRS = {Row(*values) for values in AllPairs([list(column) for column in COLUMNS], filter_func=possible)}
ROWS = [Row(*values) for values in itertools.product(*COLUMNS) if possible(list(values))]


def rows() -> list[object]:
    """Every row as a parameter, those outside the pairwise selection slow."""
    marks = {True: [], False: [pytest.mark.slow]}
    return [pytest.param(row, id=", ".join(map(str, row)), marks=marks[row in PAIRS]) for row in ROWS]


@dataclass
class Gateways:
    """One Envoy for each attachment in each mode, started when it is first asked for."""

    stage: Stage
    running: dict[tuple[Attachment, Mode], Envoy]

    async def of(self, row: Row) -> Envoy:
        """The Envoy for a row."""
        key = row.attachment, row.mode
        if key not in self.running:
            self.running[key] = await self.stage.envoy(self._plan(*key))
        return self.running[key]

    def _plan(self, attachment: Attachment, mode: Mode) -> Plan:
        ours, epp, pool = self.stage.server.grpc_port, self.stage.epp.port, self.stage.pool
        bodies = None if mode == "both ways" else Bodies(mode)
        match attachment:
            case "before":
                return Plan(endpoints=pool, before_port=ours, picker_port=epp, bodies=Bodies(mode))
            case "after":
                return Plan(endpoints=pool, picker_port=epp, after_port=ours, bodies=Bodies(mode))
            case "picker":
                return Plan(endpoints=pool, picker_port=ours, picker_bodies=bodies)
            case "header":
                owners = {owner: self.stage.engine(owner) for owner in ("vllm", "sglang")}
                routes = tuple(Route(o, pods, headers=(("x-owned-by", o),)) for o, pods in owners.items())
                return Plan(endpoints=pool, routes=routes, header_port=ours, bodies=Bodies(mode))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateways(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateways]:
    folder: Path = tmp_path_factory.mktemp("table")
    async with contextlib.AsyncExitStack() as stack:
        # No model is compared, so that a row whose headers name the owner is decided at its headers.
        made = await stage(stack, folder, hosts(2), rules=", match: {models: any}", flags=("--attachment", "picker"))
        yield Gateways(made, {})


@pytest.mark.parametrize("row", rows())
async def test_a_request_arrives_whole_where_it_must_and_leaves_no_stream_open(gateways: Gateways, row: Row) -> None:
    envoy, sent = await gateways.of(row), row.request
    async with asyncio.timeout(60), exchange(envoy.port, sent) as answer:
        await answer.until(FIRST)
        open_streams = await settled(envoy, PREFIX[row.attachment])  # while the engine is still answering
        gateways.stage.pods.release()
        body = await answer.rest()

    assert (answer.status, body) == (200, FIRST + LAST)
    assert answer.headers["x-served-by"].startswith("sglang" if row.steered else ("sglang", "vllm"))
    assert answer.headers["x-body-sha256"] == hashlib.sha256(sent.body or b"").hexdigest()
    assert answer.headers["x-content-length"] == row.length
    assert answer.headers["x-trailers"] == ("x-end=1" if row.framing == "trailers" else "-")
    assert open_streams == 0
    if row.attachment in ("after", "picker"):  # the destination is ours: what the engine is told is where it went
        named = json.loads(answer.headers["x-seen"])["x-gateway-destination-endpoint"]
        assert named.partition(",")[0] == gateways.stage.pods.address(answer.headers["x-served-by"])


async def settled(envoy: Envoy, prefix: str) -> int:
    """How many of the filter's streams stay open: Envoy has no event for the end of one, so it is asked until none is."""
    pattern = rf"ext_proc\.{prefix}\.streams_(started|closed)$"
    for _ in range(50):
        stats = await envoy.stats(pattern)
        counts = {name.rpartition("_")[2]: value for name, value in stats.items()}
        if counts["started"] == counts["closed"]:
            return 0
        await asyncio.sleep(0.02)
    return counts["started"] - counts["closed"]
