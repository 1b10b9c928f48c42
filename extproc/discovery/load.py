# SPDX-License-Identifier: Apache-2.0
"""Asks each ready endpoint again and again how busy it is, and keeps what is fresh of what they said.

    snapshot() --> targets --> a task for each --> GET /metrics --> publication, once per interval --> current

A target is one destination, in however many pools it stands. All of it lives in one event loop and takes no lock.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aiohttp
import msgspec
from msgspec.structs import replace

from extproc.discovery.asking import JITTER, Asker, ProbeConfig
from extproc.discovery.exposition import parse_load
from extproc.observability.logs import Logger
from extproc.observability.metrics import Metrics
from extproc.policy.pick import NO_LOADS, Load, Loads
from extproc.policy.types import Endpoint, Snapshot

_PATH: Final = "/metrics"
_FORMAT: Final = "text/plain; version=0.0.4"
"""Prometheus' text format as engines write it unless they are asked for another."""
_MAX_BYTES: Final = 4_194_304
"""The longest answer that is read: vLLM writes some 70 kB for each of its engines, and has as many as it has DP ranks."""
_LONGEST_RETRY: Final = 60.0
"""Seconds after a failure until the endpoint is asked again: the interval, doubled by each further failure up to this."""
_SUSPECTS: Final = 4
"""One in so many of the requests under way may be to endpoints that failed, or those that hang would keep all places."""
_SHOWN: Final = 20


class LoadConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How load figures are read. Times are in seconds.

    Each ready endpoint is asked every `interval`, give or take a fifth (0: nobody is); what it said `stale` ago does not
    count any more. `asking` says how: its `interval` has no meaning here, and its `timeout` is at most half of `stale`.
    Raises ValueError if `stale` is less than three intervals: figures would come and go.
    """

    interval: float = 1.0
    stale: float = 5.0
    asking: ProbeConfig = ProbeConfig()

    def __post_init__(self) -> None:
        """Hold the two times to each other."""
        if self.stale < 3 * self.interval:
            raise ValueError(
                f"load figures must live for at least three intervals: {self.stale:g} < 3 * {self.interval:g}"
            )


@dataclass(eq=False, slots=True)
class _Target:
    """A destination that is followed, and what is known of it: `error` is "" while it answers, `delay` the last backoff.

    `asked` is the moment before the question to which `load` is the answer: the figures are no older than that.
    """

    endpoint: Endpoint
    task: asyncio.Task[None] | None = None
    load: Load | None = None
    asked: float = 0.0
    error: str = ""
    delay: float = 0.0


class LoadWatch:
    """Follows the ready endpoints of the latest snapshot and says how busy they are."""

    def __init__(self, config: LoadConfig, snapshot: Callable[[], Snapshot], metrics: Metrics, logger: Logger) -> None:
        """Nobody is asked yet. Raises OSError (ssl.SSLError is one) if `ca_file` cannot be used."""
        self._config = config
        asking = config.asking
        self._asker = Asker(
            replace(
                asking,
                interval=config.interval,
                # One that hangs must not keep its place until the figures of those who wait for one are stale.
                timeout=min(asking.timeout, config.stale / 2) if config.interval else asking.timeout,
                max_bytes=max(asking.max_bytes, _MAX_BYTES),
            )
        )
        self._places = asyncio.Semaphore(asking.concurrency)
        self._suspects = asyncio.Semaphore(max(1, asking.concurrency // _SUSPECTS))
        self._snapshot = snapshot
        self._seen: Snapshot | None = None
        self._metrics = metrics
        self._logger = logger.bind(logger="load")
        self._targets: dict[str, _Target] = {}
        self._current: Loads = NO_LOADS
        self._answered_at: float | None = None
        for result in ("ok", "failed"):
            metrics.load_endpoints.labels(result).set_function(partial(self._ended, failed=result == "failed"))

    @property
    def current(self) -> Loads:
        """The fresh figures by destination: the same object until they change, at most once per interval."""
        return self._current

    async def run(self) -> None:
        """Ask for ever, until cancelled. To be called once."""
        if not self._config.interval:
            await asyncio.Event().wait()
        async with self._asker.open() as session, asyncio.TaskGroup() as group:
            while True:
                for target in self._follow():
                    target.task = group.create_task(self._watch(target, session))
                self._publish(time.monotonic())
                await asyncio.sleep(self._config.interval)

    def status(self) -> dict[str, Any]:
        """For `/statusz`: counts, seconds since any endpoint last answered, the first twenty that fail with their errors."""
        failing = sorted((destination, target.error) for destination, target in self._targets.items() if target.error)
        return {
            "followed": len(self._targets),
            "fresh": len(self._current),
            "age_seconds": None if self._answered_at is None else round(time.monotonic() - self._answered_at, 1),
            "failing": len(failing),
            "failures": [{"destination": destination, "error": error} for destination, error in failing[:_SHOWN]],
        }

    def _ended(self, *, failed: bool) -> int:
        """How many endpoints answered when they were last asked, or did not."""
        asked = [target for target in list(self._targets.values()) if target.error or target.load is not None]
        return sum(bool(target.error) is failed for target in asked)

    def _follow(self) -> list[_Target]:
        """Forget those that are not there or not ready any more; the new ones are returned."""
        snapshot = self._snapshot()
        if snapshot is self._seen:
            return []
        self._seen = snapshot
        ready: dict[str, Endpoint] = {}
        for members in snapshot.endpoints.values():
            for endpoint in members:
                if endpoint.ready:
                    ready.setdefault(endpoint.destination, endpoint)
        for destination, target in list(self._targets.items()):
            # An address that another pod has now is another server's: nothing outlives it.
            if destination not in ready or _identity(ready[destination]) != _identity(target.endpoint):
                del self._targets[destination]
                if target.task:
                    target.task.cancel()
        new = {key: _Target(endpoint) for key, endpoint in ready.items() if key not in self._targets}
        self._targets.update(new)
        return list(new.values())

    def _publish(self, now: float) -> None:
        """Replace the mapping if it is to be another; what would be stale before the next time is left out now."""
        oldest = now + self._config.interval - self._config.stale
        fresh = {
            destination: target.load
            for destination, target in self._targets.items()
            if target.load is not None and target.asked >= oldest
        }
        if fresh != self._current:
            self._current = fresh
            self._metrics.fresh_loads.set(len(fresh))

    async def _watch(self, target: _Target, session: aiohttp.ClientSession) -> None:
        """Ask one endpoint for ever, never twice at once; cancelled when it is not followed any more."""
        # Spread over the interval, as the first publication that could show an answer comes at its end anyhow.
        await asyncio.sleep(random.random() * self._config.interval)  # noqa: S311 - no secret
        while True:
            async with self._suspects if target.error else contextlib.nullcontext(), self._places:
                asked = time.monotonic()
                outcome = await self._asker.fetch(
                    session, target.endpoint.destination, _PATH, parse_load, accept=_FORMAT
                )
            self._heard(target, asked, outcome)
            wait = target.delay or self._config.interval
            # Jitter, so that those which came together part again.
            await asyncio.sleep(wait * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - no secret

    def _heard(self, target: _Target, asked: float, outcome: Load | str) -> None:
        if isinstance(outcome, str):
            self._metrics.scrapes.labels("failed").inc()
            interval = self._config.interval
            target.delay = min(max(2 * target.delay, interval), max(_LONGEST_RETRY, interval))
            if not target.error:
                self._logger.warning("the endpoint does not say how busy it is", **_names(target), error=outcome)
            target.error = outcome
            return
        self._metrics.scrapes.labels("ok").inc()
        target.load = outcome
        target.asked = asked
        self._answered_at = time.monotonic()
        target.delay = 0.0
        if target.error:
            self._logger.info("the endpoint says again how busy it is", **_names(target))
        target.error = ""


def _identity(endpoint: Endpoint) -> tuple[str, str, str]:
    return endpoint.namespace, endpoint.name, endpoint.uid


def _names(target: _Target) -> dict[str, str]:
    endpoint = target.endpoint
    return {"endpoint": f"{endpoint.namespace}/{endpoint.name}", "destination": endpoint.destination}


__all__ = ["LoadConfig", "LoadWatch"]
