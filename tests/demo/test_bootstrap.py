# SPDX-License-Identifier: Apache-2.0
"""The generated Envoy configuration, checked by the real Envoy."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.bootstrap import MUTABLE, Bodies, Plan, Route, bootstrap
from extproc.demo.client import send
from extproc.demo.engines import Engines, Simulated
from extproc.demo.envoy import Envoy, EnvoyError, validate
from extproc.envoy import names

POOL = (("127.0.0.1", 8001), ("127.0.0.1", 8002))
OTHER = (("127.0.0.1", 8003),)
ISTIO = "outbound|54321||chat-ip-1a2b3c4d.default.svc.cluster.local"
ALL = {"header_port": 9002, "before_port": 9003, "picker_port": 9004, "after_port": 9005}
FILTERS = {
    "header": "owned-by.header",
    "before": "owned-by.before",
    "picker": "envoy.filters.http.ext_proc",
    "after": "owned-by.after",
}
ROUTER = "envoy.filters.http.router"

PLANS = {
    "no processor": Plan(endpoints=POOL),
    "before": Plan(endpoints=POOL, before_port=9002),
    "picker": Plan(endpoints=POOL, picker_port=9002, forward_hint=False),
    "both": Plan(endpoints=POOL, before_port=9002, picker_port=9003),
    "all": Plan(endpoints=POOL, **ALL),
    **{
        f"{attachment} {bodies}": Plan(
            endpoints=POOL, bodies=bodies, picker_bodies=bodies, **{f"{attachment}_port": 9002}
        )
        for attachment in FILTERS
        for bodies in Bodies
    },
    **{
        f"picker {bodies}, response headers": Plan(
            endpoints=POOL, picker_port=9002, picker_bodies=bodies, picker_response_headers=True
        )
        for bodies in Bodies
    },
    "an EPP without endpoints": Plan(
        endpoints=POOL, before_port=9002, picker_empty=True, picker_failure_mode_allow=True
    ),
    "routes": Plan(endpoints=POOL, routes=(Route(ISTIO, OTHER, "/v1", (("x-owned-by", "vllm"),)), Route(ISTIO, OTHER))),
    "no pool named": Plan(endpoints=POOL, pool=None, **ALL),
    "TLS": Plan(endpoints=POOL, before_port=9002, picker_port=9003, picker_bodies=Bodies.DUPLEX, secure=True),
    "TLS before an EPP": Plan(endpoints=POOL, before_port=9002, picker_port=9003, secure=True),
    "served reported": Plan(endpoints=POOL, report_served=True),
    "everything": Plan(
        endpoints=(*POOL, ("::1", 8003)),
        **ALL,
        routes=(Route(ISTIO, (("::1", 8004),), "/v1", (("x-owned-by", "vllm"), ("x-gateway-model-name", "m"))),),
        pool="other/pool",
        bodies=Bodies.DUPLEX,
        picker_bodies=Bodies.STREAM,
        picker_response_headers=True,
        report_served=True,
        before_failure_mode_allow=True,
        picker_failure_mode_allow=True,
        message_timeout="0.5s",
        buffer_limit=32_768,
        retries=2,
        access_log="/dev/null",
        collector_port=4318,
    ),
}


def manager(document: dict[str, Any]) -> dict[str, Any]:
    (listener,) = document["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def filters(document: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry["typed_config"] for entry in manager(document)["http_filters"]}


def ours(attachment: str, bodies: Bodies = Bodies.PARTIAL, **more: Any) -> dict[str, Any]:
    plan = Plan(endpoints=POOL, bodies=bodies, picker_bodies=bodies, **{f"{attachment}_port": 9002}, **more)
    return filters(bootstrap(plan))[FILTERS[attachment]]


def said(config: dict[str, Any]) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in config["grpc_service"]["initial_metadata"]}


def clusters(document: dict[str, Any]) -> dict[str, list[tuple[str, int]]]:
    found = {}
    for cluster in document["static_resources"]["clusters"]:
        (group,) = cluster["load_assignment"]["endpoints"]
        members = [member["endpoint"]["address"]["socket_address"] for member in group["lb_endpoints"]]
        found[cluster["name"]] = [(member["address"], member["port_value"]) for member in members]
    return found


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
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

    assert list(filters(document)) == ["owned-by.before", ROUTER]
    assert clusters(document) == {"pool": [*POOL], "owned_by": [("127.0.0.1", 9002)]}


def test_the_chain_is_header_before_picker_after_each_with_its_own_cluster_and_statistics() -> None:
    document = bootstrap(Plan(endpoints=POOL, **ALL))

    chain = {name: config.get("stat_prefix") for name, config in filters(document).items()}
    assert list(chain.items()) == [
        ("owned-by.header", "owned_by_header"),
        ("owned-by.before", "owned_by"),
        ("envoy.filters.http.ext_proc", "epp"),
        ("owned-by.after", "owned_by_after"),
        (ROUTER, None),
    ]
    assert clusters(document) == {
        "pool": [*POOL],
        "owned_by_header": [("127.0.0.1", 9002)],
        "owned_by": [("127.0.0.1", 9003)],
        "epp": [("127.0.0.1", 9004)],
        "owned_by_after": [("127.0.0.1", 9005)],
    }


def test_envoy_traces_only_if_the_plan_has_a_collector() -> None:
    document = bootstrap(Plan(endpoints=POOL, collector_port=4318))

    assert clusters(document) == {"pool": [*POOL], "collector": [("127.0.0.1", 4318)]}
    assert manager(document)["tracing"]["provider"]["typed_config"]["http_service"]["http_uri"] == {
        "uri": "http://127.0.0.1:4318/v1/traces",
        "cluster": "collector",
        "timeout": "1s",
    }
    assert "tracing" not in manager(bootstrap(Plan(endpoints=POOL)))


def sockets(document: dict[str, Any]) -> dict[str, Any]:
    """The transport of each cluster that has one of its own."""
    found = document["static_resources"]["clusters"]
    return {each["name"]: each["transport_socket"] for each in found if "transport_socket" in each}


def test_our_servers_are_dialled_by_tls_if_the_plan_says_so_and_an_epp_is_not() -> None:
    plain, unverified = (bootstrap(Plan(endpoints=POOL, secure=secure, **ALL)) for secure in (False, True))
    verified = bootstrap(Plan(endpoints=POOL, before_port=9002, secure=True, ca_file="ca.crt"))
    context = sockets(verified)["owned_by"]["typed_config"]

    assert (sockets(plain), [*sockets(unverified)]) == ({}, ["owned_by_header", "owned_by", "owned_by_after"])
    assert context["common_tls_context"]["alpn_protocols"] == ["h2"]
    assert context["common_tls_context"]["validation_context"] == {
        "trusted_ca": {"filename": "ca.crt"},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "owned-by"}}],
    }


@pytest.mark.parametrize("port", [None, 9002])
def test_an_empty_picker_has_its_filter_and_a_cluster_without_endpoints(port: int | None) -> None:
    document = bootstrap(Plan(endpoints=POOL, picker_port=port, picker_empty=True))

    assert list(filters(document)) == ["envoy.filters.http.ext_proc", ROUTER]
    assert clusters(document) == {"pool": [*POOL], "epp": []}


@pytest.mark.parametrize(
    ("forward_hint", "namespaces"), [(True, ["envoy.lb", "envoy.lb.subset_hint"]), (False, ["envoy.lb"])]
)
def test_the_hint_reaches_the_picker_only_if_the_plan_says_so(forward_hint: bool, namespaces: list[str]) -> None:  # noqa: FBT001
    epp = filters(bootstrap(Plan(endpoints=POOL, picker_port=9002, forward_hint=forward_hint)))

    assert epp["envoy.filters.http.ext_proc"]["metadata_options"] == {
        "forwarding_namespaces": {"untyped": namespaces},
        "receiving_namespaces": {"untyped": ["envoy.lb"]},
    }
    assert ours("picker", forward_hint=forward_hint)["metadata_options"] == {
        "forwarding_namespaces": {"untyped": namespaces},
        "receiving_namespaces": {"untyped": ["envoy.lb", "owned_by"]},
    }


@pytest.mark.parametrize(
    ("attachment", "seen", "written"),
    [
        ("header", [], ["owned_by"]),
        ("before", [], ["envoy.lb.subset_hint", "envoy.lb", "owned_by"]),
        ("after", ["envoy.lb", "envoy.lb.subset_hint", "owned_by"], ["envoy.lb", "owned_by"]),
    ],
)
def test_each_attachment_sees_and_writes_the_metadata_that_it_needs(
    attachment: str, seen: list[str], written: list[str]
) -> None:
    assert ours(attachment)["metadata_options"] == {
        "forwarding_namespaces": {"untyped": seen},
        "receiving_namespaces": {"untyped": written},
    }


@pytest.mark.parametrize("attachment", FILTERS)
def test_a_filter_of_ours_says_what_it_is_and_for_which_pool(attachment: str) -> None:
    assert said(ours(attachment, pool="ns/p")) == {"x-owned-by-attachment": attachment, "x-owned-by-pool": "ns/p"}
    assert said(ours(attachment, pool=None)) == {"x-owned-by-attachment": attachment}


def test_the_epp_is_told_nothing_of_ours_and_gets_everything_in_both_directions() -> None:
    epp = filters(bootstrap(Plan(endpoints=POOL, picker_port=9002)))["envoy.filters.http.ext_proc"]

    assert epp["grpc_service"] == {"envoy_grpc": {"cluster_name": "epp"}, "timeout": "10s"}
    assert epp["processing_mode"] == {
        "request_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_header_mode": "SEND",
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
    }


@pytest.mark.parametrize("attachment", FILTERS)
def test_a_body_is_not_sent_until_we_ask_for_it_in_one_of_two_ways(attachment: str) -> None:
    config = ours(attachment, Bodies.PARTIAL)

    assert config["processing_mode"] == {
        "request_header_mode": "SEND",
        "request_body_mode": "NONE",
        "response_header_mode": "SKIP",
        "response_body_mode": "NONE",
    }
    assert config["allow_mode_override"] is True
    assert config["allowed_override_modes"] == [
        {"request_body_mode": "BUFFERED_PARTIAL", "response_header_mode": "SKIP"},
        {
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_header_mode": "SKIP",
        },
    ]


@pytest.mark.parametrize("attachment", FILTERS)
def test_streaming_on_demand_is_the_same_configuration_that_tells_us_so(attachment: str) -> None:
    partial, stream = ours(attachment, Bodies.PARTIAL), ours(attachment, Bodies.STREAM)

    assert said(stream) == {**said(partial), "x-owned-by-body": "stream"}
    assert {**stream, "grpc_service": None} == {**partial, "grpc_service": None}


@pytest.mark.parametrize("attachment", FILTERS)
def test_a_duplex_filter_streams_every_request_body_and_leaves_us_no_choice(attachment: str) -> None:
    config = ours(attachment, Bodies.DUPLEX)

    assert config["processing_mode"] == {
        "request_header_mode": "SEND",
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
        "response_header_mode": "SKIP",
        "response_body_mode": "NONE",
    }
    assert {"allow_mode_override", "allowed_override_modes"} & config.keys() == set()
    assert said(config) == said(ours(attachment, Bodies.PARTIAL))


@pytest.mark.parametrize("bodies", Bodies)
def test_our_picker_sees_response_headers_and_never_a_response_body_if_the_plan_says_so(bodies: Bodies) -> None:
    plain, seeing = ours("picker", bodies), ours("picker", bodies, picker_response_headers=True)

    assert seeing["processing_mode"] == {**plain["processing_mode"], "response_header_mode": "SEND"}
    assert seeing.get("allowed_override_modes") == (
        None
        if bodies is Bodies.DUPLEX
        else [{**mode, "response_header_mode": "SEND"} for mode in plain["allowed_override_modes"]]
    )


def test_each_failure_mode_is_that_of_its_own_filter() -> None:
    def lenient(**modes: bool) -> list[str]:
        found = filters(bootstrap(Plan(endpoints=POOL, **ALL, **modes)))
        return [name for name, config in found.items() if config.get("failure_mode_allow")]

    assert lenient() == []
    assert lenient(before_failure_mode_allow=True) == ["owned-by.before"]
    assert lenient(picker_failure_mode_allow=True) == ["envoy.filters.http.ext_proc"]


def test_we_may_change_every_header_that_we_change_and_no_other() -> None:
    set_by_us = [names.REASON, "x-owned-by", "x-gateway-model-name", "content-type", "content-length", "retry-after"]

    assert [name for name in (*names.SPOOFABLE, *set_by_us) if not re.fullmatch(MUTABLE, name)] == []
    assert [n for n in ("authorization", "host", ":path", "x-request-id", "cookie") if re.fullmatch(MUTABLE, n)] == []


@pytest.mark.parametrize("attachment", FILTERS)
def test_every_attachment_of_ours_is_under_the_same_rules(attachment: str) -> None:
    config = ours(attachment)

    assert config["mutation_rules"] == {"disallow_all": True, "allow_expression": {"regex": MUTABLE}}
    assert config["forward_rules"] == ours("before")["forward_rules"]
    assert config["request_attributes"] == ["xds.route_name", "xds.cluster_name"]


@pytest.mark.parametrize("attachment", FILTERS)
def test_a_route_is_chosen_again_if_our_answer_says_so(attachment: str) -> None:
    assert ours(attachment).get("route_cache_action", "DEFAULT") == "DEFAULT"


def test_every_filter_of_ours_is_shown_the_headers_that_it_reads() -> None:
    patterns = ours("after")["forward_rules"]["allowed_headers"]["patterns"]

    read = {*names.SPOOFABLE, ":method", ":path", "content-type", "content-length", "x-owned-by", names.REQUEST_ID}
    assert read - {pattern["exact"] for pattern in patterns} == set()


def test_routes_are_tried_in_their_order_before_the_plans_own() -> None:
    chosen = Route(ISTIO, OTHER, "/v1", (("x-owned-by", "vllm"), ("x-gateway-model-name", "m")))
    document = bootstrap(Plan(endpoints=POOL, routes=(chosen, Route("b", OTHER)), retries=1))

    (host,) = manager(document)["route_config"]["virtual_hosts"]
    headers = [
        {"name": "x-owned-by", "string_match": {"exact": "vllm"}},
        {"name": "x-gateway-model-name", "string_match": {"exact": "m"}},
    ]
    retried = {"timeout": "300s", "retry_policy": {"retry_on": "reset,connect-failure", "num_retries": 1}}
    assert host["routes"] == [
        {"match": {"prefix": "/v1", "headers": headers}, "route": {"cluster": ISTIO, **retried}},
        {"match": {"prefix": "/", "headers": []}, "route": {"cluster": "b", **retried}},
        {"match": {"prefix": "/", "headers": []}, "route": {"cluster": "pool", **retried}},
    ]


def test_every_pool_is_a_cluster_that_the_destination_is_looked_up_in() -> None:
    document = bootstrap(Plan(endpoints=POOL, routes=(Route(ISTIO, OTHER),)))

    pool, other = document["static_resources"]["clusters"]
    assert clusters(document) == {"pool": [*POOL], ISTIO: [*OTHER]}
    assert other["load_balancing_policy"] == pool["load_balancing_policy"]


def test_routes_to_one_cluster_share_it_and_must_agree_about_its_endpoints() -> None:
    routes = (Route(ISTIO, OTHER, "/v1"), Route(ISTIO, OTHER), Route("pool", POOL, "/v2"))

    assert clusters(bootstrap(Plan(endpoints=POOL, routes=routes))) == {"pool": [*POOL], ISTIO: [*OTHER]}
    for disagreeing in (Route(ISTIO, POOL), Route("pool", OTHER)):
        with pytest.raises(ValueError, match=re.escape(f"the cluster `{disagreeing.cluster}` has two lists")):
            bootstrap(Plan(endpoints=POOL, routes=(*routes, disagreeing)))


@pytest.mark.parametrize("report_served", [True, False])
def test_the_endpoint_that_served_is_reported_only_if_the_plan_says_so(report_served: bool) -> None:  # noqa: FBT001
    document = bootstrap(Plan(endpoints=POOL, routes=(Route(ISTIO, OTHER),), report_served=report_served))

    served = {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint-served"}]}
    for cluster in document["static_resources"]["clusters"]:
        (policy,) = cluster["load_balancing_policy"]["policies"]
        override = policy["typed_extension_config"]["typed_config"]
        assert override.get("selected_host_key") == (served if report_served else None)


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


async def test_envoy_sends_a_request_whose_headers_match_to_the_routes_own_cluster(tmp_path: Path) -> None:
    async with Engines([Simulated("a", "vllm", "m"), Simulated("b", "sglang", "m")]) as engines:
        one, other = ((("127.0.0.1", engine.port),) for engine in engines.endpoints)
        plan = Plan(endpoints=one, routes=(Route(ISTIO, other, "/v1", (("x-owned-by", "sglang"),)),))
        async with Envoy(bootstrap(plan), tmp_path) as envoy:
            served = [
                (await send(envoy.port, "GET", "/v1/models", headers)).headers["x-served-by"]
                for headers in ({"x-owned-by": "sglang"}, {"x-owned-by": "vllm"}, {})
            ]

    assert served == ["b", "a", "a"]


@pytest.mark.parametrize("lenient", [True, False])
async def test_without_an_endpoint_the_epps_place_fails_as_the_plan_says(lenient: bool, tmp_path: Path) -> None:  # noqa: FBT001
    async with Engines([Simulated("a", "vllm", "m")]) as engines:
        pool = (("127.0.0.1", engines.endpoints[0].port),)
        plan = Plan(endpoints=pool, picker_empty=True, picker_failure_mode_allow=lenient)
        async with Envoy(bootstrap(plan), tmp_path) as envoy:
            answer = await send(envoy.port, "GET", "/v1/models")

    assert answer.status == (200 if lenient else 500)
