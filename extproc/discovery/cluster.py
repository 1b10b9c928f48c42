# SPDX-License-Identifier: Apache-2.0
"""What the API server told, joined: pods into the pools that select them, rewrites to the pools that they are for.

A change of a pod costs a look at the pools of its namespace, not at the other pods.
"""

from collections.abc import Callable
from itertools import chain

from extproc.discovery.objects import InferenceModelRewrite, InferencePool, InferencePoolV1, InferencePoolV1alpha2, Pod
from extproc.discovery.objects import rewrites as join_rewrites
from extproc.policy.types import Endpoint, Pool, Rewrites

_Key = tuple[str, str]


class Cluster:
    """Pools and their endpoints; `on_change` is called when one of them is no longer what it was."""

    def __init__(self, on_change: Callable[[], None], pools: tuple[InferencePool, ...] = ()) -> None:
        """`pools` are there from the start and stay: where InferencePools are not used, the flags name them."""
        self.rewrites: dict[Pool, Rewrites] = {}
        self._on_change = on_change
        self._pods: dict[str, dict[_Key, Pod]] = {}
        self._pools: dict[str, dict[Pool, InferencePool]] = {}
        self._members: dict[Pool, dict[_Key, tuple[Endpoint, ...]]] = {}
        self._endpoints: dict[Pool, tuple[Endpoint, ...]] = {}
        self._rewrite_objects: dict[_Key, InferenceModelRewrite] = {}
        for pool in pools:
            self._put_pool(pool)

    def endpoints(self) -> dict[Pool, tuple[Endpoint, ...]]:
        """Each pool's endpoints; a pool that has not changed keeps its tuple."""
        for pool, members in self._members.items():
            if pool not in self._endpoints:
                self._endpoints[pool] = tuple(chain.from_iterable(members.values()))
        return {pool: self._endpoints[pool] for pool in self._members}

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A pod came, changed or went."""
        one = new or old
        assert one is not None
        namespace, key = one.metadata.namespace, one.metadata.key
        pods = self._pods.setdefault(namespace, {})
        if new is None:
            pods.pop(key, None)
        else:
            pods[key] = new
        changed = False
        for pool in self._pools.get(namespace, {}).values():
            members = self._members[pool.pool]
            endpoints = () if new is None else pool.endpoints(new)
            if endpoints != members.get(key, ()):
                if endpoints:
                    members[key] = endpoints
                else:
                    del members[key]
                self._endpoints.pop(pool.pool, None)
                changed = True
        if changed:
            self._on_change()

    def pool_changed(
        self,
        old: InferencePoolV1 | InferencePoolV1alpha2 | None,
        new: InferencePoolV1 | InferencePoolV1alpha2 | None,
    ) -> None:
        """A pool came, changed or went."""
        if new is not None:
            pool = new.pool()
            if self._pools.get(pool.pool.namespace, {}).get(pool.pool) == pool:
                return
            self._put_pool(pool)
        elif old is not None:
            gone = old.pool().pool
            self._pools[gone.namespace].pop(gone, None)
            self._members.pop(gone, None)
            self._endpoints.pop(gone, None)
        self._on_change()

    def rewrite_changed(self, old: InferenceModelRewrite | None, new: InferenceModelRewrite | None) -> None:
        """A rewrite came, changed or went."""
        if new is not None:
            self._rewrite_objects[new.metadata.key] = new
        elif old is not None:
            self._rewrite_objects.pop(old.metadata.key, None)
        found = join_rewrites(self._rewrite_objects.values())
        if found != self.rewrites:
            self.rewrites = found
            self._on_change()

    def _put_pool(self, pool: InferencePool) -> None:
        namespace = pool.pool.namespace
        self._pools.setdefault(namespace, {})[pool.pool] = pool
        found = {key: pool.endpoints(pod) for key, pod in self._pods.get(namespace, {}).items()}
        self._members[pool.pool] = {key: endpoints for key, endpoints in found.items() if endpoints}
        self._endpoints.pop(pool.pool, None)
