# SPDX-License-Identifier: Apache-2.0
"""The two programs of a control plane: an etcd and an API server, on free ports of 127.0.0.1."""

import os
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from extproc.demo.client import LOOPBACK
from tests.kubernetes.credentials import ISSUER, Credentials
from tests.kubernetes.daemon import Daemon, free_port

ASSETS: Final = "KUBEBUILDER_ASSETS"
PROGRAMS: Final = ("etcd", "kube-apiserver")

_OK: Final = 200
_OUT_OF_RANGE: Final = 11
"""gRPC's code, and etcd's answer when the revision is compacted already."""


def find_programs() -> Path | None:
    """The folder that KUBEBUILDER_ASSETS names, if both programs are in it."""
    folder = Path(os.environ.get(ASSETS) or "/nonexistent")
    return folder if all(os.access(folder / name, os.X_OK) for name in PROGRAMS) else None


class Etcd:
    """An etcd whose data are in a folder. Comes out: `url`."""

    def __init__(self, program: Path, folder: Path, client: aiohttp.ClientSession) -> None:
        """Nothing is started yet."""
        self.url = ""
        self._client = client
        self._data = folder / "etcd"
        self._daemon = Daemon(program, folder / "etcd.log")

    async def start(self) -> None:
        """Start it and wait until it is healthy. Raises DaemonError."""
        await self._daemon.start_on_free_ports(self._flags, self._is_ready)

    async def stop(self) -> None:
        """End it and wait until it is gone."""
        await self._daemon.stop()

    async def compact(self) -> int:
        """Forget all but the current revision, and return that; twice is as good as once."""
        _, status = await self._ask("/v3/maintenance/status", {})
        revision = int(status["header"]["revision"])
        code, said = await self._ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        assert code == _OK or said["code"] == _OUT_OF_RANGE, f"etcd does not compact: {said}"
        return revision

    def _flags(self) -> list[str]:
        self.url, peer = (f"http://{LOOPBACK}:{free_port()}" for _ in range(2))
        return [
            f"--data-dir={self._data}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ]

    async def _ask(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self._client.post(self.url + path, data=msgspec.json.encode(body)) as response:
            return response.status, msgspec.json.decode(await response.read())

    async def _is_ready(self) -> bool:
        async with self._client.get(f"{self.url}/health") as response:
            return response.status == _OK and msgspec.json.decode(await response.read())["health"] == "true"


class ApiServer:
    """A kube-apiserver that keeps its port when it is started again. Comes out: `url`."""

    def __init__(self, program: Path, folder: Path, client: aiohttp.ClientSession, credentials: Credentials) -> None:
        """Nothing is started yet."""
        self.url = ""
        self._client = client
        self._credentials = credentials
        self._etcd_url = ""
        self._port = 0
        self._daemon = Daemon(program, folder / "kube-apiserver.log")

    async def start(self, etcd_url: str) -> None:
        """Start it on a port of its own and wait until it is ready. Raises DaemonError."""
        self._etcd_url = etcd_url
        await self._daemon.start_on_free_ports(self._flags_of_a_new_port, self._is_ready)

    async def start_again(self) -> None:
        """Start it on the port that it had. Raises DaemonError, also if somebody took the port."""
        await self._daemon.start(self._flags(), self._is_ready)

    async def stop(self, grace: float) -> None:
        """SIGTERM and, after `grace` seconds, SIGKILL; returns when it is gone."""
        await self._daemon.stop(grace)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        await self._daemon.kill()

    def _flags_of_a_new_port(self) -> list[str]:
        self._port = free_port()
        self.url = f"https://{LOOPBACK}:{self._port}"
        return self._flags()

    def _flags(self) -> list[str]:
        held = self._credentials
        return [
            f"--etcd-servers={self._etcd_url}",
            "--etcd-compaction-interval=0",  # only `compact` forgets
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={held.certificate}",
            f"--tls-private-key-file={held.certificate_key}",
            "--endpoint-reconciler-type=none",  # a loopback address is no endpoint of a service
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            f"--token-auth-file={held.token_file}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-signing-key-file={held.signing_key}",
            f"--service-account-key-file={held.signing_key}",
            "--disable-admission-plugins=ServiceAccount",  # no controller makes accounts and their secrets
        ]

    async def _is_ready(self) -> bool:
        headers = {"authorization": f"Bearer {self._credentials.admin_token}"}
        async with self._client.get(f"{self.url}/readyz", headers=headers) as response:
            return response.status == _OK
