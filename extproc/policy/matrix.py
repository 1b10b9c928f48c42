# SPDX-License-Identifier: Apache-2.0
"""Which engine serves which model, and how many of its endpoints are ready: what an operator looks at first."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from extproc.policy.candidates import candidates
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Pool, Snapshot


class Cell(msgspec.Struct, frozen=True):
    """Endpoints: how many there are, and how many of them are ready."""

    ready: int
    known: int


class Row(msgspec.Struct, frozen=True):
    """A model and a cell for each engine, None where none of its endpoints serves the model.

    `model` is None in the row of the endpoints whose models are unknown: each of them may serve any.
    """

    model: str | None
    cells: tuple[Cell | None, ...]


class Matrix(msgspec.Struct, frozen=True):
    """The endpoints of one pool by model and engine.

    `engines` are the owners, normalised ("" where nobody knows whose an endpoint is), in the order of the cells; `total`
    has all endpoints of each, those that serve nothing too. An endpoint with two models counts in two rows. If there are
    `more_engines` than are named, their endpoints have one further cell, the last; `more_models` have no row.
    """

    pool: Pool
    engines: tuple[str, ...]
    rows: tuple[Row, ...]
    total: tuple[Cell, ...]
    more_engines: int = 0
    more_models: int = 0


def matrix(
    snapshot: Snapshot,
    policy: PolicyConfig,
    *,
    pools: int | None = None,
    engines: int | None = None,
    rows: int | None = None,
) -> tuple[Matrix, ...]:
    """A matrix for each pool, engines and models in the order of their names, what is unknown last.

    At most so many pools, the first; of each at most so many engines, those with the most endpoints, and so many rows, the
    first: no more than these are counted, however many there are. None: all of them.
    """
    return tuple(_of_pool(snapshot, policy, pool, engines, rows) for pool in snapshot.pools[:pools])


def _of_pool(
    snapshot: Snapshot, policy: PolicyConfig, pool: Pool, most_engines: int | None, most_rows: int | None
) -> Matrix:
    members = candidates(snapshot, policy, pool, decoding=False)
    census = members.census
    sizes: Counter[str] = Counter()
    for owner, _, known, _ in census:
        sizes[owner] += known
    largest = sorted(sizes, key=lambda owner: (-sizes[owner], owner))[:most_engines]
    engines = tuple(sorted(largest, key=lambda owner: (not owner, owner)))
    more = len(sizes) - len(engines)
    width = len(engines) + bool(more)
    columns = {owner: place for place, owner in enumerate(engines)}
    models: list[str | None] = [*sorted(members.listed)]
    if any(ids is None for _, ids, _, _ in census):
        models.append(None)
    shown = models[:most_rows]
    wanted = frozenset(shown)

    total: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    counts: dict[str | None, dict[int, list[int]]] = {model: defaultdict(lambda: [0, 0]) for model in shown}
    for owner, ids, known, ready in census:
        column = columns.get(owner, width - 1)
        served: Iterable[str | None] = wanted & ({None} if ids is None else ids)
        for cells in (total, *(counts[model] for model in served)):
            cell = cells[column]
            cell[0] += ready
            cell[1] += known
    rows = tuple(Row(model, tuple(_cell(counts[model].get(place)) for place in range(width))) for model in shown)
    return Matrix(
        pool, engines, rows, tuple(Cell(*total[place]) for place in range(width)), more, len(models) - len(shown)
    )


def _cell(counted: list[int] | None) -> Cell | None:
    return None if counted is None else Cell(*counted)
