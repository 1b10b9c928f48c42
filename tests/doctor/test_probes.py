# SPDX-License-Identifier: Apache-2.0
"""The doctor's requests through real gateways, each broken in one way."""

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.envoy import Envoy
from extproc.doctor.findings import Check, Finding, Severity
from extproc.doctor.visit import Patient, visit
from tests.dataplane.stage import Stage, hosts, stage
from tests.doctor.patients import FILTER_CONFIG, Json, cluster, complaints, config, manager, skipped_unless_asked

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

GIVE = "give --envoy and --admin"
AWAY = "is our server up (see `cluster`)? On Envoy 1.37 and newer an EPP that refuses connections does that, too"
NOT_SEEN = (
    "our filter does not run on this route (see `filter` and `routes`), or it fails open and our server is away, or the route "
    "leads to no pool that we know (our log: `not-a-pool`, `pool-unknown`), or its path is none of the policy's `paths` "
    "(`path-not-interpreted`)"
)
ELSEWHERE = " (a policy that reads owners elsewhere is known by --admin)"
UNSEEN = [
    f"skipped  {check:<13} not checked: no request reaches us"
    for check in ("owner-query", "owner-body", "body-limit", "models")
]
LIMIT = (
    "raise the gateway's buffer limit (see `body-limit` in the guide), or name the owner in a header or in the query"
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pods(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Two pods of each engine."""
    async with contextlib.AsyncExitStack() as stack:
        yield await stage(stack, tmp_path_factory.mktemp("pods"), hosts(2), hold=False)


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def gateway(plan: Plan, folder: Path, fault: Callable[[Json], None] = lambda _: None) -> AsyncIterator[Envoy]:
    document = bootstrap(plan)
    fault(document)
    async with Envoy(document, folder) as envoy:
        yield envoy


async def seen(pods: Stage, envoy: Envoy, **more: Any) -> list[Finding]:
    """With all that the doctor can be given."""
    asked = {"envoy": url(envoy.admin_port), "admin": url(pods.server.admin_port)} | more
    return await visit(Patient(gateway=url(envoy.port), **asked))


async def outside(envoy: Envoy) -> list[Finding]:
    """As a client sees it."""
    return await visit(Patient(gateway=url(envoy.port)))


def of(findings: Sequence[Finding], check: Check) -> list[str]:
    return [each.line for each in findings if each.check is check]


def chain(pods: Stage, **more: Any) -> Plan:
    ours = pods.server.grpc_port
    return Plan(**{"endpoints": pods.pool, "before_port": ours, "picker_port": pods.epp.port} | more)


async def test_a_healthy_gateway_passes_every_check(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods, after_port=pods.server.grpc_port, retries=2), tmp_path) as envoy:
        findings = await seen(pods, envoy)

    assert complaints(findings) == []
    assert [each.check for each in findings] == list(Check)


async def test_a_client_sees_less_and_says_what_was_not_checked(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods), tmp_path) as envoy:
        findings = await outside(envoy)

    unknown = "every endpoint serves the same model, and a client cannot see which did"
    chain_unknown = "the chain itself is not known without a dump of Envoy's configuration"
    assert complaints(findings) == [
        f"skipped  filter        not checked: {chain_unknown}; give --config-dump or --envoy",
        f"skipped  served        not checked: {unknown}; {GIVE}",
        "skipped  labels        not checked: only our server knows the labels; give --admin",
    ]


async def test_without_our_filter_nothing_reaches_us(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods, before_port=None), tmp_path) as envoy:
        findings = await outside(envoy)

    what = "an owner that nobody has was answered with status 200, and not by us"
    assert of(findings, Check.OWNER_HEADER) == [f"error    owner-header  {what}; {NOT_SEEN}{ELSEWHERE}"]
    assert [line for line in complaints(findings) if "no request" in line] == UNSEEN


async def test_a_server_that_is_down_is_envoys_answer(pods: Stage, tmp_path: Path, nobody: int) -> None:
    async with gateway(chain(pods, before_port=nobody), tmp_path) as envoy:
        findings = await outside(envoy)

    what = "status 503 with nothing in it: Envoy answers in our stead"
    assert of(findings, Check.OWNER_HEADER) == [f"error    owner-header  {what}; {AWAY}"]


async def test_a_server_that_is_down_behind_a_filter_that_fails_open_is_not_seen(
    pods: Stage, tmp_path: Path, nobody: int
) -> None:
    async with gateway(chain(pods, before_port=nobody, before_failure_mode_allow=True), tmp_path) as envoy:
        findings = await outside(envoy)

    what = "an owner that nobody has was answered with status 200, and not by us"
    assert of(findings, Check.OWNER_HEADER) == [f"error    owner-header  {what}; {NOT_SEEN}{ELSEWHERE}"]


async def test_an_epp_that_refuses_empties_our_answers(pods: Stage, tmp_path: Path, nobody: int) -> None:
    async with gateway(chain(pods, picker_port=nobody), tmp_path) as envoy:
        findings = await outside(envoy)

    what = "status 500 with nothing in it: Envoy answers in our stead"
    assert of(findings, Check.OWNER_HEADER) == [f"error    owner-header  {what}; {AWAY}"]


async def test_a_pool_that_we_do_not_know_is_told(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods, pool="other/pool"), tmp_path) as envoy:
        findings = await outside(envoy)

    fix = "what does `x-owned-by-pool` say, and does our server watch that namespace (--namespaces)?"
    assert of(findings, Check.OWNER_HEADER) == [
        f"error    owner-header  our server does not know the pool of this route; {fix}"
    ]


async def test_a_hint_that_is_not_forwarded_is_seen_in_who_served(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods, forward_hint=False), tmp_path) as envoy:
        findings = await seen(pods, envoy)

    (hint,) = of(findings, Check.HINT)
    (served,) = of(findings, Check.SERVED)
    assert hint.startswith(
        "error    hint          listener `gateway`, filter `envoy.filters.http.ext_proc`: it does not forward"
    )
    assert served.startswith(
        "error    served        of 8 requests some were served by endpoints of others than they asked for"
    )
    assert served.endswith("; the EPP does not see our list: see `hint`")


async def test_an_epp_that_ignores_the_hint_is_seen_in_who_served(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods), tmp_path) as envoy:
        pods.epp.ignores_hint = True
        try:
            findings = await seen(pods, envoy)
        finally:
            pods.epp.ignores_hint = False

    what = "of 8 requests some were served by endpoints of others than they asked for: `sglang` (4), `vllm` (4)"
    fix = "the EPP ignores our list: is it one that reads it, and without --disable-endpoint-subset-filter?"
    assert complaints(findings) == [f"error    served        {what}; {fix}"]


async def test_a_small_buffer_hides_what_stands_at_the_end_of_a_body(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods, buffer_limit=32_768), tmp_path) as envoy:
        findings = await outside(envoy)

    (said,) = of(findings, Check.BODY_LIMIT)
    # How much more than one buffer is seen depends on how the body arrives.
    what = "error    body-limit    an owner at the end of a body of (32|64) KiB does not reach us, .*"
    assert re.fullmatch(f"{what}; {re.escape(LIMIT)}", said)


async def test_a_body_that_may_not_be_asked_for_does_not_reach_us(pods: Stage, tmp_path: Path) -> None:
    def fault(document: Json) -> None:
        del config(document, "owned-by.before")["allow_mode_override"]

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    fix = f"see `modes`: we must be allowed to ask for the body{ELSEWHERE}"
    assert of(findings, Check.OWNER_BODY) == [
        f"error    owner-body    `owned_by` in a JSON body does not reach us; {fix}"
    ]
    assert of(findings, Check.BODY_LIMIT) == ["skipped  body-limit    not checked: no body reaches us"]


async def test_a_query_that_is_kept_from_us_is_told(pods: Stage, tmp_path: Path) -> None:
    def fault(document: Json) -> None:
        code = 'function envoy_on_request(it) it:headers():replace(":path", "/v1/chat/completions") end'
        strip = {
            "name": "strip",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
                "default_source_code": {"inline_string": code},
            },
        }
        manager(document)["http_filters"].insert(0, strip)

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    fix = f"does the route keep the query, and may our filter see `:path`?{ELSEWHERE}"
    assert of(findings, Check.OWNER_QUERY) == [f"error    owner-query   `?owned_by=` does not reach us; {fix}"]


async def test_a_list_that_engines_answer_is_not_ours(pods: Stage, tmp_path: Path) -> None:
    def fault(document: Json) -> None:
        route = {"match": {"prefix": "/v1/models"}, "route": {"cluster": "pool"}}
        said = {"owned-by.before": {"@type": FILTER_CONFIG, "disabled": True}}
        routes = manager(document)["route_config"]["virtual_hosts"][0]["routes"]
        routes.insert(0, route | {"typed_per_filter_config": said})

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    fix = "our filter must run on the route that it takes"
    assert of(findings, Check.MODELS) == [f"error    models        GET /v1/models is not answered by us; {fix}"]
    assert of(findings, Check.SERVED) == ["skipped  served        not checked: our list of models is not to be had"]


async def test_a_destination_that_a_client_names_is_obeyed_where_nobody_strips_it(pods: Stage, tmp_path: Path) -> None:
    def fault(document: Json) -> None:
        pool = cluster(document, "pool")
        del pool["load_balancing_policy"], pool["load_assignment"]
        pool["type"], pool["lb_policy"] = "ORIGINAL_DST", "CLUSTER_PROVIDED"
        pool["original_dst_lb_config"] = {"use_http_header": True, "http_header_name": "x-gateway-destination-endpoint"}
        named = {"header": {"key": "x-gateway-destination-endpoint", "value": pods.pods.address("vllm-0")}}
        add = {
            "name": "like-an-epp-that-keeps-what-is-there",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {"request_mutations": [{"append": named | {"append_action": "ADD_IF_ABSENT"}}]},
            },
        }
        manager(document)["http_filters"].insert(0, add)

    async with gateway(chain(pods, before_port=None, picker_port=None), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    what = "with `x-gateway-destination-endpoint: 127.0.0.1:1` a request is a 503, without it a 200"
    fix = "let a filter remove that header before the pool's cluster reads it (ours does, where it runs)"
    assert of(findings, Check.SPOOFED) == [f"error    spoofed       {what}; {fix}"]


async def test_a_path_behind_a_prefix_may_be_none_that_the_policy_is_for(pods: Stage, tmp_path: Path) -> None:
    def fault(document: Json) -> None:
        (all_of_it,) = manager(document)["route_config"]["virtual_hosts"][0]["routes"]
        all_of_it["match"] = {"prefix": "/llm/"}
        all_of_it["route"]["prefix_rewrite"] = "/"

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await visit(Patient(gateway=f"{url(envoy.port)}/llm"))

    what = "an owner that nobody has was answered with status 200, and not by us"
    assert of(findings, Check.OWNER_HEADER) == [f"error    owner-header  {what}; {NOT_SEEN}{ELSEWHERE}"]


@pytest.mark.parametrize("requests", [1, 3, 8, 18])
async def test_a_gateway_that_limits_requests_is_not_said_to_lose_what_it_has_not_let_in(
    pods: Stage, tmp_path: Path, requests: int
) -> None:
    def fault(document: Json) -> None:
        always = {"default_value": {"numerator": 100}}
        limit = {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": requests, "tokens_per_fill": 1, "fill_interval": "3600s"},
            "filter_enabled": always,
            "filter_enforced": always,
        }
        manager(document)["http_filters"].insert(0, {"name": "limit", "typed_config": limit})

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    what = "it has too many requests (status 429), and what is not told here is not known"
    fix = "let as many requests pass, or ask again when there is less to do; give credentials with -H"
    assert [each.line for each in findings if each.severity is Severity.ERROR] == [
        f"error    gateway       {what}; {fix}"
    ]
    assert of(findings, Check.SPOOFED) == []


async def test_what_is_kept_out_before_a_pool_says_nothing_of_a_spoofed_destination(
    pods: Stage, tmp_path: Path
) -> None:
    def fault(document: Json) -> None:
        manager(document)["route_config"]["virtual_hosts"][0]["require_tls"] = "ALL"  # ours answers before that

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    assert of(findings, Check.SPOOFED) == ["skipped  spoofed       not checked: without it the answer is a 301 already"]


async def test_a_filter_that_runs_only_when_asked_is_no_broken_link(pods: Stage, tmp_path: Path) -> None:
    async with gateway(chain(pods), tmp_path, skipped_unless_asked) as envoy:
        findings = await seen(pods, envoy)

    past = "that is so where a matcher lets requests past us (component only-when-asked)"
    skip = "`owned-by.before` is skipped for some requests by a matcher: what they name in the body is not seen"
    assert [line for line in complaints(findings) if "owner-query" not in line] == [
        f"warning  routes        listener `gateway`: {skip}",
        f"warning  owner-body    `owned_by` in a JSON body does not reach us; {past}",
        "skipped  body-limit    not checked: no body reaches us",
        f"warning  models        the list is ours only where a request names an owner; {past}",
    ]


async def test_a_pool_that_is_not_told_does_no_harm_where_there_is_one(pods: Stage, tmp_path: Path) -> None:
    def fault(document: Json) -> None:
        config(document, "owned-by.before")["request_attributes"] = ["xds.route_name"]

    async with gateway(chain(pods, pool=None), tmp_path, fault) as envoy:
        findings = await seen(pods, envoy)

    assert complaints(findings) == []
    assert of(findings, Check.POOL) == ["ok       pool          filters that do not say their pool mean `default/chat`"]


async def test_a_policy_that_passes_unknown_owners_is_recognised(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        lenient = await stage(stack, tmp_path, hosts(1), hold=False, rules=", whenUnknown: {action: passthrough}")
        envoy = await lenient.envoy(chain(lenient))
        findings = await seen(lenient, envoy)

    assert complaints(findings) == []
    assert of(findings, Check.OWNER_HEADER) == [
        "ok       owner-header  `x-owned-by` reaches us; an owner that nobody has is passed through (whenUnknown: passthrough)"
    ]


async def test_a_policy_with_names_of_its_own_is_asked_by_them(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        names = ", sources: {headers: [x-engine], query: [], body: [by]}"
        other = await stage(stack, tmp_path, hosts(1), hold=False, rules=names)

        def fault(document: Json) -> None:
            config(document, "owned-by.before")["forward_rules"]["allowed_headers"]["patterns"].append(
                {"exact": "x-engine"}
            )

        (tmp_path / "envoy").mkdir()
        envoy = await stack.enter_async_context(gateway(chain(other), tmp_path / "envoy", fault))
        findings = await seen(other, envoy)

    assert complaints(findings) == ["skipped  owner-query   not checked: the policy reads no query"]
    assert of(findings, Check.OWNER_BODY) == ["ok       owner-body    `by` in a JSON body reaches us"]


@pytest.mark.parametrize("source", ["query: [by]", "body: [by]"])
async def test_who_served_is_asked_for_where_the_policy_reads_an_owner(tmp_path: Path, source: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        rest = "query: [], " if source.startswith("body") else ""
        other = await stage(stack, tmp_path, hosts(1), hold=False, rules=f", sources: {{headers: [], {rest}{source}}}")
        findings = await seen(other, await other.envoy(chain(other)))

    assert [line for line in complaints(findings) if "skipped" not in line] == []
    assert of(findings, Check.SERVED) == [
        "ok       served        all 8 requests were served by endpoints of the owner that they named"
    ]


async def test_a_policy_that_is_not_known_may_read_another_query(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        other = await stage(stack, tmp_path, hosts(1), hold=False, rules=", sources: {query: [by]}")
        findings = await outside(await other.envoy(chain(other)))

    fix = f"does the route keep the query, and may our filter see `:path`?{ELSEWHERE}"
    assert of(findings, Check.OWNER_QUERY) == [f"error    owner-query   `?owned_by=` does not reach us; {fix}"]


async def test_where_no_model_is_listed_nobody_is_said_to_serve_one(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        away = await stage(stack, tmp_path, hosts(1), hold=False, unready=("vllm-0", "sglang-0"))
        findings = await outside(await away.envoy(chain(away)))

    assert of(findings, Check.SERVED) == [
        "skipped  served        not checked: no model is listed that could be asked for"
    ]


@pytest.mark.parametrize(
    ("check", "what"),
    [
        (Check.BODY_LIMIT, "a body of 256 KiB is a 504, and not ours, one of 128 KiB is"),
        (Check.MODELS, "GET /v1/models is answered with status 504, and not by us"),
    ],
)
async def test_what_envoy_answers_in_our_stead_is_no_limit_and_no_matcher(
    pods: Stage, tmp_path: Path, check: Check, what: str
) -> None:
    """A gateway that gives up where it has waited too long: for a long body here, or for a list."""

    def fault(document: Json) -> None:
        long = {"name": "content-length", "range_match": {"start": 200_000, "end": 1 << 30}}
        listed = {"name": ":path", "string_match": {"prefix": "/v1/models"}}
        late = {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": {"http_status": 504, "percentage": {"numerator": 100}},
            "headers": [long if check is Check.BODY_LIMIT else listed],
        }
        manager(document)["http_filters"].insert(0, {"name": "late", "typed_config": late})

    async with gateway(chain(pods), tmp_path, fault) as envoy:
        findings = await outside(envoy)

    fix = "is our server slow or away? See `failures` and `cluster`"
    assert of(findings, check) == [f"error    {check:<13} {what}; {fix}"]


async def test_a_gateway_that_nobody_is_at_is_a_finding(nobody: int) -> None:
    findings = await visit(Patient(gateway=url(nobody), envoy=url(nobody), admin=url(nobody)))

    assert [each.line for each in findings if each.severity is Severity.ERROR] == [
        "error    gateway       cannot connect: Connection refused; is that its address (http or https?), and is it up?",
        "error    envoy         its admin port: cannot connect: Connection refused; check --envoy",
        "error    server        its admin port: cannot connect: Connection refused; check --admin",
    ]
