# SPDX-License-Identifier: Apache-2.0
"""The API server, through the official client: its configuration, credentials and transport, and raw JSON.

The client's models are not used: they are slow on large lists (facts/ecosystem.md 4.3). What comes out is bytes, what goes
wrong is an ApiError with the status that the API server gave, or 0 if it gave none.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient
from kubernetes.aio.config import ConfigException

from extproc import __version__
from extproc.discovery.credentials import ConfigError, Credentials

CONNECT_TIMEOUT: Final = 10.0
"""Seconds until a connection must stand."""
READ_TIMEOUT: Final = 30.0
"""Seconds within which an answer that is no watch must go on."""
_SUCCESS: Final = range(200, 300)
_LONGEST: Final = 1 << 16
_SHOWN: Final = 500
_UNAUTHORIZED: Final = 401
_DOUBTFUL: Final = (0, 403)
"""Failures that old credentials, a certificate authority that is no more, or an anonymous user could be the reason for."""
_HEADER: Final = re.compile("[ -~]*")

Params = dict[str, str]


class ApiError(Exception):
    """The API server refused, or could not be spoken with (`status` 0); `retry_after` in seconds if it said so."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        """The message is the API server's own where it gave one."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Status(msgspec.Struct):
    """A Kubernetes Status object, as an error's body and as a watch's ERROR event."""

    message: str = ""
    reason: str = ""
    code: int = 0

    def error(self, status: int = 0, retry_after: float | None = None) -> ApiError:
        """The ApiError that it stands for."""
        return ApiError(self.code or status, self.message or self.reason or "no reason given", retry_after)


class KubernetesApi:
    """One API server, as one kubeconfig or the pod's own service account reaches it."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """Nothing is read yet; see Credentials."""
        self.namespace = "default"
        self._credentials = Credentials(kubeconfig)
        self._client: ApiClient | None = None

    async def connect(self) -> None:
        """Read the configuration; no connection is made yet. Raises ConfigError."""
        await self._credentials.read()
        self.namespace = self._credentials.namespace()
        try:
            self._client = ApiClient(self._credentials.configuration)
        except OSError as error:  # of which an ssl.SSLError is one
            raise ConfigError(f"{self._credentials.source}: the certificates cannot be used: {error}") from error
        self._client.user_agent = f"owned-by/{__version__}"

    async def close(self) -> None:
        """Close all connections."""
        await self._credentials.close()
        if self._client is not None:
            await self._client.close()

    async def renew(self, failure: ApiError) -> None:
        """Read the credentials again if they may be why a request failed, for the connections made from now on.

        Raises ApiError if they are why, and cannot be read.
        """
        refused = failure.status == _UNAUTHORIZED
        if not refused and not (failure.status in _DOUBTFUL and self._credentials.may_be_old()):
            return
        try:
            await self._credentials.renew(self._api.rest_client.ssl_context)
        except ConfigError as error:
            if refused:
                raise ApiError(0, f"the credentials cannot be read again: {error}") from error

    async def get(self, path: str, params: Params) -> bytes:
        """The body of an answer to GET. Raises ApiError."""
        return await self._answer("GET", path, params, None)

    async def create(self, path: str, document: dict[str, Any]) -> bytes:
        """POST an object; what it is then. Raises ApiError."""
        return await self._answer("POST", path, {}, document)

    async def replace(self, path: str, document: dict[str, Any]) -> bytes:
        """PUT an object; what it is then. Raises ApiError: 409 if it has a resourceVersion that is not the present one."""
        return await self._answer("PUT", path, {}, document)

    @contextlib.asynccontextmanager
    async def watch(self, path: str, params: Params, read_timeout: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """A watch that stands, as the lines that it sends until the API server ends it.

        Raises ApiError, also when nothing comes for `read_timeout` seconds and when it ends inside a line.
        """
        with _spoken():
            response = await self._request("GET", path, params | {"watch": "1"}, None, read_timeout)
            try:
                yield _lines(response)
            finally:
                response.close()

    @property
    def _api(self) -> ApiClient:
        assert self._client is not None
        return self._client

    async def _answer(self, method: str, path: str, params: Params, document: dict[str, Any] | None) -> bytes:
        with _spoken():
            response = await self._request(method, path, params, document, READ_TIMEOUT)
            try:
                return await response.read()
            finally:
                response.release()

    async def _request(
        self, method: str, path: str, params: Params, document: dict[str, Any] | None, read_timeout: float
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=read_timeout)
        method, url, headers, body, _ = await self._api.param_serialize(
            method,
            path,
            query_params=list(params.items()),
            header_params={"Accept": "application/json"},
            body=document,
            auth_settings=["BearerToken"],
        )
        if "authorization" in headers:  # a token file may end in a line end, a header may not
            headers["authorization"] = headers["authorization"].strip()
            if not _HEADER.fullmatch(headers["authorization"]):
                raise ApiError(_UNAUTHORIZED, "the token has characters that a header cannot have")
        answer = await self._api.call_api(method, url, headers, body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        if response.history:
            response.close()
            raise ApiError(0, "the API server redirects to another place, whose word does not count")
        if response.status in _SUCCESS:
            return response
        try:
            said = b""
            while len(said) < _LONGEST and (chunk := await response.content.read(_LONGEST)):
                said += chunk
        finally:
            response.close()
        try:
            status = msgspec.json.decode(said, type=Status)
        except (msgspec.MsgspecError, RecursionError):
            status = Status(message=said[:_SHOWN].decode(errors="replace").strip())
        # The status line is what a proxy before the API server sets too, its body may say anything.
        status.code = response.status
        raise status.error(retry_after=parse_retry_after(response.headers.get("Retry-After", "")))


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: the client's own reader has a longest one."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        raise ApiError(0, "the watch ended inside an event")


@contextlib.contextmanager
def _spoken() -> Iterator[None]:
    """What a connection can come to, as an ApiError."""
    try:
        yield
    except TimeoutError as error:
        raise ApiError(0, "the API server said nothing in time") from error
    except ConfigException as error:
        raise ApiError(0, f"the credentials cannot be read: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(0, f"no connection to the API server: {error or type(error).__name__}") from error


def parse_retry_after(text: str) -> float | None:
    """`Retry-After` in seconds, whether it is a number or a date (RFC 9110 10.2.3); None for anything else."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
