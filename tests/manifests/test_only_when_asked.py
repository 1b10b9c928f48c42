# SPDX-License-Identifier: Apache-2.0
"""`only-when-asked` as Istio places it, on a real Envoy: who comes to us, and what is removed from who does not."""

import contextlib
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from extproc.demo.envoy import Envoy
from tests.builders import SPOOFABLE
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.scenarios import JSON, Tally, chat, chats, gets, send_all
from tests.manifests.mesh import ROUTED, Mesh, asked, mesh, status

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"
SPOOFED = tuple((name, "127.0.0.1:1") for name in SPOOFABLE)
NOBODY_NAMED = {
    "nothing": Request("POST", CHAT, (JSON,), b'{"model": "m"}'),
    "an owner in the body": chat("sglang", "first key").request,
    "an empty header": Request("POST", CHAT, (JSON, ("x-owned-by", "")), b'{"model": "m"}'),
    "another parameter": Request("POST", CHAT + "?not_owned_by=vllm&a=owned_by", (JSON,), b'{"model": "m"}'),
    "no body": Request("GET", "/v1/responses/1", (), None),
}
SGLANG_NAMED = {
    "header": Request("POST", CHAT, (JSON, ("X-Owned-By", "SGLang"))),
    "owned_by": Request("POST", CHAT + "?owned_by=sglang", (JSON,)),
    "engine": Request("POST", CHAT + "?a=b&engine=sglang", (JSON,)),
    "inference_server": Request("POST", CHAT + "?inference_server=sglang", (JSON,)),
    "an escaped name": Request("POST", CHAT + "?%6fwned_by=sglang", (JSON,)),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def dying(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Three pods of each engine, one of which is dead."""
    async with contextlib.AsyncExitStack() as stack:
        yield await mesh(stack, tmp_path_factory.mktemp("asked"), pods=3, refusing=("vllm-2", "sglang-2"))


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=["istio-before", "istio-strict"], ids=["before", "strict"]
)
async def gateway(dying: Mesh, request: pytest.FixtureRequest) -> tuple[Envoy, int]:
    """A gateway, and how many filters of ours it has."""
    envoy = await dying.gateway([*dying.rendered(request.param, "only-when-asked"), *ROUTED])
    return envoy, {"istio-before": 1, "istio-strict": 2}[request.param]


@pytest.mark.parametrize("sent", NOBODY_NAMED.values(), ids=NOBODY_NAMED.keys())
async def test_what_names_nobody_does_not_come_to_us(gateway: tuple[Envoy, int], sent: Request) -> None:
    envoy, _ = gateway
    streams = await asked(envoy)

    assert await status(envoy, sent) == 200
    assert await asked(envoy) == streams


async def test_what_names_nobody_may_be_served_by_any_engine(dying: Mesh, gateway: tuple[Envoy, int]) -> None:
    """That is what is lost: an owner in the body is not looked for."""
    envoy, _ = gateway
    dying.stage.epp.seen.clear()
    sent = [chat("sglang", "first key")] * 40
    tally = await send_all(envoy.port, sent)

    assert (tally.requests, tally.changed, tally.failed) == (40, 0, {})
    assert tally.wrong_engine > 0
    assert [seen.hint for seen in dying.stage.epp.seen] == [None] * 40


async def test_what_only_a_gateway_may_say_is_removed_also_from_what_names_nobody(gateway: tuple[Envoy, int]) -> None:
    envoy, _ = gateway
    async with exchange(envoy.port, Request("POST", CHAT, (JSON, *SPOOFED))) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert answer.status == 200
    assert {name: value for name, value in seen.items() if name in SPOOFABLE and value == "127.0.0.1:1"} == {}


async def test_a_route_to_a_service_keeps_its_headers(gateway: tuple[Envoy, int]) -> None:
    envoy, _ = gateway
    async with exchange(envoy.port, Request("POST", "/web", (JSON, *SPOOFED))) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert {name: seen.get(name) for name in SPOOFABLE} == dict(SPOOFED)


@pytest.mark.parametrize("sent", SGLANG_NAMED.values(), ids=SGLANG_NAMED.keys())
async def test_an_owner_that_is_named_comes_to_every_filter_of_ours(gateway: tuple[Envoy, int], sent: Request) -> None:
    envoy, filters = gateway
    streams, served = await asked(envoy), set()
    for _ in range(8):
        async with exchange(envoy.port, sent) as answer:
            served.add((answer.status, answer.headers["x-served-by"][:-2]))

    assert await asked(envoy) == streams + 8 * filters
    if filters == 2:  # else a retry may go astray
        assert served == {(200, "sglang")}


async def test_an_owner_that_nobody_is_gets_our_answer(gateway: tuple[Envoy, int]) -> None:
    envoy, _ = gateway

    assert await status(envoy, chat("tgi", "header").request) == 404


async def test_the_body_is_read_where_the_header_says_too_little(gateway: tuple[Envoy, int]) -> None:
    envoy, _ = gateway
    other = Request("POST", CHAT, (JSON, ("x-owned-by", "sglang")), b'{"model": "other"}')
    async with exchange(envoy.port, other) as answer:
        await answer.rest()

    assert (answer.status, answer.headers["x-owned-by-reason"]) == (404, "model-not-found")


async def test_the_models_are_ours_only_with_an_owner(gateway: tuple[Envoy, int]) -> None:
    envoy, _ = gateway
    async with exchange(envoy.port, Request("GET", "/v1/models?owned_by=vllm", (), None)) as answer:
        listed = json.loads(await answer.rest())
    async with exchange(envoy.port, Request("GET", "/v1/models", (), None)) as any_pods:
        await any_pods.rest()

    assert [entry["owned_by"] for entry in listed["data"]] == ["vllm"]
    assert (any_pods.status, "x-served-by" in any_pods.headers) == (200, True)


async def test_retries_stay_within_the_engine_where_strict_is_below(dying: Mesh) -> None:
    envoy = await dying.gateway([*dying.rendered("istio-strict", "only-when-asked"), *ROUTED])
    sent = [chat(owner, place) for owner in ("vllm", "sglang") for place in ("header", "query") for _ in range(30)]

    assert await send_all(envoy.port, [*sent, *gets(30)]) == Tally(requests=150)


@pytest.mark.parametrize("component", ["istio-before", "istio-strict"])
class TestOurServerIsAway:
    """Its port refuses connections."""

    async def test_only_what_names_an_owner_is_refused(self, dying: Mesh, component: str) -> None:
        documents = [*dying.rendered(component, "only-when-asked"), *ROUTED]
        envoy = await dying.gateway(documents, server=dying.nobody)

        assert await status(envoy, SGLANG_NAMED["header"]) == 503
        assert await status(envoy, NOBODY_NAMED["nothing"]) == 200

    @pytest.mark.parametrize(
        "order", [("only-when-asked", "fail-open"), ("fail-open", "only-when-asked")], ids="+".join
    )
    async def test_with_fail_open_everything_goes_on(self, dying: Mesh, component: str, order: tuple[str, ...]) -> None:
        envoy = await dying.gateway([*dying.rendered(component, *order), *ROUTED], server=dying.nobody)
        tally = await send_all(envoy.port, chats(20))

        assert (tally.requests, tally.changed, tally.failed) == (20, 0, {})
