# SPDX-License-Identifier: Apache-2.0
"""A JSON object without some of its members, all else as it was written.

The bytes are cut, never read and written again: order, numbers, white space and escapes stay what the client sent. What a
value spans is msgspec's business: it passes over one without building it, and says where what follows begins.
"""

import json
import re
from collections.abc import Collection
from functools import cached_property
from typing import Final

import msgspec

_MOST: Final = 10_000
"""Members that are looked at: some hundredths of a second, while nothing else runs. No request has a hundred."""
_BUILT: Final = 1_048_576
"""Bytes of a body that Python's own parser may be asked to read: unlike msgspec it builds what it passes over."""
_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = re.compile(rb"[ \t\n\r]*")
_FOLLOWS: Final = re.compile(r"trailing characters \(byte (\d+)\)")
_SKIP: Final = msgspec.json.Decoder(msgspec.Raw).decode
_LENIENT: Final = json.JSONDecoder(strict=False).raw_decode


def strip(body: bytes, names: Collection[str]) -> bytes:
    """The JSON object without its members (not those of others in it) whose key is in `names`.

    `body` may be a prefix: only members that stand in it with what ends them, a comma or the closing brace, go. With
    each goes one comma, the one after it where there is one, and the white space up to that. A body that is no JSON
    object comes back as it is, and so does one with more than 10,000 members; of one that is nested too deeply to be
    read, what stands before that is cut. Nothing is raised.
    """
    if not any(name.encode(errors="replace") in body for name in names) and b"\\" not in body:
        return body  # a key can be written with escapes, and in no other way without its letters
    walk = _Walk(body)
    cuts: list[tuple[int, int]] = []
    comma = -1  # the one after the last member that stays
    at = walk.opening()
    for _ in range(_MOST):
        member = walk.member(at)
        if member is None:
            closed = body.startswith(b"}", walk.past_space(at))  # after a comma: without it, it would become valid
            return body if closed else _without(body, cuts)
        start, key, value_end, at = member
        last = body[at - 1 : at] == b"}"
        if key not in names:
            comma = at - 1
        elif not last:
            cuts.append((start, at))
        elif comma < 0:
            cuts.append((start, value_end))
        else:  # no comma follows: the one before goes, and what lies between, other members that go among it
            cuts = [*(cut for cut in cuts if cut[0] < comma), (comma, value_end)]
        if last:
            return _without(body, cuts)
    return body


def _without(body: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """The body without these stretches of it, which are in order; the identical one if there are none."""
    if not cuts:
        return body
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(body)]
    return b"".join(body[start:end] for start, end in zip(starts, ends, strict=True))


class _Walk:
    """A way through a body from member to member; places are offsets in bytes."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    @cached_property
    def _text(self) -> str:
        """The body for Python's own parser, a character a byte so that places stay what they are."""
        return self._body.decode("latin-1")

    def opening(self) -> int:
        """Where the object's first member may begin; the end of a body that is none."""
        at = self.past_space(len(_BOM) if self._body.startswith(_BOM) else 0)
        return at + 1 if self._body.startswith(b"{", at) else len(self._body)

    def member(self, at: int) -> tuple[int, str, int, int] | None:
        """The member at `at`, None if it is cut or is not understood.

        Where it starts, its key, where its value ends, and the place behind its comma or behind the closing brace.
        """
        start, body = self.past_space(at), self._body
        colon = self._end(start) if body.startswith(b'"', start) else -1
        if colon < 0 or not body.startswith(b":", colon):
            return None
        try:
            key = json.loads(body[start:colon])
        except ValueError:
            return None
        follows = self._end(colon + 1)
        if follows < 0 or not body.startswith((b",", b"}"), follows):
            return None
        value_end = follows
        while body[value_end - 1] in b" \t\n\r":
            value_end -= 1
        return start, key, value_end, follows + 1

    def past_space(self, at: int) -> int:
        """Where what is no white space begins."""
        found = _SPACE.match(self._body, at)
        assert found is not None
        return found.end()

    def _end(self, at: int) -> int:
        """Where what follows the value at `at` begins, white space left out; -1 if nothing does or the value is none."""
        try:
            _SKIP(memoryview(self._body)[at:])
        except RecursionError:
            return -1
        except msgspec.DecodeError as error:
            if found := _FOLLOWS.search(str(error)):
                return at + int(found[1]) - 1  # it counts the byte that is too much
            if len(self._body) > _BUILT:
                return -1
        else:
            return -1  # the body ends with it
        # What the engines' own parser takes and msgspec does not: NaN, half a surrogate pair (near the end of the body it
        # says "truncated" to that, too).
        try:
            _, end = _LENIENT(self._text, self.past_space(at))
        except (ValueError, RecursionError):
            return -1
        return self.past_space(end)
