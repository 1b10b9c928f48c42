# SPDX-License-Identifier: Apache-2.0
"""The routing of the admin API with two servers at a real API server, under our own Role."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio

from extproc.demo.client import send
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.program import Program, deployed, labels, pool, running
from tests.kubernetes.resources import CORE, collection

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

ROUTING = "/admin/api/routing"
WITHIN = 1.0
"""Seconds in which an entry takes effect everywhere."""

Pair = tuple[Program, Program]


@pytest_asyncio.fixture(loop_scope="session")
async def pair(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two servers of one namespace with a pool of two pods."""
    await control_plane.apply(pool("chat", namespace, 8000))
    await control_plane.pod("a", namespace, ip="127.0.1.1", labels=labels("vllm"))
    await control_plane.pod("b", namespace, ip="127.0.1.2", labels=labels("sglang"))
    async with (
        deployed(control_plane, namespace, tmp_path) as kubeconfig,
        running(kubeconfig) as one,
        running(kubeconfig) as other,
    ):
        yield one, other


def entry(owner: str, name: str = "a") -> dict[str, Any]:
    return {"model": "m", "owned_by": owner, "selector": {"matchLabels": {"app": "chat", "name": name}}}


async def ask(program: Program, method: str, path: str, content: Any = None) -> tuple[int, Any]:
    body = None if content is None else json.dumps(content).encode()
    answer = await send(
        program.server.admin_port, method, path, {"content-type": "application/json"} if body else {}, body
    )
    return answer.status, answer.json() if answer.body else None


async def post(program: Program, content: Any) -> int:
    return (await ask(program, "POST", ROUTING, content))[0]


async def delete(program: Program, **names: str) -> int:
    return (await ask(program, "DELETE", f"{ROUTING}?{urlencode(names)}"))[0]


async def in_force(program: Program) -> list[str]:
    """The owners that the policy in force has a routing entry for."""
    return sorted(each["owned_by"] for each in (await program.page("/configz"))["policy"]["routing"])


async def stored(program: Program) -> list[str]:
    _, found = await ask(program, "GET", ROUTING)
    return sorted(each["owned_by"] for each in found["routing"])


async def test_what_is_written_through_either_is_in_force_in_both_within_a_second(pair: Pair) -> None:
    took = []
    for writer, owners in ((pair[0], ["one"]), (pair[1], ["one", "two"])):
        begun = time.monotonic()
        assert await post(writer, entry(owners[-1])) == 201
        for program in pair:
            await program.until(lambda program=program: in_force(program), owners)
        took.append(time.monotonic() - begun)
    begun = time.monotonic()
    assert await delete(pair[0], model="m", owned_by="two") == 204
    for program in pair:
        await program.until(lambda program=program: in_force(program), ["one"])
    took.append(time.monotonic() - begun)

    assert [seconds for seconds in took if seconds > WITHIN] == []


async def test_an_entry_moves_requests_in_both(control_plane: ControlPlane, namespace: str, pair: Pair) -> None:
    await control_plane.label("a", namespace, {"name": "a"})
    question = {"path": "/v1/completions", "headers": {"x-owned-by": "sglang"}, "body": {"model": "m"}}

    async def endpoints(program: Program) -> Any:
        return (await ask(program, "POST", "/explain", question))[1]["endpoints"]

    before = [await endpoints(program) for program in pair]
    await post(pair[1], entry("sglang"))
    for program in pair:
        await program.until(lambda program=program: endpoints(program), ["127.0.1.1:8000"])

    assert before == [["127.0.1.2:8000"]] * 2


async def test_writers_at_once_lose_nothing(pair: Pair) -> None:
    owners = [f"owner-{number:02}" for number in range(12)]

    statuses = await asyncio.gather(*(post(pair[number % 2], entry(owner)) for number, owner in enumerate(owners)))
    kept = [await stored(program) for program in pair]
    gone = await asyncio.gather(
        *(delete(pair[number % 2], model="m", owned_by=owner) for number, owner in enumerate(owners))
    )

    assert (statuses, kept) == ([201] * 12, [owners] * 2)
    assert (gone, await stored(pair[0])) == ([204] * 12, [])


async def test_a_change_for_a_version_that_another_has_replaced_is_a_conflict(pair: Pair) -> None:
    _, seen = await ask(pair[0], "GET", ROUTING)
    await post(pair[1], entry("theirs"))

    late = await ask(pair[0], "POST", ROUTING, entry("mine") | {"resourceVersion": seen["resourceVersion"]})

    assert (late[0], late[1]["error"]["code"], await stored(pair[0])) == (409, "conflict", ["theirs"])


async def test_a_restart_keeps_the_entries(pair: Pair, tmp_path: Path) -> None:
    await post(pair[0], entry("kept"))

    async with running(tmp_path / "kubeconfig") as third:
        found = await in_force(third)

    assert found == ["kept"]


async def test_without_the_right_to_write_a_change_is_refused_and_says_why(
    control_plane: ControlPlane, namespace: str, pair: Pair
) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "owned-by", "namespace": namespace},
    }
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}]
    await control_plane.apply(role | {"rules": everything})

    status, said = await ask(pair[0], "POST", ROUTING, entry("x"))

    assert (status, said["error"]["code"]) == (409, "read_only")
    assert "owned-by-routing" in said["error"]["message"]


async def test_a_document_that_somebody_broke_by_hand_is_told_and_not_overwritten(
    control_plane: ControlPlane, namespace: str, pair: Pair
) -> None:
    path = collection(CORE, "configmaps", namespace) + "/owned-by-routing"
    await post(pair[0], entry("good"))
    for program in pair:
        await program.until(lambda program=program: in_force(program), ["good"])
    broken = {"metadata": {"name": "owned-by-routing", "namespace": namespace}, "data": {"routing.yaml": "routing: 7"}}
    await control_plane.apply({"apiVersion": "v1", "kind": "ConfigMap"} | broken)
    await pair[0].line(msg="not loaded, the last good one stays", source="routing")

    status, said = await ask(pair[0], "POST", ROUTING, entry("mine"))

    _, found = await ask(pair[0], "POST", "/admin/discover")

    assert (status, said["error"]["code"], await in_force(pair[0])) == (409, "unreadable", ["good"])
    assert list(found["errors"]) == ["routing"]
    assert (await control_plane.request("GET", path))["data"] == {"routing.yaml": "routing: 7"}


async def test_discover_lists_and_asks_again(pair: Pair) -> None:
    status, found = await ask(pair[0], "POST", "/admin/discover")

    nothing: dict[str, Any] = {"added": [], "removed": []}
    assert (status, found | {"generation": 0}) == (
        200,
        {"generation": 0, "pools": nothing, "endpoints": nothing | {"changed": []}, "errors": {}},
    )
