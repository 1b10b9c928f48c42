# SPDX-License-Identifier: Apache-2.0
"""What the Dockerfile says, and that nothing of one is skipped because it was not understood."""

import re
import sys
import tomllib
from pathlib import Path

import click
import pytest

from extproc.cli import main
from release.base import version_of
from release.dockerfile import DockerfileError, Stage, parse
from release.tree import ROOT, build

STAGES = parse((ROOT / "Dockerfile").read_text())
BASE = f"python:3.13-slim@sha256:{'0' * 64}"


def small(root: Path) -> None:
    """A base that has the Python that runs this, and nothing else."""
    (root / "usr" / "local" / "bin").mkdir(parents=True)
    (root / "usr" / "local" / "bin" / "python").symlink_to(sys.executable)


def words(stage: Stage, word: str) -> list[str]:
    return [step.rest for step in stage.instructions if step.word == word]


def test_both_stages_begin_with_the_same_pinned_base_which_a_label_names() -> None:
    (label,) = words(STAGES[1], "LABEL")
    name, digest = STAGES[0].image.split("@")

    assert [stage.image for stage in STAGES] == [f"{name}@{digest}"] * 2
    assert f"image.base.name=docker.io/library/{name} " in label
    assert label.endswith(f"image.base.digest={digest}")


def test_its_python_is_one_that_the_program_supports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert f"Programming Language :: Python :: {version_of(STAGES[1].image)}" in project["classifiers"]
    assert f"--python-version {version_of(STAGES[1].image)} " in (ROOT / "Makefile").read_text()


def test_its_ports_are_those_that_serve_listens_on_beyond_loopback() -> None:
    serve = main.commands["serve"]
    defaults = {option.name: option.default for option in serve.params if isinstance(option, click.Option)}
    ports = [defaults[name] for name in ("grpc_port", "grpc_health_port", "metrics_port")]

    assert words(STAGES[1], "EXPOSE") == [" ".join(map(str, ports))]


def test_no_layer_is_made_anew_because_the_commit_is_another_one() -> None:
    steps = [step.word for step in STAGES[1].instructions]

    assert "ARG" in steps
    assert {"RUN", "COPY"}.isdisjoint(steps[steps.index("ARG") :])


def test_it_starts_a_script_that_the_program_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (entrypoint,) = words(STAGES[1], "ENTRYPOINT")
    (command,) = words(STAGES[1], "CMD")

    assert [entrypoint] == [f'["{name}"]' for name in project["scripts"]]
    assert command == '["serve"]'
    assert "serve" in main.commands


def test_every_requirement_is_installed_by_hash_and_as_a_wheel() -> None:
    installs = [rest for stage in STAGES for rest in words(stage, "RUN") if " -r " in rest]

    assert len(installs) == 2
    assert all("--require-hashes --only-binary :all:" in each for each in installs)


def test_all_that_it_copies_is_all_that_the_context_shows() -> None:
    copied = [source for rest in words(STAGES[0], "COPY") for source in rest.split()[:-1]]
    shown = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)

    assert sorted(copied) == sorted(shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no FROM"),
        (f"FROM {BASE}\nHEALTHCHECK NONE", "line 2: HEALTHCHECK NONE: this instruction is not known here"),
        (f"FROM {BASE}\n\n# why\nRUN a && \\\n  b", "line 4: RUN a && b: it needs a shell"),
        (f"FROM {BASE}\nRUN a $HOME", "line 2: RUN a $HOME: it needs a shell"),
        (f"FROM {BASE}\nRUN a \\", "line 2: the file ends within an instruction"),
        (
            "FROM python:3.13",
            "line 1: FROM python:3.13: write it as image:tag@sha256:digest, with or without ` AS name`",
        ),
        ("ARG A=1", "line 1: ARG A=1: nothing may stand before the first FROM"),
        ("# syntax=docker/dockerfile:1", "line 1: a parser directive is not known here"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as refused:
        parse(text)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("RUN gcc a.c", "gcc is not in the image's PATH"),
        ("RUN python -c 1/0", "exit code 1\n"),
        ("COPY secret .", "secret is hidden by .dockerignore"),
        ("COPY nowhere .", "nowhere is not there"),
        ("COPY --chown=1 a .", "only --from=STAGE is known here"),
        ("COPY a b target", "write it as COPY source target, or COPY source source target/"),
        ("ENV A", "write each as name=value"),
        ("LABEL a=$VERSION", "nothing has set VERSION"),
        ("LABEL a='b", "No closing quotation"),
        ("CMD serve", "write it as a JSON array: the other form starts a shell"),
        ("ENTRYPOINT {}", "it is no array of strings"),
    ],
)
def test_a_step_that_cannot_be_done_is_told_with_its_line(step: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BASE}\n{step}\n")
    (tmp_path / ".dockerignore").write_text("secret\n")
    (tmp_path / "secret").write_text("")
    with pytest.raises(DockerfileError) as refused:
        build(tmp_path / "made", base=small, wheels=tmp_path, context=tmp_path)

    assert str(refused.value).startswith(f"line 2: {step}: {message}")


def test_a_later_stage_has_of_an_earlier_one_what_it_copies(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("# why\n\n**/hidden\nseen\n")  # the latter at the root only
    (tmp_path / "given").mkdir()
    for name in ("seen", "hidden"):
        (tmp_path / "given" / name).write_text(name)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE} AS first\nWORKDIR /made\nARG A=a\nCOPY given into\n"
        f"FROM {BASE}\nARG A=b\nARG B=$A\nENV PATH=/opt/bin:$PATH\nCOPY --from=first /made/into /opt/\nLABEL l=$B\n"
    )
    image = build(tmp_path / "made", base=small, wheels=tmp_path, context=tmp_path, args={"A": "given"})

    assert sorted(path.name for path in image.below("/opt").iterdir()) == ["seen"]
    assert image.environment()["PATH"].split(":")[0] == str(image.root / "opt" / "bin")
    assert image.labels == {"l": "given"}
    assert not image.below("/made").exists()
