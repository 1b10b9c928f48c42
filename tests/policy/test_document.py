# SPDX-License-Identifier: Apache-2.0
"""A document that cannot be used is named with its line."""

import msgspec
import pytest

from extproc.policy.document import SKIPPED, Document, DocumentError, Place


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
        "line 1: the tag `!!python/object:os.system` may not stand here",
    ),
    "a set": (b"leaves: []\nroots: !!set {a}\n", "line 2: the tag `!!set` may not stand here"),
    "a tag of one's own": (b"leaves: !leaf []\n", "line 1: the tag `!leaf` may not stand here"),
    "a tag of another kind": (b"leaves: !!str []\n", "line 1: the tag `!!str` may not stand here"),
    "a tag in what is merged": (b"<<: {leaves: !!set {a}}\n", "line 1: the tag `!!set` may not stand here"),
    "a merge of a text": (
        b"leaves: []\n<<: a\n",
        "line 2: expected a mapping or list of mappings for merging, but found scalar",
    ),
    "no date": (b"leaves: []\nsince: 2024-13-45\n", "line 2: a value does not fit its tag"),
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


def test_a_lenient_document_is_read_without_the_keys_and_values_that_may_not_be_there() -> None:
    document = Document(b"a: 1\na: 2\n3: x\nb: [!!set {c}, 4]\na: 5\n", lenient=True)

    assert [str(error) for error in document.wrong] == [
        "line 2: the key `a` stands twice",
        "line 3: the key `3` is not a text",
        "line 5: the key `a` stands twice",
        "line 4: the tag `!!set` may not stand here",
    ]
    assert document.value == {"a": 5, "b": [SKIPPED, 4]}


PLACES = {
    (): "line 1: x",
    ("b", 0): "line 2, b[0]: x",
    ("c", "d.e"): "line 4, c.d.e: x",
    ("c", "f g"): 'line 5, c["f g"]: x',
    ("c", ""): 'line 3, c[""]: x',
}


@pytest.mark.parametrize(("place", "shown"), PLACES.items())
def test_an_error_is_on_the_line_of_its_place(place: Place, shown: str) -> None:
    document = Document(b"a: 1\nb: [1]\nc:\n  d.e: 1\n  f g: 2\n")
    assert str(document.fail(place, "x")) == shown


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
    with pytest.raises(DocumentError, match=r"^line 1: a value does not fit its tag$"):
        Document(text)
