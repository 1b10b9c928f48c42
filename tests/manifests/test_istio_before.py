# SPDX-License-Identifier: Apache-2.0
"""`istio-before` and `istio-strict` as Istio places them, on a real Envoy: what arrives where."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from extproc.demo.envoy import Envoy
from tests.builders import SPOOFABLE
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.scenarios import JSON, Tally, chat, chats, gets, send_all
from tests.manifests.istio import placed
from tests.manifests.istiod import http_filters
from tests.manifests.kustomize import one
from tests.manifests.mesh import ROUTED, Mesh, asked, http_route, inference_pool, mesh, status, to_pool, to_service

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

SPOOFED = tuple((name, "127.0.0.1:1") for name in SPOOFABLE)
DEAD = ("vllm-2", "sglang-2")

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alive(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Two pods of each engine."""
    async with contextlib.AsyncExitStack() as stack:
        yield await mesh(stack, tmp_path_factory.mktemp("alive"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def dying(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Three pods of each engine, one of which is dead."""
    async with contextlib.AsyncExitStack() as stack:
        yield await mesh(stack, tmp_path_factory.mktemp("dying"), pods=3, refusing=DEAD)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def before(alive: Mesh) -> Envoy:
    return await alive.gateway([*alive.rendered("istio-before"), *ROUTED])


def without_the_hint(documents: list[Json]) -> list[Json]:
    """The documents without the merge into the EPP's filter."""
    del one(documents, "EnvoyFilter", "owned-by-before")["spec"]["configPatches"][1]
    return documents


async def test_header_query_and_body_reach_their_engine_by_the_hint(alive: Mesh, before: Envoy) -> None:
    alive.stage.epp.seen.clear()
    sent = chats(40)
    tally = await send_all(before.port, sent)
    pods = alive.stage.pods
    engines = {owner: {pods.address(f"{owner}-{number}") for number in range(2)} for owner in ("vllm", "sglang")}

    assert tally == Tally(requests=40)
    hints = [seen.hint for seen in alive.stage.epp.seen]
    assert all(isinstance(hint, list) and set(hint) in engines.values() for hint in hints)
    assert len(hints) == 40


async def test_without_the_merge_the_epp_sees_no_hint(alive: Mesh) -> None:
    envoy = await alive.gateway([*without_the_hint(alive.rendered("istio-before")), *ROUTED])
    alive.stage.epp.seen.clear()
    tally = await send_all(envoy.port, chats(40))

    assert [seen.hint for seen in alive.stage.epp.seen] == [None] * 40
    assert tally.wrong_engine > 0


async def test_what_only_a_gateway_may_say_is_removed(before: Envoy) -> None:
    request = Request("POST", "/v1/chat/completions", (JSON, ("x-owned-by", "vllm"), *SPOOFED))
    async with exchange(before.port, request) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert (answer.status, answer.headers["x-served-by"][:4]) == (200, "vllm")
    assert {name: value for name, value in seen.items() if name in SPOOFABLE and value == "127.0.0.1:1"} == {}


async def test_a_route_to_a_service_is_left_alone(before: Envoy) -> None:
    streams = await asked(before)
    request = Request("POST", "/web/v1/chat/completions", (JSON, ("x-owned-by", "nobody"), *SPOOFED))
    async with exchange(before.port, request) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert (answer.status, answer.headers["x-served-by"]) == (200, "web")
    assert {name: seen.get(name) for name in SPOOFABLE} == dict(SPOOFED)
    assert await asked(before) == streams


async def test_a_route_to_a_pool_that_is_not_listed_is_left_alone(alive: Mesh) -> None:
    route = http_route(to_pool("/v1"), to_pool("/other"))
    envoy = await alive.gateway([*alive.rendered("istio-before"), inference_pool(), route])
    other = Request("POST", "/other/chat/completions", (JSON, ("x-owned-by", "nobody")))

    assert (await status(envoy, other), await asked(envoy)) == (200, 0)
    assert (await status(envoy, chat("vllm", "header").request), await asked(envoy)) == (200, 1)


async def test_a_rule_that_is_added_as_the_component_shows_is_steered(alive: Mesh) -> None:
    name = "/spec/configPatches/1/match/routeConfiguration/vhost/route/name"
    patch = [
        {"op": "copy", "from": "/spec/configPatches/0", "path": "/spec/configPatches/1"},
        {"op": "replace", "path": name, "value": "llm-d.multi-model.1"},
    ]
    patched = {"target": {"kind": "EnvoyFilter", "name": "owned-by-routes"}, "patch": json.dumps(patch)}
    route = http_route(to_pool("/v1/chat"), to_pool("/v1"))
    envoy = await alive.gateway([*alive.rendered("istio-before", patches=[patched]), inference_pool(), route])
    tally = await send_all(envoy.port, chats(12))
    async with exchange(envoy.port, Request("GET", "/v1/models", (), None)) as answer:
        listed = json.loads(await answer.rest())

    assert tally == Tally(requests=12)
    assert sorted(entry["owned_by"] for entry in listed["data"]) == ["sglang", "vllm"]


async def test_strict_keeps_what_the_epp_picks(alive: Mesh) -> None:
    envoy = await alive.gateway([*alive.rendered("istio-strict"), *ROUTED])
    alive.stage.epp.seen.clear()
    served = []
    for owner in ("vllm", "sglang") * 8:
        async with exchange(envoy.port, chat(owner, "first key").request) as answer:
            served.append(alive.stage.pods.address(answer.headers["x-served-by"]))

    assert served == [seen.pick for seen in alive.stage.epp.seen]


async def test_an_owner_that_nobody_is_gets_our_answer(before: Envoy) -> None:
    async with exchange(before.port, chat("tgi", "first key").request) as answer:
        error = json.loads(await answer.rest())["error"]

    assert (answer.status, answer.headers["x-owned-by-reason"]) == (404, "owner-not-found")
    assert (error["code"], error["param"]) == ("owner_not_found", "owned_by")


async def test_an_httproute_to_a_service_has_no_anchor_and_nothing_is_inserted(alive: Mesh) -> None:
    """The fault of many a walk-through: the backend is the EPP's Service, or the engines', and no InferencePool."""
    documents = [*alive.rendered("istio-strict"), inference_pool(), http_route(to_service("/v1"))]
    config = placed(alive.around(), documents)
    envoy = await alive.gateway(documents)

    assert [each["name"] for each in http_filters(config) if "owned-by" in each["name"]] == []
    assert await status(envoy, chat("nobody", "header").request) == 200
    assert await asked(envoy) == 0


@pytest.mark.parametrize("component", ["istio-before", "istio-strict"])
class TestOurServerIsAway:
    """Its port refuses connections."""

    @pytest.mark.parametrize("request_", [chat("vllm", "header").request, gets(1)[0].request], ids=["POST", "GET"])
    async def test_requests_are_refused(self, alive: Mesh, component: str, request_: Request) -> None:
        envoy = await alive.gateway([*alive.rendered(component), *ROUTED], server=alive.nobody)

        assert await status(envoy, request_) == 503

    @pytest.mark.parametrize("request_", [chat("vllm", "header").request, gets(1)[0].request], ids=["POST", "GET"])
    async def test_with_fail_open_requests_go_on(self, alive: Mesh, component: str, request_: Request) -> None:
        envoy = await alive.gateway([*alive.rendered(component, "fail-open"), *ROUTED], server=alive.nobody)

        assert await status(envoy, request_) == 200

    async def test_a_route_to_a_service_does_not_notice(self, alive: Mesh, component: str) -> None:
        envoy = await alive.gateway([*alive.rendered(component), *ROUTED], server=alive.nobody)

        assert await status(envoy, Request("GET", "/web", (), None)) == 200


class TestRetries:
    """A third of the pods refuse connections, and Istio retries twice."""

    async def test_with_before_alone_they_leak(self, dying: Mesh) -> None:
        envoy = await dying.gateway([*dying.rendered("istio-before"), *ROUTED])
        tally = await send_all(envoy.port, chats(100))

        assert (tally.requests, tally.changed) == (100, 0)
        assert tally.wrong_engine > 0

    async def test_strict_keeps_them_within_the_engine(self, dying: Mesh) -> None:
        envoy = await dying.gateway([*dying.rendered("istio-strict"), *ROUTED])

        assert await send_all(envoy.port, chats(200)) == Tally(requests=200)

    async def test_what_is_too_large_to_be_sent_again_does_not_go_astray(self, dying: Mesh) -> None:
        envoy = await dying.gateway([*dying.rendered("istio-strict"), *ROUTED])
        tally = await send_all(envoy.port, [chat("sglang", "header", 3_000_000)] * 40)

        assert (tally.requests, tally.wrong_engine, tally.changed) == (40, 0, 0)
        # A third of the first attempts is at the dead pod; whether one fails depends on how much has come by then.
        assert {*tally.failed} <= {503, 507}

    async def test_strict_steers_what_has_no_body(self, dying: Mesh) -> None:
        envoy = await dying.gateway([*dying.rendered("istio-strict"), *ROUTED])

        assert await send_all(envoy.port, gets(60)) == Tally(requests=60)
