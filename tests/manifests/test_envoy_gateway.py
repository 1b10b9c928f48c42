# SPDX-License-Identifier: Apache-2.0
"""The component `envoy-gateway` in a real Envoy, placed as Envoy Gateway's translator would: us, the EPP, its pick."""

import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import yaml

from extproc.demo.envoy import Envoy, validate
from tests.dataplane.exchange import Exchange, Request, exchange
from tests.dataplane.scenarios import CHAT, JSON, Tally, chat, chats, send_all
from tests.dataplane.stage import Stage, hosts, stage
from tests.envoys import VERSIONS, program
from tests.fakes.epp import Seen
from tests.manifests.envoy_gateway import BUFFER, translated
from tests.manifests.kustomize import ROOT, deployed
from tests.manifests.proxy import Endpoints, Json, patch, settings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

POOL = "multi-model-pool"
PATIENT = patch("EnvoyExtensionPolicy", {"/spec/extProc/0/messageTimeout": "30s"})
OPEN = patch("EnvoyExtensionPolicy", {"/spec/extProc/0/failOpen": True})
DESTINATION = "x-gateway-destination-endpoint"


def route() -> Json:
    """The HTTPRoute that the component shows."""
    text = (ROOT / "components" / "envoy-gateway" / "kustomization.yaml").read_text()
    (shown,) = re.findall(r"^#   (apiVersion: gateway(?:.*\n#   )*.*)", text, re.MULTILINE)
    document: Json = yaml.safe_load(shown.replace("\n#   ", "\n"))
    document["metadata"]["namespace"] = "team"
    return document


def rendered(folder: Path, *patches: Json) -> list[Json]:
    folder.mkdir()
    return [*deployed(folder, ["envoy-gateway"], namespace="team", patches=patches), route()]


def envoy_of(
    documents: list[Json],
    pods: Stage,
    ours: int,
    gateway: str = "llm-d-inference-gateway",
    epp: Endpoints | None = None,
) -> Json:
    """The Envoy of a Gateway (another name: one that no ClientTrafficPolicy targets), and where its EPP is."""
    services: dict[str, Endpoints] = {
        "owned-by:9002": [("127.0.0.1", ours)],
        "multi-model-pool-epp:9002": [("127.0.0.1", pods.epp.port)] if epp is None else epp,
        "owned-by-pool:8000": pods.pool,
    }
    return translated(documents, services, gateway=gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A server that is started as the component starts it, with another pool beside the one that it is told of."""
    folder = tmp_path_factory.mktemp("envoy-gateway")
    flags = settings(rendered(folder / "program"))
    pools = {POOL: tuple(hosts(2)), "another": ()}
    async with contextlib.AsyncExitStack() as stack:
        yield await stage(stack, folder, hosts(2), pools=pools, hold=False, flags=flags)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(pods: Stage, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
    """The port of the gateway."""
    folder = tmp_path_factory.mktemp("gateway")
    async with Envoy(envoy_of(rendered(folder / "it", PATIENT), pods, pods.server.grpc_port), folder) as envoy:
        yield envoy.port


async def ask(port: int, request: Request) -> Exchange:
    """The answer, read to its end."""
    async with exchange(port, request) as answer:
        await answer.rest()
    return answer


async def picked(pods: Stage, port: int, request: Request) -> tuple[Exchange, Seen]:
    """The answer, and what the EPP saw of the request."""
    pods.epp.seen.clear()
    answer = await ask(port, request)
    (seen,) = pods.epp.seen
    return answer, seen


def of_engine(pods: Stage, owner: str) -> list[str]:
    return sorted(pods.pods.address(name) for name in pods.pods.endpoints if name.startswith(owner))


async def test_the_program_is_told_its_pool_which_this_gateway_cannot_say(tmp_path: Path) -> None:
    (deployment,) = (each for each in rendered(tmp_path / "it") if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    assert container["args"] == ["serve", "--config-map=owned-by", "--pool-name=multi-model-pool"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_envoy_takes_it_and_routes_by_it(version: str, pods: Stage, tmp_path: Path) -> None:
    document = envoy_of(rendered(tmp_path / "it", PATIENT), pods, pods.server.grpc_port)
    await validate(program(version), document, tmp_path)
    async with Envoy(document, tmp_path, program(version)) as envoy:
        assert await send_all(envoy.port, chats(60)) == Tally(requests=60)


@pytest.mark.parametrize("place", ["header", "query", "first key", "last key"])
@pytest.mark.parametrize("owner", ["vllm", "sglang"])
async def test_the_epp_gets_the_hint_as_a_list_and_its_pick_serves(
    pods: Stage, gateway: int, owner: str, place: str
) -> None:
    answer, seen = await picked(pods, gateway, chat(owner, place, 2_000).request)

    assert sorted(seen.hint or []) == of_engine(pods, owner)
    assert sorted(seen.early_hint or []) == of_engine(pods, owner)
    assert (answer.status, pods.pods.address(answer.headers["x-served-by"])) == (200, seen.pick)


async def test_envoys_own_limit_of_1024_holds_for_none_of_the_three(pods: Stage, tmp_path: Path) -> None:
    document = envoy_of(rendered(tmp_path / "it", PATIENT), pods, pods.server.grpc_port)
    limits = [each["circuit_breakers"]["thresholds"] for each in document["static_resources"]["clusters"]]
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100_000)

    assert limits == [[most]] * 3


async def test_of_a_list_of_picks_the_first_serves(pods: Stage, gateway: int) -> None:
    pods.epp.destinations = 2
    try:
        answer, seen = await picked(pods, gateway, chat("sglang", "header").request)
    finally:
        pods.epp.destinations = 1

    assert sorted(seen.pick.split(",")) == of_engine(pods, "sglang")
    assert pods.pods.address(answer.headers["x-served-by"]) == seen.pick.partition(",")[0]


async def test_a_client_does_not_choose_the_endpoint(pods: Stage, gateway: int) -> None:
    wanted = (DESTINATION, pods.pods.address("vllm-0"))
    request = Request("POST", CHAT, (JSON, ("x-owned-by", "sglang"), wanted), b'{"model": "m"}')
    answer, seen = await picked(pods, gateway, request)

    assert DESTINATION not in seen.headers
    assert json.loads(answer.headers["x-seen"])[DESTINATION] == seen.pick
    assert answer.headers["x-served-by"].startswith("sglang")


async def test_an_owner_that_nobody_is_gets_our_404(gateway: int) -> None:
    answer = await ask(gateway, chat("tgi", "last key").request)

    assert (answer.status, answer.headers["x-owned-by-reason"]) == (404, "owner-not-found")
    assert msgspec.json.decode(bytes(answer.body))["error"]["param"] == "owned_by"


async def test_who_names_nobody_is_left_to_the_epp(pods: Stage, gateway: int) -> None:
    answer, seen = await picked(pods, gateway, Request("POST", CHAT, (JSON,), b'{"model": "m"}'))

    assert (answer.status, seen.hint) == (200, None)


@pytest.mark.parametrize(
    ("name", "seen"),
    [("llm-d-inference-gateway", True), ("another", False)],
    ids=["1 MiB, as shipped", "32 KiB, Envoy Gateway's own: whenTruncated"],
)
async def test_an_owner_behind_200_kb_is_seen_if_it_fits_into_the_buffer(
    pods: Stage, tmp_path: Path, name: str, *, seen: bool
) -> None:
    request = chat("sglang", "last key", 200_000).request
    document = envoy_of(rendered(tmp_path / "it", PATIENT), pods, pods.server.grpc_port, name)
    async with Envoy(document, tmp_path) as envoy:
        answer, said = await picked(pods, envoy.port, request)

    (listener,) = document["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] == (1_048_576 if seen else BUFFER)
    assert sorted(said.hint or []) == (of_engine(pods, "sglang") if seen else [])
    assert (answer.status, answer.headers["x-body-sha256"]) == (200, hashlib.sha256(request.body or b"").hexdigest())


@pytest.mark.parametrize(
    ("patches", "status"), [((), 500), ((OPEN,), 200)], ids=["fails closed, as shipped", "fails open, if patched"]
)
async def test_without_the_program_nothing_passes_unless_it_is_said(
    pods: Stage, tmp_path: Path, nobody: int, patches: tuple[Json, ...], status: int
) -> None:
    async with Envoy(envoy_of(rendered(tmp_path / "it", *patches), pods, nobody), tmp_path) as envoy:
        answer = await ask(envoy.port, chat("vllm", "header").request)

    assert answer.status == status


async def test_without_the_epp_there_is_no_guard(pods: Stage, tmp_path: Path) -> None:
    document = envoy_of(rendered(tmp_path / "it"), pods, pods.server.grpc_port, epp=[])
    async with Envoy(document, tmp_path) as envoy:
        answer = await ask(envoy.port, chat("vllm", "header").request)

    assert answer.status == 500


async def test_a_processor_that_streams_cannot_fail_open(pods: Stage, tmp_path: Path) -> None:
    documents = rendered(tmp_path / "it", patch("EnvoyExtensionPolicy", {"/spec/extProc/1/failOpen": True}))

    with pytest.raises(ValueError, match="failOpen must be false beside FullDuplexStreamed"):
        envoy_of(documents, pods, 1)
