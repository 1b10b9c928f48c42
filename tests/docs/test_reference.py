# SPDX-License-Identifier: Apache-2.0
"""docs/reference: what is generated is all that there is, and is what stands in the folder."""

import re
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import pytest
from click.testing import CliRunner

from docs import generate
from extproc.cli import main
from extproc.observability.metrics import Metrics
from extproc.policy.config import Body, Match, Promote, Sources, default_policy
from extproc.policy.problems import schema
from extproc.policy.types import MEANINGS, STATUS, Reason


def cells(page: str, width: int) -> dict[str, list[str]]:
    """The rows of a page's one table by their first cell; every row has `width` cells."""
    rows = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in page.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {width}
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


# what stands in the folder


def test_the_pages_are_what_the_code_says() -> None:
    assert generate.drifted(generate.FOLDER) == []


def test_what_a_command_says_of_itself_is_text_and_no_block_of_code() -> None:
    said = re.findall(r"^## `\S+`\n\n(.*?)\n```", generate.flags(main), re.MULTILINE | re.DOTALL)

    assert [line for text in said for line in text.splitlines() if line.startswith(" ")] == []
    assert len(said) == len(main.commands)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "reference")
    result = CliRunner().invoke(generate.run)
    assert (result.exit_code, result.output) == (0, "")
    return tmp_path / "reference"


def test_what_is_written_has_not_drifted(folder: Path) -> None:
    result = CliRunner().invoke(generate.run, ["--check"])

    assert (result.exit_code, result.output) == (0, "")
    assert {path.name for path in folder.iterdir()} == set(generate.PAGES)


def test_pages_that_have_drifted_are_named_and_how_to_mend_them(folder: Path) -> None:
    (folder / "flags.md").unlink()
    (folder / "old.md").write_text("no page any more\n")
    with (folder / "reasons.md").open("a") as page:
        page.write("and more\n")
    result = CliRunner().invoke(generate.run, ["--check"])

    assert (result.exit_code, result.output) == (
        1,
        "docs/reference is not what the code says: flags.md, old.md, reasons.md. `make docs` writes it.\n",
    )


def test_a_page_says_first_what_has_written_it(folder: Path) -> None:
    for path in folder.iterdir():
        assert path.read_text().splitlines()[0] == (
            "<!-- Written by docs/generate.py from the code (`make docs`); do not edit. -->"
        )


def test_the_make_targets_are_those_that_write_and_check() -> None:
    makefile = (generate.FOLDER.parents[1] / "Makefile").read_text()
    recipes = dict(re.findall(r"^([a-z]+): .*\n((?:\t.*\n)+)", makefile, re.MULTILINE))

    written = "\t$(BIN)/python docs/generate.py\n\t$(BIN)/python monitoring/rule.py\n"
    assert recipes["docs"] == written
    assert written.replace(".py\n", ".py --check\n") in recipes["check"]
    assert re.search(r"^\.PHONY:.* docs\b", makefile, re.MULTILINE)  # there is a folder of that name


# flags

SMALL = click.Group(
    commands={
        "go": click.Command(
            "go",
            help="Go there.",
            params=[
                click.Option(["-f", "--far"], type=int, default=3, envvar="FAR", help="How far | how long."),
                click.Option(["--fast"], is_flag=True, help="Run."),
                click.Option(["--with"], required=True, metavar="WHOM", help="Who else."),
                click.Argument(["place"]),
            ],
        )
    }
)


def test_a_flag_is_shown_with_its_variable_and_default() -> None:
    assert generate.flags(SMALL).partition("## ")[2] == (
        "`go`\n\nGo there.\n\n```\nowned-by go [OPTIONS] PLACE\n```\n\n"
        "| flag | variable | default | what it does |\n| --- | --- | --- | --- |\n"
        "| `-f`, `--far` `INTEGER` | `FAR` | `3` | How far \\| how long. |\n"
        "| `--fast` |  |  | Run. |\n"
        "| `--with` `WHOM` |  | required | Who else. |\n"
    )


def test_every_flag_of_every_command_is_shown_and_explained() -> None:
    page = generate.flags(main)
    sections = dict(re.findall(r"^## `([a-z]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))

    assert list(sections) == list(main.commands)
    for name, command in main.commands.items():
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert re.findall(r"^\| (`-.*?`)(?:,| `|  ?\|)", sections[name], re.MULTILINE) == [
            f"`{option.opts[0]}`" for option in options
        ]
        assert [option.name for option in options if not option.help] == []


# policy


def test_every_key_of_every_struct_of_the_policy_is_shown() -> None:
    structs = {name: set(kind["properties"]) for name, kind in schema()["$defs"].items()}
    shown = {key.path for key in generate.keys(schema())}

    assert {path.rpartition(".")[2] for path in shown} == set().union(*structs.values())
    assert {path for path in shown if "." not in path} == structs["PolicyConfig"]
    for place, name in (
        ("sources", "Sources"),
        ("match", "Match"),
        ("models[]", "ModelRule"),
        ("routing[]", "Route"),
        ("routing[].selector", "Selector"),
        ("routing[].selector.matchExpressions[]", "Expression"),
        ("body", "Body"),
        ("promote", "Promote"),
    ):
        assert {
            path.removeprefix(f"{place}.") for path in shown if re.fullmatch(rf"{re.escape(place)}\.\w+", path)
        } == (structs[name])


def test_every_default_that_is_shown_is_the_codes() -> None:
    defaults = msgspec.to_builtins(default_policy(), enc_hook=str)
    shown = {key.path: key.schema["default"] for key in generate.keys(schema()) if "default" in key.schema}
    kinds = {"sources": Sources, "match": Match, "body": Body, "promote": Promote}

    assert {path: default for path, default in shown.items() if "." not in path} == {
        name: default for name, default in defaults.items() if name not in ("apiVersion", "kind")
    }
    for name, kind in kinds.items():
        for field in msgspec.structs.fields(kind):
            assert shown[f"{name}.{field.encode_name}"] == defaults[name][field.encode_name]
    assert {path: value for path, value in shown.items() if path.endswith(".action")} == {
        f"{name}.action": default["action"] for name, default in defaults.items() if name.startswith("when")
    }


KEYS = {
    "paths": ["list of: text", '`["/v1/*"]`', "The paths that the policy is for, `*` also matching `/`; others pass."],
    "match.engineFrom": [
        "list of: `label`, `probe`",
        '`["label"]`',
        "What says an endpoint's engine, in this order: its labels, or its own answer when it is probed.",
    ],
    "destinations": [
        "whole number from 1 to 64",
        "`3`",
        "How many endpoints a destination names, one for each attempt of Envoy's.",
    ],
    "whenAbsent": ["", "", "What becomes of a request that names no owner."],
    "whenAbsent.action": [
        "`passthrough`, `reject`, `prefer`, `split`",
        "`passthrough`",
        "What is done: see [actions](#actions).",
    ],
    "whenAbsent.weights": [
        "map of text to: whole number from 0 to 1,000,000, with `split`",
        "required",
        "The owners, each with its share of the requests.",
    ],
    "models": [
        "list",
        "",
        "Rules for some models; the first that matches holds, and what it leaves out is the policy's own.",
    ],
    "models[].whenUnready.action": ["`reject`, `fallback`", "required", "What is done: see [actions](#actions)."],
    "body.maxBytes": [
        "whole number from 1",
        "`20971520`",
        "How many bytes of a streamed body are held until it is decided; more is a 413.",
    ],
    "body.timeout": [
        "text such as `10s`, `1m30s`",
        "`10s`",
        "How long a streamed body may take until it is decided; longer is a 408.",
    ],
    "promote.header": ["text", '`""`', 'The request header in which the owner is named; "" is none.'],
    "promote.reroute": ["`true`, `false`", "`false`", "Whether the route is chosen anew by these headers."],
}


def test_a_key_is_shown_with_its_values_and_default() -> None:
    page = generate.policy(schema())
    found = cells(page.partition("## Actions")[0], 4)

    assert {path: found[path] for path in KEYS} == KEYS
    assert list(found) == [key.path for key in generate.keys(schema())]
    assert list(found)[:4] == ["apiVersion", "kind", "paths", "sources"]


def test_what_an_action_means_is_shown() -> None:
    found = cells(generate.policy(schema()).partition("## Actions")[2], 2)
    used = {action for key in generate.keys(schema()) if key.path.endswith(".action") for action in key.schema["enum"]}

    assert set(found) == used
    assert all(about.endswith(".") for (about,) in found.values())


# metrics


class Counted(NamedTuple):
    """A family of the catalogue."""

    name: str
    type: str
    labels: tuple[str, ...]
    bound: str
    meaning: str


def test_a_metric_is_shown_with_its_labels_and_what_bounds_them() -> None:
    catalogue = [
        Counted("owned_by_a_total", "counter", ("owner", "pool"), "the engines there are", "As."),
        Counted("owned_by_b", "gauge", (), "", "Bs."),
    ]

    assert cells(generate.metrics(catalogue), 5) == {
        "owned_by_a_total": ["counter", "`owner`, `pool`", "the engines there are", "As."],
        "owned_by_b": ["gauge", "", "", "Bs."],
    }


def test_a_column_in_which_nothing_stands_is_left_out() -> None:
    assert cells(generate.metrics([Counted("owned_by_b", "gauge", (), "", "Bs.")]), 3) == {
        "owned_by_b": ["gauge", "Bs."]
    }


def test_every_metric_is_shown_as_it_is_exported() -> None:
    metrics = Metrics()
    metrics.decided("before", "restrict", "owner-matched", "vllm")
    page = generate.PAGES["metrics.md"]()
    shown = {re.split(r" ?\| ?", line)[1].strip("`") for line in page.splitlines() if line.startswith("| `")}
    exported = {
        re.sub("_(bucket|sum|count)$", "", sample.name)
        for family in metrics.registry.collect()
        for sample in family.samples
    }

    assert exported <= shown
    assert {re.sub("_(total|info)$", "", name) for name in shown} == {
        family.name for family in metrics.registry.collect()
    }


# reasons


def test_every_reason_is_shown_with_its_status_and_meaning() -> None:
    found = cells(generate.reasons(), 4)

    assert list(found) == [reason.value for reason in Reason]
    assert {reason: int(row[1]) for reason, row in found.items() if "`reject`" in row[0]} == STATUS
    assert {reason: row[2] for reason, row in found.items()} == {
        reason.value: meaning.text for reason, meaning in MEANINGS.items()
    }
    assert found["models-listed"] == ["`answer`", "200", "The models, or one of them, were asked for."]
    assert found["owner-any"] == ["`passthrough`, `restrict`", "", "The client names `*`; every endpoint will do."]


# endpoints


def test_each_operation_has_a_row_each_body_its_fields_and_each_status_its_meaning() -> None:
    page = generate.endpoints(
        {
            "info": {"title": "x", "description": "Where things are."},
            "paths": {
                "/things": {
                    "get": {
                        "summary": "All of them",
                        "parameters": [
                            {"name": "kind", "in": "query", "required": False, "description": "Only those."},
                            {"name": "id", "in": "path", "required": True},
                        ],
                        "responses": {"200": {"description": "Done."}},
                    },
                    "post": {
                        "summary": "One more",
                        "requestBody": {
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}
                        },
                        "responses": {"400": {"description": "Not so."}, "201": {"description": "Made."}},
                    },
                }
            },
            "components": {
                "schemas": {
                    "Thing": {
                        "description": "What is made.",
                        "required": ["a"],
                        "properties": {"a": {"description": "Its a."}, "b": {}},
                    }
                }
            },
        }
    )

    assert (
        page.removeprefix(generate.GENERATED + "\n\n")
        == """# Admin endpoints

Where things are.

| endpoint | what it does | takes | statuses |
| --- | --- | --- | --- |
| `GET /things` | All of them | `kind` (query, optional): Only those.; `id` (path) | 200 |
| `POST /things` | One more | a body, [Thing](#thing) | 400, 201 |

## Thing

What is made.

| field |  | what it says |
| --- | --- | --- |
| `a` | required | Its a. |
| `b` |  |  |

## Statuses

| status | what it means |
| --- | --- |
| 200 | Done. |
| 201 | Made. |
| 400 | Not so. |
"""
    )
