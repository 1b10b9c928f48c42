# SPDX-License-Identifier: Apache-2.0
"""A reflector at work, and the objects and events that it is told of."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.objects import Pod, Resource
from extproc.discovery.reflector import Reflector, Timing
from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from tests.fakes.api_server import PATIENCE, ApiServer

PODS_PATH = "/api/v1/namespaces/default/pods"
SHORT = Timing(watch=0.1, grace=0.05)
"""A watch that hangs is given up soon."""
PATIENT = Timing(short=0.0)
"""No watch is too short."""

Change = tuple[Any, Any]


class Following:
    """What a reflector told (`changes`), logged and counted. It waits only as the test lets it: see `nap`."""

    def __init__(
        self,
        api: KubernetesApi,
        server: ApiServer,
        resource: Resource,
        timing: Timing,
        on_change: Callable[[Any, Any], None] = lambda _old, _new: None,
    ) -> None:
        self.server = server
        self.changes: list[Change] = []
        self.metrics = Metrics()
        self.logged = io.BytesIO()
        self._also = on_change
        self._changed = asyncio.Event()
        self._naps = asyncio.Queue[tuple[float, asyncio.Event]]()
        logger = make_logger("json", "info", self.logged)
        self.reflector: Reflector[Any] = Reflector(
            api, resource, "default", self._on_change, self.metrics, logger, timing=timing, sleep=self._sleep
        )

    async def told(self, number: int) -> list[Change]:
        """All that was told, once it is at least so many changes."""
        async with asyncio.timeout(PATIENCE):
            while len(self.changes) < number:
                self._changed.clear()
                await self._changed.wait()
        return self.changes

    async def nap(self, meanwhile: Awaitable[object] | None = None) -> float:
        """Let the reflector wait, until something is done; how many seconds it wanted to."""
        async with asyncio.timeout(PATIENCE):
            seconds, over = await self._naps.get()
            if meanwhile is not None:
                await meanwhile
        over.set()
        return seconds

    async def waits(self) -> float:
        """Until the reflector begins to wait, which it is not let through; how many seconds it wanted to."""
        async with asyncio.timeout(PATIENCE):
            seconds, _ = await self._naps.get()
        return seconds

    def relists(self) -> asyncio.Task[str | None]:
        """Ask for a list."""
        return asyncio.create_task(self.reflector.relist())

    async def lists(self, *documents: Any, version: str = "1") -> None:
        """Answer the list that the reflector asks for next."""
        exchange = await self.server.request()
        assert "watch" not in exchange.query
        await exchange.json(200, page(*documents, version=version))

    def restarts(self) -> dict[str, float]:
        """`owned_by_watch_restarts_total` by reason."""
        return {
            sample.labels["reason"]: sample.value
            for metric in self.metrics.watch_restarts.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }

    def staleness(self) -> float | None:
        """`owned_by_watch_staleness_seconds` of all that is followed, None if it is not shown."""
        (metric,) = self.metrics.watch_staleness.collect()
        return metric.samples[0].value if metric.samples else None

    def lines(self) -> list[dict[str, Any]]:
        """The log so far, without times."""
        lines = [msgspec.json.decode(line) for line in self.logged.getvalue().splitlines()]
        return [{name: value for name, value in line.items() if name != "ts"} for line in lines]

    def _on_change(self, old: Any, new: Any) -> None:
        self.changes.append((old, new))
        self._changed.set()
        self._also(old, new)

    async def _sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        self._naps.put_nowait((seconds, over))
        await over.wait()


def document(name: str, version: int | str = 1, **labels: str) -> dict[str, Any]:
    """A pod as the API server writes it."""
    metadata = {"name": name, "namespace": "default", "resourceVersion": str(version), "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {"podIP": "127.0.0.1"}}


def pod(name: str, version: int | str = 1, **labels: str) -> Pod:
    """The same pod as the reflector keeps it."""
    return msgspec.convert(document(name, version, **labels), Pod)


def page(*documents: Any, version: str = "1", token: str = "") -> dict[str, Any]:
    """A page of a list; `token` leads to the next."""
    metadata = {"resourceVersion": version} | ({"continue": token} if token else {})
    return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": list(documents)}


def event(kind: str, name: str, version: int | str, **labels: str) -> dict[str, Any]:
    """A pod's event."""
    return {"type": kind, "object": document(name, version, **labels)}


def bookmark(version: str) -> dict[str, Any]:
    """An event that tells of no change."""
    return {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": version}}}


def status(code: int, message: str, reason: str = "") -> dict[str, Any]:
    """A Status, as an error's body."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def failure(code: int, message: str) -> dict[str, Any]:
    """A Status, as an event."""
    return {"type": "ERROR", "object": status(code, message)}
