# SPDX-License-Identifier: Apache-2.0
"""A document that cannot be used is named with its line."""

import msgspec
import pytest

from extproc.policy.document import Document, DocumentError


class Leaf(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: int = 0


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    leaves: list[Leaf]


WRONG = {
    "empty": (b"", "the document is empty"),
    "only a comment": (b"# nothing\n", "the document is empty"),
    "null": (b"null\n", "the document is empty"),
    "two documents": (b"leaves: []\n---\nleaves: []\n", "line 2: but found another document"),
    "a key twice": (b"leaves: []\nleaves: []\n", "line 2: the key `leaves` stands twice"),
    "a key twice, nested": (
        b"leaves:\n- name: a\n  size: 1\n  name: b\n",
        "line 4: the key `name` stands twice",
    ),
    "a tag": (
        b"leaves: !!python/object:os.system []\n",
        "line 1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'",
    ),
    "not UTF-8": (b"leaves: \xff\n", "unacceptable character #x00ff: invalid leading UTF-8 octet"),
    "a control character": (b"\x00", "unacceptable character #x0000: control characters are not allowed"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_document_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        Document(text)
    assert str(caught.value) == message


UNFIT = {
    "another kind": (b"- a\n", "line 1: Expected `object`, got `array`"),
    "an unknown key": (b"leaves: []\nroots: []\n", "line 2: Object contains unknown field `roots`"),
    "an unknown key below": (
        b"leaves:\n- name: a\n  colour: red\n",
        "line 3, leaves[0]: Object contains unknown field `colour`",
    ),
    "a missing key": (
        b"leaves:\n- name: a\n- size: 2\n",
        "line 3, leaves[1]: Object missing required field `name`",
    ),
    "a wrong type": (
        b"leaves:\n- name: a\n- name: b\n  size: big\n",
        "line 4, leaves[1].size: Expected `int`, got `str`",
    ),
    "JSON": (b'{"leaves":\n [{"name": 3}]}', "line 2, leaves[0].name: Expected `str`, got `int`"),
}


@pytest.mark.parametrize(("text", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_named_with_its_line(text: bytes, message: str) -> None:
    document = Document(text)
    with pytest.raises(DocumentError) as caught:
        document.convert(Tree)
    assert str(caught.value) == message


def test_a_key_that_is_no_text_is_named_with_its_line() -> None:
    with pytest.raises(DocumentError, match=r"^line 2: the key `1` is not a text$"):
        Document(b"leaves: []\n1: 2\n")


def test_a_document_that_fits_is_its_value() -> None:
    assert Document(b"leaves:\n- {name: a, size: 2}\n- name: b\n").convert(Tree) == Tree([Leaf("a", 2), Leaf("b")])


def test_an_anchor_may_be_used_twice() -> None:
    tree = Document(b"leaves:\n- &a {name: a}\n- *a\n").convert(Tree)
    assert tree == Tree([Leaf("a"), Leaf("a")])


def test_deep_nesting_is_an_error_and_no_crash() -> None:
    with pytest.raises(DocumentError):
        Document(b"a: " + b"[" * 3000 + b"]" * 3000).convert(Tree)


@pytest.mark.parametrize("text", [b"a: !!bool maybe", b"a: !!int ''", b"a: !!float ''", b"a: !!timestamp x"])
def test_a_value_that_does_not_fit_its_tag_is_a_clear_error(text: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^a value does not fit its tag$"):
        Document(text)
