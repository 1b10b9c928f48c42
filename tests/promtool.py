# SPDX-License-Identifier: Apache-2.0
"""Prometheus' own checks, by the `promtool` of Debian's package `prometheus`."""

import os
import shutil
import subprocess

import pytest


def promtool(*arguments: str, text: str = "") -> tuple[int, str]:
    """Run it with `text` as its input; its exit code, and all that it says.

    A machine without it skips the test, unless it is one that checks for others (CI).
    """
    program = shutil.which("promtool")
    if program is None:
        message = "there is no promtool: it comes with Debian's package prometheus"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
