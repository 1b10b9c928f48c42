# SPDX-License-Identifier: Apache-2.0
"""The text fields of a `multipart/form-data` body, as an audio transcription sends them beside its file."""

import re
from collections.abc import Collection
from typing import Final

from multipart import PushMultipartParser  # type: ignore[import-untyped] # it has no py.typed

_MAX_VALUE: Final = 4096
_MAX_PARTS: Final = 2000
"""As many as the engines take: Starlette ends at 1000 files or 1000 fields."""

_PARAMETER: Final = re.compile(r';[ \t]*+([^=;" \t]++)[ \t]*+=[ \t]*+(?:"([^"]*+)"|([^;"]*+))[ \t]*+(?=;|\Z)')
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""What RFC 2046 lets a boundary be: up to 70 characters, the last no space."""


def boundary(content_type: str) -> str | None:
    """The boundary that a content type names, the last if there are several.

    None if the type is not `multipart/form-data`, or names no boundary or one that is not valid.
    """
    kind, _, _ = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    found = None
    for name, quoted, bare in _PARAMETER.findall(content_type, len(kind)):
        if name.lower() == "boundary":
            found = quoted or bare.rstrip(" \t")
    return found if found and _BOUNDARY.fullmatch(found) else None


def read_form(body: bytes, boundary: str, names: Collection[str]) -> tuple[dict[str, str], bool]:
    """The text fields among `names`, the last of equal ones, and whether the form ends in `body`.

    `body` may be a prefix: only parts that stand in it with the delimiter after them count. Files, values that are no
    UTF-8 and values of more than 4096 bytes are passed over. What is malformed ends the reading, and so the form does
    not end. Nothing is raised.
    """
    fields: dict[str, str] = {}
    name = None
    value = b""
    try:
        parser = PushMultipartParser(boundary, max_segment_count=_MAX_PARTS)
        for event in parser.parse(body):
            if isinstance(event, bytes):
                if name is not None and len(value) <= _MAX_VALUE:
                    value += event
            elif event:  # the head of a part
                name = event.name if event.filename is None and event.name in names else None
                value = b""
            elif name is not None and (text := _text(value)) is not None:
                fields[name] = text
        parser.close()  # raises if the closing delimiter is not there
    except ValueError:
        return fields, False
    return fields, True


def _text(value: bytes) -> str | None:
    try:
        return value.decode() if len(value) <= _MAX_VALUE else None
    except UnicodeDecodeError:
        return None
