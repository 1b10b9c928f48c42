# SPDX-License-Identifier: Apache-2.0
"""Prometheus' own programs, from Debian's package `prometheus`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def find(name: str) -> Path:
    """A program. A machine without it skips the test, unless it is one that checks for others (CI)."""
    program = shutil.which(name)
    if program is None:
        message = f"there is no {name}: it comes with Debian's package prometheus"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    return Path(program)


def promtool(*arguments: str, text: str = "") -> tuple[int, str]:
    """Let promtool check something, with `text` as its input; its exit code, and all that it says."""
    done = subprocess.run([find("promtool"), *arguments], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
