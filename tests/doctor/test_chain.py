# SPDX-License-Identifier: Apache-2.0
"""Each fault of a chain in a real Envoy's dump, and the one finding that it must come to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from extproc.demo.bootstrap import Bodies, Plan
from extproc.doctor.chain import examine
from extproc.doctor.dump import parse
from extproc.doctor.findings import Check, Severity, in_order
from extproc.policy.loading import parse_policy
from tests.doctor.patients import (
    BEFORE,
    EPP,
    FILTER_CONFIG,
    PER_ROUTE,
    POOL,
    STRICT,
    Fault,
    Json,
    cluster,
    complaints,
    config,
    dump_of,
    filters,
    found,
    ill,
    manager,
    one,
    route,
    skipped_unless_asked,
)
from tests.envoys import program

pytestmark = pytest.mark.slow

ISTIO = "outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local"
POLICY = b"{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, %b}"
NOBODY = "outbound|9002||owned-by.nobody.svc.cluster.local"


def nothing(_: Json) -> None:
    """No fault."""


def swap(document: Json) -> None:
    """`before` behind the EPP."""
    chain = filters(document)
    chain[0], chain[1] = chain[1], chain[0]


def after_first(document: Json) -> None:
    chain = filters(document)
    chain.insert(0, chain.pop(2))


def without(name: str) -> Fault:
    return lambda document: filters(document).remove(one(document, name))


def rename(document: Json) -> None:
    one(document, "owned-by.before")["name"] = EPP


def set_in(name: str, **fields: object) -> Fault:
    return lambda document: config(document, name).update(fields)


def drop(name: str, field: str) -> Fault:
    return lambda document: config(document, name).pop(field)


def mode(name: str, **fields: str) -> Fault:
    return lambda document: config(document, name)["processing_mode"].update(fields)


def lose(name: str, kind: str, namespace: str) -> Fault:
    return lambda document: config(document, name)["metadata_options"][f"{kind}_namespaces"]["untyped"].remove(
        namespace
    )


def say_less(document: Json) -> None:
    """Neither the attribute nor the pool's name."""
    found = config(document, "owned-by.before")
    found["request_attributes"] = ["xds.route_name"]
    service = found["grpc_service"]
    service["initial_metadata"] = [each for each in service["initial_metadata"] if each["key"] != "x-owned-by-pool"]


def disabled_by_default(document: Json) -> None:
    one(document, "owned-by.before")["disabled"] = True


def disabled_on_the_route(document: Json) -> None:
    route(document)["typed_per_filter_config"] = {"owned-by.before": {"@type": PER_ROUTE, "disabled": True}}


def disabled_on_the_host(document: Json) -> None:
    said = {"owned-by.before": {"@type": FILTER_CONFIG, "disabled": True}}
    manager(document)["route_config"]["virtual_hosts"][0]["typed_per_filter_config"] = said


def epp_inert(document: Json) -> None:
    """As Istio's is where no route says who the EPP is."""
    config(document, EPP)["processing_mode"] = {"request_header_mode": "SKIP", "response_header_mode": "SKIP"}


def epp_erased(document: Json) -> None:
    epp_inert(document)
    filters(document).insert(
        0,
        {
            "name": "envoy.filters.http.cors",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"},
        },
    )
    policy = {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}
    route(document)["typed_per_filter_config"] = {"envoy.filters.http.cors": policy}


def epp_of_nobody(document: Json) -> None:
    config(document, EPP)["grpc_service"]["envoy_grpc"]["cluster_name"] = "dummy"


def server_of_nobody(document: Json) -> None:
    config(document, "owned-by.before")["grpc_service"]["envoy_grpc"]["cluster_name"] = NOBODY


def http1(name: str) -> Fault:
    return lambda document: cluster(document, name).pop("typed_extension_protocol_options")


def deserted(name: str) -> Fault:
    return lambda document: cluster(document, name)["load_assignment"].update(endpoints=[])


def narrow(name: str) -> Fault:
    return lambda document: cluster(document, name).pop("circuit_breakers")


def indifferent(document: Json) -> None:
    """The pool's cluster is of a kind that Istio makes, and balances on its own."""
    del cluster(document, "pool")["load_balancing_policy"]
    cluster(document, "pool")["name"] = ISTIO
    route(document)["route"]["cluster"] = ISTIO


def original_destination(document: Json) -> None:
    pool = cluster(document, "pool")
    del pool["load_balancing_policy"], pool["load_assignment"]
    pool["type"], pool["lb_policy"] = "ORIGINAL_DST", "CLUSTER_PROVIDED"
    pool["original_dst_lb_config"] = {"use_http_header": True, "http_header_name": "x-gateway-destination-endpoint"}


def service_route(document: Json) -> None:
    """The seed's trap: the route names a Service, and there is neither an EPP's filter nor ours."""
    for each in filters(document)[:-1]:
        filters(document).remove(each)
    del cluster(document, "pool")["load_balancing_policy"]


def no_idle_timeout(document: Json) -> None:
    manager(document)["stream_idle_timeout"] = "0s"


def header_disabled(document: Json) -> None:
    one(document, "owned-by.header")["disabled"] = True


def answers_by_default(document: Json) -> None:
    del config(document, "owned-by.before")["processing_mode"]["response_header_mode"]


def no_stream(document: Json) -> None:
    del config(document, "owned-by.before")["allowed_override_modes"][1]


AT = "listener `gateway`"
OURS = f"{AT}, filter `owned-by.before`"
AFTER = f"{AT}, filter `owned-by.after`"
ROUTE = f"{AT}, route 0 of virtual host `pool`"
NO_POOL = (
    "let the HTTPRoute's backendRefs name an InferencePool (group and kind), not a Service; "
    "on Istio, istiod needs ENABLE_GATEWAY_API_INFERENCE_EXTENSION=true"
)
INSTALL = (
    "install the component for this gateway; on Istio its EnvoyFilter must be in the Gateway's namespace, have the context "
    "GATEWAY and select the Gateway's pods"
)

ENABLE = "enable it (component istio-before: owned-by-routes names routes)"
VISIBLE = "check the Service's name and namespace, and that the gateway may see it (exportTo, discoverySelectors)"
H2C = "give the Service's port the appProtocol kubernetes.io/h2c"
READY = "is there a ready pod behind the Service?"
MORE = "raise circuit_breakers max_requests (a DestinationRule's http2MaxRequests)"
ASK = "set it to NONE and allow_mode_override to true"
SPOOFABLE = (
    "`x-gateway-destination-endpoint`, `x-gateway-destination-endpoint-subset`, `x-prefiller-host-port`, "
    "`x-encoder-hosts-ports`, `x-data-parallel-host-port`, `x-kv-cache-source-host-port`, `test-epp-endpoint-selection`"
)
HEADER = Plan(endpoints=POOL, header_port=9002)


def line(severity: str, check: str, where: str, what: str, fix: str) -> str:
    return f"{severity:<8} {check:<13} {where + ': ' if where else ''}{what}; {fix}"


def receive(namespace: str) -> str:
    return f"add `{namespace}` to metadata_options.receiving_namespaces.untyped"


def forward(namespace: str) -> str:
    return f"add `{namespace}` to metadata_options.forwarding_namespaces.untyped"


FAULTS: dict[str, tuple[Plan, Fault, str]] = {
    "the EPP's filter is missing": (
        BEFORE,
        without(EPP),
        line("error", "anchor", AT, f"there is no EPP's filter, `{EPP}`", NO_POOL),
    ),
    "our filter is missing": (
        BEFORE,
        without("owned-by.before"),
        line("error", "filter", AT, "none of its filters is ours", INSTALL),
    ),
    "our filter is called like the EPP's": (
        BEFORE,
        rename,
        line(
            "error",
            "filter",
            AT,
            "`before` is called like the EPP's filter: a route's word for the EPP holds for it, too",
            "call it owned-by.before",
        ),
    ),
    "before stands behind the EPP": (
        BEFORE,
        swap,
        line(
            "error",
            "order",
            OURS,
            f"it stands behind `{EPP}`, where no hint reaches the EPP any more",
            f"INSERT_BEFORE `{EPP}`",
        ),
    ),
    "after stands in front of the EPP": (
        STRICT,
        after_first,
        line(
            "error",
            "order",
            AFTER,
            f"it stands in front of `{EPP}`, where there is no pick to hold to the engine",
            f"INSERT_AFTER `{EPP}`",
        ),
    ),
    "no route enables it": (
        BEFORE,
        disabled_by_default,
        line("error", "routes", ROUTE, "`owned-by.before` is disabled here", ENABLE),
    ),
    "the route disables it": (
        BEFORE,
        disabled_on_the_route,
        line("error", "routes", ROUTE, "`owned-by.before` is disabled here", ENABLE),
    ),
    "the virtual host disables it": (
        BEFORE,
        disabled_on_the_host,
        line("error", "routes", ROUTE, "`owned-by.before` is disabled here", ENABLE),
    ),
    "no route enables header": (
        HEADER,
        header_disabled,
        line(
            "error",
            "routes",
            AT,
            "`owned-by.header` is disabled on every route",
            "enable it on the routes that choose by its headers",
        ),
    ),
    "the EPP is not named": (
        BEFORE,
        epp_inert,
        line(
            "error",
            "epp",
            ROUTE,
            f"nothing says here who the EPP is: `{EPP}` lets every request pass",
            "let the route name an InferencePool",
        ),
    ),
    "CORS has erased the EPP": (
        BEFORE,
        epp_erased,
        line(
            "error",
            "epp",
            ROUTE,
            f"nothing says here who the EPP is: `{EPP}` lets every request pass, "
            "and Istio drops that where a route has `envoy.filters.http.cors`",
            "take CORS and fault injection off this route",
        ),
    ),
    "the EPP's cluster is missing": (
        BEFORE,
        epp_of_nobody,
        line("error", "epp", ROUTE, "Envoy has no cluster `dummy`", VISIBLE),
    ),
    "the EPP's cluster speaks HTTP/1": (
        BEFORE,
        http1("epp"),
        line("error", "epp", ROUTE, "the cluster `epp` does not speak HTTP/2, which gRPC needs", H2C),
    ),
    "the EPP's cluster is empty": (
        BEFORE,
        deserted("epp"),
        line("error", "epp", ROUTE, "the cluster `epp` has no endpoint", READY),
    ),
    "the EPP's cluster is narrow": (
        BEFORE,
        narrow("epp"),
        line("warning", "epp", ROUTE, "the cluster `epp` may have 1024 requests open: more are an instant 500", MORE),
    ),
    "the hint is not forwarded": (
        BEFORE,
        lose(EPP, "forwarding", "envoy.lb.subset_hint"),
        line(
            "error",
            "hint",
            f"{AT}, filter `{EPP}`",
            "it does not forward `envoy.lb.subset_hint`: the EPP never sees our list and picks from the whole pool",
            f"add it to metadata_options.forwarding_namespaces of `{EPP}` (component istio-before)",
        ),
    ),
    "the hint is not received": (
        BEFORE,
        lose("owned-by.before", "receiving", "envoy.lb.subset_hint"),
        line(
            "error",
            "metadata",
            OURS,
            "it does not receive `envoy.lb.subset_hint`: our list of endpoints is dropped",
            receive("envoy.lb.subset_hint"),
        ),
    ),
    "the guard is not received": (
        BEFORE,
        lose("owned-by.before", "receiving", "envoy.lb"),
        line("warning", "metadata", OURS, "it does not receive `envoy.lb`: the guard is dropped", receive("envoy.lb")),
    ),
    "our own metadata is not received": (
        BEFORE,
        lose("owned-by.before", "receiving", "owned_by"),
        line(
            "warning",
            "metadata",
            OURS,
            "it does not receive `owned_by`: access logs and `after` do not see our decision",
            receive("owned_by"),
        ),
    ),
    "the correction is not received": (
        STRICT,
        lose("owned-by.after", "receiving", "envoy.lb"),
        line(
            "error",
            "metadata",
            AFTER,
            "it does not receive `envoy.lb`: the pick that we correct is dropped",
            receive("envoy.lb"),
        ),
    ),
    "the pick is not forwarded": (
        STRICT,
        lose("owned-by.after", "forwarding", "envoy.lb"),
        line(
            "error",
            "metadata",
            AFTER,
            "it does not forward `envoy.lb`: we never see the EPP's pick",
            forward("envoy.lb"),
        ),
    ),
    "after does not see what before found": (
        STRICT,
        lose("owned-by.after", "forwarding", "owned_by"),
        line(
            "warning",
            "metadata",
            AFTER,
            "it does not forward `owned_by`: we do not know what `before` found in the body",
            forward("owned_by"),
        ),
    ),
    "the pick of ours is not received": (
        Plan(endpoints=POOL, picker_port=9002, picker_bodies=Bodies.DUPLEX),
        lose(EPP, "receiving", "envoy.lb"),
        line(
            "error",
            "metadata",
            f"{AT}, filter `{EPP}`",
            "it does not receive `envoy.lb`: our pick is dropped",
            receive("envoy.lb"),
        ),
    ),
    "requests are not sent": (
        BEFORE,
        mode("owned-by.before", request_header_mode="SKIP"),
        line("error", "modes", OURS, "request_header_mode is SKIP: we see no request", "set it to SEND"),
    ),
    "answers are sent": (
        BEFORE,
        mode("owned-by.before", response_header_mode="SEND"),
        line(
            "warning", "modes", OURS, "response_header_mode is not SKIP: every answer passes us, too", "set it to SKIP"
        ),
    ),
    "answers are sent by default": (
        BEFORE,
        answers_by_default,
        line(
            "warning", "modes", OURS, "response_header_mode is not SKIP: every answer passes us, too", "set it to SKIP"
        ),
    ),
    "bodies of answers are sent": (
        BEFORE,
        mode("owned-by.before", response_body_mode="STREAMED"),
        line(
            "error", "modes", OURS, "response_body_mode is STREAMED: every answer would pass Python", "set it to NONE"
        ),
    ),
    "bodies are buffered": (
        BEFORE,
        mode("owned-by.before", request_body_mode="BUFFERED"),
        line(
            "warning", "modes", OURS, "request_body_mode is BUFFERED: a body longer than Envoy's buffer is a 413", ASK
        ),
    ),
    "bodies are streamed": (
        BEFORE,
        mode("owned-by.before", request_body_mode="STREAMED"),
        line(
            "error",
            "modes",
            OURS,
            "request_body_mode is STREAMED, which we do not speak: every request with a body fails",
            ASK,
        ),
    ),
    "the body cannot be asked for": (
        BEFORE,
        drop("owned-by.before", "allow_mode_override"),
        line(
            "error",
            "modes",
            OURS,
            "allow_mode_override is not set: an owner or a model in the body is never seen",
            "set it to true",
        ),
    ),
    "the body does not wait": (
        BEFORE,
        set_in("owned-by.before", send_body_without_waiting_for_header_response=True),
        line(
            "error",
            "modes",
            OURS,
            "send_body_without_waiting_for_header_response is on: we cannot ask for the body",
            "take it off",
        ),
    ),
    "the allowed modes are too narrow": (
        BEFORE,
        set_in("owned-by.before", allowed_override_modes=[{"request_body_mode": "BUFFERED_PARTIAL"}]),
        line(
            "error",
            "modes",
            OURS,
            "allowed_override_modes has no entry for what we ask for, and the body is never seen",
            "add {response_header_mode: SKIP, request_body_mode: BUFFERED_PARTIAL}",
        ),
    ),
    "the allowed modes have no stream": (
        Plan(endpoints=POOL, before_port=9002, picker_port=9003, bodies=Bodies.STREAM),
        no_stream,
        line(
            "error",
            "modes",
            OURS,
            "allowed_override_modes has no entry for what we ask for, and the body is never seen",
            "add {response_header_mode: SKIP, request_trailer_mode: SEND, request_body_mode: FULL_DUPLEX_STREAMED}",
        ),
    ),
    "it only observes": (
        BEFORE,
        set_in("owned-by.before", observability_mode=True),
        line("error", "modes", OURS, "observability_mode is on: our answers are ignored", "take it off"),
    ),
    "it may not refuse": (
        BEFORE,
        set_in("owned-by.before", disable_immediate_response=True),
        line("error", "modes", OURS, "disable_immediate_response is on: our refusals become a 500", "take it off"),
    ),
    "the owner's header is kept from us": (
        BEFORE,
        set_in(
            "owned-by.before",
            forward_rules={"allowed_headers": {"patterns": [{"prefix": ":"}, {"exact": "content-type"}]}},
        ),
        line(
            "error",
            "headers",
            OURS,
            "forward_rules keep from us: `x-owned-by`",
            "add them to forward_rules.allowed_headers",
        ),
    ),
    "the owner's header is named as one to be kept": (
        BEFORE,
        set_in(
            "owned-by.before",
            forward_rules={"disallowed_headers": {"patterns": [{"safe_regex": {"regex": "x-owned.*"}}]}},
        ),
        line(
            "error",
            "headers",
            OURS,
            "forward_rules keep from us: `x-owned-by`",
            "add them to forward_rules.allowed_headers",
        ),
    ),
    "client headers cannot be removed": (
        BEFORE,
        set_in(
            "owned-by.before",
            mutation_rules={
                "disallow_all": True,
                "allow_expression": {"regex": "x-owned-by.*|retry-after|content-type"},
            },
        ),
        line(
            "error",
            "headers",
            OURS,
            f"mutation_rules do not let us set or remove: {SPOOFABLE}",
            "widen mutation_rules.allow_expression",
        ),
    ),
    "our answers lose their headers": (
        BEFORE,
        set_in("owned-by.before", mutation_rules={"disallow_expression": {"regex": "content-type|retry-after"}}),
        line(
            "error",
            "headers",
            OURS,
            "mutation_rules do not let us set or remove: `content-type`, `retry-after`",
            "widen mutation_rules.allow_expression",
        ),
    ),
    "the route is not chosen anew": (
        HEADER,
        set_in("owned-by.header", route_cache_action="RETAIN"),
        line(
            "error",
            "headers",
            f"{AT}, filter `owned-by.header`",
            "route_cache_action is RETAIN: the route is not chosen by our headers",
            "set it to DEFAULT",
        ),
    ),
    "the pool is not told": (
        BEFORE,
        say_less,
        line(
            "warning",
            "pool",
            OURS,
            "request_attributes lack `xds.cluster_name` and `x-owned-by-pool` is not said: "
            "with several pools we cannot tell which",
            "add `xds.cluster_name` to request_attributes",
        ),
    ),
    "it fails open": (
        BEFORE,
        set_in("owned-by.before", failure_mode_allow=True),
        line(
            "warning",
            "failures",
            OURS,
            "failure_mode_allow is on: while our server is away, requests go to any engine",
            "take it off (component fail-open) unless that is wanted",
        ),
    ),
    "there is little time": (
        BEFORE,
        drop("owned-by.before", "message_timeout"),
        line(
            "warning",
            "failures",
            OURS,
            "message_timeout is 200 ms: a pause of our server is a 504",
            "set it to 0.5s or more",
        ),
    ),
    "retries leave the engine": (
        replace(BEFORE, retries=2),
        nothing,
        line(
            "warning",
            "failures",
            ROUTE,
            "its retries (2) may reach any engine: the EPP's pick has replaced our list by then",
            "add `after` (component istio-strict) or take retries off",
        ),
    ),
    "there are more retries than destinations": (
        replace(STRICT, retries=3),
        nothing,
        line(
            "warning",
            "failures",
            ROUTE,
            "it has 3 retries, our list has 3 entries by default: later ones reach any engine",
            "let the policy say `destinations: 4`",
        ),
    ),
    "nothing bounds a stream": (
        BEFORE,
        no_idle_timeout,
        line(
            "warning",
            "failures",
            AT,
            "stream_idle_timeout is 0: a processor that does not answer holds a request for ever",
            "set it, to 300s for example",
        ),
    ),
    "our server's cluster is missing": (
        BEFORE,
        server_of_nobody,
        line("error", "cluster", OURS, f"Envoy has no cluster `{NOBODY}`", VISIBLE),
    ),
    "our server's cluster speaks HTTP/1": (
        BEFORE,
        http1("owned_by"),
        line("error", "cluster", OURS, "the cluster `owned_by` does not speak HTTP/2, which gRPC needs", H2C),
    ),
    "our server's cluster is empty": (
        BEFORE,
        deserted("owned_by"),
        line("error", "cluster", OURS, "the cluster `owned_by` has no endpoint", READY),
    ),
    "our server's cluster is narrow": (
        BEFORE,
        narrow("owned_by"),
        line(
            "warning",
            "cluster",
            OURS,
            "the cluster `owned_by` may have 1024 requests open: more are an instant 500",
            MORE,
        ),
    ),
    "the destination is not obeyed": (
        BEFORE,
        indifferent,
        line(
            "error",
            "destination",
            ROUTE,
            f"the cluster `{ISTIO}` does not look at `envoy.lb`, `x-gateway-destination-endpoint`",
            "let the route name an InferencePool, or add override_host",
        ),
    ),
    "the destination is one address": (
        STRICT,
        original_destination,
        line(
            "warning",
            "destination",
            ROUTE,
            "the cluster `pool` takes one address: a list of more is a 503",
            "let the policy say `destinations: 1`",
        ),
    ),
    "the buffer is small": (
        replace(BEFORE, buffer_limit=32_768),
        nothing,
        line(
            "error",
            "body-limit",
            AT,
            "Envoy holds 32768 bytes of a body: an owner that stands behind them is not seen",
            "raise per_connection_buffer_limit_bytes (Envoy Gateway: bufferLimit of a ClientTrafficPolicy)",
        ),
    ),
}


@pytest.mark.parametrize(("plan", "fault", "expected"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_is_named_and_nothing_else(plan: Plan, fault: Fault, expected: str, tmp_path: Path) -> None:
    assert complaints(await found(ill(plan, fault), tmp_path)) == [expected]


async def test_where_the_servers_policy_is_known_it_counts_and_not_the_default_one(tmp_path: Path) -> None:
    dump = parse(await dump_of(ill(replace(STRICT, retries=4), nothing), tmp_path))
    enough, few = [parse_policy(POLICY % (b"destinations: %d" % count)) for count in (5, 4)]

    assert complaints(in_order(examine(dump, enough))) == []
    assert complaints(in_order(examine(dump, few))) == [
        line(
            "warning",
            "failures",
            ROUTE,
            "it has 4 retries, our list has 4 entries: later ones reach any engine",
            "let the policy say `destinations: 5`",
        )
    ]


async def test_header_must_be_let_write_under_the_names_of_the_policy(tmp_path: Path) -> None:
    dump = parse(await dump_of(ill(HEADER, nothing), tmp_path))
    promoting = parse_policy(POLICY % b"promote: {header: x-engine, model: x-model}")

    assert complaints(in_order(examine(dump, promoting))) == [
        line(
            "error",
            "headers",
            f"{AT}, filter `owned-by.header`",
            "mutation_rules do not let us set or remove: `x-engine`, `x-model`",
            "widen mutation_rules.allow_expression",
        )
    ]


async def test_a_filter_behind_a_matcher_is_read_and_what_is_lost_is_said(tmp_path: Path) -> None:
    what = "`owned-by.before` is skipped for some requests by a matcher: what they name in the body is not seen"

    assert complaints(await found(ill(BEFORE, skipped_unless_asked), tmp_path)) == [
        f"warning  routes        {AT}: {what}"
    ]


def wide_route(document: Json) -> None:
    route(document)["request_body_buffer_limit"] = 1 << 20


async def test_a_route_may_have_a_larger_buffer_than_its_listener(tmp_path: Path) -> None:
    assert complaints(await found(ill(replace(BEFORE, buffer_limit=32_768), wide_route), tmp_path)) == []


async def test_a_route_to_a_service_leaves_neither_anchor_nor_filter(tmp_path: Path) -> None:
    anchor, ours = complaints(await found(ill(BEFORE, service_route), tmp_path))

    assert anchor == line("error", "anchor", "", f"no listener has the EPP's filter, `{EPP}`", NO_POOL)
    assert ours == line(
        "error", "filter", "", "no listener has a filter of ours", f"is it that gateway's Envoy? Then {INSTALL}"
    )


async def test_without_clusters_no_route_is_said_to_lead_to_no_pool(tmp_path: Path) -> None:
    dump = json.loads(await dump_of(ill(BEFORE, nothing), tmp_path))
    dump["configs"] = [each for each in dump["configs"] if not each["@type"].endswith("ClustersConfigDump")]
    findings = in_order(examine(parse(json.dumps(dump).encode())))

    why = "not checked: the dump has no clusters; take a whole one, as /config_dump answers"
    assert complaints(findings) == [f"skipped  routes        {why}", f"skipped  cluster       {why}"]


WHOLE = {
    "header": HEADER,
    "picker": Plan(endpoints=POOL, picker_port=9002, picker_bodies=Bodies.DUPLEX),
    "bodies as a stream": replace(BEFORE, bodies=Bodies.STREAM),
    "bodies in duplex": replace(BEFORE, bodies=Bodies.DUPLEX),
    "no pool named": replace(STRICT, pool=None),
    "header before before": replace(STRICT, header_port=9005),
}


@pytest.mark.parametrize("plan", WHOLE.values(), ids=WHOLE)
async def test_no_other_attachment_is_complained_of(plan: Plan, tmp_path: Path) -> None:
    assert complaints(await found(ill(plan, nothing), tmp_path)) == []


@pytest.mark.parametrize("plan", [STRICT, BEFORE], ids=["strict", "before"])
async def test_a_healthy_chain_has_nothing_to_complain_of(plan: Plan, tmp_path: Path) -> None:
    findings = await found(ill(plan, nothing), tmp_path)

    assert complaints(findings) == []
    assert [each.check for each in findings] == list(Check)[1:15]
    assert {each.severity for each in findings} == {Severity.OK}


async def test_an_old_envoy_must_not_have_after(tmp_path: Path) -> None:
    said = complaints(await found(ill(STRICT, nothing), tmp_path, program("1.37.0")))

    what = "Envoy 1.37.0 may cut bodies where two processors follow each other"
    assert said == [line("error", "envoy", AFTER, what, "use `before` alone, or an Envoy of 1.38 or newer")]


async def test_an_old_envoy_does_not_grant_bodies_as_a_stream(tmp_path: Path) -> None:
    said = complaints(await found(ill(replace(BEFORE, bodies=Bodies.STREAM), nothing), tmp_path, program("1.38.3")))

    what = "Envoy 1.38.3 does not grant what `x-owned-by-body: stream` asks for"
    assert said == [line("error", "envoy", OURS, what, "leave `x-owned-by-body` out")]
