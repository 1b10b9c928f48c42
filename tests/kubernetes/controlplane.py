# SPDX-License-Identifier: Apache-2.0
"""A real etcd and kube-apiserver as a context, with an admin's hand in it: objects, pods' states, tokens, restarts."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import msgspec

from tests.kubernetes.credentials import Credentials, write_kubeconfig
from tests.kubernetes.resources import CORE, collection, collection_of, collections_in, path_of
from tests.kubernetes.servers import ASSETS, ApiServer, Etcd, find_programs

MERGE_PATCH: Final = "application/merge-patch+json"

_JSON: Final = "application/json"
_DONE: Final = (200, 201, 202)
_AT_ONCE: Final = 16
_GRACE: Final = 2.0
_POLL: Final = 0.05
_PATIENCE: Final = 30.0
_CONFLICT: Final = 409


class RefusedError(AssertionError):
    """The API server answered with another code than the expected ones."""

    def __init__(self, status: int, message: str) -> None:
        """The code, and the message of the Status in the body."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What the API server said: the code and the body, decoded if it is JSON."""

    status: int
    body: Any


class ControlPlane:
    """An API server on a free port of 127.0.0.1, with RBAC and no controllers, while the context is open.

    Goes in: a folder for its files. Comes out: `url`, `ca_file`, `admin_token`. As no controller runs, no pod is started,
    and no service account is made for a namespace.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is started yet."""
        self.ca_file = Path()
        self.admin_token = ""
        self._folder = folder
        self._open = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where the API server listens, for as long as the context is open."""
        return self._api_server.url

    async def __aenter__(self) -> Self:
        """Start both and wait until they are ready. Raises DaemonError."""
        programs = find_programs()
        if programs is None:
            raise RuntimeError(f"{ASSETS} does not name a folder with etcd and kube-apiserver")
        self._credentials = Credentials.write(self._folder)
        self.ca_file, self.admin_token = self._credentials.ca_file, self._credentials.admin_token
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(ssl=self._credentials.ssl_context())
            timeout = aiohttp.ClientTimeout(total=_PATIENCE)
            self._client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
            self._etcd = Etcd(programs / "etcd", self._folder, self._client)
            stack.push_async_callback(self._etcd.stop)
            await self._etcd.start()
            self._api_server = ApiServer(programs / "kube-apiserver", self._folder, self._client, self._credentials)
            stack.push_async_callback(self.stop_api_server)
            await self._api_server.start(self._etcd.url)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End both and wait until they are gone."""
        await self._open.aclose()

    # Requests

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, content_type: str = _JSON
    ) -> Answer:
        """Send one request, with the admin's token unless another one is given."""
        headers = {"authorization": f"Bearer {token or self.admin_token}", "content-type": content_type}
        data = None if body is None else msgspec.json.encode(body)
        async with self._client.request(method, self.url + path, data=data, headers=headers) as response:
            raw = await response.read()
            is_json = response.content_type == _JSON
            return Answer(response.status, msgspec.json.decode(raw) if is_json else raw.decode())

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = _JSON,
        expect: tuple[int, ...] = _DONE,
    ) -> Any:
        """The body of the answer to an admin's request. Raises RefusedError if its code is not one of `expect`."""
        answer = await self.ask(method, path, body, content_type=content_type)
        if answer.status not in expect:
            said = answer.body.get("message") if isinstance(answer.body, dict) else answer.body
            raise RefusedError(answer.status, f"{method} {path}: {answer.status} {said}")
        return answer.body

    async def watch(self, path: str, *, resource_version: str = "", token: str | None = None) -> list[dict[str, Any]]:
        """The events of a watch that the server ends after a second.

        `path` may have a query. Raises RefusedError if it is no watch.
        """
        query = f"watch=true&timeoutSeconds=1&resourceVersion={resource_version}"
        headers = {"authorization": f"Bearer {token or self.admin_token}"}
        joined = f"{path}{'&' if '?' in path else '?'}{query}"
        async with self._client.get(self.url + joined, headers=headers) as response:
            lines = (await response.read()).splitlines()
            if response.status not in _DONE:
                raise RefusedError(response.status, f"GET {joined}: {response.status} {lines}")
            return [msgspec.json.decode(line) for line in lines]

    # Objects

    async def apply(self, document: dict[str, Any]) -> Any:
        """Create an object, or replace the one of that name; a CustomResourceDefinition is served when this returns."""
        try:
            applied = await self.request("POST", collection_of(document), document)
        except RefusedError as refused:
            if refused.status != _CONFLICT:
                raise
            current = await self.request("GET", path_of(document))
            version = {"resourceVersion": current["metadata"]["resourceVersion"]}
            replacement = document | {"metadata": document["metadata"] | version}
            applied = await self.request("PUT", path_of(document), replacement)
        if document["kind"] == "CustomResourceDefinition":
            await self._establish(document)
        return applied

    async def delete(self, document: dict[str, Any], *, grace: int | None = None) -> None:
        """Delete the object that a manifest names; of the manifest only what names it is looked at."""
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        await self.request("DELETE", path_of(document), options)

    async def create_namespace(self, name: str) -> None:
        """A new and empty one."""
        await self.request("POST", collection_of(_namespace(name)), _namespace(name))

    async def delete_namespace(self, name: str) -> None:
        """The namespace and all that is in it are gone: what a controller would see to is done here."""
        for path in collections_in(name):
            await self.request("DELETE", path, {"gracePeriodSeconds": 0}, expect=(*_DONE, 404))
        await self.delete(_namespace(name))
        finalized = _namespace(name) | {"spec": {"finalizers": []}}
        await self.request("PUT", path_of(finalized) + "/finalize", finalized)

    # Pods

    async def pod(
        self,
        name: str,
        namespace: str,
        *,
        ip: str | None,
        labels: dict[str, str],
        ready: bool = True,
        annotations: dict[str, str] | None = None,
    ) -> Any:
        """A pod that runs, as far as the API server is told; without an `ip` it has none yet."""
        document = _pod(name, namespace)
        document["metadata"] |= {"labels": labels, "annotations": annotations or {}}
        document["spec"] = {
            "nodeName": "node",  # a pod on no node would be gone at once when it is deleted with a grace period
            "containers": [{"name": "engine", "image": "engine"}],
        }
        await self.request("POST", collection_of(document), document)
        addresses = {"podIP": ip, "podIPs": [{"ip": ip}]} if ip else {}
        return await self._write_status(name, namespace, _readiness(ready=ready) | addresses | {"phase": "Running"})

    async def set_ready(self, name: str, namespace: str, *, ready: bool) -> Any:
        """Write the pod's Ready condition."""
        return await self._write_status(name, namespace, _readiness(ready=ready))

    async def label(self, name: str, namespace: str, labels: dict[str, str | None]) -> Any:
        """Set these labels of a pod and leave its others; None takes one away."""
        body = {"metadata": {"labels": labels}}
        return await self.request("PATCH", path_of(_pod(name, namespace)), body, content_type=MERGE_PATCH)

    async def delete_pod(self, name: str, namespace: str) -> None:
        """The pod is gone."""
        await self.delete(_pod(name, namespace), grace=0)

    async def delete_gracefully(self, name: str, namespace: str) -> None:
        """The pod has a deletionTimestamp and stays, as there is no kubelet that would end it."""
        await self.delete(_pod(name, namespace), grace=30)

    async def pods(self, wanted: Iterable[tuple[str, str, dict[str, str]]], namespace: str) -> None:
        """Many ready pods at once: name, address and labels of each."""
        free = asyncio.Semaphore(_AT_ONCE)

        async def make(name: str, ip: str, labels: dict[str, str]) -> None:
            async with free:
                await self.pod(name, namespace, ip=ip, labels=labels)

        await asyncio.gather(*(make(*one) for one in wanted))

    async def delete_pods(self, namespace: str) -> None:
        """All pods of the namespace are gone."""
        await self.request("DELETE", collection(CORE, "pods", namespace), {"gracePeriodSeconds": 0})

    async def remove_definition(self, definition: dict[str, Any]) -> None:
        """The custom resource and all its objects are gone, and its collection is 404."""
        await self.delete(definition)
        async with asyncio.timeout(_PATIENCE):
            while await self._is_served(definition):  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(_POLL)

    # Identities

    async def token(self, namespace: str, service_account: str, *, seconds: float) -> str:
        """A service account's token that lives `seconds`.

        The API server remembers for ten seconds that it has accepted a token: one that is in use is refused up to ten
        seconds later, one that was not used before at once.
        """
        document = {"apiVersion": CORE, "kind": "ServiceAccount"}
        path = path_of(document | {"metadata": {"namespace": namespace, "name": service_account}})
        uid = (await self.request("GET", path))["metadata"]["uid"]
        return self._credentials.sign(namespace, service_account, uid, seconds=seconds)

    def kubeconfig(self, path: Path, *, token_file: Path, namespace: str) -> Path:
        """Write a kubeconfig for whoever's token the file holds."""
        return write_kubeconfig(path, url=self.url, ca_file=self.ca_file, token_file=token_file, namespace=namespace)

    # Disturbances

    async def compact(self) -> int:
        """Make etcd forget all but its current revision, and return that.

        Measured with 1.20: by itself this changes nothing for a watch of pods or of custom resources, as the server's watch
        cache still has the changes; only what is not cached (a watch of events, a list of an exact or a continued version)
        gets 410. What makes a watch fail is `restart_api_server`: the new cache knows nothing older than itself, and a
        watch from an older version than that gets, with code 200, one ERROR event whose Status has code 410 and reason
        Expired. It does so if anything was written since that version, were it another resource. With `compact` before
        it, nothing in etcd is left that could serve the version.
        """
        return await self._etcd.compact()

    async def stop_api_server(self, *, grace: float = _GRACE) -> None:
        """SIGTERM, and wait until it is gone: it listens no longer, but open watches may go on for `grace` seconds.

        Without that end they would last: this server waits a minute for its clients to close them.
        """
        await self._api_server.stop(grace)

    async def kill_api_server(self) -> None:
        """SIGKILL, and wait until it is gone."""
        await self._api_server.kill()

    async def start_api_server(self) -> None:
        """Start it again, on its port and with its data. Raises DaemonError."""
        await self._api_server.start_again()

    async def restart_api_server(self) -> None:
        """End it and start it again."""
        await self.stop_api_server()
        await self.start_api_server()

    # Inside

    async def _establish(self, definition: dict[str, Any]) -> None:
        """Wait until the server says Established and serves the collection: the one comes a little before the other."""
        async with asyncio.timeout(_PATIENCE):
            while not (await self._is_established(definition) and await self._is_served(definition)):  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(_POLL)

    async def _is_established(self, definition: dict[str, Any]) -> bool:
        status = (await self.request("GET", path_of(definition))).get("status", {})
        conditions = {one["type"]: one["status"] for one in status.get("conditions") or []}
        return conditions.get("Established") == "True"

    async def _is_served(self, definition: dict[str, Any]) -> bool:
        spec = definition["spec"]
        path = collection(f"{spec['group']}/{spec['versions'][0]['name']}", spec["names"]["plural"])
        return (await self.ask("GET", path)).status in _DONE

    async def _write_status(self, name: str, namespace: str, status: dict[str, Any]) -> Any:
        path = path_of(_pod(name, namespace)) + "/status"
        return await self.request("PATCH", path, {"status": status}, content_type=MERGE_PATCH)


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": CORE, "kind": "Namespace", "metadata": {"name": name}}


def _pod(name: str, namespace: str) -> dict[str, Any]:
    return {"apiVersion": CORE, "kind": "Pod", "metadata": {"name": name, "namespace": namespace}}


def _readiness(*, ready: bool) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": str(ready)}]}
