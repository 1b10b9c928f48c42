# SPDX-License-Identifier: Apache-2.0
"""Where the API server keeps objects of the kinds that the tests use."""

from typing import Any, Final

CORE: Final = "v1"
NETWORKING: Final = "networking.k8s.io/v1"
RBAC: Final = "rbac.authorization.k8s.io/v1"
EXTENSIONS: Final = "apiextensions.k8s.io/v1"
POOLS: Final = "inference.networking.k8s.io/v1"
POOLS_ALPHA: Final = "inference.networking.x-k8s.io/v1alpha2"
REWRITES: Final = "llm-d.ai/v1alpha2"

_CLUSTER_WIDE: Final = {
    (CORE, "Namespace"): "namespaces",
    (RBAC, "ClusterRole"): "clusterroles",
    (RBAC, "ClusterRoleBinding"): "clusterrolebindings",
    (EXTENSIONS, "CustomResourceDefinition"): "customresourcedefinitions",
}
_NAMESPACED: Final = {
    (CORE, "ServiceAccount"): "serviceaccounts",
    (CORE, "ConfigMap"): "configmaps",
    (CORE, "Pod"): "pods",
    (RBAC, "Role"): "roles",
    (RBAC, "RoleBinding"): "rolebindings",
    (POOLS, "InferencePool"): "inferencepools",
    (POOLS_ALPHA, "InferencePool"): "inferencepools",
    (REWRITES, "InferenceModelRewrite"): "inferencemodelrewrites",
    (POOLS_ALPHA, "InferenceModelRewrite"): "inferencemodelrewrites",
}

_NEVER_KEPT: Final = {
    (CORE, "Service"): "services",  # which this API server deletes one by one only
    (NETWORKING, "NetworkPolicy"): "networkpolicies",
}


def collection(api_version: str, plural: str, namespace: str | None = None) -> str:
    """The path of a list."""
    root = f"/api/{api_version}" if api_version == CORE else f"/apis/{api_version}"
    return f"{root}/{plural}" if namespace is None else f"{root}/namespaces/{namespace}/{plural}"


def collection_of(document: dict[str, Any]) -> str:
    """The path of the list that an object is in. Raises KeyError for a kind that no test uses."""
    kind = (document["apiVersion"], document["kind"])
    if kind in _CLUSTER_WIDE:
        return collection(kind[0], _CLUSTER_WIDE[kind])
    plural = {**_NAMESPACED, **_NEVER_KEPT}[kind]
    return collection(kind[0], plural, document["metadata"]["namespace"])


def path_of(document: dict[str, Any]) -> str:
    """The path of an object."""
    return f"{collection_of(document)}/{document['metadata']['name']}"


def is_known(document: dict[str, Any]) -> bool:
    """Whether the API server has its kind, and a test uses it."""
    return (document["apiVersion"], document["kind"]) in {**_CLUSTER_WIDE, **_NAMESPACED, **_NEVER_KEPT}


def collections_in(namespace: str) -> list[str]:
    """The paths of all lists of a namespace."""
    return [collection(version, plural, namespace) for (version, _), plural in _NAMESPACED.items()]
