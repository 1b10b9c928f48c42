# SPDX-License-Identifier: Apache-2.0
"""Prints what the image adds to its base, and what its bytecode is for: `python -m release.sizes`."""

import resource
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from release.base import version_of
from release.dockerfile import parse
from release.lock import pinned
from release.sbom import site_packages
from release.tree import ROOT, Image, made

LARGEST: Final = 5
"""How many distributions are told one by one."""

_TRIES: Final = 5
_MIB: Final = 1 << 20


def size(paths: Iterable[Path]) -> int:
    """The bytes of all files among some paths; a link counts for nothing."""
    return sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())


def of_distribution(distribution: Distribution) -> int:
    """The bytes of a distribution's files and of their bytecode."""
    files = {Path(str(file.locate())) for file in distribution.files or ()}
    bytecode = {found for file in files if file.suffix == ".py" for found in _bytecode(file)}
    return size(files | bytecode)


def table(image: Image) -> list[tuple[str, int]]:
    """What there is, and its bytes: the whole first, then what of it is worth knowing."""
    ours = list(image.below("/opt/owned-by").rglob("*"))
    standard = list(image.below("/usr/local/lib").rglob("*.pyc"))
    sizes = {canonicalize_name(each.name): of_distribution(each) for each in _installed(image)}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
    tracing = sizes.keys() - _without_extra()
    return [
        ("/opt/owned-by", size(ours)),
        ("  of it bytecode", size(path for path in ours if path.suffix == ".pyc")),
        *((f"  of it {name}", sizes[name]) for name in largest),
        (f"  of it the extra otel ({len(tracing)} distributions)", sum(sizes[name] for name in tracing)),
        ("/usr/local/lib: bytecode of the standard library", size(standard)),
    ]


def start(image: Image, **variables: str) -> float:
    """Seconds of CPU that `owned-by --version`, which imports the whole server, takes: the least of some tries."""
    taken = []
    for _ in range(_TRIES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = image.command(*image.entrypoint, "--version")
        subprocess.run(command, env=image.environment() | variables, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def _bytecode(file: Path) -> Iterable[Path]:
    return (file.parent / "__pycache__").glob(f"{file.stem}.cpython-*.pyc")


def _installed(image: Image) -> Iterable[Distribution]:
    return distributions(path=[str(site_packages(image))])


def _without_extra() -> set[str]:
    python = version_of(parse((ROOT / "Dockerfile").read_text())[-1].image)
    return {"owned-by-extproc", *pinned(ROOT / "requirements" / "run.txt", python=python, machine="x86_64")}


def main() -> None:
    """Make the tree and print."""
    with made() as image:
        print(f"{'what the image adds to its base':<54}  MiB")
        for name, found in table(image):
            print(f"{name:<50}{found / _MIB:>7.1f}")
        with tempfile.TemporaryDirectory() as empty:
            without = start(image, PYTHONPYCACHEPREFIX=empty)
        print(f"to start the command line: {start(image):.2f} s of CPU, without bytecode {without:.2f} s")


if __name__ == "__main__":
    main()
