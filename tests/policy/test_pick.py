# SPDX-License-Identifier: Apache-2.0
"""A few of the endpoints, beginning at a rotation."""

from collections import Counter

import pytest

from extproc.policy.pick import order
from tests.builders import endpoint

A, B, C = endpoint(1), endpoint(2), endpoint(3)

TABLE = {
    "from the first": ((A, B, C), 0, 2, (A, B)),
    "from the second": ((A, B, C), 1, 2, (B, C)),
    "round the end": ((A, B, C), 2, 2, (C, A)),
    "all": ((A, B, C), 4, 3, (B, C, A)),
    "more than there are": ((A, B), 1, 5, (B, A)),
    "a negative rotation": ((A, B, C), -1, 1, (C,)),
    "a large rotation": ((A, B, C), 3 * 10**20 + 1, 1, (B,)),
    "of none": ((), 7, 3, ()),
}


@pytest.mark.parametrize(("endpoints", "rotation", "count", "expected"), TABLE.values(), ids=TABLE)
def test_the_order_begins_at_the_rotation(endpoints: tuple, rotation: int, count: int, expected: tuple) -> None:
    assert order(endpoints, rotation, count) == expected


@pytest.mark.parametrize("place", [0, 1])
def test_every_endpoint_stands_equally_often_at_each_place(place: int) -> None:
    picks = Counter(order((A, B, C), rotation, 2)[place].name for rotation in range(12))
    assert picks == {"pod-1": 4, "pod-2": 4, "pod-3": 4}
