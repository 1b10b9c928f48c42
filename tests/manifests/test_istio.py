# SPDX-License-Identifier: Apache-2.0
"""What Istio does with our kinds of objects, as far as these tests imitate it; what it would drop silently is an error."""

import copy
from typing import Any

import pytest

from tests.manifests.istio import merged, placed
from tests.manifests.istiod import EPP, MANAGER, Gateway, Service, http_filters, pool_cluster, routes_of
from tests.manifests.mesh import ROUTED, http_route, inference_pool, to_pool, to_service

NOWHERE = [("127.0.0.1", 9)]
GATEWAY = Gateway(
    services={"web.llm-d:80": Service(NOWHERE), "multi-model-pool-epp.llm-d:9002": Service(NOWHERE, h2c=True)},
    pools={"multi-model-pool.llm-d": NOWHERE},
)
LABELS = {"gateway.networking.k8s.io/gateway-name": "llm-d-inference-gateway"}
TYPE = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
STANDING = [
    "envoy.filters.http.rbac",
    EPP,
    "envoy.filters.http.grpc_stats",
    "envoy.filters.http.fault",
    "envoy.filters.http.cors",
    "envoy.filters.http.router",
]

Json = dict[str, Any]


def of_filter(operation: str, name: str, anchor: str = EPP, context: str = "GATEWAY", **config: Any) -> Json:
    """A patch of the HTTP filters."""
    return {
        "applyTo": "HTTP_FILTER",
        "match": {
            "context": context,
            "listener": {"filterChain": {"filter": {"name": MANAGER, "subFilter": {"name": anchor}}}},
        },
        "patch": {"operation": operation, "value": {"name": name, "typed_config": {"@type": TYPE, **config}}},
    }


def of_route(name: str, **config: Any) -> Json:
    """A patch of a route."""
    return {
        "applyTo": "HTTP_ROUTE",
        "match": {"context": "GATEWAY", "routeConfiguration": {"vhost": {"route": {"name": name}}}},
        "patch": {"operation": "MERGE", "value": {"typed_per_filter_config": config}},
    }


def envoy_filter(*patches: Json, namespace: str = "llm-d", labels: Json | None = None, **spec: Any) -> Json:
    return {
        "kind": "EnvoyFilter",
        "metadata": {"name": "owned-by-a", "namespace": namespace},
        "spec": {"workloadSelector": {"labels": labels or LABELS}, "configPatches": list(patches), **spec},
    }


def rule(namespace: str = "llm-d", host: str = "web.llm-d.svc.cluster.local", **policy: Any) -> Json:
    return {
        "kind": "DestinationRule",
        "metadata": {"name": "owned-by", "namespace": namespace},
        "spec": {"host": host, "trafficPolicy": policy},
    }


def chain(*documents: Json) -> list[str]:
    return [each["name"] for each in http_filters(placed(GATEWAY, [*ROUTED, *documents]))]


def web(*documents: Json) -> Json:
    """The cluster of the Service `web`."""
    config = placed(GATEWAY, [*ROUTED, *documents])
    (found,) = (each for each in config["static_resources"]["clusters"] if "web" in each["name"])
    return found


def between(*names: str) -> list[str]:
    """The chain with these filters around the EPP's."""
    return [STANDING[0], *names, *STANDING[2:]]


class TestInserts:
    """HTTP filters go next to their anchor."""

    def test_one_goes_before_or_after_its_anchor(self) -> None:
        assert chain(envoy_filter(of_filter("INSERT_BEFORE", "a"))) == between("a", EPP)
        assert chain(envoy_filter(of_filter("INSERT_AFTER", "a"))) == between(EPP, "a")

    def test_the_last_one_stands_next_to_it(self) -> None:
        patches = [of_filter(f"INSERT_{place}", name) for place in ("BEFORE", "AFTER") for name in "ab"]

        assert chain(envoy_filter(*patches)) == between("a", "b", EPP, "b", "a")

    def test_without_the_anchor_nothing_is_inserted(self) -> None:
        documents = [http_route(to_service()), envoy_filter(of_filter("INSERT_BEFORE", "a"))]

        assert [each["name"] for each in http_filters(placed(GATEWAY, documents))] == [STANDING[0], *STANDING[2:]]

    def test_a_lower_priority_comes_first_and_at_one_priority_the_root_namespaces(self) -> None:
        late = envoy_filter(of_filter("INSERT_BEFORE", "late"), priority=1)
        ours = envoy_filter(of_filter("INSERT_BEFORE", "ours"))
        root = envoy_filter(of_filter("INSERT_BEFORE", "root"), namespace="istio-system")
        early = envoy_filter(of_filter("INSERT_BEFORE", "early"), priority=-1)

        assert chain(late, ours, root, early) == between("early", "root", "ours", "late", EPP)

    @pytest.mark.parametrize(
        "document",
        [
            envoy_filter(of_filter("INSERT_BEFORE", "a"), namespace="elsewhere"),
            envoy_filter(of_filter("INSERT_BEFORE", "a"), labels={"app": "another"}),
            envoy_filter(of_filter("INSERT_BEFORE", "a", context="SIDECAR_OUTBOUND")),
        ],
        ids=["namespace", "labels", "context"],
    )
    def test_what_is_for_others_is_not_applied(self, document: Json) -> None:
        assert chain(document) == STANDING


class TestMerges:
    """They come after all inserts, and messages, lists and maps are merged each in their way."""

    def test_one_reaches_every_filter_of_the_name_that_was_inserted(self) -> None:
        merging = envoy_filter(of_filter("MERGE", "a", anchor="a", stat_prefix="x"))
        twice = envoy_filter(of_filter("INSERT_BEFORE", "a"), of_filter("INSERT_AFTER", "a"), priority=1)
        found = http_filters(placed(GATEWAY, [*ROUTED, merging, twice]))

        assert [each["typed_config"] for each in found if each["name"] == "a"] == [
            {"@type": TYPE, "stat_prefix": "x"}
        ] * 2

    def test_lists_grow_messages_are_merged_and_other_values_replaced(self) -> None:
        into = {"a": {"list": [1], "text": "old", "kept": 1}}

        assert merged(into, {"a": {"list": [2], "text": "new", "more": {"b": 1}}}) == {
            "a": {"list": [1, 2], "text": "new", "kept": 1, "more": {"b": 1}}
        }
        assert into == {"a": {"list": [1], "text": "old", "kept": 1}}

    def test_an_entry_of_a_map_replaces_the_one_of_its_key(self) -> None:
        into = {"typed_per_filter_config": {"a": {"@type": "t", "x": 1}, "b": {"@type": "t"}}}

        assert merged(into, {"typed_per_filter_config": {"a": {"@type": "t", "y": 1}}}) == {
            "typed_per_filter_config": {"a": {"@type": "t", "y": 1}, "b": {"@type": "t"}}
        }

    def test_a_route_is_found_by_its_whole_name(self) -> None:
        patches = [of_route(name, a={"@type": "t"}) for name in ("llm-d.multi-model.1", "llm-d.multi-model", "multi")]
        plain = routes_of(placed(GATEWAY, ROUTED))
        found = routes_of(placed(GATEWAY, [*ROUTED, envoy_filter(*patches)]))

        assert found[0] == plain[0]
        assert found[1] == plain[1] | {"typed_per_filter_config": {"a": {"@type": "t"}}}

    @pytest.mark.parametrize("none", [False, 0, ""])
    def test_what_proto3_takes_for_none_is_not_merged(self, none: object) -> None:
        with pytest.raises(ValueError, match="is not set at all"):
            merged({"a": True}, {"a": none})

    def test_a_value_of_another_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match="of another kind"):
            merged({"a": [1]}, {"a": {"b": 1}})


def changed(document: Json, path: str, value: Any) -> Json:
    """The document with another value at a place (`a.0.b`)."""
    made = copy.deepcopy(document)
    *steps, last = path.split(".")
    holder: Any = made
    for step in steps:
        holder = holder[int(step) if step.isdigit() else step]
    holder[last] = value
    return made


class TestRefused:
    """What Istio would refuse or drop, and what these tests do not know."""

    INSERT = envoy_filter(of_filter("INSERT_BEFORE", "a"))
    ROUTE = envoy_filter(of_route("llm-d.multi-model.0", a={"@type": "t"}))

    @pytest.mark.parametrize(
        ("document", "path", "value", "why"),
        [
            (INSERT, "spec.targetRefs", [], "targetRefs"),
            (INSERT, "spec.configPatches.0.applyTo", "CLUSTER", "applyTo CLUSTER"),
            (INSERT, "spec.configPatches.0.patch.operation", "INSERT_FIRST", "INSERT_FIRST of an HTTP_FILTER"),
            (INSERT, "spec.configPatches.0.patch.filterClass", "AUTHN", "filterClass"),
            (INSERT, "spec.configPatches.0.match.context", "GATEWAYS", "no such context"),
            (INSERT, "spec.configPatches.0.match.proxy", {}, "proxy"),
            (INSERT, "spec.configPatches.0.match.listener.portNumber", 80, "portNumber"),
            (INSERT, "spec.configPatches.0.match.listener.filterChain.filter.name", "tcp", "HTTP filters are"),
            (INSERT, "spec.configPatches.0.patch.value.typed_config", {}, "Any JSON doesn't have '@type'"),
            (ROUTE, "spec.configPatches.0.patch.operation", "REMOVE", "REMOVE of an HTTP_ROUTE"),
            (ROUTE, "spec.configPatches.0.match.routeConfiguration.vhost.name", "a", "name"),
        ],
    )
    def test_an_envoy_filter_that_is_not_known_is_an_error(
        self, document: Json, path: str, value: Any, why: str
    ) -> None:
        placed(GATEWAY, [*ROUTED, document])
        with pytest.raises(ValueError, match=why):
            placed(GATEWAY, [*ROUTED, changed(document, path, value)])

    def test_an_empty_config_that_envoy_takes_is_refused_by_istiods_reader(self) -> None:
        """The switch of other gateways: Istio's reader of JSON wants a type in every Any (golang/protobuf's jsonpb)."""
        config = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
        with pytest.raises(ValueError, match="Any JSON doesn't have '@type': config"):
            placed(GATEWAY, [*ROUTED, envoy_filter(of_route("llm-d.multi-model.0", a=config))])

    def test_a_merge_of_another_type_is_refused(self) -> None:
        patch = of_filter("MERGE", "router", anchor="envoy.filters.http.router")
        with pytest.raises(ValueError, match="another type"):
            placed(GATEWAY, [*ROUTED, envoy_filter(patch)])

    @pytest.mark.parametrize(
        "policy",
        [
            {"loadBalancer": {"simple": "RANDOM"}},
            {"tls": {"mode": "MUTUAL"}},
            {"tls": {"mode": "SIMPLE"}},
            {"connectionPool": {"http": {"maxRetries": 1}}},
            {"outlierDetection": {"consecutiveErrors": 1}},
        ],
        ids=str,
    )
    def test_a_traffic_policy_that_is_not_known_is_an_error(self, policy: Json) -> None:
        with pytest.raises(ValueError, match="not known here"):
            placed(GATEWAY, [rule(**policy)])

    def test_two_rules_for_a_host_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="more than one rule"):
            placed(GATEWAY, [rule(tls={"mode": "DISABLE"}), rule(tls={"mode": "DISABLE"})])

    def test_a_route_that_leads_nowhere_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="a pool that is not there: multi-model-pool"):
            placed(GATEWAY, [http_route(to_pool())])
        with pytest.raises(ValueError, match="a Service that is not there: app"):
            placed(GATEWAY, [http_route(to_service(name="app"))])


class TestDestinationRules:
    """They change the cluster of their host."""

    def test_limits_and_timeouts_are_the_rules(self) -> None:
        pool = {
            "tcp": {"connectTimeout": "1s", "maxConnections": 5},
            "http": {"http2MaxRequests": 6, "http1MaxPendingRequests": 7},
        }
        limits = {"max_connections": 5, "max_requests": 6, "max_pending_requests": 7, "max_retries": 4_294_967_295}

        assert web(rule(connectionPool=pool)) == web() | {
            "connect_timeout": "1s",
            "circuit_breakers": {"thresholds": [limits]},
        }

    def test_what_is_counted_is_enforced_and_there_is_no_panic(self) -> None:
        outlier = {
            "splitExternalLocalOriginErrors": True,
            "consecutiveLocalOriginFailures": 1,
            "consecutive5xxErrors": 0,
            "baseEjectionTime": "30s",
            "maxEjectionPercent": 100,
        }

        assert web(rule(outlierDetection=outlier)) == web() | {
            "outlier_detection": {
                "enforcing_success_rate": 0,
                "base_ejection_time": "30s",
                "max_ejection_percent": 100,
                "consecutive_5xx": 0,
                "enforcing_consecutive_5xx": 0,
                "split_external_local_origin_errors": True,
                "enforcing_local_origin_success_rate": 0,
                "consecutive_local_origin_failure": 1,
                "enforcing_consecutive_local_origin_failure": 100,
            },
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        }

    def test_tls_is_spoken_to_whoever_answers(self) -> None:
        socket = web(rule(tls={"mode": "SIMPLE", "insecureSkipVerify": True}))["transport_socket"]

        assert (socket["name"], socket["typed_config"]["sni"]) == (
            "envoy.transport_sockets.tls",
            "web.llm-d.svc.cluster.local",
        )
        assert web(rule(tls={"mode": "DISABLE"})) == web()

    def test_a_rule_of_a_namespace_that_is_neither_the_gateways_nor_the_services_is_not_applied(self) -> None:
        assert web(rule(namespace="elsewhere", connectionPool={"tcp": {"connectTimeout": "1s"}})) == web()


def test_a_pool_is_called_as_the_server_reads_it() -> None:
    """The name and the digest of facts/gateways.md 1.1."""
    assert pool_cluster("chat", "default") == "outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local"


def test_the_epp_of_a_route_is_its_pools() -> None:
    for mode, lenient in (("FailOpen", True), ("FailClose", False)):
        (route,) = routes_of(placed(GATEWAY, [inference_pool(mode), http_route(to_pool())]))
        override = route["typed_per_filter_config"][EPP]["overrides"]

        assert override["failure_mode_allow"] is lenient
        assert override["grpc_service"]["envoy_grpc"]["cluster_name"] == (
            "outbound|9002||multi-model-pool-epp.llm-d.svc.cluster.local"
        )
