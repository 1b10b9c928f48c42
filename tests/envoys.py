# SPDX-License-Identifier: Apache-2.0
"""The Envoys in use, each in a folder of its own, as `make test-all` installs them."""

import os
import sys
from pathlib import Path
from typing import Final

import pytest

VERSIONS: Final = {"1.36.4": "1.28", "1.37.0": "1.29", "1.38.3": "1.30", "1.40.0": "1.31"}
"""The Envoys, and the Istios that each stands for (design section 6)."""


def program_of(folder: Path, version: str) -> Path:
    """The program in a folder of versions. What stands in `bin` there starts whichever Envoy is first on the path."""
    return folder / version / "envoy" / "_bin" / "envoy"


def program(version: str) -> Path:
    """The program of a version; without it the test is skipped, and fails in CI, which has them all."""
    found = program_of(Path(sys.prefix) / "envoys", version)
    if not found.exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"there is no Envoy {version}: `make test-all` installs it"
        )
    return found
