# SPDX-License-Identifier: Apache-2.0
"""A real Envoy dials our server by TLS, as Istio has it do so for a DestinationRule of the mode SIMPLE."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.cases import ENGINES
from extproc.demo.client import LOOPBACK
from extproc.demo.engines import Engines
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server
from tests.certificates import Authority, Key, Mount, shown, write
from tests.dataplane.conftest import write_endpoints
from tests.dataplane.test_before import CHAT, LLAMA, body
from tests.dataplane.test_restart import Load
from tests.dataplane.wire import exchange, post
from tests.heard import Heard

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

AUTHORITY = Authority()
SERVED = (200, "llama-sglang")
CONNECTIONS = "cluster.owned_by.upstream_cx_total"
REQUESTS = 20
"""How many streams Envoy opens on one connection, so that there are always new ones."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engines() -> AsyncIterator[Engines]:
    async with Engines(ENGINES) as running:
        yield running


def plan(engines: Engines, server: Server, *, ca_file: Path | None = None) -> Plan:
    """`before`, and then any endpoint of the pool that our guard names."""
    return Plan(
        endpoints=tuple((LOOPBACK, one.port) for one in engines.endpoints),
        before_port=server.grpc_port,
        secure=True,
        ca_file=str(ca_file) if ca_file else None,
    )


async def asked(envoy: Envoy) -> tuple[int, str]:
    """The status of a request for SGLang that says so in its body, and who served it."""
    answer = await exchange(envoy.port, post(CHAT, body(LLAMA, owned_by="sglang")))
    return answer.status, answer.headers.get("x-served-by", "")


async def test_a_server_with_a_certificate_of_its_own_is_taken_by_who_does_not_verify(
    tmp_path: Path, engines: Engines
) -> None:
    flags = ("--endpoints-file", str(write_endpoints(tmp_path, engines)), "--secure-serving")
    async with Server(*flags) as server, Envoy(bootstrap(plan(engines, server)), tmp_path) as envoy:
        seen = [await asked(envoy) for _ in range(4)]
        handshakes = await envoy.stats(r"^cluster\.owned_by\.ssl\.handshake$")

    assert (seen, set(handshakes.values())) == ([SERVED] * 4, {1})


KEYS: dict[str, Key] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_a_server_is_verified_by_its_authority(tmp_path: Path, engines: Engines, key: Key) -> None:
    issued = AUTHORITY.issue(key)
    folder = write(tmp_path / "certs", issued.certificate, issued.key)
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.certificate)
    flags = (
        "--endpoints-file",
        str(write_endpoints(tmp_path, engines)),
        "--secure-serving",
        "--cert-path",
        str(folder),
    )
    async with (
        Server(*flags) as server,
        Envoy(bootstrap(plan(engines, server, ca_file=tmp_path / "ca.crt")), tmp_path) as envoy,
    ):
        assert await asked(envoy) == SERVED


async def test_a_server_that_the_authority_does_not_vouch_for_gets_no_stream(tmp_path: Path, engines: Engines) -> None:
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.certificate)
    flags = ("--endpoints-file", str(write_endpoints(tmp_path, engines)), "--secure-serving")
    async with (
        Server(*flags) as server,
        Envoy(bootstrap(plan(engines, server, ca_file=tmp_path / "ca.crt")), tmp_path) as envoy,
    ):
        seen = await asked(envoy)
        failures = await envoy.stats(r"^cluster\.owned_by\.ssl\.fail_verify_error$")

    assert seen == (503, "")
    assert sum(failures.values()) > 0


async def test_a_gateway_that_speaks_plain_text_is_refused_and_our_log_tells_why(
    tmp_path: Path, engines: Engines
) -> None:
    flags = ("--endpoints-file", str(write_endpoints(tmp_path, engines)), "--secure-serving")
    async with Server(*flags) as server:
        async with Envoy(bootstrap(replace(plan(engines, server), secure=False)), tmp_path) as envoy:
            seen = await asked(envoy)
        server.terminate()
        await server.wait()

    assert seen == (503, "")
    assert [line for line in server.lines if "Handshake failed" in line and "WRONG_VERSION_NUMBER" in line]


async def test_a_pair_is_replaced_under_load_and_no_request_fails(tmp_path: Path, engines: Engines) -> None:
    pairs = [AUTHORITY.issue() for _ in range(4)]
    mount, heard = Mount(tmp_path / "certs", pairs[0].certificate, pairs[0].key), Heard()
    (tmp_path / "ca.crt").write_bytes(AUTHORITY.certificate)
    flags = ("--endpoints-file", str(write_endpoints(tmp_path, engines)), "--log-level", "info")
    secure = ("--secure-serving", "--cert-path", str(mount.folder), "--enable-cert-reload")
    async with Server(*flags, *secure, on_line=heard) as server:
        config = bootstrap(plan(engines, server, ca_file=tmp_path / "ca.crt"))
        (ours,) = (each for each in config["static_resources"]["clusters"] if each["name"] == "owned_by")
        (options,) = ours["typed_extension_protocol_options"].values()
        options["common_http_protocol_options"] = {"max_requests_per_connection": REQUESTS}
        async with Envoy(config, tmp_path) as envoy:
            load = Load(envoy.port)
            running = asyncio.create_task(load.run())
            await load.until(SERVED)
            seen, connections = [(await shown(server.grpc_port)).serial], [await envoy.stats(CONNECTIONS)]
            for pair in pairs[1:]:
                mount.replace(pair.certificate, pair.key)
                await heard.line(msg="loaded", source="certificate", serial=pair.serial)
                seen.append((await shown(server.grpc_port)).serial)
                await load.until(SERVED, 5 * REQUESTS)
                connections.append(await envoy.stats(CONNECTIONS))
            mount.replace(pairs[0].certificate, pairs[1].key)
            await heard.line(msg="not loaded, the last good one stays", source="certificate")
            await load.until(SERVED, 5 * REQUESTS)
            seen.append((await shown(server.grpc_port)).serial)
            load.stop()
            await running
        server.terminate()
        code = await server.wait()

    opened = [each[CONNECTIONS] for each in connections]
    assert seen == [*(pair.serial for pair in pairs), pairs[-1].serial]
    assert load.seen == Counter({SERVED: load.seen[SERVED]})
    assert opened == sorted(set(opened)), "Envoy kept its connections: nothing of this was seen by it"
    assert (load.damaged, code) == (0, 0)
