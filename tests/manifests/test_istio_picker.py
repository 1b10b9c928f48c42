# SPDX-License-Identifier: Apache-2.0
"""`istio-picker` as Istio places it, on a real Envoy: an InferencePool whose picker is our server."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio

from tests.dataplane.exchange import Request
from tests.dataplane.scenarios import Tally, chat, chats, gets, send_all
from tests.dataplane.wire import exchange as send_bytes
from tests.dataplane.wire import post
from tests.manifests.mesh import NAMESPACE, Mesh, asked, http_route, mesh, status, to_pool, to_service
from tests.manifests.operators import program_arguments

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

POOL: Final = "owned-by"
ROUTE: Final = http_route(to_pool(name=POOL), to_service())
POSTED: Final = chat("vllm", "header").request
GOT: Final = gets(1)[0].request


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def picking(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Three pods of each engine, one of which is dead; the server is started as the component says."""
    _, _, *flags = program_arguments(tmp_path_factory.mktemp("arguments"), "istio-picker")
    # In a cluster that is the pod's own namespace.
    flags = [*flags, f"--pool-namespace={NAMESPACE}"]
    async with contextlib.AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("picking")
        yield await mesh(stack, folder, pods=3, refusing=("vllm-2", "sglang-2"), pool=POOL, flags=flags)


async def test_every_request_reaches_its_engine_retries_included(picking: Mesh) -> None:
    envoy = await picking.gateway([*picking.rendered("istio-picker"), ROUTE], pool=POOL)

    assert await send_all(envoy.port, chats(200)) == Tally(requests=200)
    assert await send_all(envoy.port, gets(40)) == Tally(requests=40)
    assert await asked(envoy) == 240


async def test_a_route_to_a_service_is_left_alone(picking: Mesh) -> None:
    envoy = await picking.gateway([*picking.rendered("istio-picker"), ROUTE], pool=POOL)

    assert (await status(envoy, Request("GET", "/web", (), None)), await asked(envoy)) == (200, 0)


@pytest.mark.parametrize("request_", [POSTED, GOT], ids=["POST", "GET"])
async def test_without_a_picker_requests_are_refused(picking: Mesh, request_: Request) -> None:
    """With Envoy's status: the filter is Istio's, and has no `status_on_error`."""
    envoy = await picking.gateway([*picking.rendered("istio-picker"), ROUTE], server=picking.nobody, pool=POOL)

    assert await status(envoy, request_) == 500


async def test_with_fail_open_only_what_has_no_body_goes_on(picking: Mesh) -> None:
    """Head and body come in one piece: a body that is late may find the filter gone, and goes on."""
    documents = [*picking.rendered("istio-picker", "fail-open"), ROUTE]
    envoy = await picking.gateway(documents, server=picking.nobody, pool=POOL)
    posted = await send_bytes(envoy.port, post("/v1/chat/completions", b"{}", "x-owned-by: vllm"))

    assert (await status(envoy, GOT), posted.status) == (200, 500)
