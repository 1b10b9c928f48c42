# SPDX-License-Identifier: Apache-2.0
"""The image's file tree in a folder: the steps of a Dockerfile, executed for real, without a container engine.

Absolute paths of the image are paths below the folder; the base is a stand-in (`base`); a RUN sees the programs of the
stage and no others, so no compiler of the machine's, and pip takes its wheels from a folder. Every stage is made in the
same place and then put aside, so that a path which one stage writes into a file is right in the next.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import pathspec

from release.base import ENV, copy_base, find_python, version_of
from release.dockerfile import Instruction, Stage, parse

ROOT: Final = Path(__file__).parents[1]
"""The repository."""

WHEELS: Final = Path(os.environ.get("OWNED_BY_WHEELS", ROOT / ".venv" / "wheels"))
"""What pip may install, as `make wheels` fetches it: a folder for each machine, and `here` for the Python that runs this."""

Base = Callable[[Path], None]
Hidden = Callable[[Path], bool]


class WheelsError(Exception):
    """The wheels that the image is made of are not there; the text says where they should be."""


@dataclass
class Image:
    """A file tree below `root`, and how a process starts in it. Paths are those of the image unless they say otherwise."""

    root: Path
    env: dict[str, str]
    args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    user: str = "0"
    workdir: str = "/"

    def below(self, path: str) -> Path:
        """Where a path of the image is on this machine; a relative one begins at `workdir`."""
        return self.root / os.path.join(self.workdir, path).lstrip("/")  # noqa: PTH118 - an absolute path must win

    def environment(self) -> dict[str, str]:
        """The image's variables, their paths being those of this machine."""
        return {name: ":".join(map(self._on_the_machine, value.split(":"))) for name, value in self.env.items()}

    def command(self, *words: str) -> list[str]:
        """A program of the image's, found in its PATH, and its words. Raises FileNotFoundError."""
        program = shutil.which(words[0], path=self.environment()["PATH"])
        if program is None or not Path(program).is_relative_to(self.root):
            raise FileNotFoundError(f"{words[0]} is not in the image's PATH")
        return [program, *map(self._on_the_machine, words[1:])]

    def _on_the_machine(self, word: str) -> str:
        return str(self.below(word)) if word.startswith("/") else word


def build(folder: Path, *, base: Base, wheels: Path, context: Path = ROOT, args: Mapping[str, str] = {}) -> Image:
    """The last stage of `context`'s Dockerfile, made below `folder`. Raises DockerfileError, and what `base` raises.

    `base` makes the stand-in for the base, `wheels` is a folder with all that pip may install, `args` are build arguments.
    """
    root = folder / "image"
    stages: dict[str, Path] = {}
    image = Image(root, dict(ENV))
    for stage in parse((context / "Dockerfile").read_text()):
        if stages:
            root.rename(next(reversed(stages.values())))
        base(root)
        image = _Builder(Image(root, dict(ENV)), context, stages, wheels, args).run(stage)
        stages[stage.name] = folder / f"stage-{stage.name}"
    return image


@contextlib.contextmanager
def made(args: Mapping[str, str] = {}) -> Iterator[Image]:
    """The image of this repository in a folder of its own, which everybody may read and which is gone afterwards.

    Raises WheelsError where `make wheels` has not been, DockerfileError, BaseError.
    """
    python = find_python(version_of(parse((ROOT / "Dockerfile").read_text())[-1].image))
    wheels = WHEELS / (platform.machine() if python else "here")
    if not wheels.is_dir():
        raise WheelsError(f"{wheels} is not there: `make wheels` fetches what is in it")
    with tempfile.TemporaryDirectory(prefix="owned-by-image-") as name:
        Path(name).chmod(0o755)
        base = partial(copy_base, python or Path(sys.executable))
        yield build(Path(name), base=base, wheels=wheels, args=args)


@dataclass
class _Builder:
    image: Image
    context: Path
    stages: Mapping[str, Path]
    wheels: Path
    given: Mapping[str, str]

    def run(self, stage: Stage) -> Image:
        for step in stage.instructions:
            getattr(self, "_" + step.word.lower())(step)
        return self.image

    def _values(self) -> dict[str, str]:
        return self.image.args | self.image.env

    def _arg(self, step: Instruction) -> None:
        for name, default in step.pairs(self._values()).items():
            self.image.args[name] = self.given.get(name, default)

    def _env(self, step: Instruction) -> None:
        self.image.env |= step.pairs(self._values())

    def _label(self, step: Instruction) -> None:
        self.image.labels |= step.pairs(self._values())

    def _workdir(self, step: Instruction) -> None:
        (self.image.workdir,) = step.words(self._values())
        self.image.below("").mkdir(parents=True, exist_ok=True)

    def _user(self, step: Instruction) -> None:
        (self.image.user,) = step.words(self._values())

    def _expose(self, step: Instruction) -> None:
        self.image.ports += map(int, step.words(self._values()))

    def _entrypoint(self, step: Instruction) -> None:
        self.image.entrypoint = step.command()

    def _cmd(self, step: Instruction) -> None:
        self.image.cmd = step.command()

    def _copy(self, step: Instruction) -> None:
        *sources, target = step.words(self._values())
        origin, hidden = self.context, _hidden(self.context)
        if sources and sources[0].startswith("--"):
            flag, _, name = sources.pop(0).partition("=")
            if flag != "--from" or name not in self.stages:
                raise step.error("only --from=STAGE is known here")
            origin, hidden = self.stages[name], _nothing
        if not sources or (len(sources) > 1 and not target.endswith("/")):
            raise step.error("write it as COPY source target, or COPY source source target/")
        for source in sources:
            path = origin / source.strip("/")
            if not path.exists():
                raise step.error(f"{source} is not there")
            if hidden(path):
                raise step.error(f"{source} is hidden by .dockerignore")
            into = self.image.below(target)
            if path.is_dir():  # what is in it, not the folder itself
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=_all(hidden))
            else:
                into = into / path.name if target.endswith("/") else into
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into)

    def _run(self, step: Instruction) -> None:
        if self.image.user != "0":
            raise step.error("a RUN behind USER is not known here")
        machine = {
            "HOME": str(self.image.below("/root")),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_INDEX": "1",
        }
        try:
            command = self.image.command(*step.words({}))
        except FileNotFoundError as error:
            raise step.error(str(error)) from error
        done = subprocess.run(
            command,
            cwd=self.image.below(""),
            env=self.image.args | self.image.environment() | machine,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise step.error(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")


def _hidden(context: Path) -> Hidden:
    """What of the context no COPY sees: as git reads it, but every pattern begins at the context's root, as Docker has it.

    Of the patterns the last one that matches counts.
    """
    lines = (line.strip() for line in (context / ".dockerignore").read_text().splitlines())
    rooted = [re.sub(r"^(!?)/?", r"\1/", line) for line in lines if line and not line.startswith("#")]
    spec = pathspec.PathSpec.from_lines("gitignore", rooted)
    return lambda path: spec.match_file(path.relative_to(context))


def _nothing(_path: Path) -> bool:
    return False


def _all(hidden: Hidden) -> Callable[[str, list[str]], list[str]]:
    return lambda folder, names: [name for name in names if hidden(Path(folder, name))]
