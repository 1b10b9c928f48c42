# SPDX-License-Identifier: Apache-2.0
"""Every distribution has a licence that is known, and one that may be shipped."""

from pathlib import Path

import pytest

from release.licences import SHIPPED, SPELT, LicenceError, Package, listed, packages


def install(folder: Path, name: str, *lines: str) -> None:
    """Metadata as an installer leaves it."""
    (folder / f"{name}-1.dist-info").mkdir()
    text = "\n".join(("Metadata-Version: 2.4", f"Name: {name}", "Version: 1", *lines))
    (folder / f"{name}-1.dist-info" / "METADATA").write_text(text + "\n")


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: mit and apache-2.0"], "MIT AND Apache-2.0"),
        (["License-Expression: MIT", "License: something else"], "MIT"),
        (["License: Apache 2.0", "Classifier: License :: OSI Approved :: MIT License"], "Apache-2.0"),
        (["Classifier: Private", "Classifier: License :: OSI Approved :: MIT License"], "MIT"),
        (["License-Expression: (MIT OR ISC) AND MPL-2.0"], "(MIT OR ISC) AND MPL-2.0"),
    ],
)
def test_a_licence_is_the_first_that_the_metadata_names(lines: list[str], licence: str, tmp_path: Path) -> None:
    install(tmp_path, "a", *lines)

    assert packages(tmp_path) == [Package("a", "1", licence)]


def test_all_that_is_unknown_is_told_at_once(tmp_path: Path) -> None:
    install(tmp_path, "a")
    install(tmp_path, "b", "License: Whatever", " second line")
    install(tmp_path, "c", "License-Expression: MIT OR GPL-3.0-only")
    install(tmp_path, "d", "License: MIT")
    with pytest.raises(LicenceError) as unknown:
        packages(tmp_path)

    assert str(unknown.value).splitlines() == [
        "a 1: its metadata names no licence",
        "b 1: `Whatever` is no SPDX expression, and not in SPELT",
        "c 1: GPL-3.0-only is not in SHIPPED",
    ]


def test_the_list_has_a_line_each_by_name(tmp_path: Path) -> None:
    for name in ("longer", "B", "a"):
        install(tmp_path, name, "License: MIT")

    assert listed(packages(tmp_path)) == "a       1  MIT\nB       1  MIT\nlonger  1  MIT\n"


def test_what_is_spelt_otherwise_is_shipped() -> None:
    assert set(SPELT.values()) <= SHIPPED.keys()
