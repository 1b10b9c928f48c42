# SPDX-License-Identifier: Apache-2.0
"""What is read of a dump, and what is said of what is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.doctor.chain import examine
from extproc.doctor.dump import DumpError, Processor, Role, parse
from extproc.doctor.findings import Check
from extproc.envoy.binding import Attachment

LISTENERS = {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump"}
ROUTES = {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump"}
CLUSTERS = {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump"}
WORDS = (
    "static_listeners",
    "dynamic_listeners",
    "listener",
    "active_state",
    "filter_chains",
    "filters",
    "typed_config",
)
WORDS += ("@type", "http_filters", "route_config", "virtual_hosts", "routes", "route", "cluster", "weighted_clusters")
WORDS += ("clusters", "name", "typed_per_filter_config", "overrides", "grpc_service", "processing_mode", "disabled")
WORDS += (
    "static_clusters",
    "load_assignment",
    "endpoints",
    "circuit_breakers",
    "retry_policy",
    "num_retries",
    "untyped",
)
SAID = ("request_attributes", "metadata_options", "forwarding_namespaces", "receiving_namespaces", "untyped", "config")
SAID += (
    "allow_mode_override",
    "allowed_override_modes",
    "forward_rules",
    "allowed_headers",
    "patterns",
    "exact",
    "prefix",
)
SAID += ("safe_regex", "regex", "mutation_rules", "allow_expression", "disallow_all", "message_timeout", "grpc_service")
SAID += (
    "envoy_grpc",
    "cluster_name",
    "initial_metadata",
    "key",
    "value",
    "processing_mode",
    "request_body_mode",
    "disabled",
)
SAID += ("response_header_mode", "failure_mode_allow", "overrides", "grpc_initial_metadata")
TYPES = ("x.HttpConnectionManager", "x.ext_proc.v3.ExternalProcessor", "x.TypedStruct", "x.ExtensionWithMatcher")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([*TYPES, "owned-by.before"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=30,
)


FIELDS = st.dictionaries(
    st.sampled_from(SAID),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["(", "0s", "STREAMED"]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(SAID), inner, max_size=4),
        max_leaves=15,
    ),
    max_size=6,
)


def dump(*parts: object) -> bytes:
    return json.dumps({"configs": parts}).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is not JSON: Input data was truncated"),
        (b"<html>", "it is not JSON: JSON is malformed: invalid character (byte 0)"),
        (b"[]", "it is no config dump of Envoy's: it has no list `configs`"),
        (b'{"configs": {}}', "it is no config dump of Envoy's: it has no list `configs`"),
        (dump(CLUSTERS), "the dump has no listeners: it must be a whole one, as /config_dump answers"),
    ],
)
def test_what_is_no_dump_is_refused_with_a_reason(text: bytes, message: str) -> None:
    with pytest.raises(DumpError) as raised:
        parse(text)

    assert str(raised.value) == message


def test_an_envoy_that_has_nothing_to_do_with_inference_has_neither_anchor_nor_filter() -> None:
    findings = examine(parse(dump(LISTENERS, ROUTES, CLUSTERS)))

    assert [each.check for each in findings] == [Check.ENVOY, Check.ANCHOR, Check.FILTER]


@given(VALUES, VALUES, VALUES)
def test_whatever_stands_in_a_dump_is_read_or_left_out(listeners: object, routes: object, clusters: object) -> None:
    part = {"static_listeners": [listeners], "dynamic_listeners": listeners}
    text = dump(
        LISTENERS | part,
        ROUTES | {"static_route_configs": [routes]},
        CLUSTERS | {"static_clusters": [clusters], "dynamic_active_clusters": clusters},
    )

    assert {each.check for each in examine(parse(text))} >= {Check.ENVOY}


@given(FIELDS, FIELDS, FIELDS)
def test_whatever_a_chain_says_is_read_or_left_out(
    first: dict[str, object], second: dict[str, object], said: object
) -> None:
    filters = [
        {
            "name": name,
            "typed_config": {"@type": "x.ext_proc.v3.ExternalProcessor"} | each,
        }
        for name, each in (("owned-by.before", first), ("envoy.filters.http.ext_proc", second))
    ]
    route = {"route": {"cluster": "outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local"}}
    route["typed_per_filter_config"] = {"envoy.filters.http.ext_proc": {"overrides": said}, "owned-by.before": said}
    manager = {"@type": "x.HttpConnectionManager", "http_filters": filters}
    manager["route_config"] = {"virtual_hosts": [{"routes": [route]}]}
    listener = {"name": "a", "filter_chains": [{"filters": [{"typed_config": manager}]}]}
    text = dump(LISTENERS | {"static_listeners": [{"listener": listener}]}, CLUSTERS)

    assert {each.check for each in examine(parse(text))} >= {Check.ENVOY, Check.DESTINATION}


NAMES = {
    # gateways' own names (facts/gateways.md 1.2, 4, 5, 7)
    "Istio's EPP": ("envoy.filters.http.ext_proc", "dummy", ["envoy.lb"], None, Role.EPP),
    "ours on Istio": ("owned-by.before", "outbound|9002||owned-by.a.svc.cluster.local", [], "before", Role.OURS),
    "ours on kgateway": ("ext_proc/a/owned-by", "kube_a_owned-by_9002", [], None, Role.OURS),
    "ours on Envoy Gateway": (
        "envoy.filters.http.ext_proc/envoyextensionpolicy/a/owned-by/extproc/0",
        "envoyextensionpolicy/a/owned-by/extproc/0",
        ["envoy.lb.subset_hint", "envoy.lb"],
        None,
        Role.OURS,
    ),
    "the EPP on Envoy Gateway, in our policy": (
        "envoy.filters.http.ext_proc/envoyextensionpolicy/a/owned-by/extproc/1",
        "envoyextensionpolicy/a/owned-by/extproc/1",
        ["envoy.lb"],
        None,
        Role.EPP,
    ),
    "Envoy AI Gateway's EPP": ("envoy.filters.http.ext_proc/endpointpicker/p_a_ext_proc", "x", [], None, Role.EPP),
    "the payload processor": (
        "envoy.filters.http.ext_proc.bbr",
        "outbound|9004||bbr.a.svc.cluster.local",
        [],
        None,
        Role.OTHER,
    ),
    "one of the same name that says it is ours": ("envoy.filters.http.ext_proc", "x", [], "before", Role.OURS),
}


@pytest.mark.parametrize(("name", "cluster", "receiving", "attachment", "role"), NAMES.values(), ids=NAMES)
def test_whose_a_processor_is(
    name: str, cluster: str, receiving: list[str], attachment: str | None, role: Role
) -> None:
    said = [{"key": "x-owned-by-attachment", "value": attachment}] if attachment else []
    config = {
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "initial_metadata": said},
        "metadata_options": {"receiving_namespaces": {"untyped": receiving}},
        "processing_mode": {"request_body_mode": "FULL_DUPLEX_STREAMED"},
    }

    assert Processor(name, 0, config).role is role


def test_a_chain_whose_routes_come_from_elsewhere_is_not_said_to_have_none() -> None:
    manager = {
        "@type": "x.HttpConnectionManager",
        "http_filters": [
            {"name": name, "typed_config": {"@type": "x.ext_proc.v3.ExternalProcessor"}}
            for name in ("owned-by.before", "envoy.filters.http.ext_proc")
        ],
        "scoped_routes": {"name": "elsewhere"},
    }
    listener = {"name": "a", "filter_chains": [{"filters": [{"typed_config": manager}]}]}
    findings = examine(parse(dump(LISTENERS | {"static_listeners": [{"listener": listener}]})))

    assert [each.line for each in findings if each.check is Check.ROUTES] == [
        "skipped  routes        not checked: the dump does not have all routes; take a whole one, as /config_dump answers"
    ]


def test_a_processor_inside_a_composite_filter_is_found() -> None:
    """As kgateway has it: another filter can turn it off by metadata."""
    processor = {"@type": "x.ext_proc.v3.ExternalProcessor", "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}}
    action = {
        "@type": "x.ExecuteFilterAction",
        "typed_config": {"name": "envoy.filters.http.ext_proc", "typed_config": processor},
    }
    wrapped = {
        "@type": "x.ExtensionWithMatcher",
        "extension_config": {"name": "composite_ext_proc", "typed_config": {"@type": "x.composite.v3.Composite"}},
        "xds_matcher": {"matcher_list": {"matchers": [{"on_match": {"action": {"typed_config": action}}}]}},
    }
    filters = [{"name": "ext_proc/a/owned-by", "disabled": True, "typed_config": wrapped}]
    manager = {"@type": "x.HttpConnectionManager", "http_filters": filters}
    listener = {"name": "a", "default_filter_chain": {"filters": [{"typed_config": manager}]}}
    read = parse(dump(LISTENERS | {"static_listeners": [{"listener": listener}]}))
    (found,) = read.chains[0].processors

    assert (found.cluster, found.role, found.attachment) == ("c", Role.OURS, Attachment.HEADER)
    assert (found.disabled, found.conditional, read.is_conditional) == (True, False, False)
