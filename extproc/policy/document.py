# SPDX-License-Identifier: Apache-2.0
"""A YAML document (JSON is YAML) as a strict, typed value; what is wrong is named with its path and its line.

msgspec says which path does not fit; the node tree that PyYAML builds on the way says on which line that path is.
"""

import re
from typing import Any, TypeVar

import msgspec
import yaml

T = TypeVar("T")

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_MAX_DEPTH = 64
"""No document of ours is nested deeper, and PyYAML's C code ends the process on one that is very deep."""
_DEEP = 16_384
"""A text that is no longer than this, in bytes, cannot be nested so deeply that it does harm."""
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")


class DocumentError(Exception):
    """The document cannot be used; the text names the place (`line 3, pools[0].name`) and what is wrong there."""


class Document:
    """One parsed document: `value` is plain data, `fail` makes an error that knows its line."""

    def __init__(self, text: bytes) -> None:
        """Parse exactly one YAML document.

        Raises DocumentError when it is not YAML, is empty, repeats a key, or holds more than one document.
        """
        try:
            if len(text) > _DEEP:
                _refuse_depth(text)
            loader = _Loader(text)
            try:
                self.root: yaml.Node | None = loader.get_single_node()
                if self.root is None:
                    raise DocumentError("the document is empty")
                self._check_keys(self.root)
                self.value: Any = _construct(loader, self.root)
            finally:
                loader.dispose()
        except (yaml.YAMLError, ValueError) as error:
            raise DocumentError(_yaml_message(error)) from error
        except RecursionError as error:
            raise DocumentError("the document is nested too deeply") from error
        if self.value is None:
            raise DocumentError("the document is empty")

    def convert(self, kind: type[T], **hooks: Any) -> T:
        """The document as a `kind`. Raises DocumentError for the first thing that does not fit."""
        try:
            converted: T = msgspec.convert(self.value, kind, **hooks)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `")
            raise self.fail(path.rstrip("`"), message, _UNKNOWN.search(message)) from error
        return converted

    def fail(self, path: str, message: str, unknown: re.Match[str] | None = None) -> DocumentError:
        """An error at `path` (msgspec's spelling, `$.pools[0].name`); with `unknown` at that key of it."""
        shown = path.removeprefix("$").removeprefix(".")
        return DocumentError(f"line {self._line(path, unknown and unknown[1])}{shown and ', ' + shown}: {message}")

    def _line(self, path: str, key: str | None) -> int:
        """The line (from 1) of the deepest node on the path that exists, or of its key `key`."""
        node = self.root
        line = node.start_mark.line if node else 0
        steps: list[str | int] = [int(index) if index else name for name, index in _STEP.findall(path)]
        for step in [*steps, key] if key else steps:
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

    def _check_keys(self, root: yaml.Node) -> None:
        """Every key is a text and stands once: PyYAML would take the last one and lose a rule in silence."""
        todo, seen = [root], set[int]()
        while todo:
            node = todo.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                todo += node.value
            elif isinstance(node, yaml.MappingNode):
                keys = set[str]()
                for key, value in node.value:
                    line = key.start_mark.line + 1
                    if key.tag == _MERGE:
                        continue
                    if key.tag != _TEXT:
                        shown = key.value if isinstance(key, yaml.ScalarNode) else "?"
                        raise DocumentError(f"line {line}: the key `{shown}` is not a text")
                    if key.value in keys:
                        raise DocumentError(f"line {line}: the key `{key.value}` stands twice")
                    keys.add(key.value)
                    todo.append(value)


def _construct(loader: Any, root: yaml.Node) -> Any:
    try:
        return loader.construct_document(root)
    except yaml.YAMLError:
        raise
    except Exception as error:  # a tag whose value does not fit ends in whatever PyYAML stumbles over
        raise DocumentError("a value does not fit its tag") from error


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
