# SPDX-License-Identifier: Apache-2.0
"""The component `llm-d-standalone`: the Envoy that it configures, really run; only addresses and deadlines are others."""

import contextlib
import copy
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import grpc
import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.demo.client import send
from extproc.demo.envoy import Envoy, validate
from tests.builders import SPOOFABLE
from tests.dataplane.exchange import Exchange, Request, exchange
from tests.dataplane.scenarios import CHAT, JSON, Tally, chat, chats, send_all
from tests.dataplane.stage import Stage, hosts, stage
from tests.envoys import VERSIONS, program
from tests.fakes import epp
from tests.manifests.kustomize import ROOT, deployed, one
from tests.manifests.proxy import Json, address, settings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

ONE = ", destinations: 1"
PORTS = {"gateway": 8081, "readiness": 19001}
"""What the chart's Service and its probe expect."""
ADMIN = [("POST", "/quitquitquit"), ("GET", "/config_dump"), ("POST", "/stats/prometheus/../../quitquitquit")]


class SecurePicker(epp.EndpointPicker):
    """The stand-in as the real EPP listens: TLS with a certificate of its own making, and gRPC health."""

    async def __aenter__(self) -> Self:
        handler = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=epp.pb.ProcessingRequest.FromString,
            response_serializer=epp.pb.ProcessingResponse.SerializeToString,
        )
        self._server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
        services = grpc.method_handlers_generic_handler(epp.SERVICE, {epp.METHOD: handler})
        self._server.add_generic_rpc_handlers((services,))
        healthy = health.aio.HealthServicer()
        await healthy.set(epp.SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, self._server)
        self.port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([self_signed()]))
        await self._server.start()
        return self


def self_signed() -> tuple[bytes, bytes]:
    """A key and a certificate that nobody vouches for, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "epp")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), made.public_bytes(pem)


def rendered(folder: Path) -> list[Json]:
    folder.mkdir()
    return deployed(folder, ["llm-d-standalone"], namespace="team")


def shipped(documents: list[Json]) -> Json:
    """The file that Envoy would read."""
    document: Json = yaml.safe_load(one(documents, "ConfigMap", "owned-by-envoy")["data"]["envoy.yaml"])
    return document


def clusters(document: Json) -> dict[str, Json]:
    return {each["name"]: each for each in document["static_resources"]["clusters"]}


def filters(document: Json) -> list[Json]:
    (found,) = (each for each in document["static_resources"]["listeners"] if each["name"] == "gateway")
    chain: list[Json] = found["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    return chain


def placed(document: Json, *, ours: int, picker: int) -> Json:
    """The same on free ports of this machine; our message timeout is such that a busy machine does not reach it."""
    document = copy.deepcopy(document)
    for listener in document["static_resources"]["listeners"]:
        listener["address"] = address("127.0.0.1", 0)
    document["admin"]["address"] = address("127.0.0.1", 0)
    for name, port in (("owned-by", ours), ("epp", picker)):
        (endpoint,) = clusters(document)[name]["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoint["endpoint"]["address"] = address("127.0.0.1", port)
    filters(document)[0]["typed_config"]["message_timeout"] = "30s"
    return document


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Json:
    return shipped(rendered(tmp_path_factory.mktemp("rendered") / "it"))


@contextlib.asynccontextmanager
async def staged(folder: Path, rules: str = "") -> AsyncIterator[Stage]:
    """Two pods of each engine, a server that is started as the component starts it, and an EPP as the chart has it."""
    flags = settings(rendered(folder / "program"))
    async with contextlib.AsyncExitStack() as stack:
        made = await stage(stack, folder, hosts(2), hold=False, rules=rules, flags=flags)
        picker = SecurePicker([made.pods.address(name) for name in made.pods.endpoints])
        made.epp = await stack.enter_async_context(picker)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """With the default policy."""
    async with staged(tmp_path_factory.mktemp("standalone")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def single(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """With a policy that writes one destination and not a list."""
    async with staged(tmp_path_factory.mktemp("single"), ONE) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(pods: Stage, configuration: Json, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
    """The port of the gateway."""
    document = placed(configuration, ours=pods.server.grpc_port, picker=pods.epp.port)
    async with Envoy(document, tmp_path_factory.mktemp("gateway")) as envoy:
        yield envoy.port


async def ask(port: int, request: Request) -> Exchange:
    """The answer, read to its end."""
    async with exchange(port, request) as answer:
        await answer.rest()
    return answer


def of_engine(pods: Stage, owner: str) -> list[str]:
    return sorted(pods.pods.address(name) for name in pods.pods.endpoints if name.startswith(owner))


async def test_the_chart_mounts_our_file_where_its_own_was() -> None:
    values = yaml.safe_load((ROOT / "components" / "llm-d-standalone" / "values.yaml").read_text())

    item = {"key": "envoy.yaml", "path": "envoy.yaml"}
    assert values["router"]["proxy"] == {
        "proxyType": "envoy",
        "mode": "sidecar",
        "volumes": [{"name": "config", "configMap": {"name": "owned-by-envoy", "items": [item]}}],
    }


async def test_ports_and_addresses_are_those_of_the_chart_and_of_our_service(configuration: Json) -> None:
    listeners = configuration["static_resources"]["listeners"]
    endpoints = {
        name: each["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        for name, each in clusters(configuration).items()
        if "load_assignment" in each
    }

    assert {each["name"]: each["address"] for each in listeners} == {
        name: address("0.0.0.0", port) for name, port in PORTS.items()
    }
    assert endpoints == {
        "owned-by": address("owned-by.team.svc.cluster.local", 9002),
        "epp": address("127.0.0.1", 9002),
        "admin": configuration["admin"]["address"],
    }


async def test_envoy_sees_every_pod_of_ours_and_not_one_address_for_all(tmp_path: Path) -> None:
    """A connection is kept: behind one address, one pod would decide everything."""
    documents = rendered(tmp_path / "it")
    spec = one(documents, "Service", "owned-by")["spec"]
    ours = clusters(shipped(documents))["owned-by"]

    assert (spec["clusterIP"], ours["type"], ours["lb_policy"]) == ("None", "STRICT_DNS", "LEAST_REQUEST")


async def test_no_field_is_newer_than_the_charts_envoy(configuration: Json) -> None:
    """Of what our filters have elsewhere, `status_on_error` alone is newer (1.36): facts/envoy.md, Version facts."""
    assert "status_on_error" not in json.dumps(configuration)


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_envoy_takes_it_and_routes_by_it(
    version: str, pods: Stage, configuration: Json, tmp_path: Path
) -> None:
    await validate(program(version), configuration, tmp_path)
    document = placed(configuration, ours=pods.server.grpc_port, picker=pods.epp.port)
    async with Envoy(document, tmp_path, program(version)) as envoy:
        assert await send_all(envoy.port, chats(60)) == Tally(requests=60)


async def test_the_charts_probe_finds_it_ready(pods: Stage, configuration: Json, tmp_path: Path) -> None:
    document = placed(configuration, ours=pods.server.grpc_port, picker=pods.epp.port)
    async with Envoy(document, tmp_path) as envoy:
        listed = (await send(envoy.admin_port, "GET", "/listeners?format=json")).json()["listener_statuses"]
        (port,) = (
            each["local_address"]["socket_address"]["port_value"] for each in listed if each["name"] == "readiness"
        )
        answer = await send(port, "GET", "/ready")
        others = [await send(port, method, path) for method, path in ADMIN]

    assert answer.status == 200
    assert {each.status for each in others} == {404}  # Envoy's own admin pages are for the pod alone


@pytest.mark.parametrize("place", ["header", "query", "first key", "last key"])
@pytest.mark.parametrize("owner", ["vllm", "sglang"])
async def test_the_epp_gets_the_hint_as_a_list_and_its_pick_serves(
    pods: Stage, gateway: int, owner: str, place: str
) -> None:
    pods.epp.seen.clear()
    answer = await ask(gateway, chat(owner, place, 2_000).request)
    (seen,) = pods.epp.seen

    assert sorted(seen.hint or []) == of_engine(pods, owner)
    assert (answer.status, pods.pods.address(answer.headers["x-served-by"])) == (200, seen.pick)


async def test_a_client_does_not_choose_the_address(pods: Stage, gateway: int) -> None:
    spoofed = [(name, pods.pods.address("vllm-0")) for name in SPOOFABLE]
    request = Request("POST", CHAT, (JSON, ("x-owned-by", "sglang"), *spoofed), b'{"model": "m"}')
    answer = await ask(gateway, request)
    seen = json.loads(answer.headers["x-seen"])

    assert answer.headers["x-served-by"].startswith("sglang")
    assert set(seen) & set(SPOOFABLE) == {"x-gateway-destination-endpoint"}  # the EPP's own
    assert seen["x-gateway-destination-endpoint"] in of_engine(pods, "sglang")


@pytest.mark.parametrize("path", ["/web/../v1/chat/completions", "//v1//chat/completions"])
async def test_another_spelling_of_the_path_does_not_pass_us_by(gateway: int, path: str) -> None:
    request = Request("POST", path, (JSON, ("x-owned-by", "sglang")), b'{"model": "m"}')
    answers = [await ask(gateway, request) for _ in range(12)]

    assert {(each.status, each.headers["x-served-by"][:-2]) for each in answers} == {(200, "sglang")}


async def test_the_access_log_says_what_was_decided_and_no_query(
    pods: Stage, configuration: Json, tmp_path: Path
) -> None:
    document = placed(configuration, ours=pods.server.grpc_port, picker=pods.epp.port)
    async with Envoy(document, tmp_path) as envoy:
        await ask(envoy.port, Request("POST", f"{CHAT}?owned_by=sglang&key=secret", (JSON,), b'{"model": "m"}'))
    lines = [json.loads(each) for each in envoy.log.read_text().splitlines() if each.startswith("{")]

    assert [(each["path"], each["owner"], each["reason"]) for each in lines] == [(CHAT, "sglang", "owner-matched")]


async def test_as_many_requests_as_there_are_may_be_decided_at_once(configuration: Json) -> None:
    limits = {name: each.get("circuit_breakers") for name, each in clusters(configuration).items() if name != "admin"}
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100_000)

    assert limits == {name: {"thresholds": [most]} for name in ("owned-by", "epp", "pool")}


async def test_an_owner_that_nobody_is_gets_our_404(gateway: int) -> None:
    answer = await ask(gateway, chat("tgi", "last key").request)

    assert (answer.status, answer.headers["x-owned-by-reason"]) == (404, "owner-not-found")
    assert (answer.headers["content-type"], answer.body[:10]) == ("application/json", b'{"error":{')


@pytest.mark.parametrize(
    ("limit", "seen"), [(1_048_576, True), (32_768, False)], ids=["as shipped", "the chart's 32 KiB"]
)
async def test_an_owner_behind_200_kb_is_seen_if_it_fits_into_the_buffer(
    pods: Stage, configuration: Json, tmp_path: Path, limit: int, *, seen: bool
) -> None:
    document = placed(configuration, ours=pods.server.grpc_port, picker=pods.epp.port)
    shipped_limit, document["static_resources"]["listeners"][0]["per_connection_buffer_limit_bytes"] = (
        document["static_resources"]["listeners"][0]["per_connection_buffer_limit_bytes"],
        limit,
    )
    request = chat("sglang", "last key", 200_000).request
    pods.epp.seen.clear()
    async with Envoy(document, tmp_path) as envoy:
        answer = await ask(envoy.port, request)
    (said,) = pods.epp.seen

    assert shipped_limit == 1_048_576
    assert sorted(said.hint or []) == (of_engine(pods, "sglang") if seen else [])
    assert (answer.status, answer.headers["x-body-sha256"]) == (200, hashlib.sha256(request.body or b"").hexdigest())


@pytest.mark.parametrize(("lenient", "status"), [(False, 500), (True, 200)], ids=["as shipped", "fails open"])
async def test_without_the_program_nothing_passes_unless_it_is_said(
    pods: Stage, configuration: Json, tmp_path: Path, nobody: int, *, lenient: bool, status: int
) -> None:
    document = placed(configuration, ours=nobody, picker=pods.epp.port)
    filters(document)[0]["typed_config"]["failure_mode_allow"] |= lenient
    async with Envoy(document, tmp_path) as envoy:
        answer = await ask(envoy.port, chat("vllm", "header").request)

    assert answer.status == status


class TestWithoutTheEpp:
    """It does not answer: its health check fails, and its filter fails open at once."""

    POST = chat("sglang", "last key", 50_000)
    GET = Request("GET", "/v1/responses/1", (("x-owned-by", "sglang"),), None)
    NOBODY = Request("POST", CHAT, (JSON,), b'{"model": "m"}')

    async def statuses(self, made: Stage, configuration: Json, folder: Path, nobody: int) -> list[tuple[int, str]]:
        document = placed(configuration, ours=made.server.grpc_port, picker=nobody)
        async with Envoy(document, folder) as envoy:
            answers = [await ask(envoy.port, each) for each in (self.POST.request, self.GET, self.NOBODY)]
        return [(each.status, each.headers.get("x-served-by", "").partition("-")[0]) for each in answers]

    async def test_with_one_destination_the_guard_routes(
        self, single: Stage, configuration: Json, tmp_path: Path, nobody: int
    ) -> None:
        found = await self.statuses(single, configuration, tmp_path, nobody)

        assert found == [(200, "sglang"), (200, "sglang"), (503, "")]

    async def test_with_a_list_of_destinations_nothing_passes(
        self, pods: Stage, configuration: Json, tmp_path: Path, nobody: int
    ) -> None:
        assert await self.statuses(pods, configuration, tmp_path, nobody) == [(503, "")] * 3


class TestOtherAttachments:
    """What is not shipped, on the same Envoy: whoever writes one address is heard, a list is not."""

    def after(self, document: Json) -> None:
        """Ours behind the EPP's, with the namespaces of docs/attachments.md."""
        before, *_, router = filters(document)
        behind = copy.deepcopy(before) | {"name": "owned-by.after"}
        behind["typed_config"]["grpc_service"]["initial_metadata"][0]["value"] = "after"
        behind["typed_config"]["metadata_options"] = {
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint", "owned_by"]},
            "receiving_namespaces": {"untyped": ["envoy.lb", "owned_by"]},
        }
        filters(document).insert(filters(document).index(router), behind)

    def picker(self, document: Json) -> None:
        """Ours in the EPP's place, which has no TLS and its health at another port."""
        _, theirs, _ = filters(document)
        theirs["typed_config"]["grpc_service"]["initial_metadata"] = [
            {"key": "x-owned-by-attachment", "value": "picker"}
        ]
        place = clusters(document)["epp"]
        del place["transport_socket"], place["health_checks"]
        del filters(document)[0]

    @pytest.mark.parametrize("attachment", ["after", "picker"])
    @pytest.mark.parametrize(("policy", "status"), [("single", 200), ("pods", 503)], ids=["one", "a list"])
    async def test_one_destination_is_reached_and_a_list_is_a_503(
        self,
        configuration: Json,
        tmp_path: Path,
        *,
        attachment: str,
        policy: str,
        status: int,
        request: pytest.FixtureRequest,
    ) -> None:
        made: Stage = request.getfixturevalue(policy)
        ours = made.server.grpc_port
        document = placed(configuration, ours=ours, picker=ours if attachment == "picker" else made.epp.port)
        getattr(self, attachment)(document)
        async with Envoy(document, tmp_path) as envoy:
            answer = await ask(envoy.port, chat("vllm", "last key").request)

        assert (answer.status, answer.headers.get("x-served-by", "").partition("-")[0]) == (
            status,
            "vllm" if status == 200 else "",
        )
