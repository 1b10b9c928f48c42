# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that no linter knows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("extproc", "tests", "bench", "docs", "protos", "release")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".proto"} and not path.name.endswith("_pb2.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_source_names_its_licence_first(path: Path) -> None:
    assert "SPDX-License-Identifier: Apache-2.0" in path.read_text().splitlines()[0]


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "extproc").rglob("*.py")}

    assert {name: lines for name, lines in lengths.items() if lines > 400 and not name.endswith("_pb2.py")} == {}


def test_no_requirement_is_without_a_hash_or_names_an_index() -> None:
    for path in (ROOT / "requirements").iterdir():
        text = path.read_text()
        pinned = re.findall(r"^[a-z0-9][^ ]*==[^ ]+.*\\$", text, re.MULTILINE)
        names = re.findall(r"^[a-z0-9].*$", text, re.MULTILINE)

        assert pinned == names
        assert "://" not in text
        assert "-index" not in text


def test_the_readme_shows_the_make_targets_and_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    readme += (ROOT / "RELEASING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    flags = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "extproc" / "cli.py").read_text()))

    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE)) <= targets
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", readme)) <= flags | {"--help"}
