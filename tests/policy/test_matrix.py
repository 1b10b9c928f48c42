# SPDX-License-Identifier: Apache-2.0
"""The table of models by engines."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.policy.config import default_policy
from extproc.policy.matrix import Cell, Matrix, Row, matrix
from extproc.policy.types import Endpoint, Pool
from tests.builders import CHAT, LLAMA, QWEN, endpoint, policy, snapshot


def test_a_cell_counts_the_endpoints_of_an_engine_that_serve_a_model() -> None:
    found = matrix(
        snapshot(
            endpoint(1, "vllm"),
            endpoint(2, "vllm", ready=False),
            endpoint(3, "sglang", ready=False),
            endpoint(4, "sglang", (QWEN, LLAMA)),
        ),
        default_policy(),
    )

    assert found == (
        Matrix(
            CHAT,
            ("sglang", "vllm"),
            (Row(QWEN, (Cell(1, 1), None)), Row(LLAMA, (Cell(1, 2), Cell(1, 2)))),
            (Cell(1, 2), Cell(1, 2)),
        ),
    )


def test_endpoints_whose_models_are_unknown_have_a_row_of_their_own_and_it_is_the_last() -> None:
    found = matrix(snapshot(endpoint(1, "vllm", None), endpoint(2, "sglang")), default_policy())

    assert found[0].rows == (Row(LLAMA, (Cell(1, 1), None)), Row(None, (None, Cell(1, 1))))


def test_endpoints_that_serve_nothing_are_in_no_row_but_in_the_total() -> None:
    found = matrix(snapshot(endpoint(1, "vllm", ())), default_policy())

    assert found == (Matrix(CHAT, ("vllm",), (), (Cell(1, 1),)),)


def test_engines_are_normalised_and_the_one_that_nobody_knows_is_the_last() -> None:
    endpoints = (endpoint(1), endpoint(2, "TRT-LLM"), endpoint(3, "vllm"))
    found = matrix(snapshot(*endpoints), policy('match: {unlabeledAs: ""}'))

    assert found[0].engines == ("trtllm-serve", "vllm", "")


def test_the_policys_labels_name_models_that_nobody_lists() -> None:
    one = Endpoint("a", "default", "10.0.0.1", 1, {"llm-d.ai/model": "m"})
    found = matrix(snapshot(one), policy("match: {modelLabels: [llm-d.ai/model]}"))

    assert found[0].rows == (Row("m", (Cell(1, 1),)),)


def test_each_pool_has_its_own_table_an_empty_one_too() -> None:
    found = matrix(snapshot(endpoint(1, "vllm"), embed=()), default_policy())

    assert found == (
        Matrix(CHAT, ("vllm",), (Row(LLAMA, (Cell(1, 1),)),), (Cell(1, 1),)),
        Matrix(Pool("default", "embed"), (), (), ()),
    )


def test_what_is_beyond_a_limit_is_counted_together() -> None:
    found = matrix(
        snapshot(
            endpoint(1, "tgi"),
            endpoint(2, "tgi", (QWEN,), ready=False),
            endpoint(3, "sglang", None),
            endpoint(4, "vllm"),
            embed=(),
        ),
        default_policy(),
        pools=1,
        engines=1,
        rows=2,
    )

    assert found == (
        Matrix(
            CHAT,
            ("tgi",),
            (Row(QWEN, (Cell(0, 1), None)), Row(LLAMA, (Cell(1, 1), Cell(1, 1)))),
            (Cell(1, 2), Cell(2, 2)),
            more_engines=2,
            more_models=1,
        ),
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["vllm", "sglang", ""]),
            st.sampled_from([None, (), (LLAMA,), (LLAMA, QWEN)]),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_every_endpoint_is_counted_once_in_the_total_and_once_for_each_of_its_models(
    wanted: list[tuple[str, tuple[str, ...] | None, bool]],
) -> None:
    endpoints = [endpoint(number, *each) for number, each in enumerate(wanted, 1)]
    (found,) = matrix(snapshot(*endpoints), default_policy())
    cells = [cell for row in found.rows for cell in row.cells if cell is not None]

    assert sum(cell.known for cell in found.total) == len(endpoints)
    assert sum(cell.ready for cell in found.total) == sum(one.ready for one in endpoints)
    assert sum(cell.known for cell in cells) == sum(1 if one.models is None else len(one.models) for one in endpoints)
