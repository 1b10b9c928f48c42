# SPDX-License-Identifier: Apache-2.0
"""The image, made from the Dockerfile's own steps in a folder: what is in it, and that it runs as a container would."""

import platform
import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from extproc import __version__
from extproc.demo.client import send
from release.lock import pinned
from release.sbom import site_packages
from release.sizes import size, table
from release.tree import ROOT, Image
from tests.release.container import ENDPOINTS, said, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


async def test_it_serves_with_nothing_but_its_own_environment_and_writes_nothing(image: Image) -> None:
    before = sorted(image.root.rglob("*"))
    async with serving(image, "--endpoints-file", ENDPOINTS) as container:
        health = await said(image, "owned-by", "health", "--grpc-health-port", str(container.ports["grpc_health_port"]))
        metrics = await send(container.ports["metrics_port"], "GET", "/metrics")
        page = await send(container.ports["admin_port"], "GET", "/")
        container.process.terminate()
        code = await container.process.wait()

    assert health == (0, "SERVING\n", "")
    assert f'owned_by_build_info{{version="{__version__}"}} 1.0' in metrics.body.decode().splitlines()
    assert (page.status, b"<!doctype html>" in page.body.lower()) == (200, True)
    assert code == 0
    assert sorted(image.root.rglob("*")) == before


async def test_it_traces(image: Image) -> None:
    async with serving(image, "--tracing", "--endpoints-file", ENDPOINTS) as container:
        container.process.terminate()
        code = await container.process.wait()

    assert code == 0


async def test_it_says_its_version(image: Image) -> None:
    assert await said(image, "owned-by", "--version") == (0, f"owned-by, version {__version__}\n", "")


async def test_its_user_cannot_write_into_it(image: Image) -> None:
    code, _, errors = await said(image, "python", "-c", f"open({str(site_packages(image) / 'new')!r}, 'w')")

    assert (code, errors.splitlines()[-1].partition(":")[0]) == (1, "PermissionError")


async def test_each_word_that_starts_it_comes_from_it(image: Image) -> None:
    script = image.below("/opt/owned-by/bin/owned-by").read_text().splitlines()[0]
    _, prefixes, _ = await said(image, "python", "-c", "import sys; print(sys.prefix, sys.base_prefix, *sys.path[1:])")

    assert script == f"#!{image.below('/opt/owned-by/bin/python')}"
    assert all(Path(path).is_relative_to(image.root) for path in prefixes.split())


def test_it_holds_what_the_lock_says_and_the_program(image: Image) -> None:
    folder = site_packages(image)
    python = folder.parent.name.removeprefix("python")
    wanted = pinned(ROOT / "requirements" / "image.txt", python=python, machine="x86_64")
    found = {canonicalize_name(each.name): each.version for each in distributions(path=[str(folder)])}

    assert found == wanted | {"owned-by-extproc": __version__}
    assert wanted.items() >= pinned(ROOT / "requirements" / "run.txt", python=python, machine="x86_64").items()


def test_its_package_is_that_of_the_repository(image: Image) -> None:
    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert files(site_packages(image) / "extproc") == files(ROOT / "extproc")


def test_it_has_no_compiler_no_pip_and_no_tests(image: Image) -> None:
    programs = {path.name for path in image.root.rglob("bin/*")}
    names = {path.name for path in image.root.rglob("*")}

    assert programs >= {"owned-by", "python", "python3"}
    assert [name for name in programs if re.fullmatch(r"pip.*|.*(gcc|g\+\+|clang|cc|ld|make)", name)] == []
    assert names & {"pip", "pytest", "hatchling", "conftest.py", ".cache", "src", "wheels", "Dockerfile"} == set()


def test_all_of_it_has_bytecode_that_no_time_is_in(image: Image) -> None:
    sources = [path for path in image.root.rglob("*.py") if "/bin/" not in str(path)]
    bare = [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))]
    flags = {path.read_bytes()[4:8] for path in image.root.rglob("*.pyc")}

    assert bare == []
    assert flags == {b"\x01\0\0\0"}  # by hash and never checked: PEP 552


def test_its_labels_ports_and_user_are_the_published_ones(image: Image) -> None:
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in image.labels.items()}

    assert (labels["title"], labels["version"], labels["revision"]) == ("owned-by", __version__, "abc")
    assert all(name.startswith(prefix) for name in image.labels)
    assert (image.ports, image.user) == ([9002, 9003, 9090], "65532:65532")
    assert (image.entrypoint, image.cmd) == (["owned-by"], ["serve"])


def test_its_sizes_add_up(image: Image) -> None:
    rows = dict(table(image))
    whole, *parts = rows.values()

    assert whole == size(image.below("/opt/owned-by").rglob("*"))
    assert all(0 < part < whole for part in parts)
    assert len(rows) == 9


def test_the_page_about_releases_tells_these_sizes(image: Image) -> None:
    if platform.machine() != "x86_64" or site_packages(image).parent.name != "python3.13":
        pytest.skip("the page tells those of x86_64 and Python 3.13")
    page = (ROOT / "RELEASING.md").read_text()
    rows = re.findall(r"^(.*?)  +([\d.]+)$", page.partition("its base  ")[2].partition("```")[0], re.MULTILINE)

    found = table(image)

    assert [name for name, _ in rows] == [name for name, _ in found]
    assert [float(size) for _, size in rows] == pytest.approx([size / 2**20 for _, size in found], rel=0.2)
