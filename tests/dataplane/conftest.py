# SPDX-License-Identifier: Apache-2.0
"""One gateway for the whole suite: four engines, our server as `before`, ours as `picker` in the EPP's place, Envoy."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest_asyncio

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.cases import ENGINES
from extproc.demo.client import LOOPBACK
from extproc.demo.engines import Engines
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server

POLICY = "{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy%s}"
BLIND = ", sources: {headers: [], query: [], body: [], modelHeaders: []}, match: {models: any}"


@dataclass
class Gateway:
    """What a test may look at."""

    envoy: Envoy
    before: Server
    picker: Server
    engines: Engines
    access_log: Path

    @property
    def port(self) -> int:
        return self.envoy.port


def write_endpoints(folder: Path, engines: Engines) -> Path:
    members = [
        {
            "name": one.name,
            "address": f"{LOOPBACK}:{one.port}",
            "labels": {"llm-d.ai/engine-type": one.kind},
            "models": [{"id": one.model, "created": 7, "max_model_len": 4096}],
        }
        for one in engines.endpoints
    ]
    path = folder / "endpoints.yaml"
    path.write_bytes(msgspec.json.encode({"pools": [{"name": "chat", "endpoints": members}]}))
    return path


def write_policy(folder: Path, name: str, rules: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(POLICY % rules)
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(tmp_path_factory) -> AsyncIterator[Gateway]:  # noqa: ANN001
    folder = tmp_path_factory.mktemp("gateway")
    access_log = folder / "access.log"
    async with Engines(ENGINES) as engines:
        endpoints = str(write_endpoints(folder, engines))
        rules = str(write_policy(folder, "before"))
        blind = str(write_policy(folder, "picker", BLIND))
        async with (
            Server("--endpoints-file", endpoints, "--config-file", rules) as before,
            Server("--endpoints-file", endpoints, "--config-file", blind, "--attachment", "picker") as picker,
        ):
            plan = Plan(
                endpoints=tuple((LOOPBACK, one.port) for one in engines.endpoints),
                before_port=before.grpc_port,
                picker_port=picker.grpc_port,
                access_log=str(access_log),
            )
            async with Envoy(bootstrap(plan), folder) as envoy:
                yield Gateway(envoy, before, picker, engines, access_log)
