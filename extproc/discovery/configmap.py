# SPDX-License-Identifier: Apache-2.0
"""The policy, or its routing entries, in a ConfigMap: a good version is put in force, a bad one refused and told.

It is told to the cluster too: an Event says why.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from extproc.discovery.kubernetes import ApiError, KubernetesApi
from extproc.discovery.objects import ConfigMap
from extproc.observability.logs import Logger
from extproc.policy.document import DocumentError

KEY: Final = "policy.yaml"
"""The key of the policy in its ConfigMap (design section 5)."""
_LONGEST_NOTE: Final = 1024
"""The API server refuses an Event with a longer message."""


class PolicyMap:
    """One ConfigMap as the source of the document under one of its keys.

    `apply` takes the document and raises DocumentError if it cannot be used: the last good one then stays. `on_load` hears
    of each version and its error, None if it was put in force. If it is `optional`, no document is an empty one; else
    that is an error like any other.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it is joined to
        self,
        api: KubernetesApi,
        namespace: str,
        name: str,
        apply: Callable[[bytes], None],
        on_load: Callable[["PolicyMap", str | None], None],
        logger: Logger,
        *,
        key: str = KEY,
        optional: bool = False,
    ) -> None:
        """Nothing is known yet."""
        self.namespace = namespace
        self.name = name
        self.loaded = asyncio.Event()
        self.error: str | None = "not read yet"
        self._key = key
        self._optional = optional
        self._what = key.partition(".")[0]
        self._api = api
        self._apply = apply
        self._on_load = on_load
        self._logger = logger.bind(logger="configmap")
        self._text: str | None = None
        self._events = set[asyncio.Task[None]]()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def changed(self, _old: ConfigMap | None, new: ConfigMap | None) -> None:
        """It came, changed or went."""
        text = None if new is None else (new.data or {}).get(self._key)
        if text is None and self._optional:
            text = ""
        if text is not None:
            if text != self._text:  # else something other than the document changed
                self._put(text, new)
        elif new is None:
            self._refuse("it was deleted", None)
        else:
            self._refuse(f"it has no key `{self._key}`", new)
        self._text = text

    def absent(self) -> None:
        """It could not be found: it does not exist, or, if it is optional, we may not see it."""
        if self._optional:
            self.changed(None, None)
        else:
            self._refuse("it does not exist", None)

    def _put(self, text: str, one: ConfigMap | None) -> None:
        try:
            self._apply(text.encode())
        except DocumentError as error:
            self._refuse(f"{self._key}: {error}", one)
            return
        self.error = None
        self.loaded.set()
        self._on_load(self, None)

    def _refuse(self, error: str, one: ConfigMap | None) -> None:
        if error == self.error:
            return
        self.error = error
        self._on_load(self, error)
        task = asyncio.get_running_loop().create_task(self._tell(error, one))
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _tell(self, error: str, one: ConfigMap | None) -> None:
        """Write a Kubernetes Event, so that `kubectl describe configmap` shows why."""
        try:
            await self._api.create(f"/api/v1/namespaces/{self.namespace}/events", self._event(error, one))
        except ApiError as failure:
            self._logger.warning("no Event could be written", configmap=str(self), error=str(failure))

    def _event(self, error: str, one: ConfigMap | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod = os.environ.get("POD_NAME") or socket.gethostname()
        effect = f"the last good {self._what} stays" if self.loaded.is_set() else f"there is no {self._what} yet"
        about = {"apiVersion": "v1", "kind": "ConfigMap", "namespace": self.namespace, "name": self.name}
        if one is not None:
            about |= {"uid": one.metadata.uid, "resourceVersion": one.metadata.resource_version}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self.name}.", "namespace": self.namespace},
            "involvedObject": about,
            "type": "Warning",
            "reason": f"{self._what.title()}Refused",
            "message": f"{effect}: {error}"[:_LONGEST_NOTE],
            "source": {"component": "owned-by", "host": pod},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
