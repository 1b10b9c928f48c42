# SPDX-License-Identifier: Apache-2.0
"""What a stream is before its first request is looked at: attachment, pool, and the hint of a filter before us."""

from collections.abc import Iterable
from functools import lru_cache

import msgspec
from google.protobuf.struct_pb2 import Struct

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.responses import Attachment
from extproc.policy.types import Pool, Scope, SubsetHint

_METADATA = (names.ATTACHMENT, names.POOL, names.BODY)


class ProtocolError(Exception):
    """The peer said what the protocol does not allow here; the text says what, and nothing was changed."""


class Binding(msgspec.Struct, frozen=True):
    """What a stream is: its attachment and its pool, from the filter's initial metadata, else from the flags."""

    attachment: Attachment = Attachment.BEFORE
    pool: Pool | None = None
    union: bool = False

    def with_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> "Binding":
        """This binding as the stream's gRPC initial metadata changes it. Raises ProtocolError for an unknown value."""
        said = tuple(pair for pair in metadata if pair[0] in _METADATA)
        return _bind(self, said) if said else self

    def scope(self, metadata: pb.Metadata) -> Scope:
        """Where a request of the stream stands, given the metadata that Envoy forwards with a message."""
        if self.attachment is not Attachment.PICKER:
            return Scope(self.pool, self.union)
        namespaces = metadata.filter_metadata
        hint = read_hint(namespaces[names.SUBSET_NAMESPACE]) if names.SUBSET_NAMESPACE in namespaces else SubsetHint()
        return Scope(self.pool, self.union, destination=True, hint=hint)


@lru_cache(maxsize=256)
def _bind(default: Binding, said: tuple[tuple[str, str | bytes], ...]) -> Binding:
    given = {name: value if isinstance(value, str) else value.decode("latin-1") for name, value in said}
    attachment, pool, body = (given.get(name) for name in _METADATA)
    if body not in (None, "partial"):
        raise ProtocolError(f"{names.BODY}: only `partial` is supported yet")
    try:
        chosen = default.attachment if attachment is None else Attachment(attachment)
    except ValueError as error:
        known = ", ".join(f"`{value}`" for value in Attachment)
        raise ProtocolError(f"{names.ATTACHMENT}: `{attachment}` is not one of {known}") from error
    return Binding(chosen, default.pool if pool is None else parse_pool(pool), default.union)


def parse_pool(text: str) -> Pool:
    """`namespace/name`. Raises ProtocolError for anything else."""
    namespace, slash, name = text.partition("/")
    if not namespace or not slash or not name or "/" in name:
        raise ProtocolError(f"{names.POOL}: `{text}` is not namespace/name")
    return Pool(namespace, name)


def read_hint(namespace: Struct) -> SubsetHint:
    """A subset hint as the light EPP reads it: a list of texts, a text with commas, or a mix, each entry trimmed.

    A namespace without the key gives no hint; a value that holds no endpoint allows none (facts/epp.md 1.1).
    """
    if names.SUBSET not in namespace.fields:
        return SubsetHint()
    value = namespace.fields[names.SUBSET]
    members = value.list_value.values if value.HasField("list_value") else [value]
    entries = (entry.strip() for member in members for entry in member.string_value.split(","))
    return SubsetHint(frozenset(entry for entry in entries if entry))
