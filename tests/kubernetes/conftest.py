# SPDX-License-Identifier: Apache-2.0
"""One control plane for the whole suite, with our custom resources in it, and a namespace of its own for each test."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.crds import CRDS
from tests.kubernetes.servers import ASSETS, find_programs

FOLDER: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.slow)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control_plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    if find_programs() is None:
        pytest.skip(f"{ASSETS} does not name a folder with etcd and kube-apiserver")
    async with ControlPlane(tmp_path_factory.mktemp("control-plane")) as running:
        for definition in CRDS:
            await running.apply(definition)
        yield running


@contextlib.asynccontextmanager
async def fresh_namespace(control_plane: ControlPlane) -> AsyncIterator[str]:
    """The name of one that is there, with all that is put into it, while the context is open."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    await control_plane.create_namespace(name)
    try:
        yield name
    finally:
        await control_plane.delete_namespace(name)


@pytest_asyncio.fixture(loop_scope="session")
async def namespace(control_plane: ControlPlane) -> AsyncIterator[str]:
    """Its name."""
    async with fresh_namespace(control_plane) as name:
        yield name
