# SPDX-License-Identifier: Apache-2.0
"""What Envoy says beside the request: the dynamic metadata of the filters before us, and where the route leads."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from google.protobuf.struct_pb2 import Struct

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.policy.types import Pool, Reason, SubsetHint

_REASONS: Final = {reason.value: reason for reason in Reason}
_CLUSTER: Final = re.compile(
    r"outbound\|\d+\|[^|]*\|(?P<base>[a-z0-9.-]+)-ip-(?P<digest>[0-9a-f]{8})\.(?P<namespace>[a-z0-9-]+)\.svc\..+"
)
_BASE: Final = 51
"""A Service's name has at most 63 characters, of which `-ip-` and the digest take twelve."""


SHOWN: Final = 1024
"""How much of a model's name stands in metadata and headers, in characters."""


class Told(msgspec.Struct, frozen=True):
    """What `before` decided, as it wrote it into our namespace; `owner` is the one that won.

    `passed` says that it let the request pass: it narrowed nothing.
    """

    owner: str
    model: str
    reason: Reason
    passed: bool


class Pick(NamedTuple):
    """What stands as the destination: `members` in order, `text` as it is written, and whether the EPP chose it."""

    text: str = ""
    members: tuple[str, ...] = ()
    by_epp: bool = False


def read_hint(metadata: pb.Metadata) -> SubsetHint:
    """A subset hint as the light EPP reads it: a list of texts, a text with commas, or a mix, each entry trimmed.

    Without the key no hint is given; a value that holds no endpoint allows none (facts/epp.md 1.1).
    """
    namespace = _namespace(metadata, names.SUBSET_NAMESPACE)
    if names.SUBSET not in namespace.fields:
        return SubsetHint()
    value = namespace.fields[names.SUBSET]
    members = value.list_value.values if value.HasField("list_value") else [value]
    return SubsetHint(frozenset(entry for member in members for entry in split(member.string_value)))


def read_told(metadata: pb.Metadata) -> Told | None:
    """What `before` said of this request; None if there was none, or its reason is not of this version."""
    fields = _namespace(metadata, names.NAMESPACE).fields
    if "reason" not in fields or (reason := _REASONS.get(fields["reason"].string_value)) is None:
        return None
    narrowed = fields["endpoints"].number_value >= 1
    return Told(fields["owner"].string_value, fields["model"].string_value, reason, passed=not narrowed)


def said(
    owner: str, model: str, reason: Reason, endpoints: int, guard: str | None = ""
) -> dict[str, dict[str, object]]:
    """Our own namespace as it is written: for access logs, and for a filter of ours further on.

    Without a guard (None) the one that was written before stays.
    """
    found: dict[str, object] = {"owner": owner, "model": model[:SHOWN], "reason": reason.value, "endpoints": endpoints}
    return {names.NAMESPACE: found if guard is None else found | {"guard": guard}}


def read_pick(metadata: pb.Metadata, header: str) -> Pick:
    """The destination as metadata has it: never a header, which a client can write (facts/envoy.md 6).

    `header` only tells the guard of `before` from a pick that happens to be the same: the EPP sets both, and `before`
    removed what a client had sent.
    """
    text = _text(metadata, names.DESTINATION_NAMESPACE, names.DESTINATION)
    guard = _text(metadata, names.NAMESPACE, "guard")
    return Pick(text, tuple(split(text)), by_epp=bool(text) and not guard == text != header)


def read_served(metadata: pb.Metadata) -> str:
    """The endpoint that served, as Envoy reports it (proposal 004); "" where it does not."""
    return _text(metadata, names.DESTINATION_NAMESPACE, names.SERVED)


def outside(pick: Pick, hint: SubsetHint) -> bool:
    """Whether the EPP picked an endpoint that is not in the hint, compared as it does: by address, without the port."""
    if hint.endpoints is None or not pick.by_epp:
        return False
    allowed = {host(entry) for entry in hint.endpoints}
    return any(host(member) not in allowed for member in pick.members)


def read_cluster(message: pb.ProcessingRequest) -> str:
    """The cluster that the route leads to, where the filter sends `xds.cluster_name`; "" where it does not."""
    if names.ATTRIBUTES not in message.attributes:
        return ""
    fields = message.attributes[names.ATTRIBUTES].fields
    return fields[names.CLUSTER].string_value if names.CLUSTER in fields else ""


def pool_of_cluster(cluster: str, pools: Iterable[Pool]) -> Pool | None:
    """The InferencePool that a cluster of Istio's stands for, None if it is no pool's.

    Its Service is `<pool>-ip-<eight hex digits of the name's SHA-256>`, a long name cut to 51 characters: then the digest
    tells which of `pools` it is (Istio's inferencepool_collection.go, facts/gateways.md 1.1).
    """
    found, digest = _parse_cluster(cluster)
    if found is None or not digest:
        return found
    long = (pool for pool in pools if pool.namespace == found.namespace and pool.name.startswith(found.name))
    return next((pool for pool in long if _digest(pool.name) == digest), found)


@lru_cache(maxsize=256)
def _parse_cluster(cluster: str) -> tuple[Pool | None, str]:
    """The pool of a cluster, and the digest of its whole name where its name is cut."""
    found = _CLUSTER.fullmatch(cluster)
    if found is None:
        return None, ""
    pool, digest = Pool(found["namespace"], found["base"]), found["digest"]
    if _digest(pool.name) == digest:
        return pool, ""
    return (pool, digest) if len(pool.name) == _BASE else (None, "")


def split(text: str) -> list[str]:
    """The entries of a list with commas, trimmed, without empty ones."""
    return [entry for part in text.split(",") if (entry := part.strip())]


def host(entry: str) -> str:
    """The address of `ip:port`, `[v6]:port` or a bare address."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.rpartition(":")[0] if entry.count(":") == 1 else entry


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _text(metadata: pb.Metadata, namespace: str, key: str) -> str:
    fields = _namespace(metadata, namespace).fields
    return fields[key].string_value if key in fields else ""


def _namespace(metadata: pb.Metadata, name: str) -> Struct:
    return metadata.filter_metadata[name] if name in metadata.filter_metadata else Struct()
