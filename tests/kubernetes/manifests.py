# SPDX-License-Identifier: Apache-2.0
"""The documents of `manifests/` as kustomize would send them, as far as the tests apply them."""

from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2] / "manifests"


def load(folder: str, *, namespace: str, replaced: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The resources of a kustomization, in its order, for a program that runs in `namespace`.

    What says no namespace gets that one, and so does each service account that is bound. `replaced` maps a namespace
    that stands in the files to the one that an operator writes in its place.
    """
    kustomization = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())
    documents = [
        document
        for name in kustomization["resources"]
        for document in yaml.safe_load_all((ROOT / folder / name).read_text())
    ]
    for document in documents:
        metadata = document["metadata"]
        if not document["kind"].startswith("Cluster"):
            said = metadata.get("namespace", namespace)
            metadata["namespace"] = (replaced or {}).get(said, said)
        for subject in document.get("subjects", []):
            subject["namespace"] = namespace
    return documents
