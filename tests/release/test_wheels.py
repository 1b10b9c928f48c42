# SPDX-License-Identifier: Apache-2.0
"""What is locked can be installed on both machines that the image is for, without a compiler."""

from pathlib import Path

import pytest
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from release.base import version_of
from release.dockerfile import parse
from release.lock import pinned
from release.tree import ROOT, WHEELS, WheelsError, made

PYTHON = version_of(parse((ROOT / "Dockerfile").read_text())[-1].image)
LOCKS = ("image.txt", "build.txt")


def locked(machine: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LOCKS:
        found |= pinned(ROOT / "requirements" / name, python=PYTHON, machine=machine)
    return found


def test_both_machines_get_the_same_versions_which_are_those_that_are_tested() -> None:
    tested = pinned(ROOT / "requirements" / "dev.txt", python=PYTHON, machine="x86_64")

    assert locked("x86_64") == locked("aarch64")
    assert locked("x86_64").items() <= tested.items()


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_pin_has_a_wheel_for_the_python_and_the_libc_of_the_image(machine: str) -> None:
    version = tuple(map(int, PYTHON.split(".")))
    platforms = [
        f"manylinux2014_{machine}",
        *(f"manylinux_2_{minor}_{machine}" for minor in range(17, 42)),
    ]  # Debian 13
    accepted = {
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, f"cp{''.join(PYTHON.split('.'))}"),
    }
    accepted |= set(compatible_tags(version, platforms=platforms))
    found = {}
    for wheel in (WHEELS / machine).iterdir():
        name, number, _, tags = parse_wheel_filename(wheel.name)
        found[str(name)] = str(number)
        assert tags & accepted, wheel.name

    assert found == locked(machine)


def test_a_pin_that_is_for_other_machines_only_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(
        "a==1 \\\n    --hash=sha256:00\n    # via b\nB_c==2 ; platform_machine == 'aarch64' and python_version < '3.14' \\\n"
        "    --hash=sha256:00\nd==3 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    )

    assert pinned(tmp_path / "lock.txt", python="3.13", machine="x86_64") == {"a": "1"}
    assert pinned(tmp_path / "lock.txt", python="3.13", machine="aarch64") == {"a": "1", "b-c": "2"}
    assert pinned(tmp_path / "lock.txt", python="3.14", machine="aarch64") == {"a": "1"}


def test_wheels_that_are_not_there_are_told_with_the_target_that_fetches_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("release.tree.WHEELS", tmp_path)
    with pytest.raises(WheelsError, match=rf"{tmp_path}/\w+ is not there: `make wheels` fetches what is in it"), made():
        pass
