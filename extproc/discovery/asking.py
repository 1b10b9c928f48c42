# SPDX-License-Identifier: Apache-2.0
"""One GET of an endpoint: who is trusted, what is sent, how much is read, and what is said of what went wrong."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

import aiohttp
import msgspec

from extproc.discovery.listing import Listing, parse_listing
from extproc.settings import read_token

T = TypeVar("T")

JITTER: Final = 0.2
"""The part by which a time between two probes varies, either way."""
_IDLE: Final = 15.0
"""Seconds for which an unused connection is kept."""
_CHUNK: Final = 65_536
_OK: Final = 200


class ProbeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How endpoints are asked. Times are in seconds.

    `interval` lies between two probes of an endpoint that answers, give or take a fifth (0: no probes); `timeout` is for
    a whole probe. `ca_file` says whom https trusts (None: the system's). `token_file` holds a bearer token, read again for
    each probe since mounted secrets rotate. The last good answer outlives failures by `keep`; a ready endpoint that nobody
    has asked yet waits for its first probe for `hold`.
    """

    interval: float = 30.0
    timeout: float = 5.0
    scheme: Literal["http", "https"] = "http"
    ca_file: Path | None = None
    insecure_skip_verify: bool = False
    token_file: Path | None = None
    concurrency: int = 64
    max_bytes: int = 1_048_576
    keep: float = 300.0
    hold: float = 1.0


class Asker:
    """Asks endpoints, over connections that it keeps while they are of use."""

    def __init__(self, config: ProbeConfig) -> None:
        """Nothing is open yet. Raises OSError (ssl.SSLError is one) if `ca_file` cannot be used."""
        self._config = config
        self._tls = _trust(config) if config.scheme == "https" else False

    def open(self) -> aiohttp.ClientSession:
        """A session for `fetch`; the caller closes it. Needs a running loop."""
        # vLLM and SGLang close a connection that is idle for 5 s: with a long interval there is nothing to come back to,
        # and thousands of sockets would be open in vain.
        kept = self._config.interval * (1 + JITTER) < _IDLE
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0, force_close=not kept)
        return aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            auto_decompress=False,  # nothing that is small on the wire grows here
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # one for all, in `fetch`
        )

    async def ask(self, session: aiohttp.ClientSession, destination: str) -> Listing | str:
        """What the endpoint at `destination` says of itself, or why that is not known."""
        return await self.fetch(session, destination, "/v1/models", parse_listing)

    async def fetch(
        self,
        session: aiohttp.ClientSession,
        destination: str,
        path: str,
        parse: Callable[[bytes], T],
        *,
        accept: str = "application/json",
    ) -> T | str:
        """What `parse` makes of the body at `path`, or in words why there is none: never the token, nor the body.

        `parse` is given the body of a 200 and raises ValueError, with a text to be shown, if it cannot be read.
        """
        try:
            async with asyncio.timeout(self._config.timeout):
                return parse(await self._get(session, f"{self._config.scheme}://{destination}{path}", accept))
        except TimeoutError:
            return f"no answer within {self._config.timeout:g} s"
        except aiohttp.ClientConnectorCertificateError as error:
            return f"its certificate is not trusted: {getattr(error.certificate_error, 'verify_message', '')}"
        except aiohttp.ClientConnectorError as error:
            return f"cannot connect: {error.os_error.strerror or type(error.os_error).__name__}"
        except aiohttp.ClientError as error:
            return f"no HTTP answer: {type(error).__name__}"  # the text of some of them shows what was received
        except ValueError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - whatever one endpoint does, the others must go on being asked
            return f"cannot be asked: {type(error).__name__}"

    async def _get(self, session: aiohttp.ClientSession, url: str, accept: str) -> bytes:
        headers = {"accept": accept, "accept-encoding": "identity"}
        if self._config.token_file is not None:
            headers["authorization"] = f"Bearer {read_token(self._config.token_file)}"
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status != _OK:
                raise ValueError(f"status {response.status}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise ValueError("the answer is compressed, which was not asked for")
            body = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > self._config.max_bytes:
                    raise ValueError(f"the answer has more than {self._config.max_bytes} bytes")
            return bytes(body)


def _trust(config: ProbeConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.ca_file)
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
