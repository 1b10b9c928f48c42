# SPDX-License-Identifier: Apache-2.0
"""Which engine serves which model, and how many of its endpoints are ready: what an operator looks at first."""

from collections import defaultdict

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
    has all endpoints of each, those that serve nothing too. An endpoint with two models counts in two rows.
    """

    pool: Pool
    engines: tuple[str, ...]
    rows: tuple[Row, ...]
    total: tuple[Cell, ...]


def matrix(snapshot: Snapshot, policy: PolicyConfig) -> tuple[Matrix, ...]:
    """A matrix for each pool, engines and models in the order of their names, what is unknown last."""
    return tuple(_of_pool(snapshot, policy, pool) for pool in snapshot.pools)


def _of_pool(snapshot: Snapshot, policy: PolicyConfig, pool: Pool) -> Matrix:
    total: dict[str, Cell] = defaultdict(lambda: Cell(0, 0))
    rows: dict[str | None, dict[str, Cell]] = defaultdict(lambda: defaultdict(lambda: Cell(0, 0)))
    for owner, models, known, ready in candidates(snapshot, policy, pool, decoding=False).census:
        for cells in (total, *(rows[model] for model in (models if models is not None else (None,)))):
            cell = cells[owner]
            cells[owner] = Cell(cell.ready + ready, cell.known + known)
    engines = tuple(sorted(total, key=lambda owner: (not owner, owner)))
    return Matrix(
        pool,
        engines,
        tuple(
            Row(model, tuple(rows[model].get(owner) for owner in engines))
            for model in sorted(rows, key=lambda model: (model is None, model or ""))
        ),
        tuple(total[owner] for owner in engines),
    )
