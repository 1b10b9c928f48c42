# SPDX-License-Identifier: Apache-2.0
"""The JSON pages: what this process is, what it runs with, and what it knows."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from extproc import __version__
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Pool, Snapshot
from extproc.server.extproc import ExternalProcessor
from extproc.server.health import Health
from extproc.settings import Settings

Json = dict[str, Any]


class Pages:
    """Each page's content, made when it is asked for; `all` has them by their paths."""

    def __init__(  # noqa: PLR0913, PLR0917 - what there is to show
        self,
        settings: Settings,
        health: Health,
        processor: ExternalProcessor,
        snapshot: Callable[[], Snapshot],
        policy: Callable[[], PolicyConfig],
        parts: Mapping[str, Callable[[], Json]],
    ) -> None:
        """`parts` are what the sources say of themselves: `sources` (each by its name), `probe` and `load`."""
        self._settings = settings
        self._health = health
        self._processor = processor
        self._snapshot = snapshot
        self._policy = policy
        self._parts = parts
        self._started = time.monotonic()
        self.all: Mapping[str, Callable[[], Json]] = {
            "/statusz": self.status,
            "/configz": self.config,
            "/endpointz": self.endpoints,
            "/flagz": self.flags,
        }

    def status(self) -> Json:
        """How it is, and how its sources are."""
        snapshot = self._snapshot()
        return {
            "version": __version__,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "ready": self._health.ready,
            "components": self._health.components,
            "streams": self._processor.open_streams,
            "generation": snapshot.generation,
            "pools": {str(pool): _counts(snapshot, pool) for pool in snapshot.pools},
            "longest_hint": self._processor.longest_hint,
        } | {name: part() for name, part in self._parts.items()}

    def config(self) -> Json:
        """The policy in force, the admin API's entries in it, and what is wrong with a newer one that was refused."""
        sources = self._parts["sources"]()
        errors = {name: sources[name]["error"] for name in ("policy", "routing") if name in sources}
        plain = msgspec.to_builtins(self._policy(), enc_hook=float)
        return {"policy": plain, "error": errors.get("policy"), "routing_error": errors.get("routing")}

    def endpoints(self) -> Json:
        """Every endpoint of the present snapshot."""
        snapshot = self._snapshot()
        pools = {str(pool): snapshot.endpoints[pool] for pool in snapshot.pools}
        return {"generation": snapshot.generation, "pools": pools}

    def flags(self) -> Json:
        """The flags that the process runs with, defaults included; times in seconds."""
        plain = msgspec.to_builtins(self._settings, enc_hook=_plain)
        return {f"--{name.replace('_', '-')}": value for name, value in plain.items()}


def _plain(value: Any) -> Any:
    """A duration as a number, a path as a text."""
    return float(value) if isinstance(value, float) else str(value)


def _counts(snapshot: Snapshot, pool: Pool) -> dict[str, int]:
    tally = Tally(endpoint.ready for endpoint in snapshot.endpoints[pool])
    return {"ready": tally[True], "not_ready": tally[False]}
