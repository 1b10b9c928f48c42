# SPDX-License-Identifier: Apache-2.0
"""All that is followed at an API server: which resources, in which namespaces, and whether they are synced yet."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from extproc.discovery.cluster import Cluster
from extproc.discovery.configmap import PolicyMap
from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.objects import PODS, POOLS, REWRITES, Resource, config_map
from extproc.discovery.reflector import Reflector
from extproc.observability.logs import Logger
from extproc.observability.metrics import Metrics


class Watches:
    """Reflectors, by what they are called on the status page."""

    def __init__(self, api: KubernetesApi, metrics: Metrics, logger: Logger) -> None:
        """Nothing is followed yet."""
        self._api = api
        self._metrics = metrics
        self._logger = logger
        self._policy: PolicyMap | None = None
        self._reflectors: dict[str, dict[str, Reflector[Any]]] = {}

    def follow_cluster(self, cluster: Cluster, namespaces: Iterable[str], *, pools: bool) -> None:
        """Pods and, with `pools`, InferencePools and rewrites; the namespace "" stands for all of them."""
        for namespace in namespaces:
            self._follow("pods", PODS, namespace, cluster.pod_changed)
            if pools:
                self._follow("pools", POOLS, namespace, cluster.pool_changed)
                self._follow("rewrites", REWRITES, namespace, cluster.rewrite_changed)

    def follow_policy(self, policy: PolicyMap) -> None:
        """The ConfigMap of the policy."""
        self._policy = policy
        self._follow("policy", config_map(policy.name), policy.namespace, policy.changed)

    async def synced(self, name: str) -> None:
        """Wait until the first answer about `name` is complete: in every namespace, and for the policy a good one."""
        for reflector in self._reflectors[name].values():
            await reflector.synced.wait()
        if name == "policy" and self._policy is not None:
            if not any(reflector.objects for reflector in self._reflectors[name].values()):
                self._policy.absent()
            await self._policy.loaded.wait()

    @property
    def names(self) -> tuple[str, ...]:
        """What is followed."""
        return tuple(self._reflectors)

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run for ever."""
        return [reflector.run() for reflectors in self._reflectors.values() for reflector in reflectors.values()]

    def status(self) -> dict[str, Any]:
        """For people: each reflector by resource and namespace (`*`: all)."""
        return {
            name: {namespace or "*": reflector.status() for namespace, reflector in reflectors.items()}
            for name, reflectors in self._reflectors.items()
        }

    def _follow(self, name: str, resource: Resource, namespace: str, on_change: Callable[[Any, Any], None]) -> None:
        reflector: Reflector[Any] = Reflector(self._api, resource, namespace, on_change, self._metrics, self._logger)
        self._reflectors.setdefault(name, {})[namespace] = reflector
