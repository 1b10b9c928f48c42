# SPDX-License-Identifier: Apache-2.0
"""`epp-outlier` as Istio places it, on a real Envoy: a dead EPP is taken out, and then the guard routes."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from extproc.demo.envoy import Envoy
from tests.dataplane.scenarios import Tally, chat, chats, gets, send_all
from tests.fakes.epp import EndpointPicker
from tests.kubernetes.credentials import Credentials
from tests.manifests.istiod import service_cluster
from tests.manifests.mesh import NAMESPACE, POOL, ROUTED, Mesh, http_route, inference_pool, mesh, status, to_pool

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

POSTED = chat("vllm", "last key").request
EPP = service_cluster(f"{POOL}-epp", NAMESPACE, 9002)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Three pods of each engine, one of which is dead."""
    async with contextlib.AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("guarded")
        yield await mesh(stack, folder, pods=3, refusing=("vllm-2", "sglang-2"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def epp(guarded: Mesh, tmp_path_factory: pytest.TempPathFactory) -> EndpointPicker:
    """One that speaks TLS with a certificate that nobody knows."""
    files = Credentials.write(tmp_path_factory.mktemp("tls"))
    pair = (files.certificate_key.read_bytes(), files.certificate.read_bytes())
    pool = [guarded.stage.pods.address(name) for name in guarded.stage.pods.endpoints]
    picker = EndpointPicker(pool, credentials=grpc.ssl_server_credentials([pair]))
    return await guarded.stage.stack.enter_async_context(picker)


async def ejected(envoy: Envoy) -> int:
    """How many endpoints of the EPP are out."""
    stats = await envoy.stats("epp.*outlier_detection.ejections_active")
    return stats.get(f"cluster.{EPP}.outlier_detection.ejections_active", 0)


async def until_ejected(envoy: Envoy, count: int) -> None:
    """Wait until so many are out: Envoy's main thread does it, after the request that found out has its answer."""
    async with asyncio.timeout(30):
        while await ejected(envoy) != count:  # noqa: ASYNC110 - only the statistics show it
            await asyncio.sleep(0.02)


async def test_a_dead_epp_is_ejected_and_the_guard_routes(guarded: Mesh) -> None:
    documents = [*guarded.rendered("istio-before", "epp-outlier"), *ROUTED]
    envoy = await guarded.gateway(documents, epp=[guarded.nobody])
    found_out = await status(envoy, POSTED)
    await until_ejected(envoy, 1)

    assert found_out == 500
    assert await send_all(envoy.port, chats(100)) == Tally(requests=100)
    assert await send_all(envoy.port, gets(20)) == Tally(requests=20)
    assert await status(envoy, chat("tgi", "last key").request) == 404


async def test_without_the_component_a_dead_epp_is_a_500_each_time(guarded: Mesh) -> None:
    envoy = await guarded.gateway([*guarded.rendered("istio-before"), *ROUTED], epp=[guarded.nobody])

    assert await send_all(envoy.port, chats(20)) == Tally(requests=20, failed=Counter({500: 20}))
    assert await ejected(envoy) == 0


async def test_a_pool_that_fails_closed_has_no_guard(guarded: Mesh) -> None:
    routed = (inference_pool("FailClose"), http_route(to_pool()))
    documents = [*guarded.rendered("istio-before", "epp-outlier"), *routed]
    envoy = await guarded.gateway(documents, epp=[guarded.nobody])
    await status(envoy, POSTED)
    await until_ejected(envoy, 1)

    assert await send_all(envoy.port, chats(10)) == Tally(requests=10, failed=Counter({500: 10}))


async def test_an_epp_with_tls_is_asked_and_its_own_refusals_do_not_eject_it(
    guarded: Mesh, epp: EndpointPicker
) -> None:
    envoy = await guarded.gateway([*guarded.rendered("istio-strict", "epp-outlier"), *ROUTED], epp=[epp.port])
    epp.seen.clear()
    tally = await send_all(envoy.port, chats(20))
    hints = [len(seen.hint or []) for seen in epp.seen]
    pool, epp.pool = epp.pool, []
    refused = Counter([await status(envoy, POSTED) for _ in range(5)])
    epp.pool = pool

    assert (tally, hints) == (Tally(requests=20), [3] * 20)
    assert (refused, await ejected(envoy)) == ({503: 5}, 0)
    assert await send_all(envoy.port, chats(20)) == Tally(requests=20)


async def test_of_two_epps_the_dead_one_is_ejected_and_the_other_one_picks(guarded: Mesh, epp: EndpointPicker) -> None:
    documents = [*guarded.rendered("istio-strict", "epp-outlier"), *ROUTED]
    envoy = await guarded.gateway(documents, epp=[guarded.nobody, epp.port])
    statuses = Counter[int]()
    while not await ejected(envoy):
        statuses[await status(envoy, POSTED)] += 1
    epp.seen.clear()

    assert set(statuses) <= {200, 500}
    assert await send_all(envoy.port, chats(20)) == Tally(requests=20)
    assert len(epp.seen) == 20
