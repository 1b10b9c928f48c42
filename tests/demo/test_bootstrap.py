# SPDX-License-Identifier: Apache-2.0
"""The generated Envoy configuration, checked by the real Envoy."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.bootstrap import MUTABLE, Plan, bootstrap
from extproc.demo.client import send
from extproc.demo.engines import Engines, Simulated
from extproc.demo.envoy import Envoy, EnvoyError, validate
from extproc.envoy import names

POOL = (("127.0.0.1", 8001), ("127.0.0.1", 8002))


def filters(document: dict[str, Any]) -> dict[str, Any]:
    (listener,) = document["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return {entry["name"]: entry["typed_config"] for entry in manager["http_filters"]}


@pytest.mark.parametrize(
    "plan",
    [
        Plan(endpoints=POOL),
        Plan(endpoints=POOL, before_port=9002),
        Plan(endpoints=POOL, picker_port=9002, forward_hint=False),
        Plan(endpoints=POOL, before_port=9002, picker_port=9003),
        Plan(
            endpoints=(*POOL, ("::1", 8003)),
            before_port=9002,
            picker_port=9003,
            pool="other/pool",
            before_failure_mode_allow=True,
            picker_failure_mode_allow=True,
            message_timeout="0.5s",
            buffer_limit=32_768,
            retries=2,
            access_log="/dev/null",
        ),
    ],
    ids=["no processor", "before", "picker", "both", "everything"],
)
async def test_envoy_accepts_every_plan(plan: Plan, tmp_path: Path) -> None:
    await validate(None, bootstrap(plan), tmp_path)


async def test_what_envoy_says_of_a_bad_configuration_is_in_the_error(tmp_path: Path) -> None:
    document = bootstrap(Plan(endpoints=POOL))
    document["static_resources"]["clusters"][0]["nonsense"] = 1

    with pytest.raises(EnvoyError, match="nonsense"):
        await validate(None, document, tmp_path)
    with pytest.raises(EnvoyError, match=r"ended with exit code 1\n(.|\n)*nonsense"):
        async with Envoy(document, tmp_path):
            pass


def test_a_processor_without_a_port_has_neither_filter_nor_cluster() -> None:
    document = bootstrap(Plan(endpoints=POOL, before_port=9002))

    assert list(filters(document)) == ["owned-by.before", "envoy.filters.http.router"]
    assert [cluster["name"] for cluster in document["static_resources"]["clusters"]] == ["pool", "owned_by"]


@pytest.mark.parametrize(
    ("forward_hint", "namespaces"), [(True, ["envoy.lb", "envoy.lb.subset_hint"]), (False, ["envoy.lb"])]
)
def test_the_hint_reaches_the_picker_only_if_the_plan_says_so(forward_hint: bool, namespaces: list[str]) -> None:  # noqa: FBT001
    found = filters(bootstrap(Plan(endpoints=POOL, picker_port=9002, forward_hint=forward_hint)))

    assert found["envoy.filters.http.ext_proc"]["metadata_options"] == {
        "forwarding_namespaces": {"untyped": namespaces},
        "receiving_namespaces": {"untyped": ["envoy.lb"]},
    }


def test_before_says_what_it_is_and_for_which_pool() -> None:
    found = filters(bootstrap(Plan(endpoints=POOL, before_port=9002, pool="ns/p")))

    assert found["owned-by.before"]["grpc_service"]["initial_metadata"] == [
        {"key": "x-owned-by-attachment", "value": "before"},
        {"key": "x-owned-by-pool", "value": "ns/p"},
    ]


def test_before_may_change_every_header_that_it_changes_and_no_other() -> None:
    ours = [*names.SPOOFABLE, names.REASON, names.CONTENT_TYPE, names.RETRY_AFTER]

    assert [name for name in ours if not re.fullmatch(MUTABLE, name)] == []
    assert [n for n in ("authorization", "host", ":path", "x-request-id", "cookie") if re.fullmatch(MUTABLE, n)] == []


async def test_envoy_is_live_with_ports_a_log_and_stats_and_then_gone(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with Engines([Simulated("a", "vllm", "m")]) as engines:
        plan = Plan(endpoints=(("127.0.0.1", engines.endpoints[0].port),), access_log=str(log))
        async with Envoy(bootstrap(plan), tmp_path) as envoy:
            answer = await send(envoy.port, "GET", "/v1/models")
            stats = await envoy.stats("^cluster.pool.upstream_rq_total$")
            pid = envoy.pid

    assert (answer.status, answer.headers["x-served-by"]) == (200, "a")
    assert stats == {"cluster.pool.upstream_rq_total": 1}
    assert log.read_text() == f"200 via_upstream - - 127.0.0.1:{engines.endpoints[0].port}\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
