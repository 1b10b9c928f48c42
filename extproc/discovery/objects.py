# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as far as they matter here, and what follows from them: endpoints and rewrites.

Pure. A class is the shape of the JSON and a decoder skips what it does not name, which is most of a pod. The shapes are
those of the CRDs; what they mean is in facts/epp.md 1.7 and 1.8.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta

from extproc.policy.types import ROLE_LABEL, Endpoint, Pool, Rewrites

Port = Annotated[int, Meta(ge=1, le=65535)]

ACTIVE_PORTS: Final = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""The annotation that names those of the pool's ports that a pod serves, and its old name."""
_POOL_GROUPS: Final = ("", "inference.networking.k8s.io", "inference.networking.x-k8s.io")
_ENDED: Final = ("Succeeded", "Failed")


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """What every object has."""

    name: str
    namespace: str = ""
    resource_version: str = ""
    uid: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name, unique among the objects of a kind."""
        return self.namespace, self.name


class KubernetesObject(Protocol):
    """What a reflector keeps."""

    @property
    def metadata(self) -> Metadata:
        """The object's own."""


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    conditions: tuple[_Condition, ...] | None = None


class Pod(msgspec.Struct, frozen=True):
    """A pod: who it is, where it is, and how it is."""

    metadata: Metadata
    status: _PodStatus = _PodStatus()

    @property
    def ready(self) -> bool:
        """As the EPP sees it: Ready is True and nobody has asked for its deletion."""
        states = {condition.type: condition.status for condition in self.status.conditions or ()}
        return states.get("Ready") == "True" and self.metadata.deletion_timestamp is None

    @property
    def active_ports(self) -> frozenset[str] | None:
        """The ports that its annotation names, None if it has none."""
        annotations = self.metadata.annotations or {}
        named = next((annotations[name] for name in ACTIVE_PORTS if name in annotations), None)
        return None if named is None else frozenset(port.strip() for port in named.split(","))


class InferencePool(msgspec.Struct, frozen=True):
    """A pool: which pods of its namespace it holds, and the ports at which each of them serves."""

    pool: Pool
    selector: dict[str, str]
    ports: tuple[int, ...]

    def endpoints(self, pod: Pod) -> tuple[Endpoint, ...]:
        """The endpoints that a pod of the pool's namespace is, one per active port; none if it is not selected.

        A pod that has no address yet is an endpoint that is not ready: what it will serve is then known to be on its way.
        """
        labels = pod.metadata.labels or {}
        if pod.status.phase in _ENDED or any(labels.get(name) != value for name, value in self.selector.items()):
            return ()
        active, ready = pod.active_ports, pod.ready and bool(pod.status.pod_ip)
        many = len(self.ports) > 1
        return tuple(
            Endpoint(
                name=f"{pod.metadata.name}-rank-{rank}" if many else pod.metadata.name,
                namespace=pod.metadata.namespace,
                address=pod.status.pod_ip,
                port=port,
                labels=labels,
                role=labels.get(ROLE_LABEL, ""),
                ready=ready,
                uid=pod.metadata.uid,
            )
            for rank, port in enumerate(self.ports)
            if active is None or str(port) in active
        )


class _LabelSelector(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: dict[str, str]


class _TargetPort(msgspec.Struct, frozen=True):
    number: Port


class _SpecV1(msgspec.Struct, frozen=True, rename="camel"):
    selector: _LabelSelector
    target_ports: Annotated[tuple[_TargetPort, ...], Meta(min_length=1)]


class _SpecV1alpha2(msgspec.Struct, frozen=True, rename="camel"):
    selector: dict[str, str]
    target_port_number: Port


class InferencePoolV1(msgspec.Struct, frozen=True):
    """`inference.networking.k8s.io/v1`."""

    metadata: Metadata
    spec: _SpecV1

    def pool(self) -> InferencePool:
        """What it says."""
        ports = dict.fromkeys(port.number for port in self.spec.target_ports)
        return InferencePool(Pool(*self.metadata.key), self.spec.selector.match_labels, tuple(ports))


class InferencePoolV1alpha2(msgspec.Struct, frozen=True):
    """`inference.networking.x-k8s.io/v1alpha2`, the older shape."""

    metadata: Metadata
    spec: _SpecV1alpha2

    def pool(self) -> InferencePool:
        """What it says."""
        return InferencePool(Pool(*self.metadata.key), self.spec.selector, (self.spec.target_port_number,))


class _ModelMatch(msgspec.Struct, frozen=True):
    value: str
    type: str = "Exact"


class _Match(msgspec.Struct, frozen=True):
    model: _ModelMatch | None = None


class _Target(msgspec.Struct, frozen=True, rename="camel"):
    model_rewrite: str
    weight: int | None = None


class _Rule(msgspec.Struct, frozen=True):
    targets: tuple[_Target, ...] = ()
    matches: tuple[_Match, ...] | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The names that may be drawn: those with a weight, all of them if none has one."""
        drawn = tuple(target.model_rewrite for target in self.targets if target.weight != 0)
        return tuple(dict.fromkeys(drawn or (target.model_rewrite for target in self.targets)))


class _PoolRef(msgspec.Struct, frozen=True):
    name: str
    group: str = ""
    kind: str = "InferencePool"


class _RewriteSpec(msgspec.Struct, frozen=True, rename="camel"):
    pool_ref: _PoolRef
    rules: tuple[_Rule, ...] = ()


class InferenceModelRewrite(msgspec.Struct, frozen=True):
    """`llm-d.ai/v1alpha2` and, before that, `inference.networking.x-k8s.io/v1alpha2`."""

    metadata: Metadata
    spec: _RewriteSpec


def rewrites(objects: Iterable[InferenceModelRewrite]) -> dict[Pool, Rewrites]:
    """What the objects make of models' names, for each pool that one refers to.

    The first rule for a name holds, of the oldest object that has one; a rule without matches is for the names that have
    none of their own (facts/epp.md 1.8).
    """
    exact: dict[Pool, dict[str, tuple[str, ...]]] = {}
    otherwise: dict[Pool, tuple[str, ...]] = {}
    for one in sorted(objects, key=lambda one: (one.metadata.creation_timestamp, one.metadata.key)):
        ref = one.spec.pool_ref
        if ref.group not in _POOL_GROUPS or ref.kind != "InferencePool":
            continue
        pool = Pool(one.metadata.namespace, ref.name)
        names = exact.setdefault(pool, {})
        for rule in one.spec.rules:
            if not rule.models:
                continue
            if not rule.matches:
                otherwise.setdefault(pool, rule.models)
            for match in rule.matches or ():
                if match.model is not None and match.model.type == "Exact":
                    names.setdefault(match.model.value, rule.models)
    return {pool: Rewrites(names, otherwise.get(pool, ())) for pool, names in exact.items()}


class ConfigMap(msgspec.Struct, frozen=True):
    """A ConfigMap's texts."""

    metadata: Metadata
    data: dict[str, str] | None = None


class Kind(msgspec.Struct, frozen=True):
    """A kind in one version: where the API server serves it, and its shape."""

    prefix: str
    shape: Any

    def path(self, resource: str, namespace: str) -> str:
        """The path of its collection; an empty namespace means all of them."""
        return f"{self.prefix}/namespaces/{namespace}/{resource}" if namespace else f"{self.prefix}/{resource}"


class Resource(msgspec.Struct, frozen=True):
    """What is watched: its plural, the versions that are tried in turn, and whether a cluster may do without it.

    `alias` is what people and metrics know it by, where that is not its plural.
    """

    name: str
    kinds: tuple[Kind, ...]
    optional: bool = False
    field_selector: str = ""
    alias: str = ""

    @property
    def label(self) -> str:
        """Its name in metrics, logs and errors."""
        return self.alias or self.name


PODS: Final = Resource("pods", (Kind("/api/v1", Pod),))
POOLS: Final = Resource(
    "inferencepools",
    (
        Kind("/apis/inference.networking.k8s.io/v1", InferencePoolV1),
        Kind("/apis/inference.networking.x-k8s.io/v1alpha2", InferencePoolV1alpha2),
    ),
)
REWRITES: Final = Resource(
    "inferencemodelrewrites",
    (
        Kind("/apis/llm-d.ai/v1alpha2", InferenceModelRewrite),
        Kind("/apis/inference.networking.x-k8s.io/v1alpha2", InferenceModelRewrite),
    ),
    optional=True,
)


def config_map(name: str, *, optional: bool = False, alias: str = "") -> Resource:
    """One ConfigMap: asked for by its name, so that a Role can name it too."""
    kinds = (Kind("/api/v1", ConfigMap),)
    return Resource("configmaps", kinds, optional, field_selector=f"metadata.name={name}", alias=alias)
