# SPDX-License-Identifier: Apache-2.0
"""The component `kgateway` in a real Envoy, placed as kgateway's translator would: a route for each engine, by header."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from extproc.demo.envoy import Envoy, validate
from tests.builders import SPOOFABLE
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.scenarios import CHAT, JSON, Tally, chat, chats, send_all
from tests.dataplane.stage import Stage, stage
from tests.envoys import VERSIONS, program
from tests.manifests.kgateway import translated
from tests.manifests.kustomize import deployed
from tests.manifests.proxy import Endpoints, Json, patch, settings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

PODS = {"vllm-0": "127.0.0.61", "sglang-0": "127.0.0.62", "triton-0": "127.0.0.63", "tgi-0": "127.0.0.64"}
"""Triton serves and has no rule in the HTTPRoute; TGI is known and not ready."""
PATIENT = patch("GatewayExtension", {"/spec/extProc/messageTimeout": "30s"})
OPEN = patch("GatewayExtension", {"/spec/extProc/failOpen": True})


@dataclass(frozen=True)
class Arrived:
    """What became of a request: the engine that answered, and the headers and the digest of the body that it saw."""

    status: int
    engine: str
    headers: Mapping[str, str]
    digest: str
    body: Any


async def ask(port: int, request: Request) -> Arrived:
    async with exchange(port, request) as answer:
        body = await answer.rest()
    said = answer.headers
    engine = said.get("x-served-by", "").partition("-")[0]
    seen = json.loads(said.get("x-seen", "{}"))
    return Arrived(
        answer.status, engine, seen, said.get("x-body-sha256", ""), body if engine else json.loads(body or "null")
    )


def post(*headers: tuple[str, str], path: str = CHAT, **fields: object) -> Request:
    return Request("POST", path, (JSON, *headers), json.dumps({"model": "m", **fields}).encode())


def services(pods: Stage, port: int) -> dict[str, Endpoints]:
    engines: dict[str, Endpoints] = {f"{name}:8000": pods.engine(name) for name in ("vllm", "sglang")}
    return engines | {"owned-by:9002": [("127.0.0.1", port)]}


def rendered(folder: Path, *patches: Json) -> list[Json]:
    folder.mkdir()
    return deployed(folder, ["kgateway"], namespace="team", patches=patches)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A server that is started as the component starts it."""
    folder = tmp_path_factory.mktemp("kgateway")
    flags = settings(rendered(folder / "program"))
    async with contextlib.AsyncExitStack() as stack:
        yield await stage(stack, folder, PODS, unready=("tgi-0",), hold=False, flags=flags)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(pods: Stage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
    """The port of the gateway."""
    folder = tmp_path_factory.mktemp("gateway")
    document = translated(rendered(folder / "rendered", PATIENT), services(pods, pods.server.grpc_port))
    async with Envoy(document, folder) as envoy:
        yield envoy.port


async def test_the_program_sits_as_header_and_finds_pods_without_inference_pools(tmp_path: Path) -> None:
    (deployment,) = (each for each in rendered(tmp_path / "it") if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    assert container["args"] == [
        "serve",
        "--config-map=owned-by",
        "--attachment=header",
        "--endpoint-selector=llm-d.ai/inference-serving=true",
        "--endpoint-target-ports=8000",
    ]


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_envoy_takes_it_and_routes_by_it(version: str, pods: Stage, tmp_path: Path) -> None:
    document = translated(rendered(tmp_path / "it", PATIENT), services(pods, pods.server.grpc_port))
    await validate(program(version), document, tmp_path)
    async with Envoy(document, tmp_path, program(version)) as envoy:
        assert await send_all(envoy.port, chats(60)) == Tally(requests=60)


@pytest.mark.parametrize("place", ["header", "query", "first key", "last key"])
@pytest.mark.parametrize("owner", ["vllm", "sglang"])
async def test_each_source_takes_the_route_of_its_engine(gateway: int, owner: str, place: str) -> None:
    request = chat(owner, place, 2_000).request
    arrived = await ask(gateway, request)

    assert (arrived.status, arrived.engine, arrived.headers["x-owned-by"]) == (200, owner, owner)
    assert arrived.headers["x-gateway-model-name"] == "m"
    assert arrived.digest == hashlib.sha256(request.body or b"").hexdigest()


@pytest.mark.parametrize(
    "request_", [post(("x-owned-by", "SGLang")), post(owned_by=" SGLang ")], ids=["in a header", "in the body"]
)
async def test_the_owner_is_normalised_before_a_route_is_chosen(gateway: int, request_: Request) -> None:
    arrived = await ask(gateway, request_)

    assert (arrived.status, arrived.engine, arrived.headers["x-owned-by"]) == (200, "sglang", "sglang")


@pytest.mark.parametrize(
    ("request_", "engine"),
    [
        (post(("x-owned-by", "tgi, sglang, vllm")), "sglang"),
        (post(("x-owned-by", "vllm, sglang")), "vllm"),
        (post(owned_by=["lmdeploy", "tgi", "sglang"]), "sglang"),
    ],
    ids=["the first is not ready", "the first is ready", "in the body"],
)
async def test_of_a_list_the_first_owner_with_a_ready_endpoint_is_taken(
    gateway: int, request_: Request, engine: str
) -> None:
    arrived = await ask(gateway, request_)

    assert (arrived.status, arrived.engine, arrived.headers["x-owned-by"]) == (200, engine, engine)


async def test_an_owner_that_nobody_is_gets_our_404(gateway: int) -> None:
    arrived = await ask(gateway, post(("x-owned-by", "lmdeploy")))

    assert (arrived.status, arrived.body["error"]["code"]) == (404, "owner_not_found")
    assert arrived.body["error"]["message"] == "no endpoint is `lmdeploy` with the model `m`"


async def test_an_engine_without_a_rule_gets_the_gateways_404_and_nobody_elses_pod(gateway: int) -> None:
    arrived = await ask(gateway, post(owned_by="triton"))

    assert (arrived.status, arrived.body["error"]["message"]) == (404, "the gateway has no route for this owner")


@pytest.mark.parametrize("request_", [post(), post(("x-owned-by", "*"))], ids=["nobody", "anybody"])
async def test_who_names_nobody_takes_the_default_rule_without_the_header(gateway: int, request_: Request) -> None:
    arrived = await ask(gateway, request_)

    assert (arrived.status, "x-owned-by" in arrived.headers) == (200, False)


async def test_headers_that_only_a_gateway_may_set_are_taken_away(gateway: int) -> None:
    spoofed = [(name, "127.0.0.1:1") for name in SPOOFABLE]
    arrived = await ask(gateway, post(("x-owned-by", "vllm"), ("x-gateway-model-name", "m"), *spoofed))

    assert (arrived.status, arrived.engine) == (200, "vllm")
    assert set(arrived.headers) & set(SPOOFABLE) == set()


async def test_the_models_are_listed_by_us(gateway: int) -> None:
    arrived = await ask(gateway, Request("GET", "/v1/models", (), None))

    assert [entry["owned_by"] for entry in arrived.body["data"]] == ["sglang", "triton", "vllm"]


@pytest.mark.parametrize(
    ("limit", "seen"), [(None, True), (32_768, False)], ids=["Envoy's 1 MiB", "32 KiB: whenTruncated"]
)
async def test_an_owner_behind_200_kb_is_seen_if_it_fits_into_the_buffer(
    pods: Stage, tmp_path: Path, limit: int | None, *, seen: bool
) -> None:
    request = chat("sglang", "last key", 200_000).request
    known = services(pods, pods.server.grpc_port)
    async with Envoy(translated(rendered(tmp_path / "it", PATIENT), known, buffer_limit=limit), tmp_path) as envoy:
        arrived = await ask(envoy.port, request)

    assert (arrived.status, arrived.headers.get("x-owned-by")) == (200, "sglang" if seen else None)
    assert arrived.digest == hashlib.sha256(request.body or b"").hexdigest()


@pytest.mark.parametrize(
    ("patches", "status"), [((), 500), ((OPEN,), 200)], ids=["fails closed, as shipped", "fails open, if patched"]
)
async def test_without_the_program_nothing_passes_unless_it_is_said(
    pods: Stage, tmp_path: Path, nobody: int, patches: tuple[Json, ...], status: int
) -> None:
    async with Envoy(translated(rendered(tmp_path / "it", *patches), services(pods, nobody)), tmp_path) as envoy:
        arrived = await ask(envoy.port, post(("x-owned-by", "vllm")))

    assert (arrived.status, arrived.engine) == (status, "vllm" if status == 200 else "")
