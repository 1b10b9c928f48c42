# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the base image `python:...-slim`: this machine's Python, copied to where that image has its own.

As there: under `/usr/local`, the standard library without its tests and without bytecode, pip from ensurepip and nothing
else. Source: the RUN of the official image's Dockerfile, as its published history shows it. Debian's files are not in
it; what starts here takes the machine's.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ENV: Final = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""The variables that the base gives to every process, as far as programs here read them."""

_PREFIX: Final = Path("usr/local")
_ORIGIN: Final = b"$ORIGIN/../lib"
_LEFT_OUT: Final = (
    *("__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "*.a", "*.pyc"),
    *("EXTERNALLY-MANAGED", "sitecustomize.py"),  # a packager's
)
_CHANGED_BY_DEBIAN: Final = ("sysconfig.py", "sysconfig/__init__.py", "ensurepip/__init__.py")
_ASKED_BY_DEBIAN: Final = re.compile(r"""hasattr\(sys, ['"]real_prefix['"]\)""")
"""Debian's and Ubuntu's Python has other folders for packages, and no ensurepip, unless this says that it is in an
environment. Source: their /usr/lib/python3.11; Python's own sources do not ask it."""
_ABOUT: Final = """
import json, os, sys, sysconfig
config = sysconfig.get_config_vars()
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "program": os.path.realpath(sys._base_executable),
    "library": sysconfig.get_path("stdlib"),
    "folder": config["LIBDIR"],
    "shared": config["INSTSONAME"] if config["Py_ENABLE_SHARED"] else "",
}))
"""


class BaseError(Exception):
    """This machine's Python cannot stand in for the base; the text says why."""


def version_of(image: str) -> str:
    """The version of Python that an image's tag begins with: `3.13` of `python:3.13.15-slim`. Raises BaseError."""
    found = re.search(r"python:(\d+\.\d+)", image)
    if found is None:
        raise BaseError(f"{image}: the tag names no version of Python")
    return found[1]


def find_python(version: str) -> Path | None:
    """A Python of this version (`3.13`) that runs, None if this machine has none."""
    for candidate in _candidates(version):
        try:
            about = _about(candidate)
        except BaseError:  # a shim of a version manager that has no such version, say
            continue
        if ".".join(map(str, about["version"])) == version:
            return candidate
    return None


def copy_base(python: Path, root: Path) -> None:
    """Make `root` a folder with this Python under `usr/local`. Raises BaseError."""
    about = _about(python)
    name = "python{}.{}".format(*about["version"])
    programs, libraries = root / _PREFIX / "bin", root / _PREFIX / "lib"
    programs.mkdir(parents=True)
    shutil.copytree(about["library"], libraries / name, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    (libraries / name / "site-packages").mkdir()
    _undo_debian(libraries, name)
    program = programs / name
    program.write_bytes(_relocated(Path(about["program"]), about["folder"]))
    program.chmod(0o755)
    if about["shared"]:
        shutil.copy2(Path(about["folder"], about["shared"]), libraries)
    for alias in ("python3", "python"):
        (programs / alias).symlink_to(name)
    environment = {"PATH": os.defpath, "PIP_CONFIG_FILE": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run([program, "-m", "ensurepip"], env=environment, capture_output=True, text=True, check=False)
    if made.returncode:
        raise BaseError(f"{python}: ensurepip: {made.stdout}{made.stderr}")
    (programs / "pip").symlink_to("pip3")  # of no distribution, as there


def _candidates(version: str) -> Iterator[Path]:
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    yield from sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"), reverse=True)


def _about(python: Path) -> dict[str, Any]:
    try:
        asked = subprocess.run([python, "-I", "-c", _ABOUT], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BaseError(f"{python}: {error.strerror}") from error
    if asked.returncode:
        raise BaseError(f"{python}: {asked.stderr}")
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def _undo_debian(libraries: Path, name: str) -> None:
    """Have a copy of Debian's Python find packages where Python's own sources put them. Other Pythons stay as they are."""
    texts = {path: path.read_text() for each in _CHANGED_BY_DEBIAN if (path := libraries / name / each).exists()}
    changed = [path for path, text in texts.items() if _ASKED_BY_DEBIAN.search(text)]
    for path in changed:
        path.write_text(_ASKED_BY_DEBIAN.sub("True", texts[path]))
    if changed:  # where it looks is compiled in
        (libraries / "python3").mkdir()
        (libraries / "python3" / "dist-packages").symlink_to(f"../{name}/site-packages")


def _relocated(program: Path, folder: str) -> bytes:
    """The program's bytes, looking for its library beside itself, as the base's does, if it named a folder for it."""
    path = folder.encode() + b"\0"
    return program.read_bytes().replace(path, _ORIGIN.ljust(len(path), b"\0") if len(path) > len(_ORIGIN) else path)
