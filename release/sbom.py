# SPDX-License-Identifier: Apache-2.0
"""Writes what the image holds: `python -m release.sbom FOLDER`.

Two files: an SBOM (CycloneDX 1.6, JSON) and the list of licences. Both are of the Python distributions in the image; the
base is one component, by its digest: for Debian's packages in it ask the base itself, or a scanner. Same input, same
bytes: no serial number, and no time unless SOURCE_DATE_EPOCH gives one.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from extproc import __version__
from release.dockerfile import parse
from release.licences import listed, packages
from release.tree import ROOT, Image, made

SPEC: Final = "1.6"
"""The version of CycloneDX."""


def site_packages(image: Image) -> Path:
    """The folder of the image's distributions."""
    (found,) = image.below("/opt/owned-by/lib").glob("python*/site-packages")
    return found


def sbom(image: Image) -> str:
    """The SBOM of an image's tree, as JSON text. Raises LicenceError."""
    licences = {package.name: package for package in packages(site_packages(image))}
    bom = _by_cyclonedx(image.below("/opt/owned-by/bin/python"))
    component = bom["metadata"]["component"]
    component |= {"version": __version__, "purl": f"pkg:pypi/{component['name']}@{__version__}"}
    for each in bom["components"]:  # from metadata that is older than SPDX's names it takes nothing, or all spellings
        each["licenses"] = [{"expression": licences[each["name"]].licence, "acknowledgement": "declared"}]
    bom["components"].append(_base())
    bom["dependencies"].append({"ref": "base-image"})
    return json.dumps(bom, indent=2, sort_keys=True) + "\n"


def write(image: Image, folder: Path) -> list[Path]:
    """Write both files for an image; where they are. Raises LicenceError."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        folder / f"owned-by-{__version__}.cdx.json": sbom(image),
        folder / f"owned-by-{__version__}-licences.txt": listed(packages(site_packages(image))),
    }
    for path, text in texts.items():
        path.write_text(text)
    return list(texts)


def _by_cyclonedx(python: Path) -> dict[str, Any]:
    """What cyclonedx-py finds in the environment of a Python; it raises CalledProcessError and says why itself."""
    flags = ["--output-reproducible", "--of", "JSON", "--sv", SPEC, "--pyproject", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "cyclonedx_py", "environment", *flags, str(python)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def _base() -> dict[str, Any]:
    name, _, digest = parse((ROOT / "Dockerfile").read_text())[-1].image.partition("@")
    name, _, tag = name.partition(":")
    return {
        "bom-ref": "base-image",
        "type": "container",
        "name": name,
        "version": tag,
        "purl": f"pkg:docker/{name}@{digest.replace(':', '%3A')}",
        "hashes": [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}],
    }


def main(folder: Path) -> None:
    """Make the tree, write the files, say where they are."""
    with made() as image:
        for path in write(image, folder):
            print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
