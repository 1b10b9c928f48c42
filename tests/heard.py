# SPDX-License-Identifier: Apache-2.0
"""What a running program logs, as it comes."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

PATIENCE: Final = 30.0
"""Seconds that something may take to be said."""

Json = dict[str, Any]


class Heard:
    """Called with each line of a program; `said` has those that are JSON, since it began or was cleared."""

    def __init__(self) -> None:
        self.said: list[Json] = []
        self._news = asyncio.Event()

    def __call__(self, line: str) -> None:
        with contextlib.suppress(ValueError):
            self.said.append(json.loads(line))
        self._news.set()

    async def line(self, **fields: Any) -> Json:
        """The first line with these fields, now or when it comes."""

        async def find() -> Json | None:
            return next((line for line in self.said if fields.items() <= line.items()), None)

        found: Json = await self.until(find, lambda line: line is not None)
        return found

    async def until(self, seen: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
        """What `await seen()` gives once it is `wanted`, looked at again each time that the program says something."""
        found = None
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    self._news.clear()
                    if wanted(found := await seen()):
                        return found
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"it came to {found}, and the program said {self.said[-10:]}") from None
