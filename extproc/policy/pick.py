# SPDX-License-Identifier: Apache-2.0
"""Which of the eligible endpoints, and in which order: a few of them, each as often the first as the others."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def order(endpoints: Sequence[T], rotation: int, count: int) -> tuple[T, ...]:
    """`count` endpoints (fewer if there are fewer), beginning at `rotation`, which may be any whole number.

    Counting `rotation` up makes every endpoint the first equally often, and the second, and so on.
    """
    size = len(endpoints)
    return tuple(endpoints[(rotation + offset) % size] for offset in range(min(count, size)))
