# SPDX-License-Identifier: Apache-2.0
"""docs/guides/policy.md: every key has an example, every example does what it shows, and would not without its keys."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from click.testing import CliRunner
from msgspec.structs import replace

from docs.generate import Key, keys
from extproc.cli import _words, main
from extproc.discovery.file import parse_endpoints
from extproc.discovery.listing import parse_listing
from extproc.envoy.binding import Binding
from extproc.envoy.explain import HttpRequest, explain
from extproc.policy.config import PolicyConfig
from extproc.policy.document import DocumentError
from extproc.policy.loading import parse_policy
from extproc.policy.problems import schema
from extproc.policy.types import Pool, Snapshot
from tests.builders import DUPLEX, body, headers, parsed, policy, session
from tests.docs.pages import ROOT, Block, blocks

PAGE = (ROOT / "docs" / "guides" / "policy.md").read_text()
BLOCKS = blocks(PAGE)
FIRST, *REST = [block for block in BLOCKS if block.language == "yaml"]
LAB = Pool("default", "lab")


class Call(NamedTuple):
    """A command line, what is piped into it, and the lines that are shown of its output."""

    line: str
    arguments: list[str]
    text: str
    shown: list[str]


class Example(NamedTuple):
    """A fragment of a policy and what stands under it."""

    fragment: str
    under: list[Block]

    @property
    def calls(self) -> list[Call]:
        return [
            _call(part)
            for block in self.under
            if block.language == "console"
            for part in re.findall(r"^\$ (.*\n(?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
        ]


def _call(part: str) -> Call:
    line, *shown = part.splitlines()
    echo, pipe, command = line.rpartition(" | ")
    text = shlex.split(echo)[1] + "\n" if pipe else ""
    assert shlex.split(command)[0] == "owned-by"
    return Call(line, shlex.split(command)[1:], text, shown)


def _examples() -> Iterator[Example]:
    starts = [number for number, block in enumerate(BLOCKS) if block in REST and not block.text.startswith("# ")]
    for start, end in zip(starts, [*starts[1:], len(BLOCKS)], strict=True):
        yield Example(BLOCKS[start].text, BLOCKS[start + 1 : end])


EXAMPLES = list(_examples())
SHOWN = [example for example in EXAMPLES if example.calls]
ASKED, WAITED = [example for example in EXAMPLES if not example.calls]


def _title(example: Example) -> str:
    return " ".join(example.fragment.split())


def _files() -> dict[str, str]:
    written = {text.splitlines()[0].removeprefix("# "): text for _, text, _ in REST if text.startswith("# ")}
    return written | dict(re.findall(r"`(\w+\.json)`\s+is\s+`(\{.*?\})`", PAGE))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, and the variables that it sets."""
    for name, text in _files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    (exports,) = [block.text for block in BLOCKS if block.language == "sh"]
    for name, value in re.findall(r"(OWNED_BY_\w+)=(\S+)", exports):
        monkeypatch.setenv(name, value)
    return tmp_path


def ran(call: Call, document: Mapping[str, Any], folder: Path) -> str:
    """What the call says under a policy."""
    (folder / "policy.yaml").write_text(json.dumps(document))
    result = CliRunner().invoke(main, call.arguments, input=call.text)
    assert result.exit_code == 0, result.output
    return result.output


def says(output: str, shown: list[str]) -> bool:
    """Whether the lines stand in the output one behind the other; `...` stands for some in between."""
    lines = [re.escape(line.rstrip()) if line != "..." else r"(?:.*\n)*?.*" for line in shown]
    plain = "".join(f"{line.rstrip()}\n" for line in output.splitlines())
    return re.search("^" + "\n".join(lines) + "$", plain, re.MULTILINE) is not None


def whole(fragment: Mapping[str, Any]) -> dict[str, Any]:
    return yaml.safe_load(FIRST.text) | fragment


def without_each_key(value: Any) -> Iterator[tuple[str, Any]]:
    """The document without one of its keys, wherever it stands, for each of them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, {other: value[other] for other in value if other != key}
            yield from ((gone, value | {key: changed}) for gone, changed in without_each_key(inner))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ((gone, [*value[:at], changed, *value[at + 1 :]]) for gone, changed in without_each_key(inner))


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Where each value of a document stands, as the reference spells it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (f"{path}{key}", *paths(inner, f"{path}{key}."))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{path.removesuffix('.')}[].")


def accepted(document: Mapping[str, Any]) -> PolicyConfig | None:
    try:
        return parse_policy(json.dumps(document).encode())
    except DocumentError:
        return None


@pytest.mark.parametrize("example", SHOWN, ids=_title)
def test_an_example_does_what_it_shows(example: Example, folder: Path) -> None:
    document = whole(yaml.safe_load(example.fragment))

    for call in example.calls:
        assert call.shown
        output = ran(call, document, folder)
        assert says(output, call.shown), f"$ {call.line}\n{output}"


@pytest.mark.parametrize("example", SHOWN, ids=_title)
def test_an_example_shows_something_else_without_any_of_its_keys(example: Example, folder: Path) -> None:
    tried = []
    for key, fragment in without_each_key(yaml.safe_load(example.fragment)):
        if accepted(document := whole(fragment)) is None:
            continue  # what has the key needs it, and is left out in its turn
        tried.append(key)
        assert not all(says(ran(call, document, folder), call.shown) for call in example.calls), key

    assert tried


def leaf(key: Key) -> bool:
    return key.leaf and key.path not in yaml.safe_load(FIRST.text)


def test_every_key_has_an_example() -> None:
    shown = {path for example in EXAMPLES for path in paths(yaml.safe_load(example.fragment))}

    assert [key.path for key in keys(schema()) if leaf(key) and key.path not in shown] == []


def test_every_action_has_an_example_where_it_is_not_the_default() -> None:
    shown = "".join(example.fragment for example in EXAMPLES)
    wanted = {
        (key.path.removesuffix(".action"), action)
        for key in keys(schema())
        if key.path.endswith(".action") and "[]" not in key.path
        for action in key.schema["enum"]
        if action != key.schema["default"]
    }

    assert [pair for pair in sorted(wanted) if f"{pair[0]}: {{action: {pair[1]}" not in shown] == []


def test_the_first_block_is_what_every_policy_begins_with() -> None:
    assert accepted(yaml.safe_load(FIRST.text)) is not None
    assert accepted({}) is None


def test_a_call_is_what_a_shell_runs(folder: Path) -> None:
    example = next(example for example in SHOWN if "strip" in example.fragment)
    (call,) = example.calls
    (folder / "policy.yaml").write_text(FIRST.text + example.fragment)
    here = f'owned-by() {{ {shlex.quote(sys.executable)} -m extproc.cli "$@"; }}\n'
    result = subprocess.run(["bash", "-c", here + call.line], capture_output=True, text=True, check=True, timeout=60)

    assert says(result.stdout, call.shown), result.stdout


# what `explain` cannot show


def asked(text: str) -> str:
    """What is said of the request for `sglang` under a policy where `bare` has been asked what it serves."""
    (answer,) = re.findall(r"`bare` of `lab.yaml` answers `(\{.*\})`", ASKED.under[0].before)
    (field, owner), *_ = re.findall(r"`(x-owned-by): (\w+)`", ASKED.under[0].before)
    listing = parse_listing(answer.encode())
    endpoints = parse_endpoints(_files()["lab.yaml"].encode())[LAB]
    told = tuple(
        replace(each, owned_by=listing.owned_by, models=listing.models) if each.name == "bare" else each
        for each in endpoints
    )
    request = HttpRequest("POST", "/v1/completions", ((field, owner),), b"{}")
    return _words(explain(request, Binding(pool=LAB), Snapshot(1, (LAB,), {LAB: told}), policy(text)))


def test_an_engine_that_is_asked_is_what_it_says() -> None:
    shown = ASKED.under[0].text.splitlines()

    assert yaml.safe_load(ASKED.fragment) == {"match": {"engineFrom": ["label", "probe"]}}
    assert says(asked(ASKED.fragment), shown)
    assert not says(asked(""), shown)


def test_a_body_that_does_not_come_is_answered_as_is_shown() -> None:
    one = session(policy_=policy(WAITED.fragment))
    one.receive(headers(mode=DUPLEX))
    one.receive(body(b'{"model": ', ends=False))
    deadline = one.deadline
    (answer,) = parsed(one.expire())

    assert yaml.safe_load(WAITED.fragment) == {"body": {"timeout": f"{deadline:.0f}s"}}
    assert deadline != policy().body.timeout
    assert (answer.immediate_response.status.code, json.loads(answer.immediate_response.body)) == (
        int(re.findall(r"a (\d+):", WAITED.under[0].before)[0]),
        json.loads(WAITED.under[0].text),
    )
