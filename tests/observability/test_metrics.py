# SPDX-License-Identifier: Apache-2.0
"""The metrics."""

from extproc.observability.metrics import Metrics
from extproc.policy.types import Endpoint, Pool, Snapshot

POOL = Pool("default", "chat")


def test_decisions_are_counted_by_what_they_were() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.decided("before", "restrict", "owner-matched", "vllm")

    labels = {"attachment": "before", "decision": "restrict", "reason": "owner-matched", "owner": "vllm"}
    assert metrics.registry.get_sample_value("owned_by_decisions_total", labels) == 2


def test_a_pool_that_is_gone_is_not_shown_any_more() -> None:
    metrics = Metrics()
    endpoints = (Endpoint("a", "default", "127.0.0.1", 1), Endpoint("b", "default", "127.0.0.1", 2, ready=False))
    metrics.show(Snapshot(1, (POOL,), {POOL: endpoints}))
    shown = [
        metrics.registry.get_sample_value("owned_by_endpoints", {"pool": "default/chat", "ready": ready})
        for ready in ("true", "false")
    ]
    metrics.show(Snapshot(2))

    assert shown == [1, 1]
    assert metrics.registry.get_sample_value("owned_by_endpoints", {"pool": "default/chat", "ready": "true"}) is None
