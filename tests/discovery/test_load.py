# SPDX-License-Identifier: Apache-2.0
"""How busy endpoints say they are: over real HTTP, on loopback."""

import asyncio
import contextlib
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from msgspec.structs import replace

from extproc.demo.engines import Engines, Simulated
from extproc.discovery.asking import ProbeConfig
from extproc.discovery.load import LoadConfig, LoadWatch
from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.pick import Load
from extproc.policy.types import Endpoint, Pool, Snapshot
from tests.fakes.answers import FAILURE, NEVER, AnsweringServer, answer

CHAT = Pool("default", "chat")
OTHER = Pool("default", "other")
SOON = 0.02
LONG = 60.0


def says(waiting: int) -> bytes:
    return answer(b"vllm:num_requests_waiting %d\n" % waiting)


def hosts(count: int) -> tuple[str, ...]:
    return tuple(f"127.0.0.{number}" for number in range(1, count + 1))


class Rig:
    """A watch with what it was given. `snapshot` is what it sees next time; it looks once per interval."""

    def __init__(self, config: LoadConfig) -> None:
        self.snapshot = Snapshot()
        self.looks = 0
        self.metrics = Metrics()
        self._looked = asyncio.Event()
        self._stream = io.BytesIO()
        self.watch = LoadWatch(config, self._look, self.metrics, make_logger("json", "info", self._stream))

    def _look(self) -> Snapshot:
        self.looks += 1
        self._looked.set()
        return self.snapshot

    def show(self, *endpoints: Endpoint) -> None:
        self.snapshot = Snapshot(0, (CHAT,), {CHAT: endpoints})

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait for a publication after which it is so."""
        async with asyncio.timeout(20):
            while not wanted():
                self._looked.clear()
                await self._looked.wait()

    async def intervals(self, number: int) -> None:
        last = self.looks + number
        await self.until(lambda: self.looks >= last)

    def lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [{key: value for key, value in line.items() if key != "ts"} for line in lines]

    def ended(self) -> tuple[float | None, ...]:
        """How many endpoints answered when they were last asked, and how many did not."""
        return tuple(self.figure("owned_by_load_endpoints", result=result) for result in ("ok", "failed"))

    def figure(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def configured(asking: dict[str, Any] | None = None, **config: Any) -> LoadConfig:
    """Soon and for long, if nothing else is said."""
    return LoadConfig(**{"interval": SOON, "stale": LONG} | config, asking=ProbeConfig(**asking or {}))


@contextlib.asynccontextmanager
async def watching(*endpoints: Endpoint, asking: dict[str, Any] | None = None, **config: Any) -> AsyncIterator[Rig]:
    rig = Rig(configured(asking, **config))
    rig.show(*endpoints)
    task = asyncio.create_task(rig.watch.run())
    try:
        yield rig
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def pods(engines: Engines) -> list[Endpoint]:
    return [Endpoint(engine.name, "default", engine.host, engine.port) for engine in engines.endpoints]


# what engines say is there


async def test_what_both_kinds_of_engine_say_is_there_by_destination() -> None:
    async with Engines([Simulated("a", "vllm", "m"), Simulated("b", "sglang", "n")]) as engines:
        engines.load("a", waiting=3, kv_cache=0.5)
        a, b = pods(engines)
        async with watching(a, b) as rig:
            await rig.until(lambda: len(rig.watch.current) == 2)

            assert rig.watch.current == {a.destination: Load(3.0, 0.5), b.destination: Load(0.0, 0.0)}
            assert 0 <= rig.watch.status()["age_seconds"] < 20
            assert rig.watch.status() == {"age_seconds": ANY, "followed": 2, "fresh": 2, "failing": 0, "failures": []}
            assert rig.figure("owned_by_load_fresh_endpoints") == 2
            assert (rig.figure("owned_by_load_scrapes_total", result="ok") or 0) >= 2
            assert rig.figure("owned_by_load_scrapes_total", result="failed") is None
            assert rig.lines() == []


async def test_new_figures_are_another_mapping_and_the_old_one_stays_as_it_was() -> None:
    async with Engines([Simulated("a", "vllm", "m")]) as engines:
        (a,) = pods(engines)
        async with watching(a) as rig:
            await rig.until(lambda: bool(rig.watch.current))
            before = rig.watch.current
            engines.load("a", waiting=1)
            await rig.until(lambda: rig.watch.current is not before)

            assert [before, rig.watch.current] == [{a.destination: Load(0.0, 0.0)}, {a.destination: Load(1.0, 0.0)}]


async def test_while_nothing_changes_the_mapping_is_the_same_object() -> None:
    async with AnsweringServer(says(1)) as server, watching(*server.endpoints) as rig:
        await rig.until(lambda: bool(rig.watch.current))
        before = rig.watch.current
        await server.asked(len(server.heads) + 3)
        await rig.intervals(2)

        assert rig.watch.current is before


async def test_between_two_publications_nothing_new_is_shown() -> None:
    rig = Rig(configured())
    rig.show(Endpoint("pod", "default", "127.0.0.1", 1))
    (target,) = rig.watch._follow()
    rig.watch._heard(target, 0.0, Load(1.0, 0.0))
    before = rig.watch.current
    rig.watch._publish(1.0)

    assert [before, rig.watch.current] == [{}, {"127.0.0.1:1": Load(1.0, 0.0)}]


# who is asked


async def test_a_destination_is_asked_once_whatever_pools_it_is_in() -> None:
    async with AnsweringServer(says(1)) as server, watching() as rig:
        server.gate = asyncio.Semaphore(0)
        members = tuple(server.endpoints)
        rig.snapshot = Snapshot(0, (CHAT, OTHER), {CHAT: members, OTHER: (*members, replace(members[0], name="alias"))})
        await server.asked(1)
        await rig.intervals(5)

        assert (len(server.heads), rig.watch.status()["followed"]) == (1, 1)


async def test_an_endpoint_that_is_not_ready_is_not_asked() -> None:
    async with AnsweringServer(says(1)) as other, AnsweringServer(says(2)) as server:
        async with watching(replace(server.endpoints[0], ready=False), *other.endpoints) as rig:
            await rig.until(lambda: bool(rig.watch.current))
            before = (rig.watch.current, server.connections)
            rig.show(*server.endpoints)
            await rig.until(lambda: rig.watch.current == {server.endpoints[0].destination: Load(2.0, 0.0)})

        assert before == ({other.endpoints[0].destination: Load(1.0, 0.0)}, 0)


@pytest.mark.parametrize("vanished", [True, False])
async def test_an_endpoint_that_vanished_or_is_not_ready_any_more_drops_out_at_the_next_look(*, vanished: bool) -> None:
    async with AnsweringServer(says(1), hosts=hosts(2)) as server, watching(*server.endpoints) as rig:
        one, two = server.endpoints
        await rig.until(lambda: len(rig.watch.current) == 2)
        rig.show(*([] if vanished else [replace(one, ready=False)]), two)
        await rig.intervals(1)

        assert rig.watch.current == {two.destination: Load(1.0, 0.0)}
        assert rig.figure("owned_by_load_fresh_endpoints") == 1


async def test_a_pod_that_takes_the_address_of_another_is_somebody_else() -> None:
    async with AnsweringServer(says(1), says(2), says(3)) as server, watching(*server.endpoints) as rig:
        (base,) = server.endpoints
        server.gate = asyncio.Semaphore(1)
        await rig.until(lambda: bool(rig.watch.current))
        await server.asked(2)
        before = rig.watch.current
        rig.show(replace(base, uid="other"))
        await rig.intervals(1)
        at_once = rig.watch.current
        await server.asked(3)
        server.gate.release()  # for the second, which nobody waits for any more
        server.gate.release()
        await rig.until(lambda: bool(rig.watch.current))

        assert [before, at_once, rig.watch.current] == [
            {base.destination: Load(1.0, 0.0)},
            {},
            {base.destination: Load(3.0, 0.0)},
        ]


async def test_an_endpoint_that_only_has_other_labels_keeps_its_figures() -> None:
    async with AnsweringServer(says(1), NEVER) as server, watching(*server.endpoints) as rig:
        await rig.until(lambda: bool(rig.watch.current))
        before = rig.watch.current
        rig.show(replace(server.endpoints[0], labels={"a": "b"}))
        await rig.intervals(2)

        assert rig.watch.current is before


# what fails


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer(b"", "404 Not Found"), "status 404"),
        (answer(b"", "307 Temporary Redirect"), "status 307"),
        (answer(b"<html>secret</html>"), "no load figures: nothing says how many requests wait"),
        (answer(b" " * 4_194_305), "the answer has more than 4194304 bytes"),
        (b"SSH-2.0-secret\r\n\r\n", "no HTTP answer: ClientResponseError"),
        (NEVER, "no answer within 0.1 s"),
    ],
    ids=["nothing there", "elsewhere", "garbage", "huge", "no HTTP", "no end"],
)
async def test_an_answer_that_is_of_no_use_is_told_and_counted(said: bytes, error: str) -> None:
    slow = "within" in error
    async with (
        AnsweringServer(said) as server,
        watching(*server.endpoints, asking={"timeout": 0.1 if slow else 20.0}) as rig,
    ):
        await rig.until(lambda: rig.watch.status()["failing"] == 1)
        destination = server.endpoints[0].destination

        assert rig.watch.current == {}
        assert rig.watch.status() == {
            "age_seconds": ANY,
            "followed": 1,
            "fresh": 0,
            "failing": 1,
            "failures": [{"destination": destination, "error": error}],
        }
        assert (rig.figure("owned_by_load_scrapes_total", result="failed") or 0) >= 1
        assert rig.figure("owned_by_load_scrapes_total", result="ok") is None
        assert rig.lines() == [
            {
                "level": "warning",
                "logger": "load",
                "msg": "the endpoint does not say how busy it is",
                "endpoint": "default/pod-0",
                "destination": destination,
                "error": error,
            }
        ]


async def test_a_connection_that_is_refused_is_a_failure() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, and nobody listens
        async with watching(Endpoint("pod", "default", *bound.getsockname())) as rig:
            await rig.until(lambda: rig.watch.status()["failing"] == 1)

            assert rig.watch.status()["failures"][0]["error"].startswith("cannot connect: ")


async def test_failures_in_a_row_are_told_once_and_so_is_their_end() -> None:
    async with AnsweringServer(says(1), FAILURE, FAILURE, says(2)) as server, watching(*server.endpoints) as rig:
        destination = server.endpoints[0].destination
        await rig.until(lambda: rig.watch.current == {destination: Load(2.0, 0.0)})
        names = {"logger": "load", "endpoint": "default/pod-0", "destination": destination}
        begins = {"level": "warning", "msg": "the endpoint does not say how busy it is", "error": "status 500"}

        assert rig.lines() == [
            names | begins,
            names | {"level": "info", "msg": "the endpoint says again how busy it is"},
        ]
        assert rig.watch.status() == {"age_seconds": ANY, "followed": 1, "fresh": 1, "failing": 0, "failures": []}


async def test_endpoints_are_counted_by_how_their_last_answer_was() -> None:
    async with (
        AnsweringServer(says(1)) as good,
        AnsweringServer(says(1), FAILURE) as bad,
        AnsweringServer(b"") as silent,
    ):
        well, ill, unheard = good.endpoints[0], bad.endpoints[0], silent.endpoints[0]
        async with watching(well, ill, unheard, asking={"timeout": 60}) as rig:
            before = rig.ended()
            await rig.until(lambda: rig.watch.status()["failing"] == 1 and well.destination in rig.watch.current)

            assert (before, rig.ended()) == ((0, 0), (1, 1))


async def test_a_failure_leaves_the_figures_until_they_are_stale() -> None:
    async with AnsweringServer(says(1), FAILURE) as server, watching(*server.endpoints, stale=1.0) as rig:
        await rig.until(lambda: rig.watch.status()["failing"] == 1)
        before = rig.watch.current
        await rig.until(lambda: not rig.watch.current)

        assert before == {server.endpoints[0].destination: Load(1.0, 0.0)}
        assert rig.figure("owned_by_load_fresh_endpoints") == 0


def test_figures_are_shown_only_if_they_are_fresh_until_the_next_publication() -> None:
    rig = Rig(configured(interval=1.0, stale=5.0))
    rig.show(Endpoint("pod", "default", "127.0.0.1", 1))
    (target,) = rig.watch._follow()
    rig.watch._heard(target, 100.0, Load(1.0, 0.0))
    shown = []
    for now in (100.0, 104.0, 104.1):
        rig.watch._publish(now)
        shown.append(len(rig.watch.current))

    assert shown == [1, 1, 0]


@pytest.mark.parametrize(
    ("interval", "expected"), [(1.0, [1, 2, 4, 8, 16, 32, 60, 60]), (90.0, [90, 90, 90, 90, 90, 90, 90, 90])]
)
def test_the_pauses_between_failures_grow_up_to_a_minute(interval: float, expected: list[float]) -> None:
    rig = Rig(configured(interval=interval, stale=300.0))
    rig.show(Endpoint("pod", "default", "127.0.0.1", 1))
    (target,) = rig.watch._follow()
    pauses = []
    for _ in range(8):
        rig.watch._heard(target, 0.0, "no")
        pauses.append(target.delay)
    rig.watch._heard(target, 0.0, Load(0.0, 0.0))

    assert (pauses, target.delay) == (expected, 0.0)


async def test_an_endpoint_without_metrics_is_not_asked_at_every_interval() -> None:
    async with AnsweringServer(answer(b"", "404 Not Found")) as server, watching(*server.endpoints) as rig:
        await server.asked(1)
        await rig.intervals(40)

        assert len(server.heads) < 15


def test_no_more_than_twenty_failures_are_shown() -> None:
    rig = Rig(configured())
    rig.show(*(Endpoint(f"pod-{number}", "default", "127.0.0.1", number) for number in range(10, 40)))
    for target in rig.watch._follow():
        rig.watch._heard(target, 0.0, "no")
    shown = [{"destination": f"127.0.0.1:{number}", "error": "no"} for number in range(10, 30)]

    assert rig.watch.status() == {"age_seconds": None, "followed": 30, "fresh": 0, "failing": 30, "failures": shown}


# who waits for whom


async def test_a_slow_endpoint_is_not_asked_twice_at_once_and_does_not_hold_up_the_others() -> None:
    async with AnsweringServer(NEVER) as slow, Engines([Simulated("a", "vllm", "m")]) as engines:
        (a,) = pods(engines)
        async with watching(*slow.endpoints, a) as rig:
            await slow.asked(1)
            for waiting in range(1, 4):
                engines.load("a", waiting=waiting)
                expected = {a.destination: Load(float(waiting), 0.0)}
                await rig.until(lambda expected=expected: rig.watch.current == expected)

            assert (len(slow.heads), rig.watch.status()["failing"]) == (1, 0)


async def test_no_more_endpoints_are_asked_at_a_time_than_is_allowed() -> None:
    async with AnsweringServer(says(1), hosts=hosts(5)) as server:
        server.gate = asyncio.Semaphore(0)
        async with watching(*server.endpoints, asking={"concurrency": 2}) as rig:
            await server.asked(2)
            await rig.intervals(5)
            asked = len(server.heads)
            for _ in range(20):
                server.gate.release()
            await rig.until(lambda: len(rig.watch.current) == 5)

        assert (asked, server.most) == (2, 2)


async def test_endpoints_that_failed_leave_places_to_the_others() -> None:
    async with (
        AnsweringServer(FAILURE, hosts=hosts(6)) as server,
        watching(*server.endpoints, asking={"concurrency": 8}) as rig,
    ):
        await rig.until(lambda: rig.watch.status()["failing"] == 6)
        server.gate = asyncio.Semaphore(0)
        await rig.until(lambda: server.open == 2)
        asked = len(server.heads)
        await rig.intervals(10)

        assert (len(server.heads), server.open) == (asked, 2)


async def test_an_endpoint_that_is_not_followed_any_more_is_left_alone() -> None:
    async with AnsweringServer(says(1), hosts=hosts(2)) as server, watching(*server.endpoints) as rig:
        one, two = server.endpoints
        server.gate = asyncio.Semaphore(0)
        await server.asked(2)
        rig.show(two)
        await rig.intervals(1)
        for _ in range(1000):
            server.gate.release()
        await server.asked(8)

        assert sum(f"host: {one.destination}" in head.lower() for head in server.heads) == 1


# how it is asked


async def test_an_endpoint_is_asked_for_text_with_the_token_over_one_connection(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    async with AnsweringServer(says(1)) as server, watching(*server.endpoints, asking={"token_file": token}):
        await server.asked(3)
        head = [line for line in server.heads[2].lower().split("\r\n") if not line.startswith("user-agent: ")]

        assert server.connections == 1
        assert sorted(head) == [
            "",
            "",
            "accept-encoding: identity",
            "accept: text/plain; version=0.0.4",
            "authorization: bearer secret",
            "get /metrics http/1.1",
            f"host: {server.endpoints[0].destination}",
        ]


async def test_the_probes_interval_has_no_say_and_its_timeout_no_more_than_half_the_time_to_live() -> None:
    async with AnsweringServer(NEVER) as server:
        asking = {"interval": 0.0, "timeout": 20.0}
        async with watching(*server.endpoints, asking=asking, stale=0.2) as rig:
            await rig.until(lambda: rig.watch.status()["failing"] == 1)

            assert rig.watch.status()["failures"][0]["error"] == "no answer within 0.1 s"


async def test_with_no_interval_nobody_is_asked() -> None:
    async with AnsweringServer(says(1)) as server, watching(*server.endpoints, interval=0.0, stale=0.0) as rig:
        for _ in range(10):
            await asyncio.sleep(0)

        assert (rig.looks, server.connections, rig.watch.current) == (0, 0, {})
        assert rig.watch.status() == {"age_seconds": None, "followed": 0, "fresh": 0, "failing": 0, "failures": []}


def test_figures_that_would_come_and_go_are_an_error_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"load figures must live for at least three intervals: 2.9 < 3 \* 1$"):
        LoadConfig(interval=1.0, stale=2.9)


def test_a_file_of_authorities_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Rig(configured({"scheme": "https", "ca_file": tmp_path / "none"}))
