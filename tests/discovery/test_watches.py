# SPDX-License-Identifier: Apache-2.0
"""All watches of a process: which there are, what they tell people, and what happens when they are to list anew."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from extproc.discovery.configmap import PolicyMap
from extproc.discovery.watches import Watches
from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.document import DocumentError
from tests.fakes.api_server import PATIENCE, ApiServer, Exchange, write_kubeconfig

CONFIG_MAPS = "/api/v1/namespaces/team-a/configmaps"
PODS = "/api/v1/namespaces/team-a/pods"
FORBIDDEN = {"message": "no", "code": 403}


class Rig:
    """Watches at a server whose lists are answered by what the test says of each name, and whose watches stand."""

    def __init__(self, server: ApiServer, watches: Watches, metrics: Metrics) -> None:
        self.server = server
        self.watches = watches
        self.metrics = metrics
        self.answers: dict[str, tuple[int, Any] | None] = {}
        self.events: list[str] = []
        self.posted = asyncio.Event()
        self.lists: list[str] = []
        self.applied: list[bytes] = []
        self.told: list[tuple[str, str | None]] = []
        self._tasks: list[asyncio.Task[Any]] = []

    def apply(self, text: bytes) -> None:
        if text == b"bad":
            raise DocumentError("line 1: bad")
        self.applied.append(text)

    def on_load(self, one: PolicyMap, error: str | None) -> None:
        self.told.append((str(one), error))

    def run(self) -> None:
        self._tasks = [asyncio.create_task(job) for job in (*self.watches.jobs(), self._serve())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def synced(self, *names: str) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*map(self.watches.synced, names))

    async def _serve(self) -> None:
        while True:
            exchange = await self.server._arrived.get()
            if exchange.method == "POST":
                self.events.append(exchange.path)
                self.posted.set()
                await exchange.json(201, {})
            elif "watch" in exchange.query:
                await exchange.stream()
            else:
                await self._list(exchange)

    async def _list(self, exchange: Exchange) -> None:
        name = exchange.query.get("fieldSelector", exchange.path).rpartition("=")[2]
        self.lists.append(name)
        answer = self.answers.get(name, (200, page()))
        if answer is not None:
            await exchange.json(*answer)


def page(*objects: Any) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": "5"}, "items": list(objects)}


def config_map(name: str, **data: str) -> tuple[int, Any]:
    metadata = {"name": name, "namespace": "team-a", "resourceVersion": "3"}
    return 200, page({"metadata": metadata, "data": {key.replace("_", "."): text for key, text in data.items()}})


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    metrics = Metrics()
    async with ApiServer() as server, contextlib.AsyncExitStack() as stack:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", server.url, namespace="team-a")
        watches = Watches(kubeconfig, metrics, make_logger("json", "critical", io.BytesIO()))
        await watches.connect()
        stack.push_async_callback(watches.close)
        rig = Rig(server, watches, metrics)
        stack.push_async_callback(rig.stop)
        yield rig


class TestRouting:
    """The routing entries' own ConfigMap."""

    @pytest.mark.parametrize(
        ("said", "policy", "where"),
        [("", None, "team-a"), ("", "gateway/owned-by", "gateway"), ("other", "gateway/owned-by", "other")],
    )
    async def test_it_is_beside_the_policy_or_with_us(
        self, rig: Rig, said: str, policy: str | None, where: str
    ) -> None:
        if policy:
            rig.watches.follow_policy(policy, rig.apply, rig.on_load)
        store = rig.watches.follow_routing(said, rig.apply, rig.on_load)

        assert (str(store), str(rig.watches.routing)) == (f"{where}/owned-by-routing",) * 2
        assert rig.watches.names == (("policy", "routing") if policy else ("routing",))

    async def test_it_is_followed_beside_the_policy(self, rig: Rig) -> None:
        rig.answers["owned-by"] = config_map("owned-by", policy_yaml="policy")
        rig.answers["owned-by-routing"] = config_map("owned-by-routing", routing_yaml="routing", policy_yaml="none")
        rig.watches.follow_policy("owned-by", rig.apply, rig.on_load)
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        rig.run()
        await rig.synced("policy", "routing")
        status = rig.watches.status()
        for name in ("policy", "routing"):
            status[name]["watch"].pop("age_seconds")
        watch = {"objects": 1, "synced": True, "error": None}

        assert sorted(rig.applied) == [b"policy", b"routing"]
        assert sorted(rig.told) == [("team-a/owned-by", None), ("team-a/owned-by-routing", None)]
        assert status == {
            "policy": {"configmap": "team-a/owned-by", "error": None, "watch": watch},
            "routing": {"configmap": "team-a/owned-by-routing", "error": None, "watch": watch},
        }

    async def test_neither_hides_the_figures_of_the_other(self, rig: Rig) -> None:
        rig.watches.follow_policy("owned-by", rig.apply, rig.on_load)
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        found = [sample.labels for metric in rig.metrics.watch_staleness.collect() for sample in metric.samples]

        assert found == [
            {"resource": "configmaps", "namespace": "team-a"},
            {"resource": "configmaps/owned-by-routing", "namespace": "team-a"},
        ]

    async def test_if_it_does_not_exist_there_are_no_entries(self, rig: Rig) -> None:
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        rig.run()
        await rig.synced("routing")

        assert (rig.applied, rig.told, rig.events) == ([b""], [("team-a/owned-by-routing", None)], [])
        assert rig.watches.status()["routing"]["error"] is None

    async def test_a_role_that_is_older_than_it_is_told_and_keeps_nobody_waiting(self, rig: Rig) -> None:
        rig.answers["owned-by-routing"] = (403, FORBIDDEN)
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        rig.run()
        await rig.synced("routing")

        assert rig.applied == [b""]
        assert rig.watches.status()["routing"]["error"] == (
            "the permission to list configmaps/owned-by-routing in namespace team-a is missing: no"
        )

    async def test_entries_that_are_bad_at_the_start_are_waited_for_and_told(self, rig: Rig) -> None:
        rig.answers["owned-by-routing"] = config_map("owned-by-routing", routing_yaml="bad")
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        rig.run()
        waiting = asyncio.create_task(rig.synced("routing"))
        assert rig.watches.routing is not None
        before = await rig.watches.relist(), waiting.done(), rig.watches.status()["routing"]["error"]
        rig.answers["owned-by-routing"] = config_map("owned-by-routing", routing_yaml="good")
        await rig.watches.relist()
        await waiting
        async with asyncio.timeout(PATIENCE):
            await rig.posted.wait()

        assert before == ({}, False, "routing.yaml: line 1: bad")
        assert (rig.applied, rig.events) == ([b"good"], ["/api/v1/namespaces/team-a/events"])


class TestRelist:
    """Everything anew, now."""

    async def test_everything_is_listed_and_what_is_new_is_known_then(self, rig: Rig) -> None:
        changes: list[None] = []
        rig.watches.follow_pools(lambda: changes.append(None), ())
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        rig.run()
        await rig.synced(*rig.watches.names)
        before = len(rig.lists)
        rig.answers["owned-by-routing"] = config_map("owned-by-routing", routing_yaml="new")
        errors = await rig.watches.relist()

        assert (errors, rig.applied) == ({}, [b"", b"new"])
        assert sorted(rig.lists[before:]) == sorted(rig.lists[:before])
        assert len(rig.lists) == 8

    async def test_what_fails_is_named_and_the_rest_is_applied(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("extproc.discovery.watches.PATIENCE", 0.2)
        rig.watches.follow_pods(lambda: None, ("*",), {"app": "x"}, (8000,), None)
        rig.watches.follow_policy("owned-by", rig.apply, rig.on_load)
        rig.watches.follow_routing("", rig.apply, rig.on_load)
        rig.run()
        await rig.synced("pods", "routing")
        rig.answers |= {
            "owned-by": config_map("owned-by", policy_yaml="new"),
            "owned-by-routing": (403, FORBIDDEN),
            "/api/v1/pods": None,
        }
        errors = await rig.watches.relist()

        assert errors == {
            "pods/*": "not listed within 0.2 s",
            "routing/team-a": "the permission to list configmaps/owned-by-routing in namespace team-a is missing: no",
        }
        assert rig.applied == [b"", b"new"]

    async def test_nobody_is_waited_for_longer_than_for_one(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("extproc.discovery.watches.PATIENCE", 0.2)
        namespaces = tuple(f"ns-{number}" for number in range(20))
        rig.watches.follow_pods(lambda: None, namespaces, {"app": "x"}, (8000,), None)
        started = asyncio.get_running_loop().time()
        errors = await rig.watches.relist()  # none of them runs

        assert errors == {f"pods/{namespace}": "not listed within 0.2 s" for namespace in namespaces}
        assert asyncio.get_running_loop().time() - started < 20 * 0.2

    async def test_where_nothing_is_followed_nothing_is_listed(self, rig: Rig) -> None:
        assert await rig.watches.relist() == {}
