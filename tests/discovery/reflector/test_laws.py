# SPDX-License-Identifier: Apache-2.0
"""Whatever happens between a store and a reflector, in the end the reflector knows what is in the store."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.discovery.kubernetes import ApiError, Params
from extproc.discovery.objects import PODS, Pod
from extproc.discovery.reflector import Reflector
from extproc.observability.logs import make_logger
from extproc.observability.metrics import Metrics
from tests.discovery.reflector.following import bookmark, document, event, failure, page, pod
from tests.fakes.api_server import PATIENCE

NAMES = ("a", "b", "c")
WRITES = st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from(NAMES))
NEWS = st.tuples(st.sampled_from(["deliver", "repeat"]), st.integers(0, 5))
TROUBLE = st.tuples(st.sampled_from(["bookmark", "end", "cut", "rubbish", "error", "expired", "refused", "next page"]))
ASKED = st.one_of(st.tuples(st.just("relist"), st.integers(0, 3)), st.just(("pause",)))
SCRIPTS = st.lists(st.one_of(WRITES, WRITES, NEWS, NEWS, TROUBLE, ASKED), max_size=60)


class Store:
    """An API server with three names: what happens to it, and to those who list and watch it, stands in a script."""

    def __init__(self, script: list[tuple[Any, ...]]) -> None:
        self.script = iter(script)
        self.version = 10
        self.versions: dict[str, int] = {}
        self.log: list[tuple[int, dict[str, Any]]] = []
        self.reflector: Reflector[Pod]
        self.asked: list[asyncio.Task[str | None]] = []

    async def happens(self, verb: str, *arguments: Any) -> bool:
        """Do what a line of the script says, if it is a write, or somebody who asks for a list, or nothing for a while.

        A list shows all that was written before it was asked for, and interrupts whoever is here: with the asking, the end
        of the turn's time and the interruption, in so many of the loop's ticks, or later.
        """

        async def ask(since: int, before: dict[str, int]) -> str | None:
            error = await self.reflector.relist()
            known = {name: int(one.metadata.resource_version) for (_, name), one in self.reflector.objects.items()}
            later = {line["object"]["metadata"]["name"] for version, line in self.log if version > since}
            assert error or {name for name in NAMES if known.get(name) != before.get(name)} <= later
            return error

        ticks = 0
        if verb == "pause":
            ticks = 3
        elif verb == "relist":
            ticks = arguments[0]
            self.asked.append(asyncio.create_task(ask(self.version, dict(self.versions))))
        for _ in range(ticks):
            await asyncio.sleep(0)
        return verb in {"pause", "relist"} or self.write(verb, *arguments)

    def write(self, verb: str, name: str = "") -> bool:
        """Do what a line of the script says, if it is a write."""
        if verb == "put":
            self.version += 1
            kind = "MODIFIED" if name in self.versions else "ADDED"
            self.versions[name] = self.version
            self.log.append((self.version, event(kind, name, self.version)))
        elif verb == "delete" and self.versions.pop(name, None):
            self.version += 1
            self.log.append((self.version, event("DELETED", name, self.version)))
        return verb in {"put", "delete"}

    async def renew(self, _failure: ApiError) -> None:
        """Nothing to renew."""

    async def get(self, _path: str, params: Params) -> bytes:
        """A page with one object; the store may be written to in between, the list stays that of one moment."""
        for verb, *arguments in self.script:
            if await self.happens(verb, *arguments):
                continue
            if verb in {"cut", "error", "refused"}:
                raise ApiError(500, verb)
            if verb == "expired":
                raise ApiError(410, verb)
            break
        if "continue" in params:
            version, *left = params["continue"].split(",")
        else:
            version, *left = str(self.version), *(f"{name}={self.versions[name]}" for name in self.versions)
        documents = [document(*one.split("=")) for one in left[:1]]
        token = ",".join([version, *left[1:]]) if left[1:] else ""
        return msgspec.json.encode(page(*documents, version=version, token=token))

    @contextlib.asynccontextmanager
    async def watch(self, _path: str, params: Params, _timeout: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Events from a version on."""
        yield self._lines(int(params["resourceVersion"]))

    async def _lines(self, since: int) -> AsyncIterator[bytes]:
        for verb, *arguments in self.script:
            if await self.happens(verb, *arguments):
                continue
            if verb == "end":
                return
            if verb in {"cut", "refused"}:
                raise ApiError(0, verb)
            for line in self._said(verb, since, *arguments):
                since = max(since, int(line.get("object", {}).get("metadata", {}).get("resourceVersion", 0)))
                yield msgspec.json.encode(line)
        for version, line in self.log:
            if version > since:
                yield msgspec.json.encode(line)
        await self.happens("pause")  # whoever was to ask has asked
        raise asyncio.CancelledError  # the script is over, and all is told

    def _said(self, verb: str, since: int, number: int = 0) -> Iterator[dict[str, Any]]:
        if verb == "deliver":
            yield from [line for version, line in self.log if version > since][:number]
        elif verb == "repeat":
            yield from [line for version, line in self.log if version <= since][number:][:1]
        elif verb == "bookmark":
            yield bookmark(str(since))
        elif verb == "rubbish":
            yield {"kind": "rubbish"}
        elif verb in {"error", "expired"}:
            yield failure(410 if verb == "expired" else 500, verb)


async def _at_once(_seconds: float) -> None:
    """No time passes."""


async def _follow(store: Store) -> tuple[dict[tuple[str, str], Pod], dict[tuple[str, str], Pod]]:
    """What the reflector knows in the end, and what those know who only heard of the changes."""
    heard: dict[tuple[str, str], Pod] = {}

    def on_change(old: Pod | None, new: Pod | None) -> None:
        one = new or old
        assert one is not None
        assert heard.pop(one.metadata.key, None) == old
        assert old != new
        if new is not None:
            heard[one.metadata.key] = new

    logger = make_logger("json", "critical", io.BytesIO())
    reflector: Reflector[Pod] = Reflector(store, PODS, "", on_change, Metrics(), logger, sleep=_at_once)  # type: ignore[arg-type]
    store.reflector = reflector
    with contextlib.suppress(asyncio.CancelledError):
        await reflector.run()
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*store.asked)
    assert set(answers) <= {None, "cut", "error", "expired", "refused"}  # in particular, nobody waited until the end
    return reflector.objects, heard


@settings(max_examples=500)
@given(SCRIPTS)
@example([("relist", 1), ("next page",), ("pause",)])  # the list that it asked for is interrupted by its own asking
def test_in_the_end_the_reflector_knows_what_is_in_the_store(script: list[tuple[Any, ...]]) -> None:
    store = Store(script)
    known, heard = asyncio.run(_follow(store))

    assert known == heard == {("default", name): pod(name, version) for name, version in store.versions.items()}
