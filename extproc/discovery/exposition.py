# SPDX-License-Identifier: Apache-2.0
"""What an engine answers to `GET /metrics`, as far as it says how busy it is.

The names are the engines' own: vLLM sets its in vllm/v1/metrics/loggers.py (older ones say `gpu_cache_usage_perc`), SGLang in
python/sglang/srt/observability/metrics_collector.py.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from extproc.policy.pick import Load

_ENGINES: Final = (
    (b"vllm:num_requests_waiting", (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")),
    (b"sglang:num_queue_reqs", (b"sglang:token_usage",)),
)
"""For each engine what counts the requests that wait, and what says which part (0 to 1) of its KV cache is in use."""
_RANKS: Final = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of SGLang's processes that do the same work together: each that reports has the same requests waiting."""
_MOST: Final = 65_536
"""Bytes of the lines of one name, which is some 600 engines in one server. For these the parser needs up to 70 ms."""


def parse_load(text: bytes) -> Load:
    """Read the body of an answer to `GET /metrics`, in Prometheus' text format.

    Of several samples (one for each model and data-parallel engine) waiting requests are summed, of KV caches the fullest
    counts; one that is no number from 0 on is as if it were absent, and without any it is 0. Raises ValueError, with a text
    that shows nothing of the body, if it does not say how many requests wait.
    """
    for waiting, caches in _ENGINES:
        if queued := _samples(text, waiting):
            return Load(_waiting(queued), _fullest(sample for name in caches for sample in _samples(text, name)))
    raise ValueError("no load figures: nothing says how many requests wait")


def _waiting(samples: list[Sample]) -> float:
    engines: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        # SGLang with priorities: this one is a part of the sample whose priority is "".
        if sample.labels.get("priority"):
            continue
        key = frozenset((label, value) for label, value in sample.labels.items() if label not in _RANKS)
        engines[key] = max(_number(sample), engines.get(key, 0.0))
    total = sum(engines.values())
    if not engines or not math.isfinite(total):
        raise ValueError("no load figures: the requests that wait are no number")
    return total


def _fullest(samples: Iterable[Sample]) -> float:
    return min(max((number for sample in samples if math.isfinite(number := _number(sample))), default=0.0), 1.0)


def _number(sample: Sample) -> float:
    """The sample's value, infinite if it is not one from 0 on: unlike nan that stays so in a maximum and a sum."""
    try:
        number = float(sample.value)
    except OverflowError:  # the parser makes an int of a thousand digits
        return math.inf
    return number if number >= 0 else math.inf


def _samples(text: bytes, name: bytes) -> list[Sample]:
    lines = list(_lines(text, name))
    if sum(map(len, lines)) > _MOST:
        raise ValueError(f"no load figures: more than {_MOST} bytes of one name")
    try:
        return [
            sample for family in text_string_to_metric_families(b"\n".join(lines).decode()) for sample in family.samples
        ]
    except (ValueError, IndexError, OverflowError):  # their texts show the line
        raise ValueError("no load figures: not in Prometheus' text format") from None


def _lines(text: bytes, name: bytes) -> Iterator[bytes]:
    """The lines that begin with the whole of `name`; found, not split: an engine's answer has thousands of others."""
    start = text.find(name)
    while start >= 0:
        after = start + len(name)
        end = text.find(b"\n", after)
        end = len(text) if end < 0 else end
        # vLLM also has `vllm:num_requests_waiting_by_reason`.
        if text[max(0, start - 1) : start] in (b"", b"\n") and text[after : after + 1] in (b"{", b" ", b"\t"):
            yield text[start:end]
        start = text.find(name, end)
