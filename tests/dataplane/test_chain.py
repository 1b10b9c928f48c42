# SPDX-License-Identifier: Apache-2.0
"""Whole chains around the EPP's stand-in, a tenth of whose pods refuse connections."""

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from extproc.demo.bootstrap import Plan
from extproc.demo.client import send
from tests.dataplane.exchange import Request, exchange
from tests.dataplane.scenarios import CHAT, JSON, Tally, chain, chat, chats, gets, guard, header, own_answer, picker
from tests.dataplane.stage import Stage, hosts, stage

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEAD = ("vllm-9", "sglang-9")
SENT = 1_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Ten pods of each engine, one of which is dead."""
    folder: Path = tmp_path_factory.mktemp("chain")
    async with contextlib.AsyncExitStack() as stack:
        yield await stage(stack, folder, hosts(10), refusing=DEAD, hold=False, flags=("--attachment", "picker"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alive(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Two pods of each engine."""
    async with contextlib.AsyncExitStack() as stack:
        flags = ("--attachment", "picker")
        yield await stage(stack, tmp_path_factory.mktemp("alive"), hosts(2), hold=False, flags=flags)


async def metric(stage: Stage, name: str) -> float:
    text = (await send(stage.server.metrics_port, "GET", "/metrics")).body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.slow
async def test_with_after_not_one_request_leaves_its_engine(pods: Stage) -> None:
    tally = await chain(pods, chats(SENT), after=True)

    assert tally == Tally(requests=SENT)


@pytest.mark.slow
async def test_without_after_retries_leak_to_the_other_engine(pods: Stage) -> None:
    tally = await chain(pods, chats(SENT), after=False)

    assert (tally.requests, tally.changed) == (SENT, 0)
    assert tally.wrong_engine > 0


async def test_after_steers_what_has_no_body(pods: Stage) -> None:
    assert await chain(pods, gets(100), after=True) == Tally(requests=100)


async def test_the_hint_reaches_the_stand_in_and_its_picks_are_within(pods: Stage) -> None:
    pods.epp.seen.clear()
    outside = await metric(pods, "owned_by_epp_picks_outside_hint_total")
    await chain(pods, chats(20), after=True)

    assert [len(seen.hint or []) for seen in pods.epp.seen] == [10] * 20
    assert all(seen.pick in (seen.hint or []) for seen in pods.epp.seen)
    assert await metric(pods, "owned_by_epp_picks_outside_hint_total") == outside


async def test_picks_outside_the_hint_are_counted_where_the_epp_does_not_get_it(pods: Stage) -> None:
    ours, before = pods.server.grpc_port, await metric(pods, "owned_by_epp_picks_outside_hint_total")
    rewritten = await metric(pods, 'owned_by_epp_picks_total{outcome="rewritten"}')
    plan = Plan(
        endpoints=pods.pool, before_port=ours, picker_port=pods.epp.port, after_port=ours, forward_hint=False, retries=2
    )
    envoy = await pods.envoy(plan)
    served = set()
    for _ in range(30):
        async with exchange(envoy.port, chat("sglang", "header").request) as answer:
            served.add(answer.headers["x-served-by"].partition("-")[0])

    assert served == {"sglang"}
    assert await metric(pods, "owned_by_epp_picks_outside_hint_total") > before
    assert await metric(pods, 'owned_by_epp_picks_total{outcome="rewritten"}') > rewritten


async def test_a_prefill_pod_of_another_engine_is_not_named_any_more(pods: Stage) -> None:
    """The EPP picks at random, unhinted, and names a prefill pod of vLLM's: it may stay only where its pick does."""
    ours = pods.server.grpc_port
    plan = Plan(endpoints=pods.pool, picker_port=pods.epp.port, after_port=ours, retries=2)
    envoy = await pods.envoy(plan)
    pods.epp.seen.clear()
    pods.epp.headers = {"x-prefiller-host-port": pods.pods.address("vllm-1")}
    named = []
    for _ in range(24):
        async with exchange(envoy.port, chat("sglang", "first key").request) as answer:
            named.append("x-prefiller-host-port" in json.loads(answer.headers["x-seen"]))
    pods.epp.headers = {}
    of_sglang = {pods.pods.address(name) for name in pods.pods.endpoints if name.startswith("sglang")}

    assert named == [seen.pick in of_sglang for seen in pods.epp.seen]
    assert set(named) == {True, False}


async def test_every_pod_of_an_engine_gets_its_share(alive: Stage) -> None:
    """`before` and `after` both choose, and the requests for two engines take turns."""
    ours = alive.server.grpc_port
    plan = Plan(
        endpoints=alive.pool, before_port=ours, picker_empty=True, after_port=ours, picker_failure_mode_allow=True
    )
    envoy = await alive.envoy(plan)
    served = Counter[str]()
    for _ in range(10):
        for owner in ("vllm", "sglang"):
            async with exchange(envoy.port, chat(owner, "header").request) as answer:
                served[answer.headers["x-served-by"]] += 1

    assert served == {"vllm-0": 5, "vllm-1": 5, "sglang-0": 5, "sglang-1": 5}


class TestGuard:
    """The EPP is not there, and its filter fails open."""

    async def test_an_empty_cluster_sends_every_request_to_its_engine(self, pods: Stage) -> None:
        guarded = await guard(pods, None)

        assert guarded.without_body.verdict == guarded.with_body.verdict == "holds"

    async def test_a_port_that_refuses_sends_what_has_no_body_to_its_engine(self, pods: Stage, nobody: int) -> None:
        assert (await guard(pods, nobody)).without_body == Tally(requests=24)

    async def test_a_port_that_refuses_is_envoys_500_for_what_has_a_body(self, pods: Stage, nobody: int) -> None:
        assert (await guard(pods, nobody)).with_body == Tally(requests=24, failed=Counter({500: 24}))


class TestOurAnswers:
    """A filter behind us sees the response phase of what we answer (Envoy 1.37 and newer)."""

    WRONG = Request("POST", CHAT, (JSON, ("x-owned-by", "tgi")), b"{}")
    MODELS = Request("GET", "/v1/models", (), None)

    async def test_with_the_epp_there_they_arrive(self, pods: Stage) -> None:
        assert await own_answer(pods, pods.epp.port, self.WRONG) == (404, "owner-not-found")
        assert await own_answer(pods, pods.epp.port, self.MODELS) == (200, "list")

    async def test_with_an_epp_that_refuses_they_are_envoys_empty_500(self, pods: Stage, nobody: int) -> None:
        assert await own_answer(pods, nobody, self.WRONG) == (500, "")
        assert await own_answer(pods, nobody, self.MODELS) == (500, "")


@pytest.mark.slow
async def test_a_picker_that_ends_before_the_answer_cuts_none(alive: Stage) -> None:
    """With one message in between, an answer that is quick would be lost: the last answer and the end go in one piece."""
    assert await picker(alive, chats(SENT) + gets(100)) == Tally(requests=SENT + 100)


async def test_a_route_for_each_owner_is_chosen_by_its_header(alive: Stage) -> None:
    assert await header(alive, chats(200)) == Tally(requests=200)


async def test_owner_and_model_arrive_as_headers(pods: Stage) -> None:
    envoy = await pods.envoy(Plan(endpoints=pods.engine("vllm")[:1], header_port=pods.server.grpc_port))
    async with exchange(envoy.port, chat(" VLLM ", "first key").request) as answer:
        seen = json.loads(answer.headers["x-seen"])

    assert (seen["x-owned-by"], seen["x-gateway-model-name"]) == ("vllm", "m")
