# SPDX-License-Identifier: Apache-2.0
"""What the manifests allow the program, asked of a real API server with the program's own token."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.kubernetes.conftest import fresh_namespace
from tests.kubernetes.controlplane import MERGE_PATCH, ControlPlane, RefusedError
from tests.kubernetes.program import NEEDED, in_namespace
from tests.kubernetes.resources import CORE, POOLS, POOLS_ALPHA, REWRITES, collection
from tests.manifests import kustomize

pytestmark = pytest.mark.asyncio(loop_scope="session")

OURS: Final = "fieldSelector=metadata.name%3Downed-by"
ROUTING: Final = "owned-by-routing"
READ: Final = ["get", "list", "watch"]
DISCOVERED: Final = {
    "pods": (CORE, "pods"),
    "pools": (POOLS, "inferencepools"),
    "pools of the older group": (POOLS_ALPHA, "inferencepools"),
    "rewrites": (REWRITES, "inferencemodelrewrites"),
    "rewrites of the older group": (POOLS_ALPHA, "inferencemodelrewrites"),
}
DISCOVERY_RULES: Final = [
    {"verbs": READ, "apiGroups": [""], "resources": ["pods"]},
    {
        "verbs": READ,
        "apiGroups": ["inference.networking.k8s.io", "inference.networking.x-k8s.io"],
        "resources": ["inferencepools"],
    },
    {
        "verbs": READ,
        "apiGroups": ["llm-d.ai", "inference.networking.x-k8s.io"],
        "resources": ["inferencemodelrewrites"],
    },
]
OWN_RULES: Final = [
    {"verbs": READ, "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["owned-by"]},
    {"verbs": [*READ, "update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [ROUTING]},
    {"verbs": ["create"], "apiGroups": [""], "resources": ["events"]},
]


@dataclass(frozen=True)
class Program:
    """The program's service account in its own namespace, and two more: one that it watches, one that it does not."""

    control_plane: ControlPlane
    token: str
    own: str
    watched: str
    other: str

    async def code(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> int:
        answer = await self.control_plane.ask(method, path, body, token=self.token, content_type=content_type)
        return answer.status

    async def watch_code(self, path: str) -> int:
        try:
            await self.control_plane.watch(path, token=self.token)
        except RefusedError as refused:
            return refused.status
        return 200

    async def rules(self, namespace: str) -> list[dict[str, Any]]:
        """All that it may do with resources there, apart from what everybody may who is known to the server."""
        mine, everybodys = [await self._review(namespace, token) for token in (self.token, await self._stranger())]
        return sorted((rule for rule in mine if rule not in everybodys), key=repr)

    async def _stranger(self) -> str:
        metadata = {"name": "stranger", "namespace": self.other}
        await self.control_plane.apply({"apiVersion": CORE, "kind": "ServiceAccount", "metadata": metadata})
        return await self.control_plane.token(self.other, "stranger", seconds=60)

    async def _review(self, namespace: str, token: str) -> list[dict[str, Any]]:
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        answer = await self.control_plane.ask("POST", path, body, token=token)
        assert not answer.body["status"]["incomplete"]
        return list(answer.body["status"]["resourceRules"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def program(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Program]:
    """What kustomize makes of `base` and `several-namespaces` is applied."""
    async with applied(control_plane, tmp_path_factory.mktemp("program"), "several-namespaces") as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Program]:
    """The same with `admin-readonly`, in one namespace."""
    async with applied(control_plane, tmp_path_factory.mktemp("reader"), "admin-readonly") as found:
        yield found


@contextlib.asynccontextmanager
async def applied(control_plane: ControlPlane, folder: Path, component: str) -> AsyncIterator[Program]:
    """`base` with a component; by itself `base` gives the program nothing outside its own namespace."""
    async with (
        fresh_namespace(control_plane) as own,
        fresh_namespace(control_plane) as watched,
        fresh_namespace(control_plane) as other,
    ):
        patches = in_namespace(watched) if component == "several-namespaces" else []
        documents = kustomize.deployed(folder, [component], namespace=own, patches=patches)
        documents = [each for each in documents if each["kind"] in (*NEEDED, "ClusterRole")]
        for document in documents:
            await control_plane.apply(document)
        another = {"name": "another", "namespace": own}
        await control_plane.apply({"apiVersion": CORE, "kind": "ConfigMap", "metadata": another, "data": {}})
        for namespace in (own, watched, other):
            await control_plane.pod("engine", namespace, ip="10.1.2.3", labels={})
        token = await control_plane.token(own, "owned-by", seconds=600)
        yield Program(control_plane, token, own, watched, other)
        for document in documents:
            if document["kind"].startswith("Cluster"):
                await control_plane.delete(document)


@pytest.mark.parametrize("resource", DISCOVERED)
async def test_it_discovers_in_its_own_namespace_and_in_the_watched_one(program: Program, resource: str) -> None:
    version, plural = DISCOVERED[resource]
    namespaces = {"own": program.own, "watched": program.watched, "other": program.other, "all": None}
    paths = {name: collection(version, plural, namespace) for name, namespace in namespaces.items()}
    listed = {name: await program.code("GET", path) for name, path in paths.items()}
    codes = await asyncio.gather(*(program.watch_code(path) for path in paths.values()))
    watched = dict(zip(paths, codes, strict=True))

    assert listed == {"own": 200, "watched": 200, "other": 403, "all": 403}
    assert watched == listed


@pytest.mark.parametrize(
    ("namespace", "path", "code"),
    [
        ("own", f"configmaps?{OURS}", 200),
        ("own", "configmaps/owned-by", 200),
        ("own", f"configmaps?{OURS}-routing", 200),
        ("own", f"configmaps/{ROUTING}", 200),
        ("own", "configmaps", 403),
        ("own", "configmaps?fieldSelector=metadata.name%3Danother", 403),
        ("own", "configmaps/another", 403),
        ("own", "secrets", 403),
        ("own", "secrets?fieldSelector=metadata.name%3Downed-by", 403),
        ("own", "events", 403),
        ("own", "services", 403),
        ("own", "pods/engine", 200),
        ("own", "pods/engine/log", 403),
        ("watched", "pods/engine", 200),
        ("watched", f"configmaps?{OURS}", 403),
        ("watched", "secrets", 403),
        ("other", "pods/engine", 403),
        ("other", f"configmaps?{OURS}", 403),
    ],
)
async def test_it_reads_no_more_than_it_needs(program: Program, namespace: str, path: str, code: int) -> None:
    folder = collection(CORE, path, getattr(program, namespace))

    assert await program.code("GET", folder) == code


@pytest.mark.parametrize(
    ("query", "code"),
    [(f"?{OURS}", 200), (f"?{OURS}-routing", 200), ("?fieldSelector=metadata.name%3Danother", 403), ("", 403)],
    ids=["its policy", "its routing", "another", "all"],
)
async def test_it_watches_its_own_configmaps_and_no_other(program: Program, query: str, code: int) -> None:
    assert await program.watch_code(collection(CORE, "configmaps", program.own) + query) == code


@pytest.mark.parametrize(
    ("method", "namespace", "path"),
    [
        ("DELETE", "own", "pods/engine"),
        ("PATCH", "own", "pods/engine"),
        ("PATCH", "own", "pods/engine/status"),
        ("DELETE", "own", "pods"),
        ("POST", "own", "pods"),
        ("PATCH", "own", "configmaps/owned-by"),
        ("PUT", "own", "configmaps/owned-by"),
        ("DELETE", "own", "configmaps/owned-by"),
        ("PUT", "own", "configmaps/another"),
        ("PATCH", "own", f"configmaps/{ROUTING}"),
        ("DELETE", "own", f"configmaps/{ROUTING}"),
        ("DELETE", "own", f"configmaps?{OURS}-routing"),
        ("POST", "own", "configmaps"),
        ("PUT", "watched", f"configmaps/{ROUTING}"),
        ("PUT", "other", f"configmaps/{ROUTING}"),
        ("PATCH", "own", "events/some"),
        ("POST", "own", "serviceaccounts/owned-by/token"),
        ("DELETE", "watched", "pods/engine"),
        ("PATCH", "watched", "pods/engine"),
        ("POST", "watched", "events"),
        ("POST", "other", "events"),
    ],
)
async def test_it_changes_nothing_else(program: Program, method: str, namespace: str, path: str) -> None:
    kind = MERGE_PATCH if method == "PATCH" else "application/json"
    folder = collection(CORE, path, getattr(program, namespace))

    assert await program.code(method, folder, {}, kind) == 403


async def test_it_updates_the_routing_entries_and_no_other_configmap(program: Program) -> None:
    codes = {}
    for name in ("owned-by", ROUTING, "another"):
        path = collection(CORE, f"configmaps/{name}", program.own)
        document = await program.control_plane.request("GET", path)
        codes[name] = await program.code("PUT", path, document | {"data": {"routing.yaml": "x"}})

    assert codes == {"owned-by": 403, ROUTING: 200, "another": 403}


async def test_it_makes_no_configmap_of_whatever_name(program: Program) -> None:
    path = collection(CORE, "configmaps", program.own)
    made = {"apiVersion": CORE, "kind": "ConfigMap", "metadata": {"name": "new", "namespace": program.own}}

    assert await program.code("POST", path, made) == 403


async def test_it_creates_an_event_in_its_own_namespace(program: Program) -> None:
    event = {
        "apiVersion": CORE,
        "kind": "Event",
        "metadata": {"name": "owned-by.1", "namespace": program.own},
        "involvedObject": {"apiVersion": CORE, "kind": "ConfigMap", "name": "owned-by", "namespace": program.own},
        "type": "Warning",
        "reason": "Refused",
        "message": "the policy is kept as it was",
    }

    assert await program.code("POST", collection(CORE, "events", program.own), event) == 201


async def test_it_may_do_this_and_nothing_else(program: Program) -> None:
    rules = {name: await program.rules(getattr(program, name)) for name in ("own", "watched", "other")}

    assert rules == {
        "own": sorted([*DISCOVERY_RULES, *OWN_RULES], key=repr),
        "watched": sorted(DISCOVERY_RULES, key=repr),
        "other": [],
    }


async def test_with_admin_readonly_it_reads_its_routing_and_writes_nothing_but_events(reader: Program) -> None:
    path = collection(CORE, f"configmaps/{ROUTING}", reader.own)
    document = await reader.control_plane.request("GET", path)
    codes = {
        "get": await reader.code("GET", path),
        "update": await reader.code("PUT", path, document),
        "patch": await reader.code("PATCH", path, {}, MERGE_PATCH),
    }
    readable = {"verbs": READ, "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [ROUTING]}
    rules = [readable if rule.get("resourceNames") == [ROUTING] else rule for rule in OWN_RULES]

    assert codes == {"get": 200, "update": 403, "patch": 403}
    assert await reader.rules(reader.own) == sorted([*DISCOVERY_RULES, *rules], key=repr)
    assert await reader.rules(reader.watched) == []
