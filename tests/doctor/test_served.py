# SPDX-License-Identifier: Apache-2.0
"""Who served, where a client can tell: an engine that has not the model says so. And what hides it."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.client import LOOPBACK
from extproc.demo.engines import Engines, Simulated
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server
from extproc.doctor.findings import Check
from extproc.doctor.visit import Patient, visit
from tests.dataplane.conftest import write_endpoints, write_policy
from tests.fakes.epp import EndpointPicker
from tests.server.serving import served

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

APART = [Simulated("a", "vllm", "llama", host="127.0.0.11"), Simulated("b", "sglang", "qwen", host="127.0.0.12")]
GIVE = "give --envoy and --admin"


class Gateway:
    """Two engines, each with a model of its own, our server, the EPP's stand-in and Envoy."""

    def __init__(self, envoy: Envoy, server: Server, epp: EndpointPicker, addresses: list[str]) -> None:
        self.url = f"http://{LOOPBACK}:{envoy.port}"
        self.admin = f"http://{LOOPBACK}:{server.admin_port}"
        self.epp = epp
        self.addresses = addresses

    async def said(self, **more: str) -> str:
        """What is said of who served."""
        (line,) = [each.line for each in await visit(Patient(gateway=self.url, **more)) if each.check is Check.SERVED]
        return line


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    folder = tmp_path_factory.mktemp("apart")
    async with contextlib.AsyncExitStack() as stack:
        engines = await stack.enter_async_context(Engines(APART))
        files = [
            "--endpoints-file",
            str(_endpoints(folder, engines)),
            "--config-file",
            str(write_policy(folder, "policy")),
        ]
        server = await stack.enter_async_context(Server(*files))
        addresses = [each.address for each in engines.endpoints]
        epp = await stack.enter_async_context(EndpointPicker(addresses))
        pool = tuple((each.host, each.port) for each in engines.endpoints)
        plan = Plan(endpoints=pool, before_port=server.grpc_port, picker_port=epp.port)
        envoy = await stack.enter_async_context(Envoy(bootstrap(plan), folder))
        yield Gateway(envoy, server, epp, addresses)


def _endpoints(folder: Path, engines: Engines) -> Path:
    path = write_endpoints(folder, engines)
    document = json.loads(path.read_text())
    for entry, engine in zip(document["pools"][0]["endpoints"], engines.endpoints, strict=True):
        entry["address"] = engine.address
    path.write_text(json.dumps(document))
    return path


async def test_engines_that_have_the_model_answer(gateway: Gateway) -> None:
    what = "all 8 requests were served by endpoints that have the model, which not every owner has"

    assert await gateway.said() == f"ok       served        {what}"


async def test_an_engine_that_has_not_the_model_tells_on_the_epp(gateway: Gateway) -> None:
    gateway.epp.ignores_hint = True
    try:
        said = await gateway.said()
    finally:
        gateway.epp.ignores_hint = False

    what = "a request for `llama` of `vllm` was served by an endpoint that does not have it"
    fix = "either the EPP does not see our list, or it ignores it: give --config-dump or --envoy"
    assert said == f"error    served        {what}; {fix}"


@contextlib.asynccontextmanager
async def counting(addresses: list[str], step: int) -> AsyncIterator[str]:
    """Something that counts as Envoy's admin port does, whose counters grow by `step` each time that they are looked at."""
    looked = 0

    async def clusters(_: Request) -> JSONResponse:
        nonlocal looked
        looked += 1
        stats = [{"name": "rq_total", "value": str(looked * step)}, {"name": "cx_total", "value": "7"}]
        hosts = [
            {
                "address": {
                    "socket_address": {"address": each.partition(":")[0], "port_value": int(each.partition(":")[2])}
                },
                "stats": stats,
            }
            for each in addresses
        ]
        return JSONResponse({"cluster_statuses": [{"name": "pool", "host_statuses": hosts}]})

    async with served(Starlette(routes=[Route("/clusters", clusters)])) as url:
        yield url


async def test_other_clients_hide_who_served(gateway: Gateway) -> None:
    async with counting(gateway.addresses, 100) as envoy:
        said = await gateway.said(envoy=envoy, admin=gateway.admin)

    what = "not checked: other clients' requests, or another Envoy, hide who served ours"
    assert said == f"skipped  served        {what}"


async def test_the_counters_of_another_envoy_say_nothing(gateway: Gateway) -> None:
    async with counting(gateway.addresses, 0) as envoy:
        still = await gateway.said(envoy=envoy, admin=gateway.admin)
    async with counting(["127.0.0.13:1"], 1) as envoy:
        strange = await gateway.said(envoy=envoy, admin=gateway.admin)

    assert (
        still == "skipped  served        not checked: other clients' requests, or another Envoy, hide who served ours"
    )
    what = "none of our server's endpoints is in that Envoy's clusters: is it that gateway's?"
    assert strange == f"skipped  served        not checked: {what}"


async def test_what_is_no_envoy_is_told(gateway: Gateway) -> None:
    async with served(Starlette()) as other:
        said = await gateway.said(envoy=other, admin=gateway.admin)

    assert said == "skipped  served        not checked: status 404 at /clusters, and no JSON: is it Envoy's admin port?"
