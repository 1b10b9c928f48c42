# SPDX-License-Identifier: Apache-2.0
"""All that is followed at an API server: which resources, in which namespaces, and whether they are synced yet."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from extproc.discovery.cluster import Cluster
from extproc.discovery.configmap import PolicyMap
from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.objects import PODS, POOLS, REWRITES, InferencePool, Resource, config_map
from extproc.discovery.reflector import Reflector
from extproc.observability.logs import Logger
from extproc.observability.metrics import Metrics
from extproc.policy.types import Pool
from extproc.settings import ALL_NAMESPACES

ONE_POOL = "endpoints"
"""The name of the pool that a selector makes, if it is given none."""


class Watches:
    """The reflectors of one process, by what they are called on the status page."""

    def __init__(self, kubeconfig: Path | None, metrics: Metrics, logger: Logger) -> None:
        """Nothing is followed yet; how the API server is reached is KubernetesApi's to find out."""
        self.policy: PolicyMap | None = None
        self._api = KubernetesApi(kubeconfig)
        self._metrics = metrics
        self._logger = logger
        self._reflectors: dict[str, dict[str, Reflector[Any]]] = {}

    async def connect(self) -> None:
        """Read how the API server is reached. Raises ConfigError."""
        await self._api.connect()

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    @property
    def namespace(self) -> str:
        """Our own."""
        return self._api.namespace

    @property
    def names(self) -> tuple[str, ...]:
        """What is followed."""
        return tuple(self._reflectors)

    def follow_pools(self, on_change: Callable[[], None], namespaces: tuple[str, ...]) -> Cluster:
        """Pods, InferencePools and rewrites of these namespaces (`*`: all, none: our own)."""
        cluster = Cluster(on_change)
        for namespace in self._spelt(namespaces):
            self._follow("pods", PODS, namespace, cluster.pod_changed)
            self._follow("pools", POOLS, namespace, cluster.pool_changed)
            self._follow("rewrites", REWRITES, namespace, cluster.rewrite_changed)
        return cluster

    def follow_pods(
        self,
        on_change: Callable[[], None],
        namespaces: tuple[str, ...],
        selector: dict[str, str],
        ports: tuple[int, ...],
        name: str | None,
    ) -> Cluster:
        """Pods alone: in each of these namespaces (none: our own) those that the selector takes are a pool."""
        named = self._spelt(namespaces)
        pools = tuple(InferencePool(Pool(namespace, name or ONE_POOL), selector, ports) for namespace in named)
        cluster = Cluster(on_change, pools)
        for namespace in named:
            self._follow("pods", PODS, namespace, cluster.pod_changed)
        return cluster

    def follow_policy(
        self, config_map_name: str, apply: Callable[[bytes], None], on_load: Callable[[PolicyMap, str | None], None]
    ) -> None:
        """The policy in the ConfigMap `[namespace/]name`; see PolicyMap."""
        *namespace, name = config_map_name.split("/")
        where = namespace[0] if namespace else self.namespace
        self.policy = PolicyMap(self._api, where, name, apply, on_load, self._logger)
        self._follow("policy", config_map(name), where, self.policy.changed)

    async def synced(self, name: str) -> None:
        """Wait until the first answer about `name` is complete: in every namespace, and for the policy a good one."""
        for reflector in self._reflectors[name].values():
            await reflector.synced.wait()
        if name == "policy" and self.policy is not None:
            if not any(reflector.objects for reflector in self._reflectors[name].values()):
                self.policy.absent()
            await self.policy.loaded.wait()

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run for ever."""
        return [reflector.run() for reflectors in self._reflectors.values() for reflector in reflectors.values()]

    def status(self) -> dict[str, Any]:
        """For people: each reflector by resource and namespace (`*`: all)."""
        found: dict[str, Any] = {
            name: {namespace or ALL_NAMESPACES: reflector.status() for namespace, reflector in reflectors.items()}
            for name, reflectors in self._reflectors.items()
        }
        if self.policy is not None:
            (watch,) = found["policy"].values()
            # Of a ConfigMap that could not be asked for nothing is known: the reason is the watch's.
            error = self.policy.error if watch["synced"] else watch["error"] or self.policy.error
            found["policy"] = {"configmap": str(self.policy), "error": error, "watch": watch}
        return found

    def _spelt(self, namespaces: tuple[str, ...]) -> tuple[str, ...]:
        """Namespaces as the API's paths have them: "" for all."""
        return ("",) if ALL_NAMESPACES in namespaces else namespaces or (self.namespace,)

    def _follow(self, name: str, resource: Resource, namespace: str, on_change: Callable[[Any, Any], None]) -> None:
        reflector: Reflector[Any] = Reflector(self._api, resource, namespace, on_change, self._metrics, self._logger)
        self._reflectors.setdefault(name, {})[namespace] = reflector
