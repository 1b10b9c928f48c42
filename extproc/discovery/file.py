# SPDX-License-Identifier: Apache-2.0
"""Files as a source: the endpoints file, and the loop that reads a file again when its content has changed.

Content is compared, not time stamps: a mounted ConfigMap changes by a link that is moved (facts/ecosystem.md 3).
"""

import asyncio
import ipaddress
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from extproc.policy.document import Document, DocumentError, Place
from extproc.policy.types import ROLE_LABEL, Endpoint, Model, Pool

INTERVAL: Final = 0.5
"""Seconds between two looks at a file (design section 5)."""
_MAX_PORT: Final = 65535

Name = Annotated[str, Meta(min_length=1, max_length=253)]
PoolName = Annotated[str, Meta(pattern="^[^/]+$", max_length=253)]


class _ModelPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: Name
    created: int | None = None
    max_model_len: int | None = None


class _EndpointPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    address: str
    labels: dict[str, str] = {}
    models: tuple[Name | _ModelPart, ...] | None = None
    ready: bool = True


class _PoolPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: PoolName
    namespace: PoolName = "default"
    endpoints: tuple[_EndpointPart, ...] = ()


class _FilePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pools: Annotated[tuple[_PoolPart, ...], Meta(min_length=1)]


def parse_endpoints(text: bytes) -> dict[Pool, tuple[Endpoint, ...]]:
    """Read an endpoints file (design section 5). Raises DocumentError with path and line for the first mistake."""
    document = Document(text)
    found: dict[Pool, tuple[Endpoint, ...]] = {}
    for number, part in enumerate(document.convert(_FilePart).pools):
        pool = Pool(part.namespace, part.name)
        if pool in found:
            raise document.fail(("pools", number, "name"), f"the pool `{pool}` stands twice")
        found[pool] = tuple(_endpoints(document, part, ("pools", number, "endpoints")))
    return found


def _endpoints(document: Document, pool: _PoolPart, place: Place) -> Sequence[Endpoint]:
    found: dict[str, Endpoint] = {}
    names = set[str]()
    for number, part in enumerate(pool.endpoints):
        here = (*place, number)
        try:
            address, port = parse_address(part.address)
        except ValueError as error:
            raise document.fail((*here, "address"), str(error)) from error
        models = None if part.models is None else tuple(_model(model) for model in part.models)
        role = part.labels.get(ROLE_LABEL, "")
        endpoint = Endpoint(part.name, pool.namespace, address, port, part.labels, role, "", models, part.ready)
        if part.name in names:
            raise document.fail((*here, "name"), f"the endpoint `{part.name}` stands twice in its pool")
        if endpoint.destination in found:
            raise document.fail((*here, "address"), f"`{endpoint.destination}` stands twice in its pool")
        names.add(part.name)
        found[endpoint.destination] = endpoint
    return tuple(found.values())


def _model(part: "str | _ModelPart") -> Model:
    return Model(part) if isinstance(part, str) else Model(part.id, part.created, part.max_model_len)


def parse_address(text: str) -> tuple[str, int]:
    """`ip:port` or `[v6]:port` -> (ip, port), the address in the form that Envoy uses. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        address = None
    if not colon or address is None or "%" in host or (address.version == 6) != bracketed:  # noqa: PLR2004
        raise ValueError(f"`{text}` is not ip:port or [v6]:port")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= _MAX_PORT:
        raise ValueError(f"`{text}` has no port from 1 to {_MAX_PORT}")
    return str(address), int(port)


class WatchedFile:
    """A file whose content is handed on each time that it has changed and can be used.

    `apply` takes the content and raises DocumentError if it cannot be used: the last good one then stays. If the file is
    `optional`, one that does not exist is an empty one; else that is an error like any other.
    """

    def __init__(self, path: Path, apply: Callable[[bytes], None], *, optional: bool = False) -> None:
        """Nothing is read yet."""
        self.path = path
        self.error: str | None = None
        self._optional = optional
        self._apply = apply
        self._content: bytes | None = None
        self._turn = asyncio.Lock()

    def load(self) -> bool:
        """Look once: True if there was something new and it could be used. Raises DocumentError if it could not."""
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # to read a pipe could take for ever
                raise DocumentError("it is not a file")
            content = self.path.read_bytes()
        except OSError as error:
            if not self._optional or not isinstance(error, FileNotFoundError):
                self._content = None
                raise DocumentError(f"cannot be read: {error.strerror}") from error
            content = b""
        if content == self._content:
            return False
        self._content = content
        self._apply(content)
        self.error = None
        return True

    async def watch(self, on_load: "OnLoad") -> None:
        """Look every half second, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look(on_load)

    async def look(self, on_load: "OnLoad") -> None:
        """Look once; `on_load` hears of a change and its error, each error once."""
        async with self._turn:
            before = self.error
            try:
                if await asyncio.to_thread(self.load):
                    on_load(self, None)
            except Exception as error:  # noqa: BLE001 - whatever it is, the file must go on being watched
                self.error = str(error)
                if self.error != before:
                    on_load(self, self.error)


OnLoad = Callable[[WatchedFile, str | None], None]
