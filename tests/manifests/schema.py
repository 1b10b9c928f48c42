# SPDX-License-Identifier: Apache-2.0
"""Whether an object is what its kind allows: Kubernetes' own schemas for the kinds that it has, ours for all others.

Ours are in schemas/, a file a kind. An object that neither knows is an error, so that nothing is shipped unchecked.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

FOLDER: Final = Path(__file__).parent / "schemas"
VERSION: Final = kubernetes_validate.latest_version()
"""The newest Kubernetes whose schemas are at hand."""
CLUSTER_WIDE: Final = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "GatewayClass", "Namespace"}
"""Kinds whose objects are in no namespace."""

Json = dict[str, Any]


def faults(document: Json) -> list[str]:
    """What is wrong with an object, each with its place (`spec.replicas: ...`); empty if it is well.

    Raises LookupError for a kind that has no schema, and for an object that does not say its kind.
    """
    if not document.get("kind") or not document.get("apiVersion"):
        raise LookupError(f"it has no kind or no apiVersion: {document}")
    found = _ours(document) if (FOLDER / _file(document)).exists() else _builtin(document)
    return found + ([] if is_placed(document) else ["metadata.namespace: it is missing"])


def wrong(documents: Iterable[Json]) -> dict[str, list[str]]:
    """What is wrong with several, by object (`Deployment/owned-by`); nothing of those that are well. Raises as `faults`."""
    found = {f"{each['kind']}/{each['metadata']['name']}": faults(each) for each in documents}
    return {name: told for name, told in found.items() if told}


def is_placed(document: Json) -> bool:
    """Whether an object says its namespace, if its kind has one."""
    return document["kind"] in CLUSTER_WIDE or bool(document.get("metadata", {}).get("namespace"))


def _file(document: Json) -> str:
    return document["kind"].lower() + ".yaml"


def _ours(document: Json) -> list[str]:
    return [
        f"{error.json_path.removeprefix('$.')}: {error.message}"
        for error in _validator(_file(document)).iter_errors(document)
    ]


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    schema = yaml.safe_load((FOLDER / name).read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _builtin(document: Json) -> list[str]:
    what = f"{document['apiVersion']} {document['kind']}"
    unknown = LookupError(f"{what} is no kind of Kubernetes {VERSION}, and schemas/{_file(document)} is not there")
    group = document["apiVersion"].rpartition("/")[0]
    if "." in group and not group.endswith(".k8s.io"):  # the library looks at the first word of a group only
        raise unknown
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        raise unknown from None
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
    return []
