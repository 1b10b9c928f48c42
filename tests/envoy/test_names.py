# SPDX-License-Identifier: Apache-2.0
"""Every word that crosses the wire is spelt out once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.envoy import names

ROOT = Path(__file__).parents[2] / "extproc"
WORDS = sorted(
    {
        word
        for value in vars(names).values()
        for word in (value if isinstance(value, tuple) else (value,))
        if isinstance(word, str) and word.startswith(("x-", "envoy.lb", "envoy.service", "test-epp"))
    }
)

ALSO = {
    # the policy's own defaults, which an operator may change; the policy knows nothing of Envoy
    "x-owned-by": {"policy/config.py"},
    "x-gateway-model-name": {"policy/config.py"},
    "x-llm-d-model-name-rewrite": {"policy/config.py", "policy/extract.py"},
    # the name of a log field
    "x-request-id": {"observability/logs.py"},
}


def literals(tree: ast.Module) -> Iterator[str]:
    """The text literals of a module that are no docstrings."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


def modules() -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "envoy/names.py" and not {"pb", "demo"} & set(path.relative_to(ROOT).parts)
    ]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_wire_is_spelt_out_in_names_only(word: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in modules()
        for text in literals(ast.parse(path.read_text()))
        if text == word
    }
    assert found - ALSO.get(word, set()) == set()


def test_the_words_are_those_of_the_design() -> None:
    assert {
        "x-owned-by-attachment",
        "x-owned-by-pool",
        "x-owned-by-body",
        "x-owned-by-reason",
        "x-gateway-destination-endpoint",
        "x-gateway-destination-endpoint-subset",
        "envoy.lb",
        "envoy.lb.subset_hint",
        "envoy.service.ext_proc.v3.ExternalProcessor",
        "x-prefiller-host-port",
        "x-encoder-hosts-ports",
        "x-data-parallel-host-port",
        "x-kv-cache-source-host-port",
        "test-epp-endpoint-selection",
    } <= set(WORDS)
