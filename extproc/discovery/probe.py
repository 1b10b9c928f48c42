# SPDX-License-Identifier: Apache-2.0
"""Asks each endpoint's own `GET /v1/models` what it serves.

    publisher -- complete() --> targets --> timers (a heap) --> queue --> workers --> HTTP
        ^                                                                    |
        +------------------------------ on_change() -------------------------+

A target is one endpoint, in however many pools it stands. All of it lives in one event loop and takes no lock.
"""

import asyncio
import contextlib
import heapq
import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import aiohttp
from msgspec.structs import replace

from extproc.discovery.asking import JITTER, Asker, ProbeConfig
from extproc.discovery.listing import Listing
from extproc.observability.logs import Logger
from extproc.observability.metrics import Metrics
from extproc.policy.candidates import label_engine
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Endpoint, Pool

_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 60.0
"""Seconds after a failure until the next probe: the first (or the interval if that is shorter), doubled by each further
failure up to the second (or the interval if that is longer)."""
_SHOWN: Final = 20


@dataclass(eq=False, slots=True)
class _Target:
    """An endpoint that is followed, and what is known of it.

    `bases` are the objects that it came as, one in each pool, by their ids; `error` is "" while it answers, `delay` is the
    last backoff. `again`: what it is being asked does not count, and it is asked again at once; `once_more`: it counts, and
    it is asked again all the same. `begun` numbers the times that it was asked, `heard` is the last of them that counted.
    """

    endpoint: Endpoint
    bases: dict[int, Endpoint] = field(default_factory=dict)
    ready: bool = False
    release: int = 0
    tried: bool = False
    held: bool = False
    busy: bool = False
    asking: bool = False
    again: bool = False
    once_more: bool = False
    begun: int = 0
    heard: int = 0
    told: asyncio.Event | None = None
    timer: int = 0
    listing: Listing | None = None
    answered: float = 0.0
    error: str = ""
    delay: float = 0.0

    def completed(self, base: Endpoint) -> Endpoint:
        """One of its bases with what is known of it."""
        if self.listing:
            return replace(base, owned_by=self.listing.owned_by, models=self.listing.models)
        return base if self.tried or not base.ready else replace(base, owned_by=None, ready=not self.held)

    async def news(self) -> None:
        """Wait until it has answered, failed or gone."""
        self.told = self.told or asyncio.Event()
        await self.told.wait()

    def tell(self) -> None:
        """It has: wake who waits for that."""
        if self.told:
            self.told.set()
            self.told = None


class Probe:
    """Follows the endpoints whose models are not given, and completes them with what they say of themselves."""

    def __init__(
        self,
        config: ProbeConfig,
        on_change: Callable[[], None],
        policy: Callable[[], PolicyConfig],
        metrics: Metrics,
        logger: Logger,
    ) -> None:
        """Nothing is followed yet. `on_change` is called, from the loop, whenever `complete` would say something new.

        Raises OSError (ssl.SSLError is one) if `ca_file` cannot be used.
        """
        self._config = config
        self._asker = Asker(config)
        self._on_change = on_change
        self._policy = policy
        self._metrics = metrics
        self._logger = logger.bind(logger="probe")
        self._known: dict[int, Endpoint] = {}
        self._shown: dict[int, Endpoint] = {}
        self._touched = set[_Target]()
        self._news = set[_Target]()
        self._targets: dict[tuple[str, str, str, str], _Target] = {}
        self._untried: set[_Target] = set()
        self._disagreeing: set[_Target] = set()
        # Many replicas say the same: they share one answer, which goes when the last of them does.
        self._listings: WeakValueDictionary[tuple[object, ...], Listing] = WeakValueDictionary()
        self._timers: list[tuple[float, int, Callable[[_Target, int], None], _Target]] = []
        self._numbers = itertools.count(1)
        self._woken = asyncio.Event()
        self._queue: asyncio.Queue[_Target] = asyncio.Queue()
        self._answered_at: float | None = None
        self.settled = asyncio.Event()
        """Set while no ready endpoint waits for its very first probe to end; endpoints that hang may take long."""
        self.settled.set()
        for result in ("ok", "failed"):
            metrics.probe_endpoints.labels(result).set_function(partial(self._ended, failed=result == "failed"))

    def complete(self, endpoints: Mapping[Pool, tuple[Endpoint, ...]]) -> dict[Pool, tuple[Endpoint, ...]]:
        """Follow those whose models are not given, forget the others, and say what is known of each.

        An endpoint of which nothing changed is the identical object as last time, and costs little more than that.
        """
        if not self._config.interval:
            return dict(endpoints)
        # The endpoints of last time are kept, so that an id among their keys means that very object.
        known, self._known = self._known, {}
        for members in endpoints.values():
            self._known.update(zip(map(id, members), members, strict=True))
        for key in self._known.keys() - known.keys():
            self._enter(key, self._known[key])
        for key in known.keys() - self._known.keys():
            self._leave(key, known[key])
        for target in self._touched:
            self._follow(target)
        self._touched.clear()
        self._settle()
        for target in self._news:
            for key, base in target.bases.items():
                self._shown[key] = target.completed(base)
        self._news.clear()
        shown = self._shown.__getitem__
        return {pool: tuple(map(shown, map(id, members))) for pool, members in endpoints.items()}

    async def run(self) -> None:
        """Probe for ever, until cancelled. To be called once."""
        if not self._config.interval:
            await asyncio.Event().wait()
        async with self._asker.open() as session, asyncio.TaskGroup() as group:
            for _ in range(self._config.concurrency):
                group.create_task(self._work(session))
            await self._dispatch()

    async def again(self) -> None:
        """Ask each ready endpoint that is followed, now; return when each has answered, failed or gone.

        One that is being asked is asked once more after that, as its answer may be from before. With `concurrency` asked
        at a time, and `timeout` for each, it ends in any case; endpoints that all hang take many times that long.
        """
        due = {target: target.begun + 1 for target in self._targets.values() if target.ready}
        for target in due:
            if target.asking:
                target.once_more = True
            elif not target.busy:  # else its turn will come
                self._probe_after(0.0, target)
        for target, number in due.items():
            while target.ready and target.heard < number:
                await target.news()

    def status(self) -> dict[str, Any]:
        """For `/statusz`: counts, seconds since any endpoint last answered, the first twenty that fail with their errors."""
        failing = sorted(
            (target for target in self._targets.values() if target.error), key=lambda target: _key(target.endpoint)
        )
        return {
            "followed": len(self._targets),
            "answered": sum(target.listing is not None for target in self._targets.values()),
            "age_seconds": None if self._answered_at is None else round(time.monotonic() - self._answered_at, 1),
            "failing": len(failing),
            "failures": [{"destination": t.endpoint.destination, "error": t.error} for t in failing[:_SHOWN]],
        }

    def _ended(self, *, failed: bool) -> int:
        """How many ready endpoints answered when they were last asked, or did not."""
        asked = [target for target in list(self._targets.values()) if target.ready and target.tried]
        return sum(bool(target.error) is failed for target in asked)

    # what is followed

    def _enter(self, key: int, endpoint: Endpoint) -> None:
        """An endpoint came, as a new object; its target stays if it has only changed."""
        self._shown[key] = endpoint
        if endpoint.models is not None:
            return
        target = self._targets.setdefault(_key(endpoint), _Target(endpoint))
        target.endpoint = target.bases[key] = endpoint
        self._compare(target)
        self._touched.add(target)

    def _leave(self, key: int, endpoint: Endpoint) -> None:
        """An object of last time is not among those of this time."""
        del self._shown[key]
        if endpoint.models is None:
            target = self._targets[_key(endpoint)]
            del target.bases[key]
            self._touched.add(target)

    def _follow(self, target: _Target) -> None:
        """Begin or end what the target's present bases ask for."""
        self._news.add(target)
        if not target.bases:  # an address that comes back is another server's: nothing outlives it
            del self._targets[_key(target.endpoint)]
            target.listing = None
            self._stop(target)
            self._compare(target)
        elif not any(base.ready for base in target.bases.values()):
            self._stop(target)
        elif not target.ready:
            self._start(target)

    def _start(self, target: _Target) -> None:
        target.ready = True
        target.delay = 0.0
        if not target.tried:
            self._untried.add(target)
            # Until its models are known it would be eligible for every model, and a request for one that it does not
            # serve would get the engine's 404.
            target.held = self._config.hold > 0
            target.release = self._at(time.monotonic() + self._config.hold, self._release, target)
        if target.busy:
            target.again = True  # what it is being asked may have been said before it was ready
        else:
            self._probe_after(0.0, target)

    def _stop(self, target: _Target) -> None:
        target.ready = False
        target.timer = 0
        target.tell()
        self._untried.discard(target)

    def _settle(self) -> None:
        if self._untried:
            self.settled.clear()
        else:
            self.settled.set()

    # when something is due

    def _at(self, moment: float, action: Callable[[_Target, int], None], target: _Target) -> int:
        """Call `action` with the target and the number that comes back, at `moment` or soon after."""
        number = next(self._numbers)
        heapq.heappush(self._timers, (moment, number, action, target))
        if self._timers[0][1] == number:
            self._woken.set()
        return number

    def _probe_after(self, seconds: float, target: _Target) -> None:
        target.timer = self._at(time.monotonic() + seconds, self._probe, target)

    async def _dispatch(self) -> None:
        while True:
            self._woken.clear()
            while self._timers and self._timers[0][0] <= time.monotonic():
                _, number, action, target = heapq.heappop(self._timers)
                action(target, number)
            left = self._timers[0][0] - time.monotonic() if self._timers else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._woken.wait()

    def _probe(self, target: _Target, number: int) -> None:
        if target.timer == number:  # else it was put off, or the target is not ready any more
            target.busy = True
            self._queue.put_nowait(target)

    def _release(self, target: _Target, number: int) -> None:
        if target.held and target.release == number:
            target.held = False
            self._changed(target)

    def _expire(self, target: _Target, _: int) -> None:
        """Forget the answer unless there is a newer one. An endpoint that is not ready keeps its: nobody asks it."""
        if target.ready and target.listing and time.monotonic() >= target.answered + self._config.keep:
            target.listing = None
            self._compare(target)
            self._changed(target)

    def _changed(self, target: _Target) -> None:
        self._news.add(target)
        if target.ready:
            self._on_change()

    # one probe

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            target = await self._queue.get()
            target.again = target.once_more = False
            if target.ready:
                target.begun += 1
                target.asking = True
                outcome = await self._asker.ask(session, target.endpoint.destination)
                target.asking = False
                self._metrics.probes.labels("ok" if isinstance(outcome, Listing) else "failed").inc()
                if target.ready and not target.again:  # else it says nothing of the server that is there now
                    self._heard(target, outcome)
                    target.heard = target.begun
                    target.tell()
            target.busy = False
            if target.ready:
                wait = 0.0 if target.again or target.once_more else target.delay or self._config.interval
                # Jitter, so that they do not all come at once.
                self._probe_after(wait * random.uniform(1 - JITTER, 1 + JITTER), target)  # noqa: S311 - no secret

    def _heard(self, target: _Target, outcome: Listing | str) -> None:
        was_tried, target.tried = target.tried, True
        self._untried.discard(target)
        self._settle()
        news, target.held = target.held or not was_tried, False
        if isinstance(outcome, Listing):
            listing = self._listings.setdefault(outcome.kind, outcome)
            news = news or listing is not target.listing
            target.listing = listing
            target.answered = self._answered_at = time.monotonic()
            target.delay = 0.0
            if target.error:
                self._logger.info("the endpoint answers again", **_names(target))
            target.error = ""
            self._compare(target)
        else:
            interval = self._config.interval
            target.delay = min(max(2 * target.delay, min(_RETRY, interval)), max(_LONGEST_RETRY, interval))
            if not target.error:
                self._logger.warning("the endpoint does not say what it serves", **_names(target), error=outcome)
            target.error = outcome
            if target.listing:
                self._at(target.answered + self._config.keep, self._expire, target)
        if news:
            self._changed(target)

    def _compare(self, target: _Target) -> None:
        """See whether the engine's own word contradicts the label; after a new policy, at the next answer."""
        policy = self._policy()
        said = policy.normal(target.listing.owned_by) if target.listing else ""
        label = label_engine(target.endpoint, policy) if said else ""
        differ = bool(label) and label != said
        if differ == (target in self._disagreeing):
            return
        if differ:
            self._disagreeing.add(target)
            self._logger.warning("label and engine disagree", **_names(target), label=label, owned_by=said)
        else:
            self._disagreeing.remove(target)
        self._metrics.disagreements.set(len(self._disagreeing))


def _key(endpoint: Endpoint) -> tuple[str, str, str, str]:
    return endpoint.namespace, endpoint.name, endpoint.destination, endpoint.uid


def _names(target: _Target) -> dict[str, str]:
    endpoint = target.endpoint
    return {"endpoint": f"{endpoint.namespace}/{endpoint.name}", "destination": endpoint.destination}


__all__ = ["Probe", "ProbeConfig"]
