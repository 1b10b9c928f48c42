# SPDX-License-Identifier: Apache-2.0
"""What is held, what is taken out and what is read of a body, through a real Envoy in each body mode."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from extproc.demo.bootstrap import Bodies, Plan
from extproc.demo.client import LOOPBACK
from extproc.demo.envoy import Envoy
from tests.dataplane.exchange import Framing, Request, exchange
from tests.dataplane.scenarios import CHAT, JSON, chat
from tests.dataplane.stage import Stage, hosts, stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

STREAMED = [Bodies.STREAM, Bodies.DUPLEX]
RULES = ", body: {strip: true, maxBytes: 200000, timeout: 2s}, promote: {header: x-gateway-owner, reroute: true}"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A server that takes owners out of bodies, names them in a header, and holds at most 200,000 bytes for two seconds."""
    async with contextlib.AsyncExitStack() as stack:
        yield await stage(stack, tmp_path_factory.mktemp("bodies"), hosts(1), hold=False, rules=RULES)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateways(pods: Stage) -> dict[Bodies, Envoy]:
    """`before` alone, whose guard is the destination, in each body mode."""
    ours = pods.server.grpc_port
    return {mode: await pods.envoy(Plan(endpoints=pods.pool, before_port=ours, bodies=mode)) for mode in Bodies}


class TestStreams:
    """Bodies that come to us whole: our own limits hold, since none of Envoy's do (facts/envoy.md 2.3)."""

    @pytest.mark.parametrize("mode", STREAMED)
    async def test_what_is_longer_than_the_limit_is_a_413(self, gateways: dict[Bodies, Envoy], mode: Bodies) -> None:
        async with exchange(gateways[mode].port, chat("vllm", "last key", 200_000).request) as answer:
            error = json.loads(await answer.rest())["error"]

        assert (answer.status, error["code"]) == (413, "body_too_large")

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", STREAMED)
    async def test_what_does_not_come_in_time_is_a_408(self, gateways: dict[Bodies, Envoy], mode: Bodies) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, gateways[mode].port)
        lines = [f"POST {CHAT} HTTP/1.1", "host: gateway", "content-type: application/json", "content-length: 100"]
        writer.write(("\r\n".join(lines) + '\r\n\r\n{"model"').encode())
        status = await asyncio.wait_for(reader.readline(), 30)
        writer.close()

        assert status == b"HTTP/1.1 408 Request Timeout\r\n"

    async def test_once_decided_a_body_of_any_length_goes_on(self, pods: Stage) -> None:
        """Its owner is in the header and nothing is taken out: nothing is held, so no limit holds."""
        async with contextlib.AsyncExitStack() as stack:
            folder = pods.folder / "echo"
            folder.mkdir()
            rules = ", match: {models: any}, body: {maxBytes: 1000}"
            made = await stage(stack, folder, hosts(1), hold=False, rules=rules)
            plan = Plan(endpoints=made.pool, before_port=made.server.grpc_port, bodies=Bodies.DUPLEX)
            sent = chat("vllm", "header", 3_000_000).request
            async with exchange((await made.envoy(plan)).port, sent) as answer:
                await answer.rest()

        assert (answer.status, answer.headers["x-served-by"]) == (200, "vllm-0")
        assert answer.headers["x-body-sha256"] == hashlib.sha256(sent.body or b"").hexdigest()


ODD = b'{ "model" :"m",\n\t"engine": "vllm","n":1.50e+01, "nested": {"owned_by": 1}, "owned\\u005fby":"vllm"  ,"t":"\\u00e9"}'
LEFT = b'{ "model" :"m",\n\t"n":1.50e+01, "nested": {"owned_by": 1}, "t":"\\u00e9"}'


class TestStrip:
    """`body.strip`: the owner's keys go, and every other byte arrives."""

    @pytest.mark.parametrize("framing", ["content-length", "chunked", "trailers"])
    @pytest.mark.parametrize("mode", Bodies)
    @pytest.mark.parametrize("place", ["body", "header too"])
    async def test_only_the_owners_keys_are_missing(
        self, gateways: dict[Bodies, Envoy], mode: Bodies, framing: Framing, place: str
    ) -> None:
        headers = (JSON,) if place == "body" else (JSON, ("x-owned-by", "vllm"))
        async with exchange(gateways[mode].port, Request("POST", CHAT, headers, ODD, framing)) as answer:
            await answer.rest()

        assert (answer.status, answer.headers["x-served-by"]) == (200, "vllm-0")
        assert answer.headers["x-body-sha256"] == hashlib.sha256(LEFT).hexdigest()
        assert (answer.headers["x-body-bytes"], answer.headers["x-content-length"]) == (str(len(LEFT)), "-")

    @pytest.mark.parametrize("mode", Bodies)
    async def test_a_body_without_them_is_not_touched(self, gateways: dict[Bodies, Envoy], mode: Bodies) -> None:
        sent = Request("POST", CHAT, (JSON, ("x-owned-by", "vllm")), b'{"model": "m"}')
        async with exchange(gateways[mode].port, sent) as answer:
            await answer.rest()

        assert answer.headers["x-body-sha256"] == hashlib.sha256(b'{"model": "m"}').hexdigest()
        assert answer.headers["x-content-length"] == ("-" if mode is Bodies.DUPLEX else "14")

    async def test_of_a_long_body_the_part_that_is_seen_is_stripped(self, gateways: dict[Bodies, Envoy]) -> None:
        sent = chat("vllm", "first key", 3_000_000).request
        async with exchange(gateways[Bodies.PARTIAL].port, sent) as answer:
            await answer.rest()
        left = (sent.body or b"").replace(b'"owned_by":"vllm",', b"")

        assert (answer.status, answer.headers["x-served-by"]) == (200, "vllm-0")
        assert answer.headers["x-body-sha256"] == hashlib.sha256(left).hexdigest()


FORM = (
    b'--limit\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--limit\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"content-type: audio/wav\r\n\r\n" + bytes(range(256)) * 200 + b"\r\n"
    b'--limit\r\ncontent-disposition: form-data; name="owned_by"\r\n\r\nVLLM\r\n--limit--\r\n'
)


@pytest.mark.parametrize("mode", Bodies)
async def test_a_form_names_its_owner_and_arrives_as_it_is(gateways: dict[Bodies, Envoy], mode: Bodies) -> None:
    kind = ("content-type", 'multipart/form-data; boundary="limit"')
    for _ in range(3):
        sent = Request("POST", "/v1/audio/transcriptions", (kind,), FORM)
        async with exchange(gateways[mode].port, sent) as answer:
            await answer.rest()

        assert (answer.status, answer.headers["x-served-by"]) == (200, "vllm-0")
        assert answer.headers["x-body-sha256"] == hashlib.sha256(FORM).hexdigest()


@pytest.mark.parametrize("mode", Bodies)
async def test_the_owner_is_promoted_to_a_header_beside_before(gateways: dict[Bodies, Envoy], mode: Bodies) -> None:
    async with exchange(gateways[mode].port, chat("SGLang", "last key").request) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert (answer.headers["x-served-by"], seen["x-gateway-owner"]) == ("sglang-0", "sglang")


@pytest.mark.parametrize("mode", Bodies)
async def test_a_client_cannot_write_the_promoted_header(gateways: dict[Bodies, Envoy], mode: Bodies) -> None:
    sent = Request("POST", CHAT, (JSON, ("x-gateway-owner", "sglang")), b'{"model": "m"}')
    async with exchange(gateways[mode].port, sent) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert (answer.status, seen.get("x-gateway-owner")) == (200, None)
