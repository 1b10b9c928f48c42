# SPDX-License-Identifier: Apache-2.0
"""Several pools behind one listener: the route's cluster says which one a request is for."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from extproc.demo.bootstrap import Plan, Route
from extproc.demo.envoy import Envoy
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.scenarios import chat
from tests.dataplane.stage import Stage, stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = "a-pool-whose-name-is-so-long-that-istio-has-to-cut-it-for-its-service"
PODS = {
    "vllm-chat": "127.0.0.41",
    "sglang-chat": "127.0.0.42",
    "vllm-code": "127.0.0.43",
    "sglang-code": "127.0.0.44",
    "vllm-long": "127.0.0.45",
    "web": "127.0.0.46",
}
POOLS = {"chat": ("vllm-chat", "sglang-chat"), "code": ("vllm-code", "sglang-code"), LONG: ("vllm-long",)}


def cluster(pool: str) -> str:
    """What Istio calls the cluster of a pool in the namespace `default` (facts/gateways.md 1.1, 1.4)."""
    digest = hashlib.sha256(pool.encode()).hexdigest()[:8]
    return f"outbound|54321||{pool[:51]}-ip-{digest}.default.svc.cluster.local"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        yield await stage(stack, tmp_path_factory.mktemp("pools"), PODS, pools=POOLS, hold=False)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(pods: Stage) -> Envoy:
    """A route for each pool, for one that we do not know, and for a Service, chosen by the header x-route."""
    routes = [
        Route(cluster(pool), tuple(pods.pods.endpoints[name] for name in names), headers=(("x-route", pool),))
        for pool, names in POOLS.items()
    ]
    web = (pods.pods.endpoints["web"],)
    routes.append(Route(cluster("new"), web, headers=(("x-route", "new"),)))
    routes.append(Route("outbound|80||web.default.svc.cluster.local", web, headers=(("x-route", "web"),)))
    plan = Plan(endpoints=pods.pool, routes=tuple(routes), before_port=pods.server.grpc_port, pool=None)
    return await pods.envoy(plan)


def to(route: str, owner: str, *more: tuple[str, str], path: str = "/v1/chat/completions") -> Request:
    sent = chat(owner, "first key").request
    return Request("POST", path, (*sent.headers, ("x-route", route), *more), sent.body)


@pytest.mark.parametrize(
    ("route", "owner", "pod"),
    [
        ("chat", "vllm", "vllm-chat"),
        ("chat", "sglang", "sglang-chat"),
        ("code", "vllm", "vllm-code"),
        ("code", "sglang", "sglang-code"),
        (LONG, "vllm", "vllm-long"),
    ],
)
async def test_a_request_stays_in_the_pool_of_its_route(gateway: Envoy, route: str, owner: str, pod: str) -> None:
    for _ in range(3):
        async with exchange(gateway.port, to(route, owner)) as answer:
            assert (answer.status, answer.headers["x-served-by"]) == (200, pod)


async def test_an_owner_of_another_pool_is_not_found(gateway: Envoy) -> None:
    async with exchange(gateway.port, to(LONG, "sglang")) as answer:
        assert (answer.status, answer.headers["x-owned-by-reason"]) == (404, "owner-not-found")


async def test_a_pool_that_is_not_known_is_a_503(gateway: Envoy) -> None:
    async with exchange(gateway.port, to("new", "vllm")) as answer:
        assert (answer.status, answer.headers["x-owned-by-reason"]) == (503, "pool-unknown")


async def test_a_cluster_that_is_no_pool_gets_the_request_as_it_is_but_for_the_gateways_headers(
    gateway: Envoy,
) -> None:
    spoofed = ("x-gateway-destination-endpoint", "127.0.0.41:1")
    async with exchange(gateway.port, to("web", "nobody", spoofed)) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert (answer.status, answer.headers["x-served-by"]) == (200, "web")
    assert "x-gateway-destination-endpoint" not in seen


async def test_a_path_that_is_not_interpreted_gets_the_request_as_it_is(gateway: Envoy) -> None:
    async with exchange(gateway.port, to(LONG, "nobody", path="/metrics")) as answer:
        assert (answer.status, answer.headers["x-served-by"]) == (200, "vllm-long")


MIXED = {"vllm-0": "::1", "sglang-0": "127.0.0.51"}


class TestIPv6:
    """Pods with IPv6 addresses: Envoy takes them in brackets, the EPP never matches them in a hint (facts/epp.md 1.1)."""

    async def test_the_guard_reaches_one_in_brackets(self, pods: Stage) -> None:
        async with contextlib.AsyncExitStack() as stack:
            folder = pods.folder / "ipv6"
            folder.mkdir()
            made = await stage(stack, folder, MIXED, hold=False)
            alone = await made.envoy(Plan(endpoints=made.pool, before_port=made.server.grpc_port))
            served = [await self._served(alone) for _ in range(4)]

        assert served == ["vllm-0"] * 4

    async def test_before_gives_no_hint_and_after_still_holds_the_engine(self, pods: Stage) -> None:
        async with contextlib.AsyncExitStack() as stack:
            folder = pods.folder / "ipv6-after"
            folder.mkdir()
            made = await stage(stack, folder, MIXED, hold=False)
            ours = made.server.grpc_port
            chain = await made.envoy(
                Plan(endpoints=made.pool, before_port=ours, picker_port=made.epp.port, after_port=ours)
            )
            served = [await self._served(chain) for _ in range(8)]

        assert served == ["vllm-0"] * 8
        assert [seen.hint for seen in made.epp.seen] == [None] * 8

    async def _served(self, envoy: Envoy) -> str:
        async with exchange(envoy.port, chat("vllm", "first key").request) as answer:
            return answer.headers["x-served-by"]
