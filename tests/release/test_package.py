# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist, as somebody without this repository gets them."""

import asyncio
import contextlib
import os
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path
from typing import NamedTuple

import pytest

from extproc import __version__
from extproc.demo.client import send
from extproc.demo.processes import end
from release.tree import ROOT, WHEELS
from tests.release.container import until_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENDPOINTS = "pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:1', models: [m]}]}]\n"
POLICY = "apiVersion: owned-by/v1alpha1\nkind: OwnedByPolicy\n"
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS / "here")}


class Built(NamedTuple):
    """What a release has for pip."""

    wheel: Path
    sdist: Path


def build(source: Path, target: Path) -> Built:
    """Both, from a folder of sources."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", target], cwd=source, check=True, capture_output=True
    )
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both, from this repository."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def programs(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment that has what is locked, and then the wheel with no index at hand."""
    folder = tmp_path_factory.mktemp("environment")
    assert (WHEELS / "here").is_dir(), "`make wheels` fetches what is to be installed"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    environment = {"PATH": os.defpath}
    locked = ["--require-hashes", "-r", ROOT / "requirements" / "run.txt"]
    subprocess.run([*pip, *locked], env=environment | OFFLINE, check=True)
    # What the wheel asks for beyond the lock is nowhere to be found now.
    alone = OFFLINE | {"PIP_FIND_LINKS": ""}
    subprocess.run([*pip, built.wheel], env=environment | alone, check=True)
    return folder / "bin"


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_and_its_metadata_and_no_more(built: Built) -> None:
    tracked = subprocess.run(["git", "ls-files", "extproc"], cwd=ROOT, check=True, capture_output=True, text=True)
    package = set(tracked.stdout.split())
    metadata = {f"owned_by_extproc-{__version__}.dist-info/{name}" for name in METADATA}

    assert built.wheel.name == f"owned_by_extproc-{__version__}-py3-none-any.whl"
    assert names(built.wheel) == package | metadata
    assert package >= {"extproc/py.typed", "extproc/server/page/index.html", "extproc/cli.py"}


METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


def test_its_metadata_has_licence_readme_and_version_and_no_address(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        found = BytesParser().parsebytes(archive.read(f"owned_by_extproc-{__version__}.dist-info/METADATA"))

    assert (found["Name"], found["Version"], found["License-Expression"]) == (
        "owned-by-extproc",
        __version__,
        "Apache-2.0",
    )
    assert found["Requires-Python"] == ">=3.11"
    assert str(found.get_payload()).startswith("# owned-by\n")
    assert found.get_all("Project-URL", []) == []


def test_the_same_sources_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    again = build(ROOT, tmp_path)

    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


def test_the_sdist_is_enough_to_build_the_wheel(built: Built, tmp_path: Path) -> None:
    subprocess.run(["tar", "-xzf", built.sdist, "-C", tmp_path], check=True)
    (source,) = tmp_path.iterdir()
    again = build(source, tmp_path / "dist")

    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert sorted(path.name for path in source.iterdir()) == [
        ".gitignore",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "extproc",
        "pyproject.toml",
    ]


def test_it_is_installed_whole(programs: Path) -> None:
    checked = subprocess.run([programs / "python", "-m", "pip", "check"], capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stdout) == (0, "No broken requirements found.\n")


def test_it_says_its_version_and_reads_a_policy(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    calls = [["--version"], ["validate", str(tmp_path / "policy.yaml")]]
    said = [
        subprocess.run(
            [programs / "owned-by", *call], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
        ).stdout
        for call in calls
    ]

    assert said == [f"owned-by, version {__version__}\n", f"{tmp_path / 'policy.yaml'}: ok\n"]


async def test_it_serves(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "endpoints.yaml").write_text(ENDPOINTS)
    free = [word for port in ("grpc", "grpc-health", "metrics", "admin") for word in (f"--{port}-port", "0")]
    process = await asyncio.create_subprocess_exec(
        *(programs / "owned-by", "serve", "--address", "127.0.0.1", "--drain-delay", "0s", *free),
        *("--endpoints-file", str(tmp_path / "endpoints.yaml")),
        cwd=tmp_path,
        env={},
        stderr=asyncio.subprocess.PIPE,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(end, process)
        ports = await until_ready(process)
        page = await send(ports["admin_port"], "GET", "/")
        process.terminate()
        code = await process.wait()

    assert (page.status, code) == (200, 0)
