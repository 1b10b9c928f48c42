# SPDX-License-Identifier: Apache-2.0
"""How busy an engine is, read from what it tells Prometheus."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.discovery.exposition import parse_load
from extproc.policy.pick import Load

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="org/m"} 9.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="org/m"} 5.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="org/m",reason="capacity"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="org/m",reason="deferred"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="org/m"} 0.25
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="org/m"} 7.0
"""
SGLANG = b"""\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 8.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 3.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.5
# TYPE sglang:swa_token_usage gauge
sglang:swa_token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.9
"""
WAITING = b"vllm:num_requests_waiting"
CACHE = b"vllm:kv_cache_usage_perc"


@pytest.mark.parametrize(("text", "expected"), [(VLLM, Load(5.0, 0.25)), (SGLANG, Load(3.0, 0.5))])
def test_each_engine_is_read_by_its_own_names(text: bytes, expected: Load) -> None:
    assert parse_load(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WAITING + b" 2\nvllm:gpu_cache_usage_perc 0.5\n", Load(2.0, 0.5)),
        (WAITING + b" 2\r\n" + CACHE + b"\t0.5\r\n", Load(2.0, 0.5)),
        (WAITING + b" 2.0 1700000000000", Load(2.0, 0.0)),
        (WAITING + b'{model_name="a, {b} \\"c\\" # d"} 1e2\n', Load(100.0, 0.0)),
        ('vllm:num_requests_waiting{model_name="für"} 1\n'.encode(), Load(1.0, 0.0)),
    ],
    ids=["an older name", "other blanks", "a moment", "a label that looks like more", "UTF-8"],
)
def test_other_ways_to_write_it_are_read_too(text: bytes, expected: Load) -> None:
    assert parse_load(text) == expected


def test_of_several_models_and_engines_the_waiting_are_summed_and_the_fullest_cache_counts() -> None:
    text = b"".join(
        name + b'{engine="%d",model_name="%s"} %g\n' % (engine, model, value)
        for name, values in ((WAITING, (1, 2, 4)), (CACHE, (0.25, 0.75, 0.5)))
        for (engine, model), value in zip(((0, b"m"), (1, b"m"), (0, b"n")), values, strict=True)
    )

    assert parse_load(text) == Load(7.0, 0.75)


def test_what_sglang_ranks_that_work_together_all_say_counts_once() -> None:
    text = b"".join(
        b'sglang:num_queue_reqs{dp_rank="%d",tp_rank="%d",pp_rank="%d"} %d\n' % (dp, tp, pp, 3 + dp)
        for dp in range(2)
        for tp in range(2)
        for pp in range(2)
    )

    assert parse_load(text) == Load(7.0, 0.0)


def test_what_sglang_says_of_each_priority_is_part_of_its_total() -> None:
    text = b"".join(
        b'sglang:num_queue_reqs{priority="%s"} %d\n' % (priority, value)
        for priority, value in ((b"", 5), (b"1", 3), (b"2", 2))
    )

    assert parse_load(text) == Load(5.0, 0.0)


@pytest.mark.parametrize(("value", "expected"), [(b"NaN", 0.0), (b"-1", 0.0), (b"+Inf", 0.0), (b"1.5", 1.0)])
def test_a_cache_is_between_empty_and_full_whatever_is_said(value: bytes, expected: float) -> None:
    assert parse_load(WAITING + b" 1\n" + CACHE + b" " + value) == Load(1.0, expected)


def test_a_cache_figure_that_is_none_does_not_hide_the_others() -> None:
    assert parse_load(WAITING + b" 1\n" + CACHE + b'{a="0"} NaN\n' + CACHE + b'{a="1"} 0.5\n') == Load(1.0, 0.5)


MISSING = "no load figures: nothing says how many requests wait"
NO_NUMBER = "no load figures: the requests that wait are no number"
NO_FORMAT = "no load figures: not in Prometheus' text format"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", MISSING),
        (b"<html>secret</html>", MISSING),
        (CACHE + b" 0.5\n", MISSING),
        (b"# TYPE " + WAITING + b" gauge\n", MISSING),
        (WAITING + b'_by_reason{reason="capacity"} 1\n', MISSING),
        (b"my_" + WAITING + b" 1\n", MISSING),
        (WAITING, MISSING),
        (WAITING + b" NaN\n", NO_NUMBER),
        (WAITING + b" +Inf\n", NO_NUMBER),
        (WAITING + b" -1\n", NO_NUMBER),
        (WAITING + b" " + b"9" * 400 + b"\n", NO_NUMBER),
        (WAITING + b'{a="0"} NaN\n' + WAITING + b'{a="0"} 1\n', NO_NUMBER),
        (WAITING + b'{a="0"} 1e308\n' + WAITING + b'{a="1"} 1e308\n', NO_NUMBER),
        (b'sglang:num_queue_reqs{priority="1"} 1\n', NO_NUMBER),
        (WAITING + b" secret\n", NO_FORMAT),
        (b'secret{of="\n' + WAITING + b' 1"} 1\n', NO_FORMAT),
        (WAITING + b" \n", NO_FORMAT),
        (WAITING + b" 1 " + b"9" * 400, NO_FORMAT),
        (WAITING + b"{a= }", NO_FORMAT),
        (WAITING + b'{secret="\n', NO_FORMAT),
        (WAITING + b'{a="\xff"} 1\n', NO_FORMAT),
        (WAITING + b" 1\n" + CACHE + b" secret\n", NO_FORMAT),
        ((WAITING + b" 1\n") * 3000, "no load figures: more than 65536 bytes of one name"),
    ],
)
def test_what_does_not_say_how_many_wait_is_refused_with_its_reason(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        parse_load(text)


NAMES = [WAITING, CACHE, b"sglang:num_queue_reqs", b"sglang:token_usage", b"vllm:num_requests_waiting_by_reason"]
PIECES = st.sampled_from([*NAMES, b"\n", b" ", b"{", b"}", b'"', b"=", b",", b"\\", b'{a="b"} 1\n', b" # ", b"1e999"])


@given(st.lists(PIECES | st.binary(max_size=4)).map(b"".join))
def test_whatever_an_engine_sends_is_a_load_or_a_value_error(text: bytes) -> None:
    try:
        load = parse_load(text)
    except ValueError:
        return
    assert 0 <= load.waiting < float("inf")
    assert 0 <= load.kv_cache <= 1
