# SPDX-License-Identifier: Apache-2.0
"""Components over objects that a test brings itself, whatever `base` has."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.manifests.kustomize import ROOT, build, one

Json = dict[str, Any]

ACCOUNT: Json = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "owned-by", "namespace": "llm-d"}}


def applied(folder: Path, component: str, objects: Sequence[Json]) -> list[Json]:
    """What a component makes of objects and a ServiceAccount in `llm-d`; `folder` is an empty one."""
    (folder / "objects.yaml").write_text(yaml.safe_dump_all([ACCOUNT, *objects]))
    listed = os.path.relpath(ROOT / "components" / component, folder)
    layer = {"kind": "Kustomization", "resources": ["objects.yaml"], "components": [listed]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(layer))
    return build(folder)


def program_arguments(folder: Path, component: str) -> list[str]:
    """What the program is started with, of a Deployment that has the two arguments of `base`."""
    container = {"name": "owned-by", "image": "owned-by", "args": ["serve", "--config-map=owned-by"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "owned-by", "namespace": "llm-d"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    made = one(applied(folder, component, [deployment]), "Deployment", "owned-by")
    (started,) = made["spec"]["template"]["spec"]["containers"]
    return list(started["args"])
