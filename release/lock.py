# SPDX-License-Identifier: Apache-2.0
"""What a file of `requirements/` pins."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}


def pinned(file: Path, *, python: str, machine: str) -> dict[str, str]:
    """Each distribution and its version, on CPython `python` (`3.13`) on Linux on a `machine` (`x86_64`)."""
    here = LINUX | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    lines = (line.removesuffix("\\").strip() for line in file.read_text().splitlines() if line[:1].isalnum())
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in map(Requirement, lines)
        if each.marker is None or each.marker.evaluate(here)
    }
