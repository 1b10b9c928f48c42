# SPDX-License-Identifier: Apache-2.0
"""What endpoints say of themselves: over real HTTP, on loopback."""

import asyncio
import contextlib
import gzip
import io
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from extproc.demo.engines import Engines, Simulated
from extproc.discovery.listing import Listing, parse_listing
from extproc.discovery.probe import Probe, ProbeConfig
from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.config import default_policy
from extproc.policy.types import Endpoint, Model, Pool
from tests.fakes.answers import FAILURE, AnsweringServer, answer

CHAT = Pool("default", "chat")
OTHER = Pool("default", "other")
FOR_EVER = 3600.0
SOON = 0.01
ENGINE_LABEL = "llm-d.ai/engine-type"


def ok(*models: str, owned_by: str = "vllm", created: int = 1) -> bytes:
    entries = [{"id": model, "created": created, "owned_by": owned_by, "max_model_len": 8} for model in models]
    return answer(json.dumps({"object": "list", "data": entries}).encode())


@dataclass
class Rig:
    """A probe with what it was given."""

    config: ProbeConfig
    metrics: Metrics = field(default_factory=Metrics)
    changes: int = 0

    def __post_init__(self) -> None:
        self._stream = io.BytesIO()
        self._event = asyncio.Event()
        logger = make_logger("json", "info", self._stream)
        self.probe = Probe(self.config, self._on_change, default_policy, self.metrics, logger)

    def _on_change(self) -> None:
        self.changes += 1
        self._event.set()

    def complete(self, *endpoints: Endpoint) -> tuple[Endpoint, ...]:
        return self.probe.complete({CHAT: endpoints})[CHAT]

    async def changed(self) -> None:
        async with asyncio.timeout(20):
            await self._event.wait()
        self._event.clear()

    async def settled(self) -> None:
        async with asyncio.timeout(20):
            await self.probe.settled.wait()

    async def answered(self, *endpoints: Endpoint) -> tuple[Endpoint, ...]:
        """What is known of the endpoints when the first of them has been asked."""
        self.complete(*endpoints)
        await self.changed()
        return self.complete(*endpoints)

    def lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [{key: value for key, value in line.items() if key != "ts"} for line in lines]

    def probes(self) -> tuple[float | None, float | None]:
        read = self.metrics.registry.get_sample_value
        return read("owned_by_probes_total", {"result": "ok"}), read("owned_by_probes_total", {"result": "failed"})

    def endpoints(self) -> tuple[float | None, float | None]:
        """How many answered when they were last asked, and how many did not."""
        read = self.metrics.registry.get_sample_value
        return tuple(read("owned_by_probe_endpoints", {"result": result}) for result in ("ok", "failed"))  # type: ignore[return-value]

    def disagreements(self) -> float | None:
        return self.metrics.registry.get_sample_value("owned_by_engine_disagreements")


@contextlib.asynccontextmanager
async def probing(**config: Any) -> AsyncIterator[Rig]:
    """A probe that runs; it asks once and holds for ever if nothing else is said."""
    rig = Rig(ProbeConfig(**{"interval": FOR_EVER, "hold": FOR_EVER} | config))
    task = asyncio.create_task(rig.probe.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def models(*names: str, created: int = 1) -> tuple[Model, ...]:
    return tuple(Model(name, created, 8) for name in names)


# what is said reaches the endpoint


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_an_engine_says_reaches_its_endpoint(host: str) -> None:
    async with AnsweringServer(ok("m", "adapter"), hosts=(host,)) as server, probing() as rig:
        base = server.endpoint()
        completed = await rig.answered(base)

        assert completed == (replace(base, owned_by="vllm", models=models("m", "adapter")),)
        assert 0 <= rig.probe.status()["age_seconds"] < 20
        assert rig.probe.status() == {"age_seconds": ANY, "followed": 1, "answered": 1, "failing": 0, "failures": []}
        assert rig.probes() == (1, None)
        assert rig.lines() == []


async def test_both_kinds_of_engine_are_understood() -> None:
    wanted = [Simulated("a", "vllm", "m"), Simulated("b", "sglang", "n")]
    async with Engines(wanted) as running, probing() as rig:
        bases = [Endpoint(engine.name, "default", engine.host, engine.port) for engine in running.endpoints]
        rig.complete(*bases)
        await rig.settled()
        completed = rig.complete(*bases)

        assert [e.owned_by for e in completed] == ["vllm", "sglang"]
        assert [[(m.id, m.max_model_len) for m in e.models or ()] for e in completed] == [[("m", 8192)], [("n", 4096)]]


async def test_an_endpoint_whose_models_are_given_is_not_asked_and_passes_as_it_is() -> None:
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        given_ = server.endpoint("given", models=())
        completed = await rig.answered(given_, server.endpoint())

        assert completed[0] is given_
        assert (len(server.heads), rig.probe.status()["followed"]) == (1, 1)


async def test_an_endpoint_of_two_pools_is_asked_once() -> None:
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        pools = {CHAT: (server.endpoint(),), OTHER: (server.endpoint(),)}
        rig.probe.complete(pools)
        await rig.settled()
        completed = rig.probe.complete(pools)

        whole = replace(server.endpoint(), owned_by="vllm", models=models("m"))
        assert completed == {CHAT: (whole,), OTHER: (whole,)}
        assert len(server.heads) == 1


async def test_endpoints_that_say_the_same_share_one_answer_whenever_they_were_asked() -> None:
    async with AnsweringServer(ok("m", created=1), ok("m", created=2)) as server, probing() as rig:
        bases = (server.endpoint("a"), server.endpoint("b"))
        rig.complete(*bases)
        await rig.settled()
        one, two = rig.complete(*bases)

        assert one.models is two.models is not None


async def test_an_answer_that_differs_only_in_the_moment_is_no_change() -> None:
    async with (
        AnsweringServer(*(ok("m", created=number) for number in range(1, 9))) as server,
        probing(interval=SOON) as rig,
    ):
        first = await rig.answered(server.endpoint())
        await server.asked(5)

        assert (rig.changes, first[0].models) == (1, models("m"))


async def test_an_adapter_that_is_loaded_later_is_a_change() -> None:
    async with AnsweringServer(ok("m"), ok("m", "adapter")) as server, probing(interval=SOON) as rig:
        base = server.endpoint()
        first = await rig.answered(base)
        await rig.changed()

        assert [first[0].models, rig.complete(base)[0].models] == [models("m"), models("m", "adapter")]


async def test_an_endpoint_that_changes_keeps_its_answer() -> None:
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        await rig.answered(server.endpoint())
        relabelled = server.endpoint(labels={"a": "b"})

        assert rig.complete(relabelled) == (replace(relabelled, owned_by="vllm", models=models("m")),)
        assert len(server.heads) == 1


# what fails


async def failure(rig: Rig, base: Endpoint) -> str:
    """The error after the only endpoint has failed, which leaves it ready and its models unknown."""
    assert await rig.answered(base) == (base,)
    status = rig.probe.status()
    error: str = status["failures"][0]["error"]
    assert status == {
        "age_seconds": None,
        "followed": 1,
        "answered": 0,
        "failing": 1,
        "failures": [{"destination": base.destination, "error": error}],
    }
    assert rig.probes() == (None, 1)
    assert rig.lines() == [
        {
            "level": "warning",
            "logger": "probe",
            "msg": "the endpoint does not say what it serves",
            "endpoint": "default/pod",
            "destination": base.destination,
            "error": error,
        }
    ]
    return error


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (FAILURE, "status 500"),
        (answer(b"", "404 Not Found"), "status 404"),
        (answer(b"x" * 101), "the answer has more than 100 bytes"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n65\r\n" + b"x" * 101 + b"\r\n",
            "the answer has more than 100 bytes",
        ),
        (
            answer(gzip.compress(b" " * 1_000_000), "200 OK", "content-encoding: gzip")[:150],
            "the answer is compressed, which was not asked for",
        ),
        (answer(b"<html>"), "not a list of models: JSON is malformed: invalid character (byte 0)"),
        (b"SSH-2.0-secret\r\n\r\n", "no HTTP answer: ClientResponseError"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "no answer within 0.2 s"),
        (b"", "no answer within 0.2 s"),
    ],
)
async def test_an_answer_that_is_of_no_use_leaves_the_endpoint_ready_and_its_models_unknown(
    said: bytes, error: str
) -> None:
    slow = "within" in error
    async with AnsweringServer(said) as server, probing(max_bytes=100, timeout=0.2 if slow else 20) as rig:
        assert await failure(rig, server.endpoint()) == error


async def test_a_redirect_is_not_followed() -> None:
    async with AnsweringServer(ok("m")) as elsewhere, probing() as rig:
        to = f"location: http://{elsewhere.endpoint().destination}/v1/models"
        async with AnsweringServer(answer(b"", "307 Temporary Redirect", to)) as server:
            error = await failure(rig, server.endpoint())

            assert (error, elsewhere.connections) == ("status 307", 0)


async def test_a_connection_that_is_refused_is_a_failure() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        async with probing() as rig:
            base = Endpoint("pod", "default", *bound.getsockname())

            assert re.match("cannot connect: Connect call failed|cannot connect: .*refused", await failure(rig, base))


async def test_failures_in_a_row_are_told_once_and_so_is_their_end() -> None:
    async with AnsweringServer(ok("m"), FAILURE, FAILURE, ok("m"), b"") as server, probing(interval=SOON) as rig:
        base = server.endpoint()
        completed = await rig.answered(base)
        await server.asked(5)
        names = {"logger": "probe", "endpoint": "default/pod", "destination": base.destination}
        begins = {"level": "warning", "msg": "the endpoint does not say what it serves", "error": "status 500"}

        assert rig.lines() == [names | begins, names | {"level": "info", "msg": "the endpoint answers again"}]
        assert rig.complete(base)[0] is completed[0]
        assert (rig.changes, rig.probes()) == (1, (2, 2))
        assert rig.probe.status() == {"age_seconds": ANY, "followed": 1, "answered": 1, "failing": 0, "failures": []}


async def test_ready_endpoints_are_counted_by_how_their_last_probe_ended() -> None:
    async with AnsweringServer(ok("m")) as good, AnsweringServer(FAILURE) as bad, probing() as rig:
        well, ill = good.endpoint(), replace(bad.endpoint(), name="other")
        counts = [rig.endpoints()]
        rig.complete(well, ill)
        counts.append(rig.endpoints())
        await rig.settled()
        counts.append(rig.endpoints())
        rig.complete(well, replace(ill, ready=False))
        counts.append(rig.endpoints())
        rig.complete(ill)
        counts.append(rig.endpoints())

    assert counts == [(0, 0), (0, 0), (1, 1), (1, 0), (0, 1)]


async def test_the_last_good_answer_is_forgotten_when_failures_go_on() -> None:
    async with AnsweringServer(ok("m"), FAILURE) as server, probing(interval=SOON, keep=0.1) as rig:
        base = server.endpoint()
        await rig.answered(base)
        await rig.changed()

        assert rig.complete(base) == (base,)
        assert rig.probe.status() | {"failures": []} == {
            "age_seconds": ANY,
            "followed": 1,
            "answered": 0,
            "failing": 1,
            "failures": [],
        }
        assert rig.changes == 2


@pytest.mark.parametrize(
    ("interval", "expected"), [(30, [1, 2, 4, 8, 16, 32, 60, 60]), (0.5, [0.5, 1, 2, 4, 8, 16, 32, 60])]
)
def test_the_pauses_between_failures_grow_up_to_a_minute(interval: float, expected: list[float]) -> None:
    rig = Rig(ProbeConfig(interval=interval))
    rig.complete(Endpoint("pod", "default", "127.0.0.1", 1))
    (target,) = rig.probe._targets.values()
    pauses = []
    for _ in range(8):
        rig.probe._heard(target, "no")
        pauses.append(target.delay)

    assert pauses == expected


def test_no_more_than_twenty_failures_are_shown() -> None:
    rig = Rig(ProbeConfig())
    rig.complete(*(Endpoint(f"pod-{number}", "default", "127.0.0.1", number) for number in range(10, 40)))
    for target in rig.probe._targets.values():
        rig.probe._heard(target, "no")
    shown = [{"destination": f"127.0.0.1:{number}", "error": "no"} for number in range(10, 30)]

    assert rig.probe.status() == {"age_seconds": None, "followed": 30, "answered": 0, "failing": 30, "failures": shown}


# who waits


async def test_a_ready_endpoint_waits_until_it_has_answered() -> None:
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        base = server.endpoint()
        before = (rig.complete(base), rig.probe.settled.is_set())
        await rig.settled()

        assert before == ((replace(base, ready=False, owned_by=None),), False)
        assert rig.complete(base) == (replace(base, owned_by="vllm", models=models("m")),)


async def test_a_ready_endpoint_waits_until_it_has_failed() -> None:
    async with AnsweringServer(FAILURE) as server, probing() as rig:
        base = server.endpoint()
        before = rig.complete(base)
        await rig.changed()

        assert (before, rig.complete(base)) == ((replace(base, ready=False, owned_by=None),), (base,))
        assert rig.probe.settled.is_set()


async def test_a_ready_endpoint_waits_no_longer_than_it_is_held() -> None:
    async with AnsweringServer(b"") as server, probing(hold=0.05, timeout=FOR_EVER) as rig:
        base = server.endpoint()
        before = rig.complete(base)
        await rig.changed()

        assert before == (replace(base, ready=False, owned_by=None),)
        assert rig.complete(base) == (replace(base, owned_by=None),)
        assert not rig.probe.settled.is_set()


async def test_an_endpoint_that_was_gone_before_it_was_asked_is_held_again() -> None:
    async with AnsweringServer(b"") as server, probing(hold=0.05, timeout=FOR_EVER) as rig:
        ready, unready = server.endpoint(), server.endpoint(ready=False)
        shown = [rig.complete(ready)]
        await rig.changed()
        shown += [rig.complete(each) for each in (ready, unready, server.endpoint())]

        assert [(one.ready, one.owned_by) for (one,) in shown] == [
            (False, None),
            (True, None),
            (False, ""),
            (False, None),
        ]


async def test_what_an_endpoint_says_of_itself_is_to_come_until_it_has_failed_to_say_it() -> None:
    async with AnsweringServer(b"") as server, probing(hold=0.05, timeout=0.3) as rig:
        base = server.endpoint()
        rig.complete(base)
        await rig.changed()
        released = rig.complete(base)
        await rig.changed()

        assert (released, rig.complete(base)) == ((replace(base, owned_by=None),), (base,))


async def test_an_endpoint_that_is_not_ready_is_asked_as_soon_as_it_is() -> None:
    async with AnsweringServer(ok("m")) as waiting, AnsweringServer(ok("n")) as other, probing() as rig:
        unready = waiting.endpoint(ready=False)
        completed = await rig.answered(unready, other.endpoint("other"))
        before = (completed[0], waiting.connections, rig.probe.settled.is_set())
        ready = waiting.endpoint()
        held = rig.complete(ready)
        await rig.settled()

        assert before == (unready, 0, True)
        assert held == (replace(ready, ready=False, owned_by=None),)
        assert rig.complete(ready) == (replace(ready, owned_by="vllm", models=models("m")),)


async def test_an_endpoint_that_comes_back_is_asked_at_once_and_has_its_old_answer_meanwhile() -> None:
    async with AnsweringServer(ok("m"), ok("n")) as server, probing() as rig:
        ready, unready = server.endpoint(), server.endpoint(ready=False)
        said = {"owned_by": "vllm", "models": models("m")}
        await rig.answered(ready)
        gone = rig.complete(unready)
        back = rig.complete(ready)
        await rig.changed()

        assert (gone, back) == ((replace(unready, **said),), (replace(ready, **said),))
        assert rig.complete(ready) == (replace(ready, owned_by="vllm", models=models("n")),)


async def test_what_was_said_before_an_endpoint_came_back_does_not_count() -> None:
    async with AnsweringServer(ok("before"), ok("after")) as server, probing() as rig:
        server.gate = asyncio.Semaphore(0)
        rig.complete(server.endpoint())
        await server.asked(1)
        rig.complete(server.endpoint(ready=False))
        back = server.endpoint()
        rig.complete(back)
        server.gate.release()
        server.gate.release()
        await rig.changed()

        assert rig.complete(back)[0].models == models("after")


async def test_an_address_that_vanished_and_came_back_is_somebody_else() -> None:
    async with AnsweringServer(ok("m"), ok("n")) as server, probing() as rig:
        base = server.endpoint()
        await rig.answered(base)
        rig.complete()
        nobody = rig.probe.status()
        again = rig.complete(base)
        await rig.changed()

        assert nobody == {"age_seconds": ANY, "followed": 0, "answered": 0, "failing": 0, "failures": []}
        assert again == (replace(base, ready=False, owned_by=None),)
        assert rig.complete(base)[0].models == models("n")


async def test_a_pod_that_takes_the_name_and_address_of_another_is_somebody_else() -> None:
    async with AnsweringServer(ok("m"), ok("n")) as server, probing() as rig:
        one, other = (replace(server.endpoint(), uid=uid) for uid in ("one", "other"))
        await rig.answered(one)
        at_once = rig.complete(other)
        await rig.changed()

        assert at_once == (replace(other, ready=False, owned_by=None),)
        assert rig.complete(other)[0].models == models("n")


async def test_what_a_vanished_endpoint_still_says_is_not_heard() -> None:
    async with AnsweringServer(ok("old"), ok("new")) as server, probing() as rig:
        server.gate = asyncio.Semaphore(0)
        base = server.endpoint()
        rig.complete(base)
        await server.asked(1)
        rig.complete()
        nobody_waits = rig.probe.settled.is_set()
        rig.complete(base)
        await server.asked(2)
        server.gate.release()
        server.gate.release()
        await rig.settled()

        assert nobody_waits
        assert (rig.changes, rig.complete(base)[0].models) == (1, models("new"))


async def test_with_no_interval_nobody_is_asked_or_held() -> None:
    async with AnsweringServer(ok("m")) as server, probing(interval=0) as rig:
        base = server.endpoint()

        assert rig.complete(base)[0] is base
        assert rig.probe.settled.is_set()
        assert rig.probe.status() == {"age_seconds": None, "followed": 0, "answered": 0, "failing": 0, "failures": []}


def test_thousands_of_endpoints_of_which_nothing_changed_are_the_same_objects() -> None:
    rig = Rig(ProbeConfig())
    bases = tuple(Endpoint(f"pod-{n}", "default", f"10.0.{n // 250}.{n % 250}", 8000) for n in range(5000))
    held = rig.complete(*bases)
    again = rig.complete(*bases)
    changed = rig.complete(*bases[:-1], replace(bases[-1], ready=False))

    assert held == tuple(replace(base, ready=False, owned_by=None) for base in bases)
    assert [one is two for one, two in zip(held, again, strict=True)] == [True] * 5000
    assert [one is two for one, two in zip(held, changed, strict=True)] == [True] * 4999 + [False]
    assert len(rig.probe._targets) == 5000


# how it is asked


async def test_no_more_endpoints_are_asked_at_a_time_than_is_allowed() -> None:
    async with AnsweringServer(ok("m")) as server, probing(concurrency=2) as rig:
        server.gate = asyncio.Semaphore(0)
        rig.complete(*(server.endpoint(f"pod-{number}") for number in range(6)))
        for number in range(2, 6):
            await server.asked(number)
            server.gate.release()
        await server.asked(6)
        server.gate.release()
        server.gate.release()
        await rig.settled()

        assert (server.most, len(server.heads)) == (2, 6)


async def test_a_connection_is_used_again() -> None:
    async with AnsweringServer(ok("m")) as server, probing(interval=SOON) as rig:
        rig.complete(server.endpoint())
        await server.asked(4)

        assert server.connections == 1


async def test_a_connection_that_would_be_idle_for_long_is_closed() -> None:
    async with AnsweringServer(ok("m")) as server, probing(interval=30) as rig:
        base = server.endpoint()
        await rig.answered(base)
        rig.complete(server.endpoint(ready=False))
        rig.complete(base)
        await server.asked(2)

        assert server.connections == 2
        assert sorted(server.heads[0].lower().split("\r\n")) == [
            "",
            "",
            "accept-encoding: identity",
            "accept: application/json",
            "connection: close",
            "get /v1/models http/1.1",
            f"host: {base.destination}",
            f"user-agent: {server.heads[0].lower().split('user-agent: ')[1].partition(chr(13))[0]}",
        ]


async def test_an_endpoint_is_asked_directly_whatever_proxy_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        base = server.endpoint()

        assert await rig.answered(base) == (replace(base, owned_by="vllm", models=models("m")),)


def bearers(heads: Sequence[str]) -> list[str]:
    return [line.partition(": ")[2] for head in heads for line in head.split("\r\n") if "uthorization" in line]


async def test_the_token_is_read_again_for_each_probe(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    async with AnsweringServer(ok("m")) as server, probing(interval=SOON, token_file=token) as rig:
        rig.complete(server.endpoint())
        await server.asked(1)
        token.write_text("two\n")
        await server.asked(len(server.heads) + 2)

        assert (bearers(server.heads[:1]), bearers(server.heads[-1:])) == (["Bearer one"], ["Bearer two"])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "the token file cannot be read: No such file or directory"),
        ("", "the token file is not one word of visible ASCII characters"),
        ("a\r\nhost: b", "the token file is not one word of visible ASCII characters"),
        ("schlüssel", "the token file is not one word of visible ASCII characters"),
    ],
)
async def test_without_a_usable_token_nobody_is_asked(tmp_path: Path, content: str | None, error: str) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content, "utf-8")
    async with AnsweringServer(ok("m")) as server, probing(token_file=token) as rig:
        assert (await failure(rig, server.endpoint()), server.connections) == (error, 0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1 that nobody but itself vouches for, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "engine.pem"
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *plain)
    )
    return path


def served_with(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("trusted", [True, False])
async def test_https_is_spoken_with_whom_is_trusted_and_with_anybody_if_told_so(
    certificate: Path, *, trusted: bool
) -> None:
    how: dict[str, Any] = {"ca_file": certificate} if trusted else {"insecure_skip_verify": True}
    async with AnsweringServer(ok("m"), tls=served_with(certificate)) as server, probing(scheme="https", **how) as rig:
        base = server.endpoint()

        assert await rig.answered(base) == (replace(base, owned_by="vllm", models=models("m")),)


async def test_https_is_not_spoken_with_a_stranger(certificate: Path) -> None:
    async with AnsweringServer(ok("m"), tls=served_with(certificate)) as server, probing(scheme="https") as rig:
        error = await failure(rig, server.endpoint())

        assert (error, server.heads) == ("its certificate is not trusted: self-signed certificate", [])


def test_a_file_of_authorities_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Rig(ProbeConfig(scheme="https", ca_file=tmp_path / "none"))


# all of them again, on request


async def asked_again(rig: Rig) -> None:
    async with asyncio.timeout(20):
        await rig.probe.again()


async def test_all_are_asked_again_on_request_and_what_they_say_is_known_then() -> None:
    async with AnsweringServer(ok("m"), ok("m"), ok("n")) as server, probing() as rig:
        bases = (server.endpoint("a"), server.endpoint("b"))
        rig.complete(*bases)
        await rig.settled()
        before = [one.models for one in rig.complete(*bases)]
        await asked_again(rig)

        assert before == [models("m"), models("m")]
        assert [one.models for one in rig.complete(*bases)] == [models("n"), models("n")]
        assert len(server.heads) == 4


async def test_one_that_has_failed_is_asked_though_it_is_not_its_time_yet() -> None:
    async with AnsweringServer(FAILURE, ok("m")) as server, probing() as rig:
        base = server.endpoint()
        await rig.answered(base)
        await asked_again(rig)

        assert rig.complete(base) == (replace(base, owned_by="vllm", models=models("m")),)
        assert rig.probe.status() == {"age_seconds": ANY, "followed": 1, "answered": 1, "failing": 0, "failures": []}


async def test_one_that_fails_or_does_not_answer_ends_it_too() -> None:
    async with (
        AnsweringServer(ok("m"), b"") as hangs,
        AnsweringServer(ok("n"), FAILURE) as fails,
        probing(timeout=0.2) as rig,
    ):
        rig.complete(hangs.endpoint("hangs"), fails.endpoint("fails"))
        await rig.settled()
        await asked_again(rig)

        assert {one["error"] for one in rig.probe.status()["failures"]} == {"no answer within 0.2 s", "status 500"}


async def test_nobody_waits_for_one_that_goes() -> None:
    async with AnsweringServer(ok("m"), b"") as server, probing(timeout=FOR_EVER) as rig:
        await rig.answered(server.endpoint("vanishes"), server.endpoint("unready"))
        again = asyncio.create_task(asked_again(rig))
        await server.asked(3)
        before = again.done()
        rig.complete(server.endpoint("unready", ready=False))
        await again

        assert not before


async def test_one_that_is_not_ready_is_left_in_peace() -> None:
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        await rig.answered(server.endpoint("a"))
        rig.complete(server.endpoint("a"), server.endpoint("b", ready=False), server.endpoint("c", models=()))
        await asked_again(rig)

        assert len(server.heads) == 2


async def test_one_that_is_being_asked_is_asked_once_more_and_both_answers_count() -> None:
    async with AnsweringServer(ok("before"), ok("after")) as server, probing() as rig:
        server.gate = asyncio.Semaphore(0)
        base = server.endpoint()
        rig.complete(base)
        await server.asked(1)
        asking = [asyncio.create_task(asked_again(rig)) for _ in range(3)]
        server.gate.release()
        await rig.changed()
        first = (rig.complete(base)[0].models, [task.done() for task in asking])
        await server.asked(2)
        server.gate.release()
        await asyncio.gather(*asking)

        assert first == (models("before"), [False] * 3)
        assert rig.complete(base)[0].models == models("after")
        assert (len(server.heads), rig.probes()) == (2, (2, None))


async def test_those_who_ask_at_the_same_time_share_the_answers() -> None:
    async with AnsweringServer(ok("m")) as server, probing() as rig:
        await rig.answered(server.endpoint())
        await asyncio.gather(*(asked_again(rig) for _ in range(5)))

        assert len(server.heads) == 2


async def test_those_whose_turn_is_to_come_are_asked_once_and_no_more_at_a_time_than_is_allowed() -> None:
    async with AnsweringServer(ok("m")) as server, probing(concurrency=2) as rig:
        server.gate = asyncio.Semaphore(0)
        rig.complete(*(server.endpoint(f"pod-{number}") for number in range(6)))
        await server.asked(2)
        again = asyncio.create_task(asked_again(rig))
        for number in range(2, 9):
            await server.asked(number)
            assert not again.done()
            server.gate.release()
        server.gate.release()
        await again

        assert (server.most, len(server.heads)) == (2, 8)  # two were being asked


async def test_who_leaves_while_they_are_asked_changes_nothing() -> None:
    async with AnsweringServer(ok("m"), ok("n")) as server, probing() as rig:
        base = server.endpoint()
        await rig.answered(base)
        server.gate = asyncio.Semaphore(0)
        leaves, stays = (asyncio.create_task(asked_again(rig)) for _ in range(2))
        await server.asked(2)
        leaves.cancel()
        await asyncio.wait([leaves])
        server.gate.release()
        await stays

        assert rig.complete(base)[0].models == models("n")


@pytest.mark.parametrize("interval", [0, FOR_EVER])
async def test_where_nobody_is_followed_nobody_is_waited_for(interval: float) -> None:
    async with probing(interval=interval) as rig:
        rig.complete(Endpoint("pod", "default", "127.0.0.1", 1, models=None if not interval else ()))
        await asked_again(rig)

        assert rig.probe.status()["followed"] == 0


# label and engine


async def test_a_label_that_the_engine_contradicts_is_counted_and_told_once() -> None:
    async with AnsweringServer(ok("m", owned_by="SGLang")) as server, probing(interval=SOON) as rig:
        base = server.endpoint(labels={ENGINE_LABEL: "vLLM"})
        await rig.answered(base)
        await server.asked(3)
        counted = rig.disagreements()
        rig.complete(server.endpoint(labels={ENGINE_LABEL: "sglang"}))
        relabelled = rig.disagreements()
        rig.complete(base)
        back = rig.disagreements()
        rig.complete()

        assert (counted, relabelled, back, rig.disagreements()) == (1, 0, 1, 0)
        line = {
            "level": "warning",
            "logger": "probe",
            "msg": "label and engine disagree",
            "endpoint": "default/pod",
            "destination": base.destination,
            "label": "vllm",
            "owned_by": "sglang",
        }
        assert rig.lines() == [line, line]


@pytest.mark.parametrize(
    ("labels", "owned_by"),
    [
        ({}, "sglang"),
        ({ENGINE_LABEL: "no owner!"}, "sglang"),
        ({ENGINE_LABEL: "vllm"}, " "),
        ({ENGINE_LABEL: "TRT-LLM"}, "trtllm"),
        ({ENGINE_LABEL: "", "model.aibrix.ai/engine": "vllm"}, "vLLM"),
    ],
)
async def test_where_one_of_them_says_nothing_or_both_the_same_there_is_no_disagreement(
    labels: dict[str, str], owned_by: str
) -> None:
    async with AnsweringServer(ok("m", owned_by=owned_by)) as server, probing() as rig:
        await rig.answered(server.endpoint(labels=labels))

        assert (rig.disagreements(), rig.lines()) == (0, [])


# what is read

LONG = "x" * 256


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], Listing("", ())),
        ([{"id": "m"}], Listing("", (Model("m"),))),
        (
            [{"id": "m", "created": 1, "max_model_len": 2, "owned_by": " vllm ", "permission": [{}], "root": None}],
            Listing("vllm", (Model("m", 1, 2),)),
        ),
        ([{"id": "m", "created": 1.9, "max_model_len": 2.0}], Listing("", (Model("m", 1, 2),))),
        ([{"id": "m", "created": None, "max_model_len": None, "owned_by": None}], Listing("", (Model("m"),))),
        ([{"id": "m", "created": "1", "max_model_len": [], "owned_by": 7}], Listing("", (Model("m"),))),
        ([{"id": "m", "created": True, "max_model_len": -1}], Listing("", (Model("m"),))),
        ([{"id": "m", "created": 2**53, "max_model_len": 10**30}], Listing("", (Model("m"),))),
        ([{"id": "m", "owned_by": LONG + "x"}], Listing("", (Model("m"),))),
        ([{"id": LONG}, {"id": "é"}], Listing("", (Model(LONG), Model("é")))),
        (
            [{"id": "m", "owned_by": "vllm", "max_model_len": 1}, {"id": "lora", "parent": "m", "owned_by": "me"}],
            Listing("vllm", (Model("m", None, 1), Model("lora"))),
        ),
        ([{"id": "m", "max_model_len": 1}, {"id": "m", "max_model_len": 2}], Listing("", (Model("m", None, 1),))),
        ([{"id": str(number)} for number in range(1000)], Listing("", tuple(Model(str(n)) for n in range(1000)))),
    ],
)
def test_a_list_of_models_is_read(data: object, expected: Listing) -> None:
    assert parse_listing(json.dumps({"object": "list", "data": data}).encode()) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a list of models: Input data was truncated"),
        (b"[]", "not a list of models: Expected `object`, got `array`"),
        (b"{}", "not a list of models: Object missing required field `data`"),
        (b'{"data": null}', "not a list of models: Expected `array`, got `null` - at `$.data`"),
        (b'{"data": ["m"]}', "not a list of models: Expected `object`, got `str` - at `$.data[0]`"),
        (b'{"data": [{}]}', "not a list of models: `$.data[0].id` is not a string of 1 to 256 characters"),
        (b'{"data": [{"id": ""}]}', "not a list of models: `$.data[0].id` is not a string of 1 to 256 characters"),
        (
            b'{"data": [{"id": "m"}, {"id": 1}]}',
            "not a list of models: `$.data[1].id` is not a string of 1 to 256 characters",
        ),
        (
            b'{"data": [{"id": "' + b"x" * 257 + b'"}]}',
            "not a list of models: `$.data[0].id` is not a string of 1 to 256 characters",
        ),
        (b'{"data": [], "x": "\xff"}', "not a list of models: not UTF-8"),
        (b'{"data": [{"id": ' + b"[" * 100_000, "not a list of models: nested too deeply"),
        (b'{"data": [], "x": ' + b"[" * 100_000, "not a list of models: nested too deeply"),
        (json.dumps({"data": [{"id": "m"}] * 1001}).encode(), "more than 1000 models"),
    ],
)
def test_what_is_no_list_of_models_is_refused_with_its_reason(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        parse_listing(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "created", "owned_by", "x"]), inner),
)
BODIES = st.binary() | (JSON | st.fixed_dictionaries({"data": JSON | st.lists(JSON)})).map(
    lambda value: json.dumps(value).encode()
)


@given(BODIES)
def test_whatever_an_engine_sends_is_a_list_of_models_or_a_value_error(body: bytes) -> None:
    try:
        listing = parse_listing(body)
    except ValueError:
        return
    assert len({model.id for model in listing.models}) == len(listing.models)
    assert all(isinstance(model.created, int | None) for model in listing.models)
