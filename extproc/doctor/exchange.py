# SPDX-License-Identifier: Apache-2.0
"""HTTP as the doctor speaks it: one request, one answer, bounded in time and size; what is secret is never shown."""

import asyncio
import io
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec
import yarl

_MOST: Final = 64 << 20
"""Bytes of an answer that are read: a config dump of a large mesh has tens of millions."""
_CHUNK: Final = 65_536


class UnreachableError(Exception):
    """No answer came; the text says why, and shows neither a header nor what was received."""


@dataclass(frozen=True)
class Answer:
    """What came back: header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON, None if it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None


@dataclass(frozen=True)
class Trust:
    """Whom https trusts: the authorities of a file (None: the system's), or everybody."""

    ca_file: Path | None = None
    insecure_skip_verify: bool = False

    def context(self) -> ssl.SSLContext:
        """For a client. Raises OSError (ssl.SSLError is one) if the file cannot be used."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Site:
    """A server that is asked while the context is open: its URL, headers for every request, seconds for each.

    Redirects are not followed, proxies of the environment not used.
    """

    def __init__(
        self, url: str, trust: ssl.SSLContext, timeout: float, headers: Mapping[str, str] | None = None
    ) -> None:
        """Nothing is dialled yet."""
        self.url = url.rstrip("/")
        self._trust = trust
        self._timeout = timeout
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Be ready to ask."""
        connector = aiohttp.TCPConnector(ssl=self._trust, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector, trust_env=False, timeout=aiohttp.ClientTimeout(total=None, sock_connect=None)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        assert self._session is not None
        await self._session.close()

    async def ask(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request. Raises UnreachableError if nothing answers."""
        assert self._session is not None
        fields = self._headers | dict(headers or {})
        sent = io.BytesIO(body) if body is not None else None  # aiohttp warns of large bytes
        try:
            url = yarl.URL(self.url + path, encoded=True)
            async with (
                asyncio.timeout(self._timeout),
                self._session.request(method, url, headers=fields, data=sent, allow_redirects=False) as response,
            ):
                received = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK):
                    received += chunk
                    if len(received) > _MOST:
                        raise UnreachableError(f"the answer has more than {_MOST} bytes")
                lowered = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, lowered, bytes(received))
        except TimeoutError as error:
            raise UnreachableError(f"no answer within {self._timeout:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "")
            raise UnreachableError(f"its certificate is not trusted: {reason}") from error
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError(f"cannot connect: {_why(error.os_error)}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise UnreachableError(f"no answer in HTTP/1.1: {type(error).__name__}") from error


def _why(error: OSError) -> str:
    """What the system says of it: its text has the address again, and a failed look-up has no number of the system's."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)
