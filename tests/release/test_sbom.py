# SPDX-License-Identifier: Apache-2.0
"""What is written about the image: the SBOM and the list of licences."""

import json
from importlib.metadata import distributions
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from extproc import __version__
from release.licences import SHIPPED, packages
from release.sbom import site_packages, write
from release.tree import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both files were written."""
    made = tmp_path_factory.mktemp("dist")
    write(image, made)
    return made


def test_there_are_two_files_with_the_version_in_their_names(folder: Path) -> None:
    names = [f"owned-by-{__version__}-licences.txt", f"owned-by-{__version__}.cdx.json"]

    assert sorted(path.name for path in folder.iterdir()) == names


def test_the_sbom_is_valid_and_has_every_distribution_and_the_base(folder: Path, image: Image) -> None:
    text = (folder / f"owned-by-{__version__}.cdx.json").read_text()
    bom = json.loads(text)
    root, *others = bom["metadata"]["component"], *bom["components"]
    libraries = {each["name"]: each["version"] for each in others if each["type"] == "library"}
    (base,) = (each for each in others if each["type"] == "container")

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert (root["name"], root["version"]) == ("owned-by-extproc", __version__)
    assert libraries | {root["name"]: root["version"]} == {
        each.metadata["Name"]: each.version for each in distributions(path=[str(site_packages(image))])
    }
    assert base["hashes"][0]["content"] == image.labels["org.opencontainers.image.base.digest"].removeprefix("sha256:")
    assert str(image.root) not in text


def test_the_same_image_gives_the_same_bytes(folder: Path, image: Image, tmp_path: Path) -> None:
    write(image, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_every_licence_of_the_image_is_known_and_each_one_that_may_be_shipped_is_there(
    folder: Path, image: Image
) -> None:
    found = packages(site_packages(image))
    lines = (folder / f"owned-by-{__version__}-licences.txt").read_text().splitlines()
    used = {word for package in found for word in package.licence.replace("(", "").replace(")", "").split()}

    assert [line.split(maxsplit=2) for line in lines] == [list(package) for package in found]
    assert used - {"AND", "OR", "WITH"} == SHIPPED.keys()


def test_every_distribution_of_the_image_brings_its_licence_text(image: Image) -> None:
    bare = [
        each.metadata["Name"]
        for each in distributions(path=[str(site_packages(image))])
        if not any(part in str(file).upper() for file in each.files or () for part in ("LICEN", "COPYING"))
    ]

    assert bare == []
