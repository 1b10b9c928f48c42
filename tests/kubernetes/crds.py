# SPDX-License-Identifier: Apache-2.0
"""Small definitions of the custom resources that the program reads: what it reads is typed, the rest is kept as it is."""

from typing import Any, Final

from tests.kubernetes.resources import EXTENSIONS, POOLS, POOLS_ALPHA, REWRITES

_STRING: Final = {"type": "string"}
_STRINGS: Final = {"type": "object", "additionalProperties": _STRING}
_PORT: Final = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}


def _open(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """An object with these properties, and with others that nobody looks at."""
    schema = {"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": True}
    return schema | ({"required": list(required)} if required else {})


def _definition(kind: str, api_version: str, spec: dict[str, Any]) -> dict[str, Any]:
    group, _, version = api_version.partition("/")
    plural = kind.lower() + "s"
    return {
        "apiVersion": EXTENSIONS,
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            # Groups under k8s.io are the community's: the API server takes a definition of one only with a word on it.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests only"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "singular": kind.lower(), "plural": plural},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": _open({"spec": spec, "status": _open({})}, "spec")},
                }
            ],
        },
    }


_POOL: Final = _open(
    {
        "selector": _open({"matchLabels": _STRINGS}, "matchLabels"),
        "targetPorts": {"type": "array", "minItems": 1, "items": _open({"number": _PORT}, "number")},
    },
    "selector",
    "targetPorts",
)
_POOL_ALPHA: Final = _open({"selector": _STRINGS, "targetPortNumber": _PORT}, "selector", "targetPortNumber")
_REWRITE: Final = _open(
    {
        "poolRef": _open({"group": _STRING, "kind": _STRING, "name": _STRING}, "name"),
        "rules": {"type": "array", "items": _open({})},
    },
    "poolRef",
    "rules",
)

CRDS: Final = (
    _definition("InferencePool", POOLS, _POOL),
    _definition("InferencePool", POOLS_ALPHA, _POOL_ALPHA),
    _definition("InferenceModelRewrite", REWRITES, _REWRITE),
    _definition("InferenceModelRewrite", POOLS_ALPHA, _REWRITE),
)
