# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference from the code: `python docs/generate.py`. With `--check` it says which pages have drifted.

Every sentence of these pages stands in the code, beside what it is about. Here is only how they are laid out.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from extproc.cli import main
from extproc.observability.metrics import Family, Metrics
from extproc.policy.problems import schema
from extproc.policy.types import MEANINGS, STATUS, Reason
from extproc.server.openapi import document

FOLDER: Final = Path(__file__).parent / "reference"
GENERATED: Final = "<!-- Written by docs/generate.py from the code (`make docs`); do not edit. -->"
Schema = Mapping[str, Any]


def flags(group: click.Group) -> str:
    """Every command and its flags, from click."""
    parts = [
        "# Commands and flags",
        "A flag counts for more than its variable, the variable for more than the default.",
        "Exit codes: 0 all is well, 1 a problem was found, 2 the call was wrong.",
    ]
    for name, command in group.commands.items():
        context = click.Context(command, info_name=f"owned-by {name}")
        usage = command.collect_usage_pieces(context)
        said = inspect.cleandoc(command.help or "")  # Python 3.12 and older keep a docstring's indentation
        parts.append(f"## `{name}`\n\n{said}\n\n```\n{context.command_path} {' '.join(usage)}\n```")
        options = [each for each in command.params if isinstance(each, click.Option)]
        if options:
            rows = [_flag(each, context) for each in options]
            parts.append(_table(("flag", "variable", "default", "what it does"), rows))
    return _page(parts)


def _flag(option: click.Option, context: click.Context) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag else f" `{option.make_metavar(context)}`"
    given = isinstance(option.default, str | int) and not option.is_flag and option.default != ""
    default = "required" if option.required else f"`{option.default}`" if given else ""
    return names + value, f"`{option.envvar}`" if option.envvar else "", default, option.help or ""


class Key(NamedTuple):
    """A key of a document: its path (`models[].allow`), its own schema, and whether the object that has it needs it.

    `action` is the one that it goes with, "" if it goes with any.
    """

    path: str
    schema: Schema
    required: bool
    action: str = ""

    @property
    def leaf(self) -> bool:
        """Whether it has a value and no keys of its own."""
        return not _objects(self.schema)


def keys(document: Schema) -> Iterator[Key]:
    """Every key that a JSON Schema of msgspec's knows, those with keys of their own before these."""
    yield from _keys(document, document["$defs"][_name(document)], "")


def _keys(document: Schema, kind: Schema, path: str) -> Iterator[Key]:
    for name, key in kind["properties"].items():
        if name == "action":  # it has a row of its own, above those of all the actions that there are
            continue
        here = path + name
        yield Key(here, key, name in kind["required"], _action(kind))
        inner = [document["$defs"][each] for each in _objects(key)]
        if actions := [_action(each) for each in inner if _action(each)]:
            default = {"default": key["default"]["action"]} if key.get("default") else {}
            yield Key(f"{here}.action", {"enum": actions} | default, required=True)
        for each in inner:
            yield from _keys(document, each, f"{here}[]." if "items" in key else f"{here}.")


def _action(kind: Schema) -> str:
    """The action that an object is, "" if it is none."""
    return str(kind["properties"]["action"]["enum"][0]) if "action" in kind["properties"] else ""


def _objects(key: Schema) -> list[str]:
    """The names of the objects that may stand at a key, or in its list."""
    if "$ref" in key:
        return [_name(key)]
    inner = [key["items"]] if "items" in key else key.get("anyOf", [])
    return [name for each in inner for name in _objects(each)]


def _name(key: Schema) -> str:
    return str(key["$ref"]).rpartition("/")[2]


def policy(document: Schema) -> str:
    """Every key of the policy, from its JSON Schema, and what its actions mean."""
    intro = (
        "# Keys of the policy\n\nWhat is left out keeps its default. "
        "[The guide](../guides/policy.md) has an example of each key; `owned-by validate --schema` prints this as JSON Schema, "
        "for editors."
    )
    rows = []
    for key in keys(document):
        default = key.schema.get("default")
        shown = f"`{default if isinstance(default, str) and default else json.dumps(default)}`"
        absent = "required" if key.required and default is None else shown if key.leaf and default is not None else ""
        about = key.schema.get("description", "What is done: see [actions](#actions).")
        rows.append((f"`{key.path}`", _values(key), absent, about))
    actions = {_action(kind): kind["description"] for kind in document["$defs"].values() if _action(kind)}
    return _page(
        [
            intro,
            _table(("key", "value", "default", "what it is for"), rows),
            "## Actions",
            _table(("`action`", "what it means"), [(f"`{name}`", about) for name, about in actions.items()]),
        ]
    )


def _values(key: Key) -> str:
    if not key.leaf:
        return "list" if "items" in key.schema else ""
    return _value(key.schema) + (f", with `{key.action}`" if key.action else "")


def _value(key: Schema) -> str:
    """What may stand at a key, in words."""
    if "anyOf" in key:
        return " or ".join(_value(each) for each in key["anyOf"] if each != {"type": "null"})
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    match key["type"]:
        case "array":
            return f"list of: {_value(key['items'])}"
        case "object":
            return f"map of text to: {_value(key['additionalProperties'])}"
        case "integer":
            most = f" to {key['maximum']:,}" if "maximum" in key else ""
            return f"whole number from {key['minimum']}{most}"
        case "boolean":
            return "`true`, `false`"
        case _:
            return "text" + (f" such as {_code(key['examples'])}" if "examples" in key else "")


def metrics(catalogue: Iterable[Family]) -> str:
    """Every metric, from the catalogue of the code: families with name, type, labels, bound and meaning."""
    rows = [(f"`{each.name}`", each.type, _code(each.labels), each.bound, each.meaning) for each in catalogue]
    intro = (
        "# Metrics\n\nAt `/metrics` of `--metrics-port`. No label has a value that a client chooses. "
        "Of a histogram there are `_bucket`, `_sum` and `_count`."
    )
    return _page([intro, _table(("metric", "type", "labels", "bounded by", "what it counts"), rows)])


def reasons() -> str:
    """Every reason, what it means, and the status of those that are refusals."""
    intro = (
        "# Reasons\n\nWhy a request went where it went. It is the same word in the log (`reason`), in metrics "
        "(label `reason`), in the metadata `owned_by` for access logs, in the header `x-owned-by-reason` of an answer that is "
        "ours, and, with `_` for `-`, in its `error.code`.\n\n"
        "Decisions: `restrict` says which endpoints may serve, `passthrough` leaves the request alone, `reject` answers "
        "with the status, `answer` with a list of models."
    )
    rows = []
    for reason in Reason:
        meaning = MEANINGS[reason]
        status = (
            str(STATUS[reason]) if "reject" in meaning.decisions else "200" if "answer" in meaning.decisions else ""
        )
        rows.append((f"`{reason.value}`", _code(meaning.decisions), status, meaning.text))
    return _page([intro, _table(("reason", "decision", "status", "what it means"), rows)])


def endpoints(document: Schema) -> str:
    """Every operation of an OpenAPI document, what its bodies say, and what its statuses mean."""
    rows, statuses, bodies = [], dict[str, str](), dict[str, Schema]()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            takes = [_parameter(each) for each in operation.get("parameters", ())]
            if "requestBody" in operation:
                ((_, content),) = operation["requestBody"]["content"].items()
                name = _name(content["schema"])
                bodies[name] = document["components"]["schemas"][name]
                takes.append(f"a body, [{name}](#{name.lower()})")
            for code, answer in operation["responses"].items():
                statuses.setdefault(code, answer["description"])
            codes = ", ".join(operation["responses"])
            rows.append((f"`{method.upper()} {path}`", operation["summary"], "; ".join(takes), codes))
    parts = [
        f"# Admin endpoints\n\n{document['info']['description']}",
        _table(("endpoint", "what it does", "takes", "statuses"), rows),
    ]
    for name, kind in bodies.items():
        fields = [
            (f"`{field}`", "required" if field in kind["required"] else "", key.get("description", ""))
            for field, key in kind["properties"].items()
        ]
        parts.append(f"## {name}\n\n{_cell(kind['description'])}\n\n{_table(('field', '', 'what it says'), fields)}")
    parts.append("## Statuses\n\n" + _table(("status", "what it means"), sorted(statuses.items())))
    return _page(parts)


def _parameter(parameter: Schema) -> str:
    needed = "" if parameter["required"] else ", optional"
    about = f": {parameter['description']}" if "description" in parameter else ""
    return f"`{parameter['name']}` ({parameter['in']}{needed}){about}"


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table, without the columns in which nothing stands."""
    filled = list(rows)
    used = [column for column in range(len(head)) if not filled or any(row[column] for row in filled)]
    lines = [head, ("---",) * len(head), *filled]
    return "\n".join("| " + " | ".join(_cell(line[column]) for column in used) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join([GENERATED, *parts]) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "flags.md": lambda: flags(main),
    "policy.md": lambda: policy(schema()),
    "metrics.md": lambda: metrics(Metrics().catalogue),
    "reasons.md": reasons,
    "endpoints.md": lambda: endpoints(document()),
}
"""Each page of docs/reference, and what makes it."""


def drifted(folder: Path) -> list[str]:
    """The pages of a folder that are not what the code says, among them those that nothing makes."""
    made = {name: page() for name, page in PAGES.items()}
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a page is not what the code says.")
def run(*, check: bool) -> None:
    """Write the pages of docs/reference."""
    if not check:
        FOLDER.mkdir(exist_ok=True)
        for name, page in PAGES.items():
            (FOLDER / name).write_text(page(), encoding="utf-8")
    elif found := drifted(FOLDER):
        click.echo(f"docs/reference is not what the code says: {', '.join(found)}. `make docs` writes it.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
