# SPDX-License-Identifier: Apache-2.0
"""The stand-in for the base image: whose Python it may be, and that it is laid out as the image's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from release.base import BaseError, copy_base, find_python, version_of


def has_pip_at_hand(python: Path) -> bool:
    """Whether a Python is there and brings its ensurepip, which Debian has in a package of its own."""
    return (
        python.exists()
        and not subprocess.run([python, "-Ic", "import ensurepip"], check=False, stderr=subprocess.DEVNULL).returncode
    )


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, "/usr/bin/python3"])
def test_it_has_pip_where_the_image_has_it_whoever_packaged_the_python(python: str, tmp_path: Path) -> None:
    if not has_pip_at_hand(Path(python)):
        pytest.skip(f"{python} is not there, or has no ensurepip")
    copy_base(Path(python), tmp_path / "root")
    ours = tmp_path / "root" / "usr" / "local"
    asked = subprocess.run(
        [ours / "bin" / "python", "-c", "import pip, sys; print(sys.prefix, pip.__file__)"],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    prefix, pip = map(Path, asked.stdout.split())

    assert prefix == ours
    assert pip.resolve() in ours.glob("lib/python3.*/site-packages/pip/__init__.py")


def test_a_base_without_a_version_is_refused() -> None:
    with pytest.raises(BaseError, match="debian:13: the tag names no version of Python"):
        version_of("debian:13")


def test_no_machine_has_a_python_that_there_is_not() -> None:
    assert find_python("3.999") is None
