# SPDX-License-Identifier: Apache-2.0
"""The routing entries in a ConfigMap, so that every replica follows them and restarts keep them.

A write bears the resourceVersion of what it is made from: the API server refuses it with 409 if that is not the present
one, so that of two who write at once neither undoes the other (Kubernetes API conventions, "Concurrency Control").
"""

import asyncio
import random
from typing import Any, Final

import msgspec

from extproc.discovery.kubernetes import ApiError, KubernetesApi
from extproc.discovery.objects import ConfigMap
from extproc.policy.document import DocumentError
from extproc.policy.routing import Edit, Refused, Routing, edited, parse_routing

NAME: Final = "owned-by-routing"
"""The name of the ConfigMap (design section 5)."""
KEY: Final = "routing.yaml"
"""The key of the document in it."""
PATIENCE: Final = 10.0
"""Seconds that a read or a change may take, everything included."""
_ATTEMPTS: Final = 10
"""How often a change is tried while others are faster."""
_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
"""Seconds before the second attempt at most; doubled for each further one, up to the second."""
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _TOO_LARGE = 401, 403, 404, 409, 413
_BUSY: Final = (0, _UNAUTHORIZED, 408, 429)
_BROKEN: Final = 500
_UNSURE: Final = "; it is not known whether it was stored"


class ConfigMapRouting:
    """The RoutingStore of a cluster. What else the ConfigMap holds stays as it is; if there is none, it is made."""

    def __init__(self, api: KubernetesApi, namespace: str, name: str = NAME) -> None:
        """Nothing is asked yet."""
        self.namespace = namespace
        self.name = name
        self._api = api
        self._folder = f"/api/v1/namespaces/{namespace}/configmaps"
        self._path = f"{self._folder}/{name}"
        self._turn = asyncio.Lock()  # those of this process need not be each other's conflicts

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    async def read(self) -> Routing | Refused:
        """What is stored now; its version is the resourceVersion."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._routing(await self._get())
        except ApiError as error:
            return self._refused(error, "get")
        except TimeoutError:
            return self._late("")

    async def change(self, edit: Edit, version: str | None = None) -> Routing | Refused:
        """Store what `edit` makes of what is stored; see RoutingStore. `edit` is called in another thread."""
        try:
            async with self._turn, asyncio.timeout(PATIENCE):
                for attempt in range(_ATTEMPTS):
                    if attempt:
                        longest = min(_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
                        await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 - jitter
                    outcome = await self._attempt(edit, version)
                    if outcome is not None:
                        return outcome
        except ApiError as error:
            return self._refused(error, "get")
        except TimeoutError:
            return self._late(_UNSURE)
        return Refused("conflict", f"the ConfigMap {self} changed each time that it was to be written; try again")

    async def _attempt(self, edit: Edit, version: str | None) -> Routing | Refused | None:
        """Read, edit and write once; None if somebody else wrote in between."""
        body = await self._get()
        now = await self._routing(body)
        if isinstance(now, Refused):
            return now
        text = await asyncio.to_thread(edited, now, edit, version, f"the ConfigMap {self}")
        if not isinstance(text, str):
            return text
        verb = "create" if body is None else "update"
        try:
            return await self._routing(await self._write(body, text))
        except ApiError as error:
            if error.status == _CONFLICT or (error.status == _NOT_FOUND and verb == "update"):
                return None
            return self._refused(error, verb)

    async def _get(self) -> bytes | None:
        """The ConfigMap, None if there is none. Raises ApiError."""
        try:
            return await self._got()
        except ApiError as error:
            await self._api.renew(error)
            if error.status != _UNAUTHORIZED:
                raise
        return await self._got()

    async def _got(self) -> bytes | None:
        try:
            return await self._api.get(self._path, {})
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _write(self, body: bytes | None, text: str) -> bytes:
        if body is None:
            metadata = {"name": self.name, "namespace": self.namespace}
            new = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}
            return await self._api.create(self._folder, new)
        document: dict[str, Any] = msgspec.json.decode(body)
        document["data"] = (document.get("data") or {}) | {KEY: text}
        return await self._api.replace(self._path, document)

    async def _routing(self, body: bytes | None) -> Routing | Refused:
        """What a ConfigMap says; thousands of entries take their time, and requests do not wait for that."""
        return Routing() if body is None else await asyncio.to_thread(self._parsed, body)

    def _parsed(self, body: bytes) -> Routing | Refused:
        try:
            one = msgspec.json.decode(body, type=ConfigMap)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ApiError(0, f"its answer is no ConfigMap: {error}") from error
        try:
            routes = parse_routing((one.data or {}).get(KEY, "").encode())
        except DocumentError as error:
            return Refused("unreadable", f"the ConfigMap {self}, {KEY}: {error}")
        return Routing(routes, one.metadata.resource_version)

    def _refused(self, error: ApiError, verb: str) -> Refused:
        status, text = error.status, str(error)
        if status == _FORBIDDEN:
            return Refused("read_only", f"the permission to {verb} the ConfigMap {self} is missing: {text}")
        if status in _BUSY or status >= _BROKEN:
            unsure = _UNSURE if verb != "get" and (not status or status >= _BROKEN) else ""
            return Refused("unavailable", f"the API server fails: {text}{unsure}")
        if status == _TOO_LARGE or "too long" in text.lower():
            return Refused("too_large", f"the ConfigMap {self} would be too large: {text}")
        return Refused("read_only", f"the ConfigMap {self} cannot be written: {text}")

    def _late(self, unsure: str) -> Refused:
        return Refused("unavailable", f"the API server fails: no answer within {PATIENCE:g} s{unsure}")
