# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile as stages and instructions: those that ours has, and no other.

Source of the syntax: the Dockerfile reference of Docker. What is not understood is refused, never skipped, so that what
is tested is the whole file. A RUN is one program and its words, which need no shell.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Template
from typing import Final

WORDS: Final = frozenset({"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "RUN", "USER", "WORKDIR"})
"""The instructions that may stand in a stage, beside the FROM that begins it."""

_FROM: Final = re.compile(r"(?P<image>[a-z0-9./-]+(:[\w.-]+)?@sha256:[0-9a-f]{64})( AS (?P<name>[a-z][a-z0-9-]*))?")
_FOR_A_SHELL: Final = re.compile(r"[][|&;<>(){}`*?~#$]")
_QUOTED: Final = re.compile(r"\"[^\"$`]*\"|'[^']*'")
_DIRECTIVE: Final = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)


class DockerfileError(Exception):
    """A line that is not understood or cannot be done; the text says which and why."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: the line where it begins, its word, and what follows it, on one line."""

    line: int
    word: str
    rest: str

    def error(self, text: str) -> DockerfileError:
        """The error that names this line."""
        return DockerfileError(f"line {self.line}: {self.word} {self.rest}: {text}")

    def words(self, values: Mapping[str, str]) -> list[str]:
        """What follows as words, quotes taken off, `$NAME` replaced by its value. Raises DockerfileError."""
        try:
            return shlex.split(Template(self.rest).substitute(values))
        except KeyError as error:
            raise self.error(f"nothing has set {error.args[0]}") from error
        except ValueError as error:
            raise self.error(str(error)) from error

    def pairs(self, values: Mapping[str, str]) -> dict[str, str]:
        """What follows as `name=value` each. Raises DockerfileError."""
        split = [word.partition("=") for word in self.words(values)]
        if not split or not all(name and sign for name, sign, _ in split):
            raise self.error("write each as name=value")
        return {name: value for name, _, value in split}

    def command(self) -> list[str]:
        """What follows as a JSON array of strings, the form that starts without a shell. Raises DockerfileError."""
        try:
            found = json.loads(self.rest)
        except ValueError as error:
            raise self.error("write it as a JSON array: the other form starts a shell") from error
        if not isinstance(found, list) or not found or not all(isinstance(word, str) for word in found):
            raise self.error("it is no array of strings")
        return found


@dataclass(frozen=True)
class Stage:
    """From one FROM to the next: the image that it begins with, its name (its number if it has none), its steps."""

    image: str
    name: str
    instructions: tuple[Instruction, ...]


def parse(text: str) -> tuple[Stage, ...]:
    """The stages of a Dockerfile. Raises DockerfileError, which names the line."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            stages.append(_stage(instruction, len(stages)))
        elif not stages:
            raise instruction.error("nothing may stand before the first FROM")
        elif instruction.word not in WORDS:
            raise instruction.error("this instruction is not known here")
        elif instruction.word == "RUN" and _FOR_A_SHELL.search(_QUOTED.sub("", instruction.rest)):
            raise instruction.error("it needs a shell")
        else:
            begun = stages[-1]
            stages[-1] = Stage(begun.image, begun.name, (*begun.instructions, instruction))
    if not stages:
        raise DockerfileError("there is no FROM")
    return tuple(stages)


def _stage(instruction: Instruction, number: int) -> Stage:
    found = _FROM.fullmatch(instruction.rest)
    if found is None:
        raise instruction.error("write it as image:tag@sha256:digest, with or without ` AS name`")
    return Stage(found["image"], found["name"] or str(number), ())


def _instructions(text: str) -> Iterator[Instruction]:
    """One by one: comments and empty lines left out, lines that end with a backslash joined with the next."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if _DIRECTIVE.match(line):
            raise DockerfileError(f"line {number}: a parser directive is not known here")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun or number
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            word, _, rest = " ".join(parts).partition(" ")
            yield Instruction(begun, word, rest.strip())
            begun, parts = 0, []
    if parts:
        raise DockerfileError(f"line {begun}: the file ends within an instruction")
