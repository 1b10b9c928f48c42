# SPDX-License-Identifier: Apache-2.0
"""What a stream is before its first request is looked at: its attachment, its pool, and how it gets bodies."""

from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

import msgspec

from extproc.envoy import names
from extproc.envoy.metadata import pool_of_cluster, read_cluster, read_hint
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.policy.types import Pool, Scope, SubsetHint

E = TypeVar("E", bound=StrEnum)
_METADATA = (names.ATTACHMENT, names.POOL, names.BODY)


class ProtocolError(Exception):
    """The peer said what the protocol does not allow here; the text says what, and nothing was changed."""


class Attachment(StrEnum):
    """Where the filter sits (design section 2)."""

    BEFORE = "before"
    AFTER = "after"
    PICKER = "picker"
    HEADER = "header"


class BodyMode(StrEnum):
    """How a body is asked for where the filter's own mode is not to send any: what fits into a buffer, or all of it."""

    PARTIAL = "partial"
    STREAM = "stream"


class Binding(msgspec.Struct, frozen=True):
    """What a stream is, from the filter's initial metadata, else from the flags.

    `pool` is the one that the filter names; `default` is the flags', for a filter that names none on a route that does not
    lead to one. `union` takes all pools as one where none is named.
    """

    attachment: Attachment = Attachment.BEFORE
    pool: Pool | None = None
    union: bool = False
    default: Pool | None = None
    body: BodyMode = BodyMode.PARTIAL

    def with_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> "Binding":
        """This binding as the stream's gRPC initial metadata changes it. Raises ProtocolError for an unknown value."""
        said = tuple(pair for pair in metadata if pair[0] in _METADATA)
        return _bind(self, said) if said else self

    def scope(self, message: pb.ProcessingRequest, pools: Iterable[Pool]) -> Scope:
        """Where a request of the stream stands, given its first message and the pools that are known."""
        pool, foreign = self.pool, False
        if self.attachment is Attachment.HEADER:  # the route is still to be chosen: where it leads now means nothing
            return Scope(pool or self.default, union=True, promotes=True)
        if pool is None and (cluster := read_cluster(message)):
            pool = pool_of_cluster(cluster, pools)
            foreign = pool is None
        elif pool is None:
            pool = self.default
        picker = self.attachment is Attachment.PICKER
        after = self.attachment is Attachment.AFTER
        hint = read_hint(message.metadata_context) if picker else SubsetHint()
        return Scope(pool, self.union, foreign, destination=picker or after, chosen=after, hint=hint)


@lru_cache(maxsize=256)
def _bind(default: Binding, said: tuple[tuple[str, str | bytes], ...]) -> Binding:
    given = {name: value if isinstance(value, str) else value.decode("latin-1") for name, value in said}
    attachment, pool, body = (given.get(name) for name in _METADATA)
    return msgspec.structs.replace(
        default,
        attachment=default.attachment if attachment is None else _one_of(Attachment, names.ATTACHMENT, attachment),
        pool=default.pool if pool is None else parse_pool(pool),
        body=default.body if body is None else _one_of(BodyMode, names.BODY, body),
    )


def _one_of(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(f"`{each}`" for each in kind)
        raise ProtocolError(f"{name}: `{value}` is not one of {known}") from error


def parse_pool(text: str) -> Pool:
    """`namespace/name`. Raises ProtocolError for anything else."""
    namespace, slash, name = text.partition("/")
    if not namespace or not slash or not name or "/" in name:
        raise ProtocolError(f"{names.POOL}: `{text}` is not namespace/name")
    return Pool(namespace, name)
