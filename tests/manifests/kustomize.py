# SPDX-License-Identifier: Apache-2.0
"""What `kubectl kustomize` makes of the folders of `manifests/`."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2] / "manifests"
KUBECTL: Final = Path(sys.executable).with_name("kubectl")

Json = dict[str, Any]


def build(folder: Path) -> list[Json]:
    """The documents that `kubectl apply -k` would send for a folder. Raises AssertionError with kustomize's words."""
    made = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def deployed(
    folder: Path,
    components: Sequence[str] = (),
    *,
    namespace: str = "llm-d",
    patches: Sequence[Json] = (),
    objects: Sequence[Json] = (),
) -> list[Json]:
    """The documents of `base` in a namespace, with components, as an operator's two layers have them.

    `folder` is an empty one or not there yet; both layers are written there; `patches` and `objects` are those of the
    outer layer.
    """
    program = folder / "program"
    program.mkdir(parents=True)
    _write(program, namespace=namespace, resources=[_from(program, "base")])
    listed = [_from(folder, f"components/{name}") for name in components]
    (folder / "objects.yaml").write_text(yaml.safe_dump_all(objects))
    resources = ["program", *(["objects.yaml"] if objects else [])]
    _write(folder, resources=resources, components=listed, patches=list(patches))
    return build(folder)


def one(documents: Sequence[Json], kind: str, name: str) -> Json:
    """The only document of a kind with a name."""
    (found,) = (each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def _from(folder: Path, name: str) -> str:
    """A folder of `manifests/` as seen from another one: kustomize takes no absolute path."""
    return os.path.relpath(ROOT / name, folder)


def _write(folder: Path, **fields: Any) -> None:
    header = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(header | fields))
