# SPDX-License-Identifier: Apache-2.0
"""A whole process that serves ext_proc over TLS: to whom, with what, and how it goes on when the pair changes."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.demo.client import LOOPBACK, send
from extproc.demo.processes import Server
from extproc.envoy.pb import external_processor_pb2 as pb
from tests.certificates import NAME, Authority, Mount, shown
from tests.heard import Heard
from tests.streams import call, first

pytestmark = pytest.mark.slow

AUTHORITY = Authority()
ONE, OTHER = AUTHORITY.issue(), AUTHORITY.issue()
SERVING = health_pb2.HealthCheckResponse.SERVING
ENDPOINTS = "pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:9', models: []}]}]\n"
EXPIRY = "owned_by_certificate_not_after_timestamp_seconds"
RELOADED = 'owned_by_config_last_reload_successful{source="certificate"}'


@pytest.fixture
def endpoints(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "endpoints.yaml").write_text(ENDPOINTS)
    return "--endpoints-file", str(tmp_path / "endpoints.yaml")


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "certs", ONE.certificate, ONE.key)


def secure(mount: Mount, *more: str) -> tuple[str, ...]:
    return "--secure-serving", "--cert-path", str(mount.folder), *more


def trusting(server: Server, authority: bytes = AUTHORITY.certificate) -> grpc.aio.Channel:
    """A channel that takes only a server called `owned-by` for which the authority vouches."""
    return grpc.aio.secure_channel(
        f"{LOOPBACK}:{server.grpc_port}",
        grpc.ssl_channel_credentials(authority),
        [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1)],
    )


async def decided(channel: grpc.aio.Channel) -> str | None:
    """What kind of answer a request without a body gets."""
    stream = call(channel)
    await stream.write(first())
    answer: pb.ProcessingResponse = await stream.read()
    return answer.WhichOneof("response")


async def opened(channel: grpc.aio.Channel) -> Any:
    """A stream that waits for a body."""
    stream = call(channel)
    await stream.write(first(content_type="application/json"))
    await stream.read()
    return stream


async def ended(stream: Any) -> str | None:
    """What such a stream answers to its body."""
    await stream.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=b"{}", end_of_stream=True)))
    answer: pb.ProcessingResponse = await stream.read()
    return answer.WhichOneof("response")


async def samples(server: Server) -> dict[str, float]:
    text = (await send(server.metrics_port, "GET", "/metrics")).body.decode()
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


async def certificate(server: Server) -> Any:
    """What `/statusz` says of it, its age left out."""
    found = (await send(server.admin_port, "GET", "/statusz")).json()["sources"]["certificate"]
    assert found.pop("age_seconds") >= 0
    return found


async def test_who_trusts_the_authority_is_served_and_the_other_ports_stay_as_they_are(
    endpoints: tuple[str, str], mount: Mount
) -> None:
    async with Server(*endpoints, *secure(mount)) as server:
        async with trusting(server) as channel:
            answer = await decided(channel)
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{server.grpc_health_port}") as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        numbers, status = await samples(server), await certificate(server)

    assert (answer, health.status) == ("request_headers", SERVING)
    assert numbers[EXPIRY + '{origin="files"}'] == ONE.not_after.timestamp()
    assert status == {
        "folder": str(mount.folder),
        "serial": ONE.serial,
        "not_after": ONE.not_after.isoformat(),
        "error": None,
    }


async def test_strangers_and_those_who_speak_no_tls_are_not_served(endpoints: tuple[str, str], mount: Mount) -> None:
    errors = []
    async with Server(*endpoints, *secure(mount)) as server:
        for channel in (
            trusting(server, Authority().certificate),
            grpc.aio.insecure_channel(f"{LOOPBACK}:{server.grpc_port}"),
        ):
            async with channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await decided(channel)
                errors.append(caught.value.code())

    assert errors == [grpc.StatusCode.UNAVAILABLE] * 2


async def test_without_a_path_a_certificate_is_made_that_vouches_for_itself(endpoints: tuple[str, str]) -> None:
    async with Server(*endpoints, "--secure-serving") as server:
        seen = await shown(server.grpc_port)
        numbers, status = await samples(server), await certificate(server)

    assert (seen.protocol, seen.serial) == ("h2", status["serial"])
    assert (status["folder"], status["error"]) == (None, None)
    assert [name for name in numbers if name.startswith(EXPIRY)] == [EXPIRY + '{origin="self-signed"}']


async def test_without_tls_there_is_no_certificate_and_what_it_takes_is_not_imported(
    endpoints: tuple[str, str],
) -> None:
    async with Server(*endpoints) as server:
        numbers = await samples(server)
        sources = (await send(server.admin_port, "GET", "/statusz")).json()["sources"]
    program = (
        "import sys, extproc.cli; print([name for name in sys.modules if name.partition('.')[0] == 'cryptography'])"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert ([name for name in numbers if "certificate" in name], list(sources)) == ([], ["endpoints"])
    assert done.stdout == "[]\n"


async def test_a_new_pair_is_for_new_connections_and_a_bad_one_for_nobody(
    endpoints: tuple[str, str], mount: Mount
) -> None:
    heard, last = Heard(), AUTHORITY.issue()
    async with Server(*endpoints, *secure(mount, "--enable-cert-reload"), on_line=heard) as server:
        async with trusting(server) as channel:
            stream = await opened(channel)
            mount.replace(OTHER.certificate, OTHER.key)
            await heard.line(msg="loaded", source="certificate", serial=OTHER.serial)
            new = await shown(server.grpc_port)

            mount.replace(last.certificate, ONE.key)
            line = await heard.line(msg="not loaded, the last good one stays", source="certificate")
            kept, bad, status = await shown(server.grpc_port), await samples(server), await certificate(server)

            mount.replace(last.certificate, last.key)
            await heard.line(msg="loaded", source="certificate", serial=last.serial)
            mended, good = await shown(server.grpc_port), await samples(server)
            answer = await ended(stream)
        text = "\n".join(server.lines)

    mismatch = "tls.key is not the key of the first certificate in tls.crt"
    assert [each.serial for each in (new, kept, mended)] == [OTHER.serial, OTHER.serial, last.serial]
    assert (line["error"], line["serial"], status["error"], status["serial"]) == (mismatch, OTHER.serial) * 2
    assert (bad[RELOADED], good[RELOADED]) == (0, 1)
    assert good[EXPIRY + '{origin="files"}'] == last.not_after.timestamp()
    assert answer == "request_body"
    assert [line for pair in (ONE, OTHER, last) for line in pair.key.decode().splitlines() if line in text] == []


async def test_without_reload_a_new_pair_waits_for_a_new_process(endpoints: tuple[str, str], mount: Mount) -> None:
    async with Server(*endpoints, *secure(mount)) as server:
        mount.replace(OTHER.certificate, OTHER.key)
        looked = await send(server.admin_port, "POST", "/admin/discover", {"content-type": "application/json"}, b"{}")
        seen = await shown(server.grpc_port)

    assert (looked.status, seen.serial) == (200, ONE.serial)


async def test_who_asks_for_everything_anew_gets_a_new_certificate_at_once(
    endpoints: tuple[str, str], mount: Mount
) -> None:
    async with Server(*endpoints, *secure(mount, "--enable-cert-reload")) as server:
        mount.replace(OTHER.certificate, OTHER.key)
        await send(server.admin_port, "POST", "/admin/discover", {"content-type": "application/json"}, b"{}")
        seen = await shown(server.grpc_port)
        mount.replace(OTHER.certificate, ONE.key)
        found = await send(server.admin_port, "POST", "/admin/discover", {"content-type": "application/json"}, b"{}")

    assert seen.serial == OTHER.serial
    assert found.json()["errors"] == {"certificate": "tls.key is not the key of the first certificate in tls.crt"}


async def test_a_drain_lets_open_streams_end_over_tls_too(endpoints: tuple[str, str], mount: Mount) -> None:
    heard = Heard()
    flags = (*endpoints, *secure(mount), "--drain-delay", "0s", "--drain-timeout", "30s")
    async with Server(*flags, on_line=heard) as server, trusting(server) as channel:
        stream = await opened(channel)
        server.terminate()
        await heard.line(msg="draining", streams=1)
        answer = await ended(stream)
        code = await asyncio.wait_for(server.wait(), 20)

    assert (answer, code) == ("request_body", 0)
