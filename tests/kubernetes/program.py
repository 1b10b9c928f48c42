# SPDX-License-Identifier: Apache-2.0
"""`owned-by serve` in a namespace of the real API server, under its own service account and its own Role."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict

from extproc.demo.client import LOOPBACK, send
from extproc.demo.processes import Server
from extproc.envoy import names
from tests.heard import Heard, Json
from tests.kubernetes.controlplane import ControlPlane
from tests.manifests import kustomize
from tests.streams import call, first

ACCOUNT: Final = "owned-by"
POLICY: Final = "owned-by"
NEEDED: Final = ("ServiceAccount", "Role", "RoleBinding", "ConfigMap")
"""What of the manifests the program needs that runs beside the API server."""
_HOUR: Final = 3600.0


def pool(name: str, namespace: str, *ports: int, selector: dict[str, str] | None = None) -> Json:
    """An InferencePool of the pods with the label `app: chat`, or with those of `selector`."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": selector or {"app": "chat"}},
            "targetPorts": [{"number": port} for port in ports],
        },
    }


def policy(namespace: str, text: str | None) -> Json:
    """The ConfigMap of the policy; None: it has another key only."""
    data = {"other": ""} if text is None else {"policy.yaml": text}
    metadata = {"name": POLICY, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def in_namespace(namespace: str) -> list[Json]:
    """The patches with which `several-namespaces` is about this one."""
    patch = f"- {{op: replace, path: /metadata/namespace, value: {namespace}}}"
    return [{"target": {"kind": "RoleBinding", "name": "owned-by-discovery"}, "patch": patch}]


def labels(engine: str) -> dict[str, str]:
    """Those of a pod of the pool `chat`."""
    return {"app": "chat", "llm-d.ai/engine-type": engine}


@dataclass
class Program:
    """A running server, and what it says."""

    server: Server
    heard: Heard

    async def page(self, path: str) -> Json:
        """An admin page."""
        answer: Json = (await send(self.server.admin_port, "GET", path)).json()
        return answer

    async def metrics(self) -> dict[str, float]:
        """Every sample, by its name and labels as the page writes them."""
        text = (await send(self.server.metrics_port, "GET", "/metrics")).body.decode()
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    async def ready(self, pool_name: str) -> dict[str, bool]:
        """The endpoints of a pool, `name@ip:port`, and whether each is ready; empty if there is no such pool."""
        pools = (await self.page("/endpointz"))["pools"]
        return {f"{e['name']}@{e['address']}:{e['port']}": e["ready"] for e in pools.get(pool_name, [])}

    async def until(self, seen: Callable[[], Any], wanted: Any) -> None:
        """Wait until `await seen()` is `wanted`, looking again each time that the server says something."""
        await self.heard.until(seen, lambda found: found == wanted)

    async def hint(self, **headers: str) -> list[str]:
        """What the EPP would be told of a request with these headers (`_` stands for `-`), over a stream as Envoy's."""
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{self.server.grpc_port}") as channel:
            stream = call(channel)
            await stream.write(first(**headers))
            answer = await stream.read()
        said = MessageToDict(answer.dynamic_metadata)
        found: list[str] = said.get(names.SUBSET_NAMESPACE, {}).get(names.SUBSET, [])
        return found

    async def line(self, **fields: Any) -> Json:
        """The first line with these fields, now or when it comes."""
        return await self.heard.line(**fields)


@contextlib.asynccontextmanager
async def deployed(control_plane: ControlPlane, namespace: str, folder: Path, *components: str) -> AsyncIterator[Path]:
    """Our manifests applied; the kubeconfig of our service account, whose token is in `token` beside it.

    The policy is not: each test has its own.
    """
    for document in kustomize.deployed(folder / "manifests", components, namespace=namespace):
        is_policy = document["kind"] == "ConfigMap" and document["metadata"]["name"] == POLICY
        if document["kind"] in NEEDED and not is_policy:
            await control_plane.apply(document)
    token = folder / "token"
    token.write_text(await control_plane.token(namespace, ACCOUNT, seconds=_HOUR))
    yield control_plane.kubeconfig(folder / "kubeconfig", token_file=token, namespace=namespace)


@contextlib.asynccontextmanager
async def running(kubeconfig: Path, *flags: str, until: Any = "ready") -> AsyncIterator[Program]:
    """The program with this kubeconfig, ready or, if not, listening; its endpoints are not probed unless flags say so."""
    heard = Heard()
    given = ("--kubeconfig", str(kubeconfig), "--log-level", "debug", "--probe-interval", "0s", *flags)
    async with Server(*given, on_line=heard, until=until) as server:
        yield Program(server, heard)
