# SPDX-License-Identifier: Apache-2.0
"""What the Istio components render to: names, order, and the filters that the demo's Envoy has been tried with."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.envoy import validate
from extproc.envoy import names
from extproc.policy.config import default_policy
from tests.envoys import VERSIONS, program
from tests.manifests.istio import placed
from tests.manifests.istiod import EPP, Gateway, Service, http_filters, manager_of, routes_of
from tests.manifests.kustomize import ROOT, deployed, one
from tests.manifests.mesh import NAMESPACE, ROUTED, http_route, to_pool
from tests.manifests.operators import applied, program_arguments

SETS: Final = [
    ("istio-before",),
    ("istio-before", "fail-open"),
    ("istio-before", "only-when-asked"),
    ("istio-before", "epp-outlier"),
    ("istio-strict",),
    ("istio-strict", "epp-outlier", "only-when-asked", "fail-open"),
    ("istio-picker",),
    ("istio-picker", "fail-open"),
]
NOWHERE: Final = [("127.0.0.1", 9)]

Json = dict[str, Any]


def around(namespace: str = NAMESPACE, name: str = "llm-d-inference-gateway") -> Gateway:
    """A gateway whose Services are nowhere: its configuration is looked at and not used."""
    h2c, plain = Service(NOWHERE, h2c=True), Service(NOWHERE)
    services = {"owned-by.llm-d:9002": h2c, "multi-model-pool-epp.llm-d:9002": h2c, "web.llm-d:80": plain}
    pools = {"multi-model-pool.llm-d": NOWHERE, "owned-by.llm-d": NOWHERE}
    return Gateway(services=services, pools=pools, namespace=namespace, name=name)


def routed(components: tuple[str, ...]) -> tuple[Json, ...]:
    """What stands beside the components: a route to the pool that they are for."""
    return (http_route(to_pool(name="owned-by")),) if "istio-picker" in components else ROUTED


def inserted(document: Json) -> Json:
    """The filter that an EnvoyFilter of ours inserts."""
    return document["spec"]["configPatches"][0]["patch"]["value"]


def chain(config: Json) -> list[str]:
    return [each["name"] for each in http_filters(config)]


@pytest.mark.parametrize(("name", "field"), [("before", "before_port"), ("after", "after_port")])
def test_a_filter_is_the_one_that_the_demo_has(tmp_path: Path, name: str, field: str) -> None:
    plan = Plan(endpoints=(), pool=None, **{field: 1})
    tried = http_filters(bootstrap(plan))[0]
    shipped = inserted(one(deployed(tmp_path, ["istio-strict"]), "EnvoyFilter", f"owned-by-{name}"))
    for each in (tried, shipped):
        del each["typed_config"]["grpc_service"]["envoy_grpc"], each["typed_config"]["grpc_service"]["timeout"]
    options = tried["typed_config"]["metadata_options"]
    tried["typed_config"]["metadata_options"] = {key: value for key, value in options.items() if value["untyped"]}

    assert shipped == tried | {"disabled": True}


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        (("istio-before",), ["owned-by.before", EPP]),
        (("istio-strict",), ["owned-by.before", EPP, "owned-by.after"]),
        (("istio-before", "only-when-asked"), ["owned-by.strip", "owned-by.before", EPP]),
        (("istio-strict", "only-when-asked"), ["owned-by.strip", "owned-by.before", EPP, "owned-by.after"]),
        (("istio-picker",), [EPP]),
    ],
    ids=str,
)
def test_the_filters_stand_around_the_epps(tmp_path: Path, components: tuple[str, ...], expected: list[str]) -> None:
    found = chain(placed(around(), [*deployed(tmp_path, components), *routed(components)]))

    assert found[0] == "envoy.filters.http.rbac"
    assert found[1 : 1 + len(expected)] == expected
    assert found[1 + len(expected)] == "envoy.filters.http.grpc_stats"


def test_the_epps_filter_forwards_the_hint_too(tmp_path: Path) -> None:
    config = placed(around(), [*deployed(tmp_path, ["istio-before"]), *ROUTED])
    (epp,) = (each for each in http_filters(config) if each["name"] == EPP)

    assert epp["typed_config"]["metadata_options"] == {
        "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
        "receiving_namespaces": {"untyped": ["envoy.lb"]},
    }


def test_a_route_of_a_pool_keeps_its_epp(tmp_path: Path) -> None:
    with_us = routes_of(placed(around(), [*deployed(tmp_path, ["istio-strict"]), *ROUTED]))
    without = routes_of(placed(around(), ROUTED))
    switches = with_us[0]["typed_per_filter_config"]

    assert switches[EPP] == without[0]["typed_per_filter_config"][EPP]
    assert {*switches} == {EPP, "owned-by.strip", "owned-by.before", "owned-by.after"}
    assert with_us[1] == without[1]


@pytest.mark.parametrize("components", [each for each in SETS if len(each) == 1], ids="+".join)
def test_everything_is_in_the_programs_namespace(tmp_path: Path, components: tuple[str, ...]) -> None:
    documents = deployed(tmp_path, [*components, "epp-outlier"], namespace="team")
    said = "\n".join(yaml.safe_dump(each) for each in documents)

    assert "NAMESPACE" not in said
    assert {each["metadata"]["namespace"] for each in documents} == {"team"}
    assert set(re.findall(r"[a-z0-9.|-]*\.team[a-z0-9.-]*", said)) <= {
        "outbound|9002||owned-by.team.svc.cluster.local",
        "owned-by.team.svc.cluster.local",
        "multi-model-pool-epp.team.svc.cluster.local",
    }
    assert set(re.findall(r"team\.[a-z0-9.-]*", said)) <= {"team.svc.cluster.local", "team.multi-model.0"}


def test_a_gateway_elsewhere_is_reached_by_the_patches_that_the_component_shows(tmp_path: Path) -> None:
    text = (ROOT / "components" / "istio-before" / "kustomization.yaml").read_text()
    shown = re.search(r"^#   (patches:\n(?:#   .*\n)+)", text, re.MULTILINE)
    assert shown
    patches = yaml.safe_load(shown[1].replace("\n#   ", "\n"))["patches"]
    documents = [*deployed(tmp_path, ["istio-strict"], patches=patches), *ROUTED]
    there = placed(around("gateways", "my-gateway"), documents)

    assert chain(there)[1:4] == ["owned-by.before", EPP, "owned-by.after"]
    assert "owned-by.before" not in chain(placed(around("gateways", "another"), documents))
    assert "owned-by.before" not in chain(placed(around(NAMESPACE, "my-gateway"), documents))
    entries = one(documents, "EnvoyFilter", "owned-by-routes")["spec"]["configPatches"]
    named = [each["match"]["routeConfiguration"]["vhost"]["route"]["name"] for each in entries]
    assert named == ["llm-d.multi-model.0", "team-a.chat.0"]
    assert entries[0]["patch"] == entries[1]["patch"]
    before = http_filters(there)[1]["typed_config"]["grpc_service"]["envoy_grpc"]
    assert before["cluster_name"] == "outbound|9002||owned-by.llm-d.svc.cluster.local"


def test_the_program_is_told_that_it_picks_and_for_which_pool(tmp_path: Path) -> None:
    arguments = program_arguments(tmp_path, "istio-picker")

    assert arguments == ["serve", "--config-map=owned-by", "--attachment=picker", "--pool-name=owned-by"]


def test_the_pickers_rule_is_that_of_istio_before() -> None:
    rules = [
        yaml.safe_load((ROOT / "components" / name / "destinationrule.yaml").read_text())
        for name in ("istio-picker", "istio-before")
    ]

    assert rules[0] == rules[1]


@pytest.mark.parametrize("component", ["istio-before", "istio-picker"])
def test_as_many_requests_as_there_are_may_be_decided_at_once(tmp_path: Path, component: str) -> None:
    config = placed(around(), [*deployed(tmp_path, [component]), *routed((component,))])
    (ours,) = (each for each in config["static_resources"]["clusters"] if "||owned-by.llm-d" in each["name"])
    (limits,) = ours["circuit_breakers"]["thresholds"]

    assert {limits[name] for name in ("max_connections", "max_pending_requests", "max_requests")} == {100_000}
    assert ours["connect_timeout"] == "1s"


class TestFailOpen:
    """It turns every filter of ours and touches nothing else."""

    @pytest.mark.parametrize("component", ["istio-before", "istio-strict"])
    def test_every_filter_of_ours_lets_requests_go_on(self, tmp_path: Path, component: str) -> None:
        closed, opened = tmp_path / "closed", tmp_path / "open"
        closed.mkdir()
        opened.mkdir()
        said = json.dumps(deployed(closed, [component]))
        turned = json.dumps(deployed(opened, [component, "fail-open"]))

        assert said.count('"failure_mode_allow": false') == {"istio-before": 1, "istio-strict": 2}[component]
        assert turned == said.replace('"failure_mode_allow": false', '"failure_mode_allow": true')

    def test_it_stands_before_or_behind_only_when_asked(self, tmp_path: Path) -> None:
        made = []
        for order in (("fail-open", "only-when-asked"), ("only-when-asked", "fail-open")):
            folder = tmp_path / order[0]
            folder.mkdir()
            made.append(deployed(folder, ["istio-strict", *order]))

        assert made[0] == made[1]
        assert json.dumps(made[0]).count('"failure_mode_allow": true') == 2
        assert 'failure_mode_allow": false' not in json.dumps(made[0])

    def test_other_gateways_filters_are_turned_too(self, tmp_path: Path) -> None:
        metadata = {"name": "owned-by", "namespace": NAMESPACE}
        extension = {
            "apiVersion": "gateway.kgateway.dev/v1alpha1",
            "kind": "GatewayExtension",
            "metadata": metadata,
            "spec": {"extProc": {"failOpen": False}},
        }
        policy = {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyExtensionPolicy",
            "metadata": metadata,
            "spec": {"extProc": [{"failOpen": False}, {"failOpen": False}]},
        }
        made = applied(tmp_path, "fail-open", [extension, policy])

        assert one(made, "GatewayExtension", "owned-by")["spec"] == {"extProc": {"failOpen": True}}
        # The second one is the EPP's.
        assert one(made, "EnvoyExtensionPolicy", "owned-by")["spec"] == {
            "extProc": [{"failOpen": True}, {"failOpen": False}]
        }

    def test_the_pickers_pool_fails_open(self, tmp_path: Path) -> None:
        pool = one(deployed(tmp_path, ["istio-picker", "fail-open"]), "InferencePool", "owned-by")

        assert pool["spec"]["endpointPickerRef"]["failureMode"] == "FailOpen"


class TestOnlyWhenAsked:
    """It wraps our filters, and nothing is lost in the wrapper."""

    @pytest.mark.parametrize("name", ["owned-by-before", "owned-by-after"])
    def test_what_is_wrapped_is_what_was_there(self, tmp_path: Path, name: str) -> None:
        bare, wrapped = tmp_path / "bare", tmp_path / "wrapped"
        bare.mkdir()
        wrapped.mkdir()
        before = inserted(one(deployed(bare, ["istio-strict"]), "EnvoyFilter", name))
        after = inserted(one(deployed(wrapped, ["istio-strict", "only-when-asked"]), "EnvoyFilter", name))
        wrapper = after["typed_config"]

        assert wrapper["extension_config"] == {"name": "owned-by", "typed_config": before["typed_config"]}
        assert after | {"typed_config": before["typed_config"]} == before

    def test_its_conditions_are_the_names_of_the_policys_defaults(self, tmp_path: Path) -> None:
        document = one(deployed(tmp_path, ["istio-before", "only-when-asked"]), "EnvoyFilter", "owned-by-before")
        matcher = inserted(document)["typed_config"]["xds_matcher"]["matcher_list"]["matchers"][0]
        named = [each["single_predicate"] for each in matcher["predicate"]["not_matcher"]["or_matcher"]["predicate"]]
        headers = [each["input"]["typed_config"]["header_name"] for each in named]
        sources = default_policy().sources
        alternatives = "|".join(sources.query)

        assert headers == [*sources.headers, ":path"]
        assert named[-1]["value_match"]["safe_regex"]["regex"] == rf".*[?&]({alternatives}|[^=&]*%[^=&]*)=.*"

    def test_what_it_removes_is_what_we_remove(self, tmp_path: Path) -> None:
        document = one(deployed(tmp_path, ["istio-before", "only-when-asked"]), "EnvoyFilter", "owned-by-strip")
        mutations = inserted(document)["typed_config"]["mutations"]["request_mutations"]

        assert [each["remove"] for each in mutations] == [*names.SPOOFABLE]

    @pytest.mark.parametrize("listed", [["only-when-asked"], ["only-when-asked", "istio-before"]], ids="+".join)
    def test_without_a_filter_to_wrap_it_is_refused(self, tmp_path: Path, listed: list[str]) -> None:
        with pytest.raises(AssertionError, match=r"EnvoyFilter.*owned-by-before"):
            deployed(tmp_path, listed)


@pytest.mark.slow
@pytest.mark.parametrize("components", SETS, ids="+".join)
@pytest.mark.parametrize("version", VERSIONS)
async def test_envoy_takes_what_istio_makes_of_it(tmp_path: Path, version: str, components: tuple[str, ...]) -> None:
    config = placed(around(), [*deployed(tmp_path, components), *routed(components)])

    assert manager_of(config)["http_filters"]
    await validate(program(version), config, tmp_path)
