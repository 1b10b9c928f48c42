# SPDX-License-Identifier: Apache-2.0
"""A cluster on loopback under Istio: engines, a Service, our server, the EPP's stand-in, and a gateway for what is rendered."""

import contextlib
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from extproc.demo.client import LOOPBACK
from extproc.demo.envoy import Envoy
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.stage import Stage, hosts, stage
from tests.fakes.backend import Backend
from tests.manifests.istio import placed
from tests.manifests.istiod import Gateway, Service, service_cluster
from tests.manifests.kustomize import deployed

Json = dict[str, Any]

NAMESPACE: Final = "llm-d"
POOL: Final = "multi-model-pool"
OURS: Final = service_cluster("owned-by", NAMESPACE, 9002)
"""The cluster of our server."""


def inference_pool(failure_mode: str = "FailOpen", name: str = POOL) -> Json:
    """The pool of the EPP's chart."""
    picker = {"name": f"{name}-epp", "port": {"number": 9002}, "failureMode": failure_mode}
    selector = {"matchLabels": {"llm-d.ai/inference-serving": "true"}}
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": selector, "targetPorts": [{"number": 8000}], "endpointPickerRef": picker},
    }


def http_route(*rules: Json, name: str = "multi-model") -> Json:
    """An HTTPRoute of these rules."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"rules": list(rules)},
    }


def to_pool(prefix: str = "/v1", name: str = POOL) -> Json:
    """A rule that leads to a pool."""
    return _rule(prefix, {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name})


def to_service(prefix: str = "/web", name: str = "web") -> Json:
    """A rule that leads to a Service."""
    return _rule(prefix, {"name": name, "port": 80})


def _rule(prefix: str, backend: Json) -> Json:
    return {"matches": [{"path": {"type": "PathPrefix", "value": prefix}}], "backendRefs": [backend]}


ROUTED: Final = (inference_pool(), http_route(to_pool(), to_service()))
"""What stands beside our objects in most tests: the chart's pool and a route to it, and one to a Service."""


@dataclass
class Mesh:
    """Everything but the gateway. `nobody` is a port at which connections are refused; `web` serves the Service `web`."""

    stage: Stage
    web: Backend
    nobody: int
    folders: int = 0

    async def gateway(
        self,
        documents: Sequence[Json],
        *,
        server: int | None = None,
        epp: Sequence[int] | None = None,
        pool: str = POOL,
    ) -> Envoy:
        """An Envoy as Istio configures it by the documents, up as long as the mesh is.

        `server` is our server's port and `epp` are the EPP's, if they are not those of the stage.
        """
        folder = self._folder()
        around = self.around(server, epp, pool)
        return await self.stage.stack.enter_async_context(Envoy(placed(around, documents), folder))

    def around(self, server: int | None = None, epp: Sequence[int] | None = None, pool: str = POOL) -> Gateway:
        """The Services and pools that the gateway can reach."""
        ours = self.stage.server.grpc_port if server is None else server
        pickers = [self.stage.epp.port] if epp is None else epp
        return Gateway(
            services={
                f"owned-by.{NAMESPACE}:9002": Service([(LOOPBACK, ours)], h2c=True),
                f"{POOL}-epp.{NAMESPACE}:9002": Service([(LOOPBACK, port) for port in pickers], h2c=True),
                f"web.{NAMESPACE}:80": Service([*self.web.endpoints.values()]),
            },
            pools={f"{pool}.{NAMESPACE}": self.stage.pool},
            namespace=NAMESPACE,
        )

    def rendered(self, *components: str, patches: Sequence[Json] = ()) -> list[Json]:
        """What an operator's two layers with these components come to."""
        return deployed(self._folder(), components, namespace=NAMESPACE, patches=patches)

    def _folder(self) -> Path:
        self.folders += 1
        folder = self.stage.folder / f"mesh-{self.folders}"
        folder.mkdir()
        return folder


async def mesh(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    *,
    pods: int = 2,
    refusing: Collection[str] = (),
    pool: str = POOL,
    flags: Collection[str] = (),
) -> Mesh:
    """A mesh with so many pods of each engine, up as long as the stack is."""
    members: Mapping[str, str] = hosts(pods)
    made = await stage(
        stack,
        folder,
        members,
        pools={pool: tuple(members)},
        namespace=NAMESPACE,
        refusing=refusing,
        hold=False,
        flags=flags,
    )
    web = await stack.enter_async_context(Backend({"web": "127.0.0.9"}, hold=False))
    nobody = stack.enter_context(socket.socket())
    nobody.bind((LOOPBACK, 0))  # and nobody listens
    return Mesh(made, web, nobody.getsockname()[1])


async def asked(envoy: Envoy) -> int:
    """How many streams the gateway has opened to our server."""
    stats = await envoy.stats("owned-by.*upstream_rq_total")
    return stats.get(f"cluster.{OURS}.upstream_rq_total", 0)


async def status(envoy: Envoy, request: Request) -> int:
    """What a request is answered with, its answer read to its end."""
    async with exchange(envoy.port, request) as answer:
        await answer.rest()
    return answer.status
