# SPDX-License-Identifier: Apache-2.0
"""All that keeps a plain value from being of a type, not only the first of it.

msgspec names one fault at a time. So each text, number, list, map and object is put to it by itself, without what is inside:
each place is judged once, and what is said of one does not depend on another.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from extproc.policy.config import WORDS
from extproc.policy.document import SKIPPED, Place, refusal

T = TypeVar("T")
Hook = Callable[[type, object], object]

_PATTERN: Final = "Expected `str` matching regex"


class Fault(NamedTuple):
    """What is wrong, and where; with a `key`, that of the place is on the line that is meant."""

    place: Place
    message: str
    key: str | int | None = None
    about: tuple[Place, ...] = ()
    """What it was found by looking at, if that is not the place and key themselves."""

    @property
    def causes(self) -> tuple[Place, ...]:
        """What it was found by looking at: where one of these is wrong itself, nothing follows from it."""
        return self.about or ((*self.place, *(() if self.key is None else (self.key,))),)


def judged(value: object, kind: type[T], hook: Hook) -> tuple[T, list[Fault]]:
    """The value as a `kind`, and all that is wrong with it: if anything is, the first has something empty in its place.

    `hook` is msgspec's, for types that it does not know.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=hook), []
    except msgspec.ValidationError as error:
        walk = _Walk(hook)
        made = walk.judge(value, kind, ())
        if not walk.faults and not walk.skipped:  # so that what msgspec refuses is never good
            walk.faults.append(Fault(*refusal(error)))
        return made, walk.faults


def independent(later: Iterable[Fault], faults: Iterable[Fault]) -> list[Fault]:
    """The later faults that do not follow from the others: none of these is in, at or around what they are about."""
    wrong = {place for fault in faults for place in fault.causes}
    around = {place[:depth] for place in wrong for depth in range(len(place) + 1)}
    return [
        fault
        for fault in later
        if not any(
            place in around or any(place[:depth] in wrong for depth in range(len(place))) for place in fault.causes
        )
    ]


class _Shape(NamedTuple):
    """A type without what wraps it: one of these, by these rules, or null."""

    kinds: tuple[Any, ...]
    rules: tuple[Meta, ...] = ()
    optional: bool = False

    @property
    def objects(self) -> bool:
        return all(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in self.kinds)

    @property
    def container(self) -> Any:
        return get_origin(self.kinds[0]) if len(self.kinds) == 1 else None

    @property
    def shallow(self) -> Any:
        """The type that says nothing of what is inside."""
        kind: Any = Union[self.kinds]  # noqa: UP007 - they are known only now
        if self.objects:
            kind = dict[str, Any]
        elif self.container is tuple:
            kind = tuple[Any, ...]
        elif self.container is dict:
            kind = GenericAlias(dict, (get_args(kind)[0], Any))
        for rule in self.rules:
            kind = Annotated[kind, rule]
        return kind | None if self.optional else kind


def _shape(kind: Any) -> _Shape:
    if get_origin(kind) is Annotated:
        inner, *rules = get_args(kind)
        found = _shape(inner)
        return found._replace(rules=(*found.rules, *rules))
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        optional = len(options) < len(get_args(kind))
        if len(options) == 1:
            return _shape(options[0])._replace(optional=optional)
        return _Shape(tuple(options), optional=optional)
    return _Shape((kind,))


class _Walk:
    def __init__(self, hook: Hook) -> None:
        self.faults: list[Fault] = []
        self.skipped = False
        self._hook = hook

    def judge(self, value: Any, kind: Any, place: Place) -> Any:
        """The value as a `kind`, where it is wrong as _blank has it."""
        shape = _shape(kind)
        if value is SKIPPED:
            self.skipped = True
            return _blank(shape)
        try:
            found = msgspec.convert(value, shape.shallow, dec_hook=self._hook)
        except msgspec.ValidationError as error:
            self.faults.append(Fault(place, _said(refusal(error)[1], value, shape)))
            return _blank(shape)
        if found is None:
            return None
        if shape.objects:
            return self._object(value, shape.kinds, place)
        if shape.container is tuple:
            inner = get_args(shape.kinds[0])[0]
            return tuple(self.judge(each, inner, (*place, index)) for index, each in enumerate(value))
        if shape.container is dict:
            inner = get_args(shape.kinds[0])[1]
            return {key: self.judge(each, inner, (*place, key)) for key, each in value.items()}
        return found

    def _object(self, value: Mapping[str, Any], kinds: tuple[Any, ...], place: Place) -> Any:
        """One of several objects, as its tag says, or the one that there is."""
        fields = {field.encode_name: field for kind in kinds for field in msgspec.structs.fields(kind)}
        if len(kinds) == 1:
            made = self._fields(value, fields, set(fields), place)
            return kinds[0](**made)
        tag = kinds[0].__struct_config__.tag_field
        known = {tag, *fields}
        by_tag = {kind.__struct_config__.tag: kind for kind in kinds}
        # A tag under a wrong key still says which object is meant.
        typos = [key for key in value if key not in known and _nearest(key, known) == tag]
        named = next((value[key] for key in (tag, *typos) if key in value), SKIPPED)
        kind = by_tag.get(named) if isinstance(named, str) else None
        if kind is not None:
            fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
            return kind(**self._fields(value, fields, {tag, *fields}, place))
        self._fields(value, {}, known, place)
        if tag in value:
            self.judge(value[tag], Literal[tuple(by_tag)], (*place, tag))
        elif not typos:
            self.faults.append(_missing(place, tag))
        return _blank(_Shape(kinds))

    def _fields(
        self, value: Mapping[str, Any], fields: Mapping[str, Any], known: set[str], place: Place
    ) -> dict[str, Any]:
        """What the object's fields are made with; of `known` keys that are no field nothing is said."""
        made: dict[str, Any] = {}
        meant = set[str]()
        for key, each in value.items():
            if key in fields:
                made[fields[key].name] = self.judge(each, fields[key].type, (*place, key))
            elif key not in known:
                near = _nearest(key, known)
                meant |= {near} if near else set()
                about = ((*place, key), *([(*place, near)] if near else []))
                hint = f", did you mean `{near}`?" if near else ""
                self.faults.append(Fault(place, f"Object contains unknown field `{key}`{hint}", key, about))
        for key, field in fields.items():
            if field.name in made or not (field.required or key in meant):
                continue
            made[field.name] = _blank(_shape(field.type))
            if key not in meant:
                self.faults.append(_missing(place, key))
        return made


def _missing(place: Place, key: str) -> Fault:
    return Fault(place, f"Object missing required field `{key}`", about=((*place, key),))


def _said(message: str, value: object, shape: _Shape) -> str:
    """What msgspec says, in words where it has a pattern, and with what may stand there where that is one of a few texts."""
    words = [rule.extra[WORDS] for rule in shape.rules if rule.extra and WORDS in rule.extra]
    if words and message.startswith(_PATTERN):
        return str(words[0])
    if shape.container is Literal:
        choices = get_args(shape.kinds[0])
        near = _nearest(value, choices) if isinstance(value, str) else ""
        hint = f", did you mean `{near}`?" if near else f", expected {' or '.join(f'`{each}`' for each in choices)}"
        return f"{message.replace('enum value', 'value')}{hint}"
    return message


def _nearest(word: str, words: Iterable[str]) -> str:
    """The word that is most like it, "" if none is."""
    plain = {each.lower(): each for each in sorted(words)}
    near = difflib.get_close_matches(word.lower(), plain, n=1)
    return plain[near[0]] if near else ""


def _blank(shape: _Shape) -> Any:
    """A value of a type with nothing in it, which may be less than the type demands."""
    if shape.optional:
        return None
    kind = shape.kinds[0]
    if shape.objects:
        return kind(**{field.name: _blank(_shape(field.type)) for field in msgspec.structs.fields(kind)})
    if shape.container is Literal:
        return get_args(kind)[0]
    return (shape.container or kind)()
