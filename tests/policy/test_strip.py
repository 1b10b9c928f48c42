# SPDX-License-Identifier: Apache-2.0
"""An object's members go, all else stays to the byte."""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policy.strip import strip

NAMES = ("owned_by", "engine", "inference_server")

WHOLE = {
    "alone": (b'{"owned_by":"x"}', b"{}"),
    "alone, with space": (b'{ "owned_by" : "x" }', b"{  }"),
    "first": (b'{"owned_by":"x","a":1}', b'{"a":1}'),
    "last": (b'{"a":1,"owned_by":"x"}', b'{"a":1}'),
    "between": (b'{"a":1,"owned_by":"x","b":2}', b'{"a":1,"b":2}'),
    "first, with space": (b'{ "owned_by" : "x" , "a" : 1 }', b'{  "a" : 1 }'),
    "last, with space": (b'{ "a" : 1 , "owned_by" : "x" }', b'{ "a" : 1  }'),
    "between, with space": (b'{"a":1 ,\n "owned_by":"x"\t,\n "b":2}', b'{"a":1 ,\n \n "b":2}'),
    "twice": (b'{"owned_by":"x","a":1,"owned_by":"y"}', b'{"a":1}'),
    "in a row": (b'{"a":1,"owned_by":"x","engine":"y","b":2}', b'{"a":1,"b":2}'),
    "in a row at the end": (b'{"a":1 , "owned_by":"x" , "engine":"y" }', b'{"a":1  }'),
    "every name": (b'{"owned_by":1,"engine":2,"inference_server":3}', b"{}"),
    "null": (b'{"owned_by":null,"a":1}', b'{"a":1}'),
    "a number": (b'{"owned_by":-1.5e+3}', b"{}"),
    "NaN": (b'{"owned_by":NaN,"engine":-Infinity,"a":1}', b'{"a":1}'),
    "a list": (b'{"owned_by":["x",["]"]],"a":1}', b'{"a":1}'),
    "an object": (b'{"owned_by":{"owned_by":{}},"a":1}', b'{"a":1}'),
    "an escaped key": (b'{"owned\\u005fby":"x","\\u0065ngin\\u0065":1,"a":1}', b'{"a":1}'),
    "an escaped key in upper case": (b'{"owned\\u005Fby":"x"}', b"{}"),
    "nested ones stay": (
        b'{"a":{"owned_by":1},"b":[{"engine":2}],"owned_by":3}',
        b'{"a":{"owned_by":1},"b":[{"engine":2}]}',
    ),
    "a value that looks like one": (b'{"a":"\\"owned_by\\":1,","engine":0}', b'{"a":"\\"owned_by\\":1,"}'),
    "brackets in strings": (b'{"a":["]}{[\\"",{"}":"{"}],"owned_by":1}', b'{"a":["]}{[\\"",{"}":"{"}]}'),
    "backslashes before quotes": (
        b'{"a":"\\\\","b":"\\\\\\"","c":"\\"\\\\\\\\","owned_by":1}',
        b'{"a":"\\\\","b":"\\\\\\"","c":"\\"\\\\\\\\"}',
    ),
    "numbers as written": (b'{"a":1.50E+01,"engine":1,"b":-0,"c":123456789012345678901}', None),
    "escapes as written": (b'{"a":"\\u00E9\\/","engine":1,"b\\u0020":"\xc3\xa9"}', None),
    "a byte order mark": (b'\xef\xbb\xbf {"owned_by":"x"}\r\n', b"\xef\xbb\xbf {}\r\n"),
    "behind half a surrogate pair": (b'{"a":"\\ud83d","owned_by":"x"}', b'{"a":"\\ud83d"}'),
    "before half a surrogate pair": (b'{"owned_by":"x","a":"\\ud83d"}', b'{"a":"\\ud83d"}'),
    "half a surrogate pair at the end": (b'{"a":1,"owned_by":"\\ud83d"}', b'{"a":1}'),
    "bad UTF-8": (b'{"a":"\xff\xc3","owned_by":"\xff"}', b'{"a":"\xff\xc3"}'),
}


@pytest.mark.parametrize(("body", "stripped"), WHOLE.values(), ids=WHOLE)
def test_a_member_goes_with_one_comma(body: bytes, stripped: bytes | None) -> None:
    assert strip(body, NAMES) == (body.replace(b'"engine":1,', b"") if stripped is None else stripped)


UNCHANGED = {
    "no such member": b'{"model":"m","owned":1,"owned_by_":2,"Owned_By":3}',
    "nested only": b'{"a":{"owned_by":1},"b":[{"engine":2}]}',
    "a value": b'{"a":"owned_by","b":["engine"]}',
    "a key that ends alike": b'{"x\\"owned_by":1,"\\\\engine":2}',
    "an array": b'[{"owned_by":1}]',
    "a string": b'"owned_by"',
    "null": b"null",
    "empty": b"",
    "white": b" \n",
    "an empty object": b"{}",
    "only a byte order mark": b"\xef\xbb\xbf",
    "a form": b"owned_by=x",
    "no text": bytes(range(256)),
    "UTF-16": '{"owned_by":1}'.encode("utf-16"),
    "a comma too many": b'{"owned_by":1,}',
    "a comma too many at the end": b'{"a":1,"owned_by":1,}',
    "a comma before": b'{,"owned_by":1}',
    "two commas": b'{"a":1,,"owned_by":1}',
    "no comma": b'{"a":1 "owned_by":1}',
    "no colon": b'{"a" 1,"owned_by":1}',
    "no value": b'{"owned_by":,"a":1}',
    "no JSON number": b'{"owned_by":01,"a":1}',
    "no JSON word": b'{"owned_by":True,"a":1}',
    "two values": b'{"owned_by":1 2,"a":1}',
    "a bracket too many": b'{"owned_by":],"a":1}',
    "an upper-case U": b'{"owned\\U005fby":1}',
}


@pytest.mark.parametrize("body", UNCHANGED.values(), ids=UNCHANGED)
def test_a_body_without_such_a_member_is_the_same_object(body: bytes) -> None:
    assert strip(body, NAMES) is body


def test_without_names_nothing_goes() -> None:
    body = b'{"":1,"owned_by":2}'
    assert strip(body, ()) is body


ODD_NAMES = {
    "empty": ("", b'""'),
    "a quote": ('"', b'"\\""'),
    "a backslash": ("\\", b'"\\\\"'),
    "a slash": ("a/b", b'"a\\/b"'),
    "a slash as it is": ("a/b", b'"a/b"'),
    "a control character": ("\n", b'"\\n"'),
    "a control character by number": ("\n", b'"\\u000A"'),
    "what a pattern means": (".*[^-]", b'".*[^-]"'),
    "an accent": ("é", '"é"'.encode()),
    "an accent by number": ("é", b'"\\u00E9"'),
    "beyond 16 bits": ("😀", '"😀"'.encode()),
    "beyond 16 bits by numbers": ("😀", b'"\\ud83D\\uDE00"'),
    "half a pair": ("\ud83d", b'"\\ud83d"'),
}


@pytest.mark.parametrize(("name", "key"), ODD_NAMES.values(), ids=ODD_NAMES)
def test_any_name_is_known_as_json_may_write_it(name: str, key: bytes) -> None:
    assert strip(b'{"a":1,%b:2,"b":3}' % key, [name]) == b'{"a":1,"b":3}'


def test_a_control_character_as_it_is_makes_no_key() -> None:
    assert strip(body := b'{"\n":1}', ["\n"]) is body


PREFIXES = {
    "a string cut": (b'{"owned_by":"x","a":"lo', b'{"a":"lo'),
    "an escape cut": (b'{"owned_by":"x","a":"lo\\', b'{"a":"lo\\'),
    "a letter cut": (b'{"owned_by":"x","a":"\xc3', b'{"a":"\xc3'),
    "an array cut": (b'{"a":1,"owned_by":"x","b":[{"c":[1,', b'{"a":1,"b":[{"c":[1,'),
    "after the comma": (b'{"a":1,"owned_by":"x",', b'{"a":1,'),
    "after the comma and space": (b'{"owned_by":"x", ', b"{ "),
    "after the brace": (b'{"a":1,"owned_by":"x"}', b'{"a":1}'),
    "after a nested one": (b'{"owned_by":"x","a":[{"owned_by":1},{"b":"\\"', b'{"a":[{"owned_by":1},{"b":"\\"'),
    "before the comma": (b'{"a":1,"owned_by":"x"', None),
    "in a number": (b'{"a":1,"owned_by":12', None),
    "in the value": (b'{"a":1,"owned_by":"x\\"', None),
    "in the value's list": (b'{"a":1,"owned_by":["x",', None),
    "after the colon": (b'{"a":1,"owned_by":', None),
    "in the key": (b'{"a":1,"owned_by"', None),
    "in the byte order mark": (b"\xef\xbb", None),
}


@pytest.mark.parametrize(("prefix", "stripped"), PREFIXES.values(), ids=PREFIXES)
def test_of_a_prefix_goes_what_stands_in_it_wholly(prefix: bytes, stripped: bytes | None) -> None:
    assert strip(prefix, NAMES) == (prefix if stripped is None else stripped)


def nest(levels: int, inside: bytes = b"") -> bytes:
    return b"[" * levels + inside + b"]" * levels


DEEP = {
    "levels": nest(100),
    "levels with strings": nest(40, b'"]",{"a":["\\"]"]},' + nest(40) + b',"["'),
    "objects": b'{"a": ' * 100 + b"1" + b"}" * 100,
    "many": b"[" + b",".join([nest(30, b"1")] * 1_000) + b"]",
}


@pytest.mark.parametrize("value", DEEP.values(), ids=DEEP)
def test_what_is_nested_is_passed_over(value: bytes) -> None:
    assert strip(b'{"a":%b,"owned_by":"x","b":2}' % value, NAMES) == b'{"a":%b,"b":2}' % value
    assert strip(b'{"b":2,"owned_by":%b}' % value, NAMES) == b'{"b":2}'
    cut = b'{"a":[{"owned_by":1}],"owned_by":%b' % value[:-1]
    assert strip(cut, NAMES) is cut


def test_before_what_is_nested_too_deeply_members_go_and_behind_it_they_stay() -> None:
    deep = b'"a":' + nest(200_000)

    assert strip(b'{"engine":1,%b,"owned_by":2}' % deep, NAMES) == b'{%b,"owned_by":2}' % deep


def test_a_body_with_more_members_than_any_request_has_stays() -> None:
    body = b'{"a":1' + b',"engine":1' * 10_000 + b"}"

    assert strip(body, NAMES) is body


LARGE = {
    "a string": b'"' + b"x" * 20_000_000 + b'"',
    "escapes": b'"' + b'\\n\\"' * 5_000_000 + b'"',
    "numbers": json.dumps(list(range(4_000_000))).encode(),
    "messages": json.dumps([{"role": "user", "content": f"\\ Hello {n}?"} for n in range(200_000)]).encode(),
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_a_large_body_is_cut(value: bytes) -> None:
    cut = strip(b'{"owned_by":1,"a":%b,"engine":2}' % value, NAMES) == b'{"a":%b}' % value
    assert cut  # compared before: a report would show 20 MB


class Member(NamedTuple):
    """A member and the white space around it, as it stands between two commas."""

    key: str
    before: str
    text: str
    after: str

    @property
    def asked(self) -> bool:
        return self.key in NAMES

    def __str__(self) -> str:
        return self.before + self.text + self.after


def without(members: list[Member], gone: Collection[int]) -> str:
    """What is between the braces once the members with these numbers are gone, by the rule in words."""
    left = ""
    for number, member in enumerate(members):
        last = number == len(members) - 1
        if number not in gone:
            left += str(member) + ("" if last else ",")
        elif not last:
            left += member.before
        else:
            left += member.before
            bare = left.rstrip(" \t\n\r")
            left = (bare[:-1] if bare.endswith(",") else left) + member.after
    return left


spaces = st.text(" \t\n\r", max_size=2)
nasty = st.text(st.sampled_from('"\\{}[],:/ a1é😀\n'), max_size=6)
texts = nasty | st.text(max_size=6) | st.sampled_from(NAMES)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
separators = st.tuples(spaces, spaces, spaces, spaces).map(lambda s: (f"{s[0]},{s[1]}", f"{s[2]}:{s[3]}"))
written = st.builds(
    lambda value, separators, ascii_: json.dumps(value, separators=separators, ensure_ascii=ascii_),
    values,
    separators,
    st.booleans(),
)


@st.composite
def keys(draw: Any, name: str) -> str:
    """A key, each letter by itself or by its number."""
    by_number = "".join(f"\\u{unit:04x}" for unit in memoryview(name.encode("utf-16-le")).cast("H"))
    if draw(st.booleans()):
        return json.dumps(name, ensure_ascii=draw(st.booleans()))
    if len(by_number) != 6 * len(name):
        return f'"{by_number}"'
    letters = zip(name, [by_number[at : at + 6] for at in range(0, len(by_number), 6)], strict=True)
    return (
        '"' + "".join(number if draw(st.booleans()) else json.dumps(letter)[1:-1] for letter, number in letters) + '"'
    )


@st.composite
def some_members(draw: Any) -> list[Member]:
    names = draw(st.lists(st.sampled_from([*NAMES, "model", "owned"]) | texts, max_size=6))
    return [
        Member(
            name,
            draw(spaces),
            draw(keys(name)) + draw(spaces) + ":" + draw(spaces) + draw(written),
            draw(spaces),
        )
        for name in names
    ]


heads = st.tuples(st.sampled_from(["", "\ufeff"]), spaces).map("".join)


def pairs(text: bytes) -> list[tuple[str, str]]:
    """The members as Python reads them, NaN equal to itself, none lost to another of its name."""
    found: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    return [(key, repr(value)) for key, value in found]


@given(some_members(), heads, spaces)
def test_an_object_is_the_same_without_the_members(members: list[Member], head: str, tail: str) -> None:
    document = f"{head}{{{','.join(map(str, members))}}}{tail}".encode()
    gone = [number for number, member in enumerate(members) if member.asked]
    stripped = strip(document, NAMES)
    assert stripped == f"{head}{{{without(members, gone)}}}{tail}".encode()
    assert pairs(stripped) == [(key, value) for key, value in pairs(document) if key not in NAMES]
    assert gone or stripped is document


@given(some_members(), heads, st.data())
def test_a_prefix_and_the_rest_are_the_object_without_the_members_that_the_prefix_held(
    members: list[Member], head: str, data: Any
) -> None:
    document = f"{head}{{{','.join(map(str, members))}}}".encode()
    at = data.draw(st.integers(0, len(document)))
    ends = [len(f"{head}{{{','.join(map(str, members[: number + 1]))},".encode()) for number in range(len(members))]
    gone = [number for number, member in enumerate(members) if member.asked and ends[number] <= at]
    joined = strip(document[:at], NAMES) + document[at:]
    assert joined == f"{head}{{{without(members, gone)}}}".encode()
    assert pairs(joined) == [pair for number, pair in enumerate(pairs(document)) if number not in gone]


scraps = st.sampled_from(
    [*'{}[],:"\\ \n', '"owned_by"', '"engine":', '"owned_by":1,', '"a":', ',"a":1', "[1]", "1", "-", "null", '"\\""']
)
bodies = (
    st.binary(max_size=40)
    | st.lists(scraps, max_size=20).map(lambda parts: "".join(parts).encode())
    | st.lists(scraps, max_size=20).map(lambda parts: ("{" + "".join(parts)).encode())
    | st.tuples(some_members(), st.binary(max_size=3), st.integers(0, 60)).map(
        lambda t: ("{" + ",".join(map(str, t[0]))).encode()[: t[2]] + t[1]
    )
)
odd_names = st.lists(st.sampled_from([*NAMES, "a", "", '"', "\\", ",", ",a", ":", "{"]), max_size=4)


@given(bodies, odd_names)
def test_no_bytes_raise_and_what_is_stripped_stays_as_it_is(body: bytes, names: list[str]) -> None:
    stripped = strip(body, names)
    assert strip(stripped, names) is stripped
    assert len(stripped) < len(body) or stripped is body
