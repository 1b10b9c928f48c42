# SPDX-License-Identifier: Apache-2.0
"""How an API server is reached and who we are there: from a kubeconfig or as the pod's own service account."""

import asyncio
import os
import ssl
import time
from pathlib import Path
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, incluster_config, list_kube_config_contexts, load_kube_config
from yaml import YAMLError

from extproc.policy.document import DocumentError

PATIENCE: Final = 30.0
"""Seconds that a kubeconfig's exec plugin has to give a credential."""
PAUSE: Final = 60.0
"""Seconds between two looks at credentials of which it is only possible that they are what is wrong."""
_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError)
"""What the client stumbles over in a kubeconfig that is none."""
_IN_CLUSTER: Final = "KUBERNETES_SERVICE_HOST"
_NAMESPACE_FILE: Final = Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace")


class ConfigError(DocumentError):
    """The way to an API server cannot be used; the text names the kubeconfig or the service account and what is wrong."""


class Credentials:
    """The official client's configuration, filled in place, so that what is read again holds for the next request."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """Nothing is read yet. None: as controller-runtime looks for it, $KUBECONFIG, the pod's, ~/.kube/config."""
        self.configuration = Configuration()
        # Go's clients do not ask for an Authority Key Identifier, and the certificates of many clusters have none.
        self.configuration.disable_strict_ssl_verification = True
        # Every watch holds a connection: one that had to wait for another to end would follow nothing meanwhile.
        self.configuration.connection_pool_maxsize = 0
        self._kubeconfig = kubeconfig
        self._reading: asyncio.Task[None] | None = None
        self._read_at = 0.0
        self._hung = ""

    @property
    def source(self) -> str:
        """Where they are from, for people."""
        return self._file() or "the service account of this pod"

    async def read(self) -> None:
        """Read them; who comes while they are being read waits for the same. Raises ConfigError."""
        if self._reading is None or self._reading.done():
            if self._hung and not self.may_be_old():  # the client does not end a plugin that hangs: not many beside it
                raise ConfigError(self._hung)
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(self._read_in_time())
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._reading)

    async def renew(self, context: ssl.SSLContext) -> None:
        """Read them again, certificates into the TLS context that connections are made with. Raises ConfigError."""
        await self.read()
        try:
            if self.configuration.ssl_ca_cert:
                context.load_verify_locations(self.configuration.ssl_ca_cert)
            if self.configuration.cert_file:
                context.load_cert_chain(self.configuration.cert_file, keyfile=self.configuration.key_file)
        except OSError as error:  # of which an ssl.SSLError is one
            raise ConfigError(f"{self.source}: the certificates cannot be used: {error}") from error

    def may_be_old(self) -> bool:
        """Whether they were last read so long ago that it is worth a look."""
        return time.monotonic() - self._read_at >= PAUSE

    def namespace(self) -> str:
        """The pod's own, $NAMESPACE if that is set there, or that of the kubeconfig's context. Raises ConfigError."""
        path = self._file()
        if path is None:
            try:
                return os.environ.get("NAMESPACE") or _NAMESPACE_FILE.read_text().strip() or "default"
            except OSError:
                return "default"
        _, current = list_kube_config_contexts(path)
        return str(current["context"].get("namespace") or "default")

    async def close(self) -> None:
        """End what is still being read."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read_in_time(self) -> None:
        self._hung = ""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._read()
        except TimeoutError as error:
            self._hung = f"{self.source}: no credentials within {PATIENCE:g} s"
            raise ConfigError(self._hung) from error

    async def _read(self) -> None:
        path = self._file()
        try:
            if path is None:
                incluster_config.load_incluster_config(self.configuration)
            else:
                _check_there(path)
                loader = await load_kube_config(path, client_configuration=self.configuration, persist_config=False)
                self._check(loader)
        except (ConfigException, OSError, YAMLError, aiohttp.ClientError, RecursionError, *_MALFORMED) as error:
            raise ConfigError(f"{self.source}: {error}") from error

    def _check(self, loader: Any) -> None:
        """The client logs what its exec plugin says when it fails, and goes on as nobody."""
        plugged = "exec" in (loader._user or ())  # noqa: SLF001 - the client tells it in no other way
        if plugged and not (self.configuration.api_key or self.configuration.cert_file):
            raise ConfigError(f"{self.source}: the exec plugin gave no credential")

    def _file(self) -> str | None:
        """The kubeconfig to read, None for the pod's own service account."""
        named = str(self._kubeconfig or os.environ.get("KUBECONFIG", ""))
        if named:
            return named
        return None if _IN_CLUSTER in os.environ else str(Path("~/.kube/config").expanduser())


def _check_there(paths: str) -> None:
    """The client takes a kubeconfig that does not exist for an empty one."""
    if not any(Path(path).expanduser().exists() for path in paths.split(os.pathsep)):
        raise ConfigException("No such file or directory")
