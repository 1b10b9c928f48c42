# SPDX-License-Identifier: Apache-2.0
"""Routing entries in a ConfigMap of a real API server, under our own Role: written, followed, and nobody's are lost."""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.policy import PolicyStore
from extproc.discovery.routingmap import KEY, NAME, ConfigMapRouting
from extproc.discovery.watches import Watches
from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.config import Route, Selector
from extproc.policy.routing import Refused, Routing, parse_routing, put, remove, routing_document
from extproc.policy.types import Pool
from tests.heard import PATIENCE
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.program import deployed, labels, pool
from tests.kubernetes.resources import CORE, collection
from tests.manifests import kustomize

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

WITHIN: Final = 1.0
"""Seconds in which an entry is in force everywhere."""


@pytest_asyncio.fixture(loop_scope="session")
async def kubeconfig(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[Path]:
    async with deployed(control_plane, namespace, tmp_path) as path:
        yield path


@pytest.fixture
def admins(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Path:
    """The kubeconfig of one who may do everything."""
    (tmp_path / "admin").write_text(control_plane.admin_token)
    return control_plane.kubeconfig(tmp_path / "admins", token_file=tmp_path / "admin", namespace=namespace)


@contextlib.asynccontextmanager
async def store_of(kubeconfig: Path, namespace: str) -> AsyncIterator[ConfigMapRouting]:
    """A store with connections of its own, as each replica has one."""
    api = KubernetesApi(kubeconfig)
    await api.connect()
    try:
        yield ConfigMapRouting(api, namespace)
    finally:
        await api.close()


def route(model: str, app: str = "canary") -> Route:
    return Route(model, "vllm", Selector({"app": app}))


def path_in(namespace: str) -> str:
    return f"{collection(CORE, 'configmaps', namespace)}/{NAME}"


async def models(control_plane: ControlPlane, namespace: str) -> list[str]:
    """The models that have an entry, as everybody can read it."""
    found = await control_plane.request("GET", path_in(namespace))
    return [each.model for each in parse_routing(found["data"][KEY].encode())]


def shown(outcome: Routing | Refused) -> list[str] | Refused:
    return outcome if isinstance(outcome, Refused) else [each.model for each in outcome.routes]


class TestOne:
    """One who writes."""

    async def test_entries_come_and_go_and_all_else_stays(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        marked = {"labels": {"team": "a"}, "annotations": {"note": "x"}}
        before = await control_plane.request("GET", path_in(namespace))
        before["metadata"] |= marked
        await control_plane.request("PUT", path_in(namespace), before | {"data": {"other": "kept"}})
        seen = []
        async with store_of(kubeconfig, namespace) as store:
            for edit in (put(route("m")), put(route("n")), put(route("n", "other")), remove("m", "vllm")):
                outcome, found = await store.change(edit), await store.read()
                assert isinstance(outcome, Routing)
                assert isinstance(found, Routing)
                seen.append((shown(outcome), shown(found), outcome.version == found.version))
        after = await control_plane.request("GET", path_in(namespace))

        assert seen == [(names, names, True) for names in (["m"], ["m", "n"], ["m", "n"], ["n"])]
        assert after["data"] == {"other": "kept", KEY: routing_document((route("n", "other"),))}
        assert {name: after["metadata"][name] for name in marked} == marked

    async def test_what_is_so_already_is_not_written(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        async with store_of(kubeconfig, namespace) as store:
            first, again = await store.change(put(route("m"))), await store.change(put(route("m")))
        after = await control_plane.request("GET", path_in(namespace))

        assert isinstance(first, Routing)
        assert isinstance(again, Routing)
        assert first.version == again.version == after["metadata"]["resourceVersion"]

    async def test_a_version_holds_until_somebody_writes(self, namespace: str, kubeconfig: Path) -> None:
        async with store_of(kubeconfig, namespace) as store:
            first = await store.change(put(route("m")))
            assert isinstance(first, Routing)
            second = await store.change(put(route("n")), first.version)
            late = await store.change(put(route("o")), first.version)
        assert isinstance(second, Routing)

        assert late == Refused(
            "conflict",
            f"the ConfigMap {namespace}/{NAME} is at version {second.version}; version {first.version} was meant",
        )

    async def test_who_applies_the_manifests_again_leaves_the_entries(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
    ) -> None:
        document = kustomize.one(kustomize.deployed(tmp_path / "again", namespace=namespace), "ConfigMap", NAME)
        async with store_of(kubeconfig, namespace) as store:
            await store.change(put(route("m")))
        for _ in range(2):  # as `kubectl apply --server-side` does it
            query = "?fieldManager=kubectl&force=true"
            kind = "application/apply-patch+yaml"
            await control_plane.request("PATCH", path_in(namespace) + query, document, content_type=kind)

        assert await models(control_plane, namespace) == ["m"]


class TestMany:
    """Several who write at once lose nothing."""

    async def test_entries_of_two_replicas_are_all_there(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        async with store_of(kubeconfig, namespace) as one, store_of(kubeconfig, namespace) as other:
            names = [f"m{number}" for number in range(40)]
            stores = [(one, other)[number % 2] for number in range(len(names))]
            outcomes = await asyncio.gather(
                *(store.change(put(route(name))) for store, name in zip(stores, names, strict=True))
            )

        assert [each for each in outcomes if isinstance(each, Refused)] == []
        assert sorted(await models(control_plane, namespace)) == sorted(names)

    async def test_of_those_who_mean_the_same_version_one_writes(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(store_of(kubeconfig, namespace)) for _ in range(5)]
            first = await stores[0].change(put(route("m")))
            assert isinstance(first, Routing)
            outcomes = await asyncio.gather(
                *(store.change(put(route(f"n{number}")), first.version) for number, store in enumerate(stores))
            )

        written = [shown(each) for each in outcomes if isinstance(each, Routing)]
        refused = [each.code for each in outcomes if isinstance(each, Refused)]
        assert (written, refused) == ([await models(control_plane, namespace)], ["conflict"] * 4)

    async def test_a_configmap_that_several_make_at_once_has_the_entries_of_all(
        self, control_plane: ControlPlane, namespace: str, admins: Path
    ) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(store_of(admins, namespace)) for _ in range(4)]
            outcomes = await asyncio.gather(
                *(store.change(put(route(f"m{number}"))) for number, store in enumerate(stores))
            )

        assert [each for each in outcomes if isinstance(each, Refused)] == []
        assert sorted(await models(control_plane, namespace)) == ["m0", "m1", "m2", "m3"]


class TestRefused:
    """What the API server does not allow."""

    async def test_a_permission_that_is_missing_is_named(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
    ) -> None:
        documents = kustomize.deployed(tmp_path / "again", ["admin-readonly"], namespace=namespace)
        await control_plane.apply(kustomize.one(documents, "Role", "owned-by"))
        async with store_of(kubeconfig, namespace) as store:
            update = await store.change(put(route("m")))
            await control_plane.request("DELETE", path_in(namespace))
            create = await store.change(put(route("m")))
        async with store_of(kubeconfig, "default") as store:
            get = await store.read()

        assert isinstance(update, Refused)
        assert isinstance(create, Refused)
        assert isinstance(get, Refused)
        assert [each.code for each in (update, create, get)] == ["read_only"] * 3
        assert [each.message.partition(" is missing: ")[0] for each in (update, create, get)] == [
            f"the permission to update the ConfigMap {namespace}/{NAME}",
            f"the permission to create the ConfigMap {namespace}/{NAME}",
            f"the permission to get the ConfigMap default/{NAME}",
        ]

    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
    async def test_more_than_a_configmap_can_hold_is_too_large(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        async with store_of(kubeconfig, namespace) as store:
            await store.change(put(route("m")))
            refused = [await store.change(put(route("n", "x" * size))) for size in (1_100_000, 3_500_000)]
        assert [each.code for each in refused if isinstance(each, Refused)] == ["too_large"] * 2
        assert await models(control_plane, namespace) == ["m"]

    async def test_a_configmap_that_is_immutable_is_not_written(
        self, control_plane: ControlPlane, namespace: str, kubeconfig: Path
    ) -> None:
        found = await control_plane.request("GET", path_in(namespace))
        await control_plane.request("PUT", path_in(namespace), found | {"immutable": True})
        async with store_of(kubeconfig, namespace) as store:
            refused = await store.change(put(route("m")))

        assert isinstance(refused, Refused)
        assert (refused.code, "immutable" in refused.message) == ("read_only", True)


class Replica:
    """What a process follows and writes: the policy that it comes to, and when it last changed."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.watches = Watches(kubeconfig, Metrics(), make_logger("json", "critical", io.BytesIO()))
        self.policy = PolicyStore()
        self.pool = Pool(namespace, "chat")
        self._heard = asyncio.Event()

    async def follow(self) -> None:
        await self.watches.connect()
        self.cluster = self.watches.follow_pools(lambda: None, ())
        self.store = self.watches.follow_routing("", self.policy.apply_routing, lambda _map, _error: self._heard.set())

    async def synced(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*map(self.watches.synced, self.watches.names))

    @property
    def models(self) -> list[str]:
        return [each.model for each in self.policy.current().routing]

    async def has(self, *models: str) -> None:
        """Wait until these are the entries in force."""
        async with asyncio.timeout(PATIENCE):
            while self.models != [*models]:
                self._heard.clear()
                await self._heard.wait()

    @property
    def endpoints(self) -> list[str]:
        return [each.name for each in self.cluster.endpoints().get(self.pool, ())]


@pytest_asyncio.fixture(loop_scope="session")
async def replicas(kubeconfig: Path, namespace: str) -> AsyncIterator[list[Replica]]:
    """Two that follow the same namespace, synced."""
    found = [Replica(kubeconfig, namespace) for _ in range(2)]
    tasks: list[asyncio.Task[Any]] = []
    try:
        for replica in found:
            await replica.follow()
            tasks += [asyncio.create_task(job) for job in replica.watches.jobs()]
        for replica in found:
            await replica.synced()
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in found:
            await replica.watches.close()


class TestReplicas:
    """Two processes' worth of watches and stores."""

    async def test_an_entry_that_is_written_through_either_is_in_force_in_both_within_a_second(
        self, control_plane: ControlPlane, namespace: str, replicas: list[Replica]
    ) -> None:
        one, other = replicas
        steps = [
            (one, put(route("m")), ["m"]),
            (other, put(route("n")), ["m", "n"]),
            (other, remove("m", "vllm"), ["n"]),
            (one, remove("n", "vllm"), []),
        ]
        for writer, edit, wanted in steps:
            written = time.monotonic()
            assert shown(await writer.store.change(edit)) == wanted
            await asyncio.gather(*(replica.has(*wanted) for replica in replicas))
            assert time.monotonic() - written < WITHIN
        await one.store.change(put(route("m")))
        await control_plane.request("DELETE", path_in(namespace))
        await asyncio.gather(*(replica.has() for replica in replicas))

    async def test_what_somebody_writes_by_hand_is_in_force_and_what_is_bad_is_not(
        self, control_plane: ControlPlane, namespace: str, replicas: list[Replica]
    ) -> None:
        one, other = replicas
        await one.store.change(put(route("m")))
        await other.has("m")
        found = await control_plane.request("GET", path_in(namespace))
        await control_plane.request("PUT", path_in(namespace), found | {"data": {KEY: "routing: {}"}})
        await asyncio.gather(*(replica.watches.relist() for replica in replicas))
        kept = [replica.models for replica in replicas]
        refused = [await replica.store.change(put(route("n"))) for replica in replicas]
        found = await control_plane.request("GET", path_in(namespace))
        by_hand = routing_document((route("by-hand"),))
        await control_plane.request("PUT", path_in(namespace), found | {"data": {KEY: by_hand}})
        await asyncio.gather(*(replica.has("by-hand") for replica in replicas))

        assert kept == [["m"], ["m"]]
        assert [each.code for each in refused if isinstance(each, Refused)] == ["unreadable"] * 2

    async def test_all_that_there_is_is_known_once_it_is_listed_anew(
        self, control_plane: ControlPlane, namespace: str, replicas: list[Replica]
    ) -> None:
        one, other = replicas
        await control_plane.apply(pool("chat", namespace, 8000))
        await control_plane.pod("a", namespace, ip="127.0.1.1", labels=labels("vllm"))
        await other.store.change(put(route("m")))
        errors = await one.watches.relist()

        assert (errors, one.endpoints, one.models) == ({}, ["a"], ["m"])
