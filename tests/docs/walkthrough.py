# SPDX-License-Identifier: Apache-2.0
"""What docs/guides/llm-d-on-k3d/ deploys, as far as it can be had on loopback."""

from pathlib import Path
from typing import Any, Final, Literal

import yaml

from extproc.demo.engines import MAX_MODEL_LEN, Simulated

FOLDER: Final = Path(__file__).parents[2] / "docs" / "guides" / "llm-d-on-k3d"
ENGINES: Final = ("engines.yaml", "sglang.yaml")
NAMESPACE: Final = "llm-d-multi-model"
POOL: Final = "multi-model-pool"

Json = dict[str, Any]


def documents(*names: str) -> list[Json]:
    """The documents of these files of the guide, or of all."""
    files = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.yaml"))
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str, *names: str) -> list[Json]:
    """Those of one kind."""
    return [document for document in documents(*names) if document["kind"] == kind]


def deployed() -> list[tuple[Simulated, dict[str, str]]]:
    """Each engine that the files deploy, as a simulated one, with its pods' labels.

    Raises AssertionError where a length that the file gives is not the one that the simulated engine says.
    """
    return [_engine(document) for document in of_kind("Deployment", *ENGINES)]


def _engine(document: Json) -> tuple[Simulated, dict[str, str]]:
    template = document["spec"]["template"]
    labels: dict[str, str] = template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    kind: Literal["vllm", "sglang"] = labels["llm-d.ai/engine-type"]  # type: ignore[assignment] # Simulated knows no others
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])
    model = container["args"][0] if kind == "vllm" else flags["model-path"]
    length = flags["max-model-len" if kind == "vllm" else "context-length"]
    assert int(length) == MAX_MODEL_LEN[kind]
    return Simulated(document["metadata"]["name"], kind, model), labels
