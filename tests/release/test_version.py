# SPDX-License-Identifier: Apache-2.0
"""The version stands in extproc/__init__.py; wherever else it is written, it is the same."""

import re
import tomllib

from click.testing import CliRunner
from packaging.version import Version

from extproc import __version__
from extproc.cli import main
from release.dockerfile import parse
from release.tree import ROOT


def test_the_program_says_it() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"owned-by, version {__version__}\n"


def test_it_is_three_numbers_with_or_without_a_pre_release() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)
    assert str(Version(__version__)) == __version__


def test_the_package_has_it_from_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "extproc/__init__.py"}


def test_an_image_that_is_built_by_hand_has_it_in_its_labels() -> None:
    steps = parse((ROOT / "Dockerfile").read_text())[-1].instructions

    assert next(step.rest for step in steps if step.word == "ARG") == f"VERSION={__version__}"


def test_manifests_and_pages_name_the_image_of_it_and_no_other() -> None:
    paths = [*(ROOT / "manifests").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    named = {
        tag
        for path in paths
        for found in re.findall(r"owned-by:(\d[\w.-]*\w)|kubernetes\.io/version: \"?([\w.-]+)", path.read_text())
        for tag in found
        if tag
    }

    assert named <= {__version__}


def test_the_changelog_begins_with_it_or_with_what_is_not_released() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert re.fullmatch(rf"Unreleased|{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", headings[0])
    assert len(set(headings)) == len(headings)
