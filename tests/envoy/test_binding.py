# SPDX-License-Identifier: Apache-2.0
"""What a stream is: its initial metadata, and the pool that its first message leads to."""

import pytest

from extproc.envoy.binding import Attachment, Binding, BodyMode, ProtocolError, parse_pool
from extproc.policy.types import Pool, Scope, SubsetHint
from tests.builders import CHAT, headers, hint

BEFORE, AFTER, PICKER, HEADER = Attachment.BEFORE, Attachment.AFTER, Attachment.PICKER, Attachment.HEADER
OTHER = Pool("prod", "other")
FLAGS = Binding(BEFORE, union=True, default=CHAT)
"""What `--attachment before --pool-name chat --allow-pool-union` makes of a stream that says nothing."""

METADATA: dict[str, tuple[dict[str, str | bytes], Binding]] = {
    "nothing": ({}, FLAGS),
    "others": ({"user-agent": "envoy"}, FLAGS),
    "before": ({"x-owned-by-attachment": "before"}, FLAGS),
    "after": ({"x-owned-by-attachment": "after"}, Binding(AFTER, union=True, default=CHAT)),
    "picker": ({"x-owned-by-attachment": "picker"}, Binding(PICKER, union=True, default=CHAT)),
    "header": ({"x-owned-by-attachment": "header"}, Binding(HEADER, union=True, default=CHAT)),
    "bytes": ({"x-owned-by-attachment": b"header"}, Binding(HEADER, union=True, default=CHAT)),
    "a pool": ({"x-owned-by-pool": "prod/other"}, Binding(BEFORE, OTHER, union=True, default=CHAT)),
    "the default body": ({"x-owned-by-body": "partial"}, FLAGS),
    "the whole body": (
        {"x-owned-by-body": "stream"},
        Binding(BEFORE, union=True, default=CHAT, body=BodyMode.STREAM),
    ),
    "all of it": (
        {"x-owned-by-attachment": "after", "x-owned-by-pool": "prod/other", "x-owned-by-body": "stream"},
        Binding(AFTER, OTHER, union=True, default=CHAT, body=BodyMode.STREAM),
    ),
}


@pytest.mark.parametrize(("metadata", "expected"), METADATA.values(), ids=METADATA)
def test_the_streams_metadata_says_what_it_is(metadata: dict[str, str | bytes], expected: Binding) -> None:
    assert FLAGS.with_metadata(tuple(metadata.items())) == expected


ATTACHMENTS = "`before`, `after`, `picker`, `header`"
BAD_METADATA = {
    "attachment": (
        {"x-owned-by-attachment": "behind"},
        f"x-owned-by-attachment: `behind` is not one of {ATTACHMENTS}",
    ),
    "attachment in capitals": (
        {"x-owned-by-attachment": "Before"},
        f"x-owned-by-attachment: `Before` is not one of {ATTACHMENTS}",
    ),
    "empty attachment": ({"x-owned-by-attachment": ""}, f"x-owned-by-attachment: `` is not one of {ATTACHMENTS}"),
    "no namespace": ({"x-owned-by-pool": "chat"}, "x-owned-by-pool: `chat` is not namespace/name"),
    "empty namespace": ({"x-owned-by-pool": "/chat"}, "x-owned-by-pool: `/chat` is not namespace/name"),
    "empty name": ({"x-owned-by-pool": "default/"}, "x-owned-by-pool: `default/` is not namespace/name"),
    "three parts": ({"x-owned-by-pool": "a/b/c"}, "x-owned-by-pool: `a/b/c` is not namespace/name"),
    "empty pool": ({"x-owned-by-pool": ""}, "x-owned-by-pool: `` is not namespace/name"),
    "body": ({"x-owned-by-body": "buffered"}, "x-owned-by-body: `buffered` is not one of `partial`, `stream`"),
    "empty body": ({"x-owned-by-body": ""}, "x-owned-by-body: `` is not one of `partial`, `stream`"),
}


@pytest.mark.parametrize(("metadata", "message"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_cannot_be_read_is_refused(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Binding().with_metadata(tuple(metadata.items()))
    assert str(caught.value) == message


def test_a_pool_is_namespace_and_name() -> None:
    assert parse_pool("default/chat") == CHAT


# Where a request stands

CLUSTER = "outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local"
SERVICE = "outbound|80||web.default.svc.cluster.local"
POOLS: dict[str, tuple[Pool | None, Pool | None, str, tuple[Pool | None, bool]]] = {
    # the filter's pool, the flags' pool, the cluster; the request's pool, and whether it is foreign
    "the filter's": (OTHER, None, "", (OTHER, False)),
    "the filter's before the cluster's": (OTHER, None, CLUSTER, (OTHER, False)),
    "the filter's before the flags'": (OTHER, CHAT, "", (OTHER, False)),
    "the filter's on a route to no pool": (OTHER, CHAT, SERVICE, (OTHER, False)),
    "the cluster's": (None, None, CLUSTER, (CHAT, False)),
    "the cluster's before the flags'": (None, OTHER, CLUSTER, (CHAT, False)),
    "a route to no pool": (None, None, SERVICE, (None, True)),
    "a route to no pool, whatever the flags say": (None, CHAT, SERVICE, (None, True)),
    "the flags'": (None, OTHER, "", (OTHER, False)),
    "nobody's": (None, None, "", (None, False)),
}


@pytest.mark.parametrize("attachment", [BEFORE, AFTER, PICKER])
@pytest.mark.parametrize(("named", "default", "cluster", "expected"), POOLS.values(), ids=POOLS)
def test_the_pool_is_the_filters_else_the_clusters_else_the_flags(
    named: Pool | None,
    default: Pool | None,
    cluster: str,
    expected: tuple[Pool | None, bool],
    attachment: Attachment,
) -> None:
    scope = Binding(attachment, named, default=default).scope(headers(cluster=cluster), [CHAT, OTHER])
    assert ((scope.pool, scope.foreign), scope.union) == (expected, False)


@pytest.mark.parametrize(("named", "default", "cluster"), [row[:3] for row in POOLS.values()], ids=POOLS)
def test_for_header_the_route_is_still_to_be_chosen(named: Pool | None, default: Pool | None, cluster: str) -> None:
    scope = Binding(HEADER, named, default=default).scope(headers(cluster=cluster), [CHAT, OTHER])
    assert scope == Scope(named or default, union=True, promotes=True)


SCOPES: dict[Attachment, Scope] = {
    BEFORE: Scope(CHAT),
    AFTER: Scope(CHAT, destination=True, chosen=True),
    PICKER: Scope(CHAT, destination=True, hint=SubsetHint(frozenset({"10.0.0.1:8000"}))),
    HEADER: Scope(CHAT, union=True, promotes=True),
}


@pytest.mark.parametrize("attachment", Attachment)
def test_where_a_request_stands_is_its_attachments(attachment: Attachment) -> None:
    message = headers(metadata=hint("10.0.0.1:8000"))
    assert Binding(attachment, CHAT).scope(message, [CHAT]) == SCOPES[attachment]


MUST: dict[Attachment, bool] = {BEFORE: False, AFTER: False, PICKER: True, HEADER: False}


@pytest.mark.parametrize("attachment", Attachment)
def test_only_a_picker_must_choose(attachment: Attachment) -> None:
    assert Binding(attachment, CHAT).scope(headers(), [CHAT]).must_choose is MUST[attachment]


@pytest.mark.parametrize("union", [False, True])
def test_all_pools_are_one_where_the_flags_say_so(union: bool) -> None:  # noqa: FBT001 - a column
    scope = Binding(BEFORE, union=union).scope(headers(), [CHAT, OTHER])
    assert scope == Scope(union=union)
