# SPDX-License-Identifier: Apache-2.0
"""What the status page shows, as plain values: an overview, the endpoints, the last decisions, the rates.

All of it is bounded, however large the cluster is and whatever its labels are: a page that shows everything is of no use
to anybody. What is more is counted, and a text that is too long is cut and ends with an ellipsis.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from extproc.observability.recent import Rates, Recent
from extproc.policy.candidates import engine, models_of
from extproc.policy.config import PolicyConfig
from extproc.policy.matrix import Matrix, matrix
from extproc.policy.pick import Loads
from extproc.policy.types import Endpoint, Pool, Snapshot

ENDPOINTS: Final = 500
"""How many endpoints are shown."""
POOLS: Final = 50
"""How many pools are shown."""
ENGINES: Final = 30
"""How many engines of a pool are shown; all others are one more."""
ROWS: Final = 200
"""How many models of a pool are shown."""
ALL_ROWS: Final = 1000
"""How many models of all pools together: each has the same share."""
MODELS: Final = 10
"""How many models of an endpoint are shown: with adapters it may have thousands."""
LABELS: Final = 40
"""How many labels of an endpoint are shown."""

_LONGEST: Final = 500
"""Characters of an error that are shown."""
_NAME: Final = 200
"""Characters of any other text that are shown."""
_ERRORS: Final = 3

Status = Mapping[str, Any]


class Source(msgspec.Struct, frozen=True):
    """Where something comes from, and how that is.

    `since` is when it was last loaded or last said anything (of endpoints: when any of them last answered), in seconds
    since 1970, None if it never did; `state` is in words.
    """

    name: str
    where: str
    state: str
    since: int | None = None
    error: str | None = None


class Views:
    """The views of one process by the names that the page knows them by.

    A view that returns the identical object as before has not changed.
    """

    def __init__(  # noqa: PLR0913 - what there is to see
        self,
        *,
        status: Callable[[], Status],
        snapshot: Callable[[], Snapshot],
        policy: Callable[[], PolicyConfig],
        loads: Callable[[], Loads],
        recent: Recent,
        rates: Rates,
    ) -> None:
        """`status` is what `/statusz` says."""
        self._status = status
        self._snapshot = snapshot
        self._policy = policy
        self._loads = loads
        self._started: float | None = None
        self._matrix: tuple[tuple[object, ...], list[dict[str, Any]]] = ((), [])
        self._endpoints: tuple[tuple[object, ...], dict[str, Any]] = ((), {})
        self.all: Mapping[str, Callable[[], object]] = {
            "overview": self.overview,
            "endpoints": self.endpoints,
            "decisions": recent.latest,
            "rates": rates.latest,
        }

    def overview(self) -> dict[str, Any]:
        """How the process is, who serves what, and how old the sources are.

        Moments are in seconds since 1970, not ages: what has not changed need not be sent again.
        """
        status, now = self._status(), time.time()
        if self._started is None:
            self._started = now - status["uptime_seconds"]
        return {
            "version": status["version"],
            "started_at": round(self._started),
            "ready": status["ready"],
            "components": status["components"],
            "generation": status["generation"],
            "streams": status["streams"],
            "matrix": self._matrices(),
            "more_pools": max(0, len(self._snapshot().pools) - POOLS),
            "sources": sources(status, now),
        }

    def endpoints(self) -> dict[str, Any]:
        """The endpoints of all pools, ready or not, at most 500: then those that are not ready come first."""
        snapshot, policy, loads = key = (self._snapshot(), self._policy(), self._loads())
        if not _same(key, self._endpoints[0]):
            listed = [(pool, one) for pool in snapshot.pools for one in snapshot.endpoints[pool]]
            if len(listed) > ENDPOINTS:
                listed.sort(key=lambda each: each[1].ready)
            shown = [_endpoint(pool, one, policy, loads) for pool, one in listed[:ENDPOINTS]]
            self._endpoints = (key, {"total": len(listed), "endpoints": shown})
        return self._endpoints[1]

    def _matrices(self) -> list[dict[str, Any]]:
        snapshot, policy = key = (self._snapshot(), self._policy())
        if not _same(key, self._matrix[0]):
            rows = min(ROWS, ALL_ROWS // max(1, min(POOLS, len(snapshot.pools))))
            tables = matrix(snapshot, policy, pools=POOLS, engines=ENGINES, rows=rows)
            self._matrix = (key, [_table(each) for each in tables])
        return self._matrix[1]


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether both are of the same objects: they are replaced when they change, and large to compare."""
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _table(one: Matrix) -> dict[str, Any]:
    return {
        "pool": _cut(str(one.pool)),
        "engines": [_cut(name) for name in one.engines],
        "more_engines": one.more_engines,
        "rows": [{"model": None if row.model is None else _cut(row.model), "cells": row.cells} for row in one.rows],
        "more_models": one.more_models,
        "total": one.total,
    }


def _endpoint(pool: Pool, one: Endpoint, policy: PolicyConfig, loads: Loads) -> dict[str, Any]:
    models = models_of(one, policy)
    load = loads.get(one.destination)
    return {
        "name": _cut(one.name),
        "namespace": _cut(one.namespace),
        "pool": _cut(str(pool)),
        "destination": one.destination if one.address else "",
        "owner": _cut(engine(one, policy)),
        "role": _cut(one.role),
        "ready": one.ready,
        "labels": {_cut(name): _cut(value) for name, value in sorted(one.labels.items())[:LABELS]},
        "models": None if models is None else [_cut(model.id) for model in models[:MODELS]],
        "more_models": max(0, len(models or ()) - MODELS),
        "waiting": None if load is None else load.waiting,
        "kv_cache": None if load is None else round(load.kv_cache, 3),
    }


def sources(status: Status, now: float) -> list[Source]:
    """Every source that a status names, flat: files, what is followed at an API server, and the endpoints' own answers."""
    found: list[Source] = []
    for name, entry in status["sources"].items():
        if "file" in entry:
            age, state = entry["age_seconds"], "not loaded" if entry["age_seconds"] is None else "loaded"
            found.append(Source(name, entry["file"], state, _since(age, now), _short(entry["error"])))
        elif "folder" in entry:
            where, state = entry["folder"] or "made at the start", f"valid until {entry['not_after']}"
            found.append(Source(name, where, state, _since(entry["age_seconds"], now), _short(entry["error"])))
        elif "configmap" in entry:
            watch = entry["watch"]
            where = f"ConfigMap {entry['configmap']}"
            error = _short(entry["error"] or watch["error"])  # a good document may be old: nobody tells of a newer one
            state = _document(watch, entry["error"])
            found.append(Source(name, where, state, _since(watch["age_seconds"], now), error))
        else:
            for namespace, watch in entry.items():
                where = "all namespaces" if namespace == "*" else f"namespace {namespace}"
                since = _since(watch["age_seconds"], now)
                found.append(Source(name, where, _synced(watch), since, _short(watch["error"])))
    probe, load = status["probe"], status["load"]
    found.append(
        _asked("models", "/v1/models of endpoints", probe, f"{probe['answered']} of {probe['followed']} answer", now)
    )
    found.append(_asked("load", "/metrics of endpoints", load, f"{load['fresh']} of {load['followed']} fresh", now))
    return found


def _asked(name: str, where: str, entry: Mapping[str, Any], state: str, now: float) -> Source:
    failures = [f"{each['destination']}: {each['error']}" for each in entry["failures"][:_ERRORS]]
    if entry["failing"] > len(failures):
        failures.append(f"and {entry['failing'] - len(failures)} more")
    since = _since(entry["age_seconds"], now)
    return Source(
        name, where, state if entry["followed"] else "nobody is asked", since, _short("; ".join(failures) or None)
    )


def _synced(watch: Mapping[str, Any]) -> str:
    if not watch["synced"]:
        return "not synced"
    return f"{watch['objects']} object{'' if watch['objects'] == 1 else 's'}"


def _document(watch: Mapping[str, Any], error: str | None) -> str:
    """How the only document is that a watch can find."""
    if not watch["synced"]:
        return "not synced"
    if not watch["objects"]:
        return "absent"
    return "refused" if error else "loaded"


def _since(age: float | None, now: float) -> int | None:
    return None if age is None else round(now - age)


def _cut(text: str) -> str:
    return text if len(text) <= _NAME else f"{text[: _NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _short(text: str | None) -> str | None:
    return None if text is None else text[:_LONGEST]
