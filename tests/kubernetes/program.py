# SPDX-License-Identifier: Apache-2.0
"""`owned-by serve` in a namespace of the real API server, under its own service account and its own Role."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict

from extproc.demo.client import LOOPBACK, send
from extproc.demo.processes import Server
from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb
from tests.kubernetes.controlplane import ControlPlane
from tests.kubernetes.manifests import load

ACCOUNT: Final = "owned-by"
PATIENCE: Final = 30.0
_HOUR: Final = 3600.0

Json = dict[str, Any]


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
    metadata = {"name": ACCOUNT, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def labels(engine: str) -> dict[str, str]:
    """Those of a pod of the pool `chat`."""
    return {"app": "chat", "llm-d.ai/engine-type": engine}


@dataclass
class Program:
    """A running server and what it said; `said` is every line since it began, `heard` wakes for each."""

    server: Server
    said: list[Json] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, line: str) -> None:
        """Take a line."""
        with contextlib.suppress(ValueError):
            self.said.append(json.loads(line))
        self.heard.set()

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
        found = None
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    self.heard.clear()
                    if (found := await seen()) == wanted:
                        return
                    await self.heard.wait()
        except TimeoutError:
            raise AssertionError(f"{found} and not {wanted}; it said {self.said[-10:]}") from None

    async def hint(self, **headers: str) -> list[str]:
        """What the EPP would be told of a request with these headers (`_` stands for `-`), over a stream as Envoy's."""
        request = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration())
        fields = {":method": "POST", ":path": "/v1/completions"} | {n.replace("_", "-"): v for n, v in headers.items()}
        for name, value in fields.items():
            request.request_headers.headers.headers.append(pb.HeaderValue(key=name, raw_value=value.encode()))
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{self.server.grpc_port}") as channel:
            stream = channel.stream_stream(
                f"/{names.SERVICE}/{names.METHOD}",
                request_serializer=pb.ProcessingRequest.SerializeToString,
                response_deserializer=pb.ProcessingResponse.FromString,
            )()
            await stream.write(request)
            answer = await stream.read()
        said = MessageToDict(answer.dynamic_metadata)
        found: list[str] = said.get(names.SUBSET_NAMESPACE, {}).get(names.SUBSET, [])
        return found

    async def line(self, **fields: Any) -> Json:
        """The first line with these fields, now or when it comes."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.heard.clear()
                for line in self.said:
                    if fields.items() <= line.items():
                        return line
                await self.heard.wait()


@contextlib.asynccontextmanager
async def deployed(control_plane: ControlPlane, namespace: str, folder: Path) -> AsyncIterator[Path]:
    """Our manifests applied; the kubeconfig of our service account, whose token is in `token` beside it."""
    for document in load("base", namespace=namespace):
        await control_plane.apply(document)
    token = folder / "token"
    token.write_text(await control_plane.token(namespace, ACCOUNT, seconds=_HOUR))
    yield control_plane.kubeconfig(folder / "kubeconfig", token_file=token, namespace=namespace)


@contextlib.asynccontextmanager
async def running(kubeconfig: Path, *flags: str, until: Any = "ready") -> AsyncIterator[Program]:
    """The program with this kubeconfig, ready or, if not, listening; its endpoints are not probed unless flags say so."""
    program: Program | None = None

    def on_line(line: str) -> None:
        assert program is not None
        program.hear(line)

    given = ("--kubeconfig", str(kubeconfig), "--log-level", "debug", "--probe-interval", "0s", *flags)
    server = Server(*given, on_line=on_line, until=until)
    program = Program(server)
    async with server:
        yield program
