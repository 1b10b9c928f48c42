# SPDX-License-Identifier: Apache-2.0
"""What a stream is: its initial metadata and the hint of a filter before us."""

from typing import Any

import pytest

from extproc.envoy.binding import Binding, ProtocolError, parse_pool, read_hint
from extproc.envoy.responses import Attachment
from extproc.policy.types import Pool, SubsetHint
from tests.builders import CHAT, struct

BEFORE, PICKER = Attachment.BEFORE, Attachment.PICKER
KEY = "x-gateway-destination-endpoint-subset"

METADATA: dict[str, tuple[dict[str, str], Binding]] = {
    "nothing": ({}, Binding(BEFORE, CHAT, union=True)),
    "an attachment": ({"x-owned-by-attachment": "picker"}, Binding(PICKER, CHAT, union=True)),
    "a pool": ({"x-owned-by-pool": "prod/x"}, Binding(BEFORE, Pool("prod", "x"), union=True)),
    "the default body": ({"x-owned-by-body": "partial"}, Binding(BEFORE, CHAT, union=True)),
    "others": ({"user-agent": "envoy"}, Binding(BEFORE, CHAT, union=True)),
}


@pytest.mark.parametrize(("metadata", "expected"), METADATA.values(), ids=METADATA)
def test_the_streams_metadata_says_what_it_is(metadata: dict[str, str], expected: Binding) -> None:
    assert Binding(BEFORE, CHAT, union=True).with_metadata(tuple(metadata.items())) == expected


BAD_METADATA = {
    "attachment": (
        {"x-owned-by-attachment": "behind"},
        "x-owned-by-attachment: `behind` is not one of `before`, `picker`",
    ),
    "empty attachment": ({"x-owned-by-attachment": ""}, "x-owned-by-attachment: `` is not one of `before`, `picker`"),
    "no namespace": ({"x-owned-by-pool": "chat"}, "x-owned-by-pool: `chat` is not namespace/name"),
    "empty namespace": ({"x-owned-by-pool": "/chat"}, "x-owned-by-pool: `/chat` is not namespace/name"),
    "empty name": ({"x-owned-by-pool": "default/"}, "x-owned-by-pool: `default/` is not namespace/name"),
    "three parts": ({"x-owned-by-pool": "a/b/c"}, "x-owned-by-pool: `a/b/c` is not namespace/name"),
    "empty pool": ({"x-owned-by-pool": ""}, "x-owned-by-pool: `` is not namespace/name"),
    "body": ({"x-owned-by-body": "stream"}, "x-owned-by-body: only `partial` is supported yet"),
}


@pytest.mark.parametrize(("metadata", "message"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_cannot_be_read_is_refused(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Binding().with_metadata(tuple(metadata.items()))
    assert str(caught.value) == message


def test_a_pool_is_namespace_and_name() -> None:
    assert parse_pool("default/chat") == CHAT


# What holds for every stream


HINTS: dict[str, tuple[dict[str, Any], set[str] | None]] = {
    "list": ({KEY: ["10.0.0.1:8000", "10.0.0.2"]}, {"10.0.0.1:8000", "10.0.0.2"}),
    "comma string": ({KEY: "10.0.0.1:8000,10.0.0.2"}, {"10.0.0.1:8000", "10.0.0.2"}),
    "a mix": ({KEY: ["10.0.0.1,10.0.0.2", "10.0.0.3"]}, {"10.0.0.1", "10.0.0.2", "10.0.0.3"}),
    "trimmed": ({KEY: " 10.0.0.1 , ,10.0.0.2\t"}, {"10.0.0.1", "10.0.0.2"}),
    "an empty list": ({KEY: []}, set()),
    "an empty string": ({KEY: ""}, set()),
    "the key is absent": ({"other": "10.0.0.1"}, None),
    "an empty namespace": ({}, None),
    "numbers in a list": ({KEY: [3, "10.0.0.1"]}, {"10.0.0.1"}),
    "a number": ({KEY: 3}, set()),
}


@pytest.mark.parametrize(("value", "expected"), HINTS.values(), ids=HINTS)
def test_a_hint_is_read_as_the_light_epp_reads_it(value: dict[str, Any], expected: set[str] | None) -> None:
    assert read_hint(struct(value)) == SubsetHint(None if expected is None else frozenset(expected))
