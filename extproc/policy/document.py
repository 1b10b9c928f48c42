# SPDX-License-Identifier: Apache-2.0
"""A YAML document (JSON is YAML) as a strict, typed value; what is wrong is named with its path and its line.

msgspec says which path does not fit; the node tree that PyYAML builds on the way says on which line that path is.
"""

import re
from typing import Any, Final, TypeVar

import msgspec
import yaml

T = TypeVar("T")

Place = tuple[str | int, ...]
"""The way from the top of a document to one of its values: keys, and indices of lists."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_YAML = "tag:yaml.org,2002:"
_TEXT = f"{_YAML}str"
_MERGE = f"{_YAML}merge"
_PLAIN = {
    yaml.ScalarNode: {f"{_YAML}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")},
    yaml.SequenceNode: {f"{_YAML}seq"},
    yaml.MappingNode: {f"{_YAML}map"},
}
"""The tags that a value may have; `!!set` and others make of it what no type of ours is."""
_SIMPLE = re.compile(r"[^\s\[\]\"]+")
"""A key that a path can name as it is."""
_SKIPPED = "!skipped"
_MAX_DEPTH = 64
"""No document of ours is nested deeper, and PyYAML's C code ends the process on one that is very deep."""
_DEEP = 16_384
"""A text that is no longer than this, in bytes, cannot be nested so deeply that it does harm."""
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")


class DocumentError(Exception):
    """The document cannot be used; the text names the place (`line 3, pools[0].name`) and what is wrong there."""


class _Skipped:
    """What stands in a document's value for a node that is told in `wrong`."""


SKIPPED: Final = _Skipped()


def spelled(place: Place) -> str:
    """A place as it is shown: `models[0].allow`; "" is the top. A key that is no plain word is in quotes."""
    steps = [
        f".{step}"
        if isinstance(step, str) and _SIMPLE.fullmatch(step)
        else f"[{msgspec.json.encode(step).decode(errors='replace')}]"
        for step in place
    ]
    return "".join(steps).removeprefix(".")


class Document:
    """One parsed document: `value` is plain data, `fail` makes an error that knows its line."""

    def __init__(self, text: bytes, *, lenient: bool = False) -> None:
        """Parse exactly one YAML document.

        Raises DocumentError when it is not YAML, is empty, repeats a key, has a key that is no text or a value with a tag
        that is not plain YAML's, or holds more than one document. If it is `lenient`, such keys and values are in `wrong`
        instead, and what can be read without them is in `value`, None if nothing can.
        """
        self.wrong: list[DocumentError] = []
        try:
            if len(text) > _DEEP:
                _refuse_depth(text)
            loader = _Loader(text)
            try:
                self.root: yaml.Node | None = loader.get_single_node()
                if self.root is None:
                    raise DocumentError("the document is empty")
                self._check(self.root, loader)
                if self.wrong and not lenient:
                    raise self.wrong[0]
                self.value: Any = self._construct(loader, self.root)
            finally:
                loader.dispose()
        except (yaml.YAMLError, ValueError) as error:
            raise DocumentError(_yaml_message(error)) from error
        except RecursionError as error:
            raise DocumentError("the document is nested too deeply") from error
        if self.value is None and not self.wrong:
            raise DocumentError("the document is empty")

    def convert(self, kind: type[T], **hooks: Any) -> T:
        """The document as a `kind`. Raises DocumentError for the first thing that does not fit."""
        try:
            converted: T = msgspec.convert(self.value, kind, **hooks)
        except msgspec.ValidationError as error:
            place, message = refusal(error)
            unknown = _UNKNOWN.search(message)
            raise self.fail(place, message, unknown and unknown[1]) from error
        return converted

    def fail(self, place: Place, message: str, key: str | int | None = None) -> DocumentError:
        """An error at a place, on the line of that; with a `key` on the line of what it has there."""
        line = self._line(place if key is None else (*place, key))
        shown = spelled(place)
        return DocumentError(f"line {line}{shown and ', ' + shown}: {message}".replace("\n", "\\n"))

    def _line(self, place: Place) -> int:
        """The line (from 1) of the deepest node on the way to a place that exists."""
        node = self.root
        line = node.start_mark.line if node else 0
        for step in place:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == step]
                if not found:
                    break
                line, node = found[-1][0].start_mark.line, found[-1][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line
            else:
                break
        return line + 1

    def _check(self, root: yaml.Node, loader: Any) -> None:
        """Every key is a text and stands once (PyYAML would take the last one and lose a rule in silence), tags are plain.

        What is not so is in `wrong`, in the order of the document, and taken out of the tree.
        """
        todo, seen = [root], set[int]()
        while todo:
            node = todo.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if not self._plain(node, loader):
                node.tag = _SKIPPED
            elif isinstance(node, yaml.SequenceNode):
                todo += reversed(node.value)
            elif isinstance(node, yaml.MappingNode):
                node.value = self._keys(node)
                todo += [value for _, value in reversed(node.value)]

    def _keys(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """The keys that may be there, each once, with their values."""
        merged = []
        kept: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                merged.append((key, value))
            elif key.tag != _TEXT or not isinstance(key, yaml.ScalarNode):
                self._wrong(key, f"the key `{key.value if isinstance(key, yaml.ScalarNode) else '?'}` is not a text")
            else:
                if key.value in kept:
                    self._wrong(key, f"the key `{key.value}` stands twice")
                kept[key.value] = (key, value)
        return [*merged, *kept.values()]

    def _plain(self, node: yaml.Node, loader: Any) -> bool:
        """Whether a value's tag is one that it may have, and fits it."""
        if node.tag not in _PLAIN[type(node)]:
            tag = node.tag.removeprefix(_YAML)
            self._wrong(node, f"the tag `{tag if tag == node.tag else f'!!{tag}'}` may not stand here")
            return False
        if isinstance(node, yaml.ScalarNode):
            try:
                _Loader.yaml_constructors[node.tag](loader, node)
            except Exception:  # noqa: BLE001 - whatever PyYAML stumbles over
                self._wrong(node, "a value does not fit its tag")
                return False
        return True

    def _wrong(self, node: yaml.Node, message: str) -> None:
        self.wrong.append(DocumentError(f"line {node.start_mark.line + 1}: {message}".replace("\n", "\\n")))

    def _construct(self, loader: Any, root: yaml.Node) -> Any:
        loader.yaml_constructors = {**_Loader.yaml_constructors, _SKIPPED: lambda *_: SKIPPED}
        try:
            return loader.construct_document(root)
        except yaml.YAMLError as error:
            if not self.wrong:
                raise
            self.wrong.append(DocumentError(_yaml_message(error)))
            return None


def refusal(error: msgspec.ValidationError) -> tuple[Place, str]:
    """Where something does not fit, as far as msgspec says it, and what it says of it."""
    message, _, path = str(error).partition(" - at `")
    return tuple(int(index) if index else name for name, index in _STEP.findall(path.rstrip("`"))), message


def _refuse_depth(text: bytes) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise DocumentError(f"line {line}: nested deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _yaml_message(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0]
