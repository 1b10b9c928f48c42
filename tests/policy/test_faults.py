# SPDX-License-Identifier: Apache-2.0
"""Each place of a value is judged by itself, as msgspec judges it."""

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from extproc.policy.document import SKIPPED
from extproc.policy.faults import Fault, independent, judged


class Cat(msgspec.Struct, tag_field="is", tag="cat", forbid_unknown_fields=True):
    lives: Annotated[int, Meta(ge=1)]


class Dog(msgspec.Struct, tag_field="is", tag="dog", forbid_unknown_fields=True):
    names: Annotated[tuple[str, ...], Meta(max_length=2)] = ("Rex",)


class Home(msgspec.Struct, forbid_unknown_fields=True):
    pet: Cat | Dog | None
    rooms: dict[str, Literal["big", "small"]] = {}
    floor: int | None = None


def hook(kind: type, value: object) -> object:
    raise NotImplementedError(kind, value)


JUDGED: dict[str, tuple[object, Home, list[Fault]]] = {
    "good": ({"pet": {"is": "cat", "lives": 9}}, Home(Cat(9)), []),
    "no object": ([], Home(None), [Fault((), "Expected `object`, got `array`")]),
    "null": ({"pet": None, "floor": "x"}, Home(None), [Fault(("floor",), "Expected `int | null`, got `str`")]),
    "too long": (
        {"pet": {"is": "dog", "names": ["a", "b", "c"]}},
        Home(Dog(())),
        [Fault(("pet", "names"), "Expected `array` of length <= 2")],
    ),
    "in a list and in a map": (
        {"pet": {"is": "dog", "names": ["a", 1]}, "rooms": {"a": "small", "b": "bigg", "c": "x"}},
        Home(Dog(("a", "")), {"a": "small", "b": "big", "c": "big"}),
        [
            Fault(("pet", "names", 1), "Expected `str`, got `int`"),
            Fault(("rooms", "b"), "Invalid value 'bigg', did you mean `big`?"),
            Fault(("rooms", "c"), "Invalid value 'x', expected `big` or `small`"),
        ],
    ),
    "a typo and what is missing": (
        {"pet": {"is": "cat"}, "flor": 1, "roof": 2},
        Home(Cat(0)),
        [
            Fault(("pet",), "Object missing required field `lives`", about=(("pet", "lives"),)),
            Fault((), "Object contains unknown field `flor`, did you mean `floor`?", "flor", (("flor",), ("floor",))),
            Fault((), "Object contains unknown field `roof`, did you mean `rooms`?", "roof", (("roof",), ("rooms",))),
        ],
    ),
    "what is told already": ({"pet": SKIPPED, "rooms": {"a": SKIPPED}}, Home(None, {"a": "big"}), []),
}


@pytest.mark.parametrize(("value", "made", "faults"), JUDGED.values(), ids=JUDGED)
def test_all_faults_are_found_and_what_is_wrong_is_empty(value: object, made: Home, faults: list[Fault]) -> None:
    assert judged(value, Home, hook) == (made, faults)


WORDS = st.sampled_from(["is", "cat", "dog", "lives", "names", "pet", "rooms", "floor", "big", "x"])
HOMES = st.recursive(
    st.none() | st.integers(-1, 2) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
)


@given(st.fixed_dictionaries({"pet": HOMES, "rooms": HOMES}) | HOMES)
def test_there_is_a_fault_where_msgspec_refuses_the_value_and_only_there(value: Any) -> None:
    made, faults = judged(value, Home, hook)
    try:
        whole = msgspec.convert(value, Home)
    except msgspec.ValidationError:
        whole = None

    assert bool(faults) == (whole is None)
    assert whole in (None, made)


def test_what_is_in_at_or_around_a_fault_follows_from_it() -> None:
    faults = [Fault(("a", 0), "wrong"), Fault(("b",), "typo", "c", (("b", "c"), ("b", "d")))]
    later = {
        ("a",): False,
        ("a", 0): False,
        ("a", 0, "x"): False,
        ("a", 1): True,
        (): False,
        ("b",): False,
        ("b", "d"): False,
        ("b", "e"): True,
    }

    told = independent([Fault(place, "later") for place in later], faults)

    assert [fault.place for fault in told] == [place for place, own in later.items() if own]
    assert independent([Fault((), "later", about=(("a", 1), ("b", "e")))], faults) != []
