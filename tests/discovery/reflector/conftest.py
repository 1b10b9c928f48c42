# SPDX-License-Identifier: Apache-2.0
"""The real client against the fake API server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.objects import PODS, Resource
from extproc.discovery.reflector import Timing
from tests.discovery.reflector.following import Following
from tests.fakes.api_server import ApiServer, write_kubeconfig

Follow = Callable[..., Following]


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as server:
        yield server


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


@pytest.fixture
async def follow(
    server: ApiServer, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Follow]:
    """Starts a reflector, or with `runs=False` makes one that the test may start."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    api = KubernetesApi(write_kubeconfig(tmp_path / "kubeconfig", server.url, tokenFile=str(token)))
    await api.connect()
    tasks: list[asyncio.Task[None]] = []

    def start(
        resource: Resource = PODS,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        on_change: Callable[[Any, Any], None] = lambda _old, _new: None,
        *,
        runs: bool = True,
    ) -> Following:
        following = Following(api, server, resource, timing, on_change)
        if runs:
            tasks.append(asyncio.create_task(following.reflector.run()))
        return following

    yield start
    ended = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await api.close()

    assert ended == []


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is the least that may be."""
    monkeypatch.setattr("extproc.discovery.reflector.random.uniform", lambda least, _most: least)
