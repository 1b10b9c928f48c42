# SPDX-License-Identifier: Apache-2.0
"""One resource in one namespace, kept as the API server has it: list, then watch from there.

    LIST --all pages--> WATCH --the server's time is up--> WATCH from where it was
      ^                   |
      +-- 410, `relist` --+          any other failure: wait, then go on from where it was

Until a list is complete, what was known stays; then the difference is applied, so that nothing that vanished in between is
kept. The contract is the Kubernetes API's ("Efficient detection of changes", "Retrieving large results sets in chunks").
"""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, TypeVar

import msgspec

from extproc.discovery.kubernetes import ApiError, KubernetesApi, Status
from extproc.discovery.objects import Kind, KubernetesObject, Metadata, Resource
from extproc.observability.logs import Logger
from extproc.observability.metrics import Metrics

T = TypeVar("T", bound=KubernetesObject)

PAGE: Final = 500
"""Objects a page of a list."""
_BURIED: Final = 1024
"""How many deleted objects are remembered, so that late news of one does not bring it back."""
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _GONE, _TOO_MANY, _BROKEN = 401, 403, 404, 410, 429, 500
_REASONS: Final = {
    0: "broken",
    _UNAUTHORIZED: "unauthorized",
    _FORBIDDEN: "forbidden",
    _NOT_FOUND: "not-found",
    _GONE: "expired",
    _TOO_MANY: "throttled",
}


class Timing(msgspec.Struct, frozen=True):
    """How long things may take, in seconds.

    The API server is asked to end a watch after `watch` (up to a quarter less, so that reflectors do not begin anew together);
    one that is silent for `grace` longer hangs. Short, because a connection that is cut without a word shows in nothing else.
    """

    watch: float = 40.0
    grace: float = 5.0
    short: float = 1.0
    least: float = 0.5
    most: float = 30.0
    longest_retry_after: float = 300.0


class Reflector(Generic[T]):
    """The objects of one resource; `on_change(old, new)` hears of each that came (old None), changed or went (new None)."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it is joined to
        self,
        api: KubernetesApi,
        resource: Resource,
        namespace: str,
        on_change: Callable[[T | None, T | None], None],
        metrics: Metrics,
        logger: Logger,
        *,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Nothing is asked yet. An empty namespace means all of them."""
        self.objects: dict[tuple[str, str], T] = {}
        self.synced = asyncio.Event()
        self.error: str | None = None
        self._api = api
        self._resource = resource
        self._namespace = namespace
        self._on_change = on_change
        self._logger = logger.bind(logger="reflector", resource=resource.label, namespace=namespace or "*")
        self._timing = timing
        self._sleep = sleep
        self._kind = resource.kinds[0]
        self._version = ""
        self._listed = ""
        self._buried: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._failures = 0
        self._heard_at: float | None = None
        self._expired_at = float("-inf")
        self._verb = "list"
        self._turn_limit: asyncio.Timeout | None = None
        self._waiting: list[asyncio.Future[str | None]] = []
        self._served: list[asyncio.Future[str | None]] = []
        self._labels = labels = (resource.label, namespace)
        self._restarts = metrics.watch_restarts
        self._last_event = metrics.watch_last_event.labels(*labels)
        self._unreadable = metrics.unreadable_objects.labels(resource.label)
        self._staleness = metrics.watch_staleness
        self._started = time.monotonic()
        self._show_staleness()

    def status(self) -> dict[str, Any]:
        """For people: what is known, how long ago the API server last said anything, and what is wrong."""
        age = None if self._heard_at is None else round(time.monotonic() - self._heard_at, 1)
        return {"objects": len(self.objects), "synced": self.synced.is_set(), "age_seconds": age, "error": self.error}

    async def run(self) -> None:
        """Follow the resource, for ever."""
        try:
            while True:
                # Its time is up when `relist` says so, and only then.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None) as self._turn_limit:
                        await self._turn()
        finally:
            self._turn_limit = None
            self._served += self._waiting
            self._answer("it is not followed any more")

    async def relist(self) -> str | None:
        """List now instead of watching or waiting, apply the difference, and go on; None, or in words why that failed.

        Who asks before the list has begun shares it; who asks later gets the next one, for what this one does not show.
        Before `run` it waits for that.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str | None] = loop.create_future()
        self._waiting.append(answer)
        listing = any(not other.done() for other in self._served)  # one after another; unless nobody waits for it
        if self._turn_limit is not None and not self._turn_limit.expired() and not listing:
            self._turn_limit.reschedule(loop.time())
        return await answer

    def _answer(self, error: str | None) -> None:
        """Tell those for whom it was listed how that ended."""
        for answer in self._served:
            if not answer.done():
                answer.set_result(error)
        self._served.clear()

    async def _turn(self) -> None:
        """List, if need be, and watch once; then wait as long as there is reason to."""
        try:
            delay = await self._follow()
        except Exception as error:
            self._logger.exception("internal error")
            self._version = ""  # whatever it is: begin anew, and go on following
            delay = await self._failed(ApiError(0, f"internal error: {error!r}"))
        if delay:
            self._answer(self.error)
            if not self._waiting:
                await self._sleep(delay)

    async def _follow(self) -> float:
        """A turn but for the wait at its end, whose seconds come back."""
        try:
            if not self._version or self._served:  # a list that was interrupted, or has to begin anew, is still owed
                await self._list()
            while self._waiting:
                await self._list()
            await self._watch()
        except ApiError as error:
            return await self._failed(error)
        return 0.0

    async def _list(self) -> None:
        """Ask for everything, in the first version that is served, and apply the difference."""
        self._verb = "list"
        if self._waiting:
            self._count("asked")
            self._served += self._waiting
            self._waiting.clear()
        for number, kind in enumerate(self._resource.kinds, 1):
            try:
                found, version = await self._pages(kind)
            except ApiError as error:
                if error.status == _NOT_FOUND and number < len(self._resource.kinds):
                    continue
                raise
            self._kind = kind
            break
        self._buried.clear()
        self._heard()
        self._version = self._listed = version
        for key in self.objects | found:
            self._put(key, found.get(key))
        self._well()
        self._answer(None)

    async def _pages(self, kind: Kind) -> tuple[dict[tuple[str, str], T], str]:
        found: dict[tuple[str, str], T] = {}
        params = self._params() | {"limit": str(PAGE)}
        while True:
            body = await self._api.get(kind.path(self._resource.name, self._namespace), params)
            try:
                page = msgspec.json.decode(body, type=_Page)
                read = [self._read(raw, kind) for raw in page.items or ()]
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ApiError(0, f"the list cannot be read: {error}") from error
            found |= {metadata.key: one for metadata, one in read if one is not None}
            if not page.metadata.next:
                return found, page.metadata.resource_version
            params["continue"] = page.metadata.next

    async def _watch(self) -> None:
        """Take events until the API server ends the watch. Raises ApiError."""
        self._verb = "watch"
        timing = self._timing
        seconds = timing.watch * random.uniform(0.75, 1.0)  # noqa: S311 - jitter
        params = self._params() | {
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(max(round(seconds), 1)),
        }
        path = self._kind.path(self._resource.name, self._namespace)
        stood, since = float("inf"), self._version  # a refusal may take its time, and is no watch
        try:
            async with self._api.watch(path, params, seconds + timing.grace) as lines:
                stood = time.monotonic()
                self._heard()
                self._well()
                async for line in lines:
                    self._event(line)
        finally:
            if lasted := self._version != since or time.monotonic() - stood >= timing.short:
                self._failures = 0
        if not lasted:
            raise ApiError(0, "the watch ended as soon as it began")
        self._count("ended")
        if self._kind is not self._resource.kinds[0]:
            self._version = ""  # an older version is what there was: the newer one may be served by now

    def _event(self, line: bytes) -> None:
        """Apply one event."""
        try:
            event = msgspec.json.decode(line, type=_Event)
            if event.type == "ERROR":
                raise msgspec.json.decode(event.object, type=Status).error()
            if event.type == "BOOKMARK":
                self._heard(msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version)
                return
            metadata, one = self._read(event.object, self._kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ApiError(0, f"the watch sent what is no event: {error}") from error
        self._heard(metadata.resource_version)
        self._last_event.set_to_current_time()
        key, version = metadata.key, metadata.resource_version
        before = self.objects.get(key)
        known = before.metadata.resource_version if before else self._buried.get(key, self._listed)
        gone = event.type == "DELETED"
        # A repeated or late event tells nothing new; a deletion may bear the version of the object's last change.
        if _older(version, known) or (version == known and not (gone and before)):
            return
        if gone or one is None:
            self._buried[key] = version
            self._buried.move_to_end(key)
            if len(self._buried) > _BURIED:
                self._buried.popitem(last=False)
        self._put(key, None if gone else one)

    def _put(self, key: tuple[str, str], new: T | None) -> None:
        """Keep what an object is now, None if it went, and tell of it if that is news."""
        old = self.objects.get(key)
        if old == new:
            return
        if new is None:
            del self.objects[key]
        else:
            self.objects[key] = new
        self._on_change(old, new)

    def _read(self, raw: msgspec.Raw, kind: Kind) -> tuple[Metadata, T | None]:
        """An object and its metadata; one that does not have its kind's shape is told and left out."""
        try:
            one: T = msgspec.json.decode(raw, type=kind.shape)
        except (msgspec.MsgspecError, RecursionError) as error:
            metadata = msgspec.json.decode(raw, type=_Named).metadata
            self._unreadable.inc()
            self._logger.warning("object left out", name=metadata.name, error=str(error))
            return metadata, None
        return one.metadata, one

    async def _failed(self, error: ApiError) -> float:
        """Tell of a failure and prepare to go on; how many seconds to wait first."""
        if self._resource.optional and error.status == _NOT_FOUND:
            return self._do_without()
        self._count(_REASONS.get(error.status, "error"))
        if error.status == _NOT_FOUND:
            self._version = ""  # the version that was watched is no longer served
        if error.status == _GONE:
            self._version = ""
            now = time.monotonic()
            again, self._expired_at = now - self._expired_at < self._timing.most, now
            if not again:  # the ordinary end of a long silence: no reason to wait
                self._failures = max(self._failures, 1)
                self._logger.info("expired, listing again")
                return 0.0
        try:
            await self._api.renew(error)
        except ApiError as renewal:
            error = renewal
        delay = self._delay(error.retry_after)
        text = self._words(error)
        if self._resource.optional and (error.status == _FORBIDDEN or error.status >= _BROKEN):
            self.synced.set()  # nobody need wait for what we may not see, or what the API server cannot show
        if self._resource.optional and error.status == _FORBIDDEN and self._heard_at is None:
            self._staleness.remove(*self._labels)  # where our Role is older: of what was never seen nothing is stale
        if text != self.error:
            self._logger.warning("the API server fails", status=error.status, error=text, seconds=round(delay, 1))
        self.error = text
        return delay

    def _do_without(self) -> float:
        """The cluster has no such resource, which is no failure; how many seconds to wait before looking again."""
        if self._version or not self.synced.is_set():
            self._logger.info("not served here, going on without")
        self._version = ""
        self._heard()
        for key in tuple(self.objects):
            self._put(key, None)
        self._well()
        return self._timing.most

    def _delay(self, retry_after: float | None) -> float:
        timing = self._timing
        self._failures = min(self._failures + 1, 16)
        bound = min(timing.most, timing.least * 2**self._failures)
        if retry_after is not None:
            return max(timing.least, min(retry_after, timing.longest_retry_after))
        return random.uniform(bound / 2, bound)  # noqa: S311 - jitter

    def _words(self, error: ApiError) -> str:
        if error.status != _FORBIDDEN:
            return str(error)
        where = f"namespace {self._namespace}" if self._namespace else "all namespaces"
        return f"the permission to {self._verb} {self._resource.label} in {where} is missing: {error}"

    def _params(self) -> dict[str, str]:
        return {"fieldSelector": self._resource.field_selector} if self._resource.field_selector else {}

    def _heard(self, version: str = "") -> None:
        """The API server spoke; a watch that breaks goes on from the latest version that it named."""
        if self._heard_at is None:
            self._show_staleness()
        self._heard_at = time.monotonic()
        if version and not _older(version, self._version):
            self._version = version

    def _show_staleness(self) -> None:
        self._staleness.labels(*self._labels).set_function(lambda: time.monotonic() - (self._heard_at or self._started))

    def _well(self) -> None:
        if self.error is not None:
            self._logger.info("the API server answers again")
        self.error = None
        self.synced.set()

    def _count(self, reason: str) -> None:
        self._restarts.labels(self._resource.label, self._namespace, reason).inc()


class _ListMetadata(msgspec.Struct, frozen=True):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    next: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: tuple[msgspec.Raw, ...] | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Named(msgspec.Struct, frozen=True):
    metadata: Metadata


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _ListMetadata


def _older(version: str, than: str) -> bool:
    """Whether a resource version comes before another: they are decimal numbers that grow, as far as they are comparable."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
