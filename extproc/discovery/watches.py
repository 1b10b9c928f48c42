# SPDX-License-Identifier: Apache-2.0
"""All that is followed at an API server: which resources, in which namespaces, and whether they are synced yet."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from extproc.discovery import routingmap
from extproc.discovery.cluster import Cluster
from extproc.discovery.configmap import PolicyMap
from extproc.discovery.kubernetes import KubernetesApi
from extproc.discovery.objects import PODS, POOLS, REWRITES, InferencePool, Resource, config_map
from extproc.discovery.reflector import Reflector
from extproc.discovery.routingmap import ConfigMapRouting
from extproc.observability.logs import Logger
from extproc.observability.metrics import Metrics
from extproc.policy.types import Pool
from extproc.settings import ALL_NAMESPACES

ONE_POOL = "endpoints"
"""The name of the pool that a selector makes, if it is given none."""
PATIENCE: Final = 10.0
"""Seconds that a resource has to be listed anew."""

OnLoad = Callable[[PolicyMap, str | None], None]


class Watches:
    """The reflectors of one process, by what they are called on the status page."""

    def __init__(self, kubeconfig: Path | None, metrics: Metrics, logger: Logger) -> None:
        """Nothing is followed yet; how the API server is reached is KubernetesApi's to find out."""
        self.policy: PolicyMap | None = None
        self.routing: PolicyMap | None = None
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

    def follow_policy(self, config_map_name: str, apply: Callable[[bytes], None], on_load: OnLoad) -> None:
        """The policy in the ConfigMap `[namespace/]name`; see PolicyMap."""
        *namespace, name = config_map_name.split("/")
        where = namespace[0] if namespace else self.namespace
        self.policy = PolicyMap(self._api, where, name, apply, on_load, self._logger)
        self._follow("policy", config_map(name), where, self.policy.changed)

    def follow_routing(self, namespace: str, apply: Callable[[bytes], None], on_load: OnLoad) -> ConfigMapRouting:
        """The routing entries in the ConfigMap `owned-by-routing`, and the store that writes them there.

        An empty namespace is that of the policy's ConfigMap, if that is followed, else our own. If it does not exist, or
        our Role is older than it, there are no entries.
        """
        where = namespace or (self.policy.namespace if self.policy else self.namespace)
        name, key = routingmap.NAME, routingmap.KEY
        self.routing = PolicyMap(self._api, where, name, apply, on_load, self._logger, key=key, optional=True)
        # In metrics it must not be taken for the policy's.
        resource = config_map(name, optional=True, alias=f"configmaps/{name}")
        self._follow("routing", resource, where, self.routing.changed)
        return ConfigMapRouting(self._api, where)

    async def synced(self, name: str) -> None:
        """Wait until the first answer about `name` is complete: in every namespace, and for a document a good one."""
        reflectors = self._reflectors[name].values()
        for reflector in reflectors:
            await reflector.synced.wait()
        if one := self._documents.get(name):
            if not any(reflector.objects for reflector in reflectors):
                one.absent()
            await one.loaded.wait()

    async def relist(self) -> dict[str, str]:
        """List everything anew, now; what could not be listed and applied, as `name/namespace` (`*`: all), and why."""

        async def error(reflector: Reflector[Any]) -> str | None:
            try:
                async with asyncio.timeout(PATIENCE):
                    return await reflector.relist()
            except TimeoutError:
                return f"not listed within {PATIENCE:g} s"

        found = {f"{name}/{namespace}": reflector for name, namespace, reflector in self._all()}
        errors = await asyncio.gather(*map(error, found.values()))
        return {name: error for name, error in zip(found, errors, strict=True) if error is not None}

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run for ever."""
        return [reflector.run() for _, _, reflector in self._all()]

    def status(self) -> dict[str, Any]:
        """For people: each reflector by resource and namespace (`*`: all)."""
        found: dict[str, Any] = {}
        for name, namespace, reflector in self._all():
            found.setdefault(name, {})[namespace] = reflector.status()
        for name, one in self._documents.items():
            (watch,) = found[name].values()
            # Of a ConfigMap that was never listed nothing is known: the reason is the watch's.
            listed = watch["synced"] and watch["age_seconds"] is not None
            error = one.error if listed else watch["error"] or one.error
            found[name] = {"configmap": str(one), "error": error, "watch": watch}
        return found

    @property
    def _documents(self) -> dict[str, PolicyMap]:
        return {name: one for name, one in (("policy", self.policy), ("routing", self.routing)) if one is not None}

    def _all(self) -> Iterator[tuple[str, str, Reflector[Any]]]:
        """Each reflector, what it is called and its namespace as people write it."""
        for name, reflectors in self._reflectors.items():
            for namespace, reflector in reflectors.items():
                yield name, namespace or ALL_NAMESPACES, reflector

    def _spelt(self, namespaces: tuple[str, ...]) -> tuple[str, ...]:
        """Namespaces as the API's paths have them: "" for all."""
        return ("",) if ALL_NAMESPACES in namespaces else namespaces or (self.namespace,)

    def _follow(self, name: str, resource: Resource, namespace: str, on_change: Callable[[Any, Any], None]) -> None:
        reflector: Reflector[Any] = Reflector(self._api, resource, namespace, on_change, self._metrics, self._logger)
        self._reflectors.setdefault(name, {})[namespace] = reflector
