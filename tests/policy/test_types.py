# SPDX-License-Identifier: Apache-2.0
"""The nouns: statuses, destinations, roles, hints."""

import pytest

from extproc.policy.types import STATUS, Endpoint, Pool, Reason, Reject, Step, SubsetHint, reject

REFUSALS = {
    "owner-malformed": 400,
    "owner-required": 400,
    "model-required": 400,
    "rejected-by-policy": 403,
    "owner-not-found": 404,
    "model-not-found": 404,
    "body-timeout": 408,
    "body-truncated": 413,
    "body-too-large": 413,
    "no-ready-endpoint": 503,
    "pool-unknown": 503,
}


def test_the_statuses_are_those_of_the_design() -> None:
    assert {reason.value: status for reason, status in STATUS.items()} == REFUSALS


def test_a_refusal_has_the_status_of_its_reason() -> None:
    steps = (Step("pool", 0, 0),)
    expected = Reject(404, Reason.OWNER_NOT_FOUND, "nobody", "engine", steps)
    assert reject(Reason.OWNER_NOT_FOUND, "nobody", "engine", steps) == expected


@pytest.mark.parametrize(
    ("address", "text"), [("10.0.0.1", "10.0.0.1:8000"), ("fd00::1", "[fd00::1]:8000")], ids=["IPv4", "IPv6"]
)
def test_a_destination_is_address_and_port(address: str, text: str) -> None:
    assert Endpoint("a", "default", address, 8000).destination == text


@pytest.mark.parametrize(
    ("role", "decodes"),
    [
        ("", True),
        ("decode", True),
        ("both", True),
        ("prefill-decode", True),
        ("encode-prefill-decode", True),
        ("prefill", False),
        ("encode", False),
        ("encode-prefill", False),
    ],
)
def test_who_can_decode_is_told_by_the_role(role: str, decodes: bool) -> None:  # noqa: FBT001 - a column
    assert Endpoint("a", "default", "10.0.0.1", 8000, role=role).decodes is decodes


@pytest.mark.parametrize(
    ("hint", "admitted"),
    [
        (None, True),
        (set(), False),
        ({"10.0.0.1:8000"}, True),
        ({"10.0.0.1"}, True),
        ({"10.0.0.1:9000"}, False),
        ({"10.0.0.10"}, False),
    ],
    ids=["no hint", "empty", "ip:port", "ip", "another port", "a longer address"],
)
def test_a_hint_admits_an_address_with_all_its_ports_or_one(hint: set[str] | None, admitted: bool) -> None:  # noqa: FBT001 - a column
    given = SubsetHint(None if hint is None else frozenset(hint))
    assert given.admits(Endpoint("a", "default", "10.0.0.1", 8000)) is admitted


def test_a_pool_is_shown_as_namespace_and_name() -> None:
    assert str(Pool("default", "chat")) == "default/chat"
