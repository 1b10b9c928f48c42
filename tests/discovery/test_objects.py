# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects and what follows from them."""

from typing import Any

import msgspec
import pytest

from extproc.discovery.objects import (
    PODS,
    POOLS,
    REWRITES,
    ConfigMap,
    InferenceModelRewrite,
    InferencePool,
    InferencePoolV1,
    InferencePoolV1alpha2,
    Kind,
    Pod,
    config_map,
    rewrites,
)
from extproc.policy.types import Endpoint, Pool, Rewrites

CHAT = Pool("default", "chat")
NEW, OLD = "llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"
READY = [{"type": "Ready", "status": "True"}]
LABELS = {"app": "llama", "llm-d.ai/role": "decode"}


def pod(  # a row of a table
    conditions: Any = READY,
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = LABELS,
    ip: str | None = "127.0.0.7",
    phase: str = "Running",
    **metadata: Any,
) -> Pod:
    document = {
        "metadata": {
            "name": "llama-0",
            "namespace": "default",
            "uid": "7",
            "labels": labels,
            "annotations": annotations,
        }
        | metadata,
        "status": {"phase": phase, "conditions": conditions} | ({"podIP": ip} if ip is not None else {}),
    }
    return msgspec.convert(document, Pod)


def endpoint(name: str, port: int, **fields: Any) -> Endpoint:
    said = {"address": "127.0.0.7", "labels": LABELS, "role": "decode", "uid": "7"} | fields
    return Endpoint(name=name, namespace="default", port=port, **said)


def pool(*ports: int, **selector: str) -> InferencePool:
    return InferencePool(CHAT, selector, ports or (8000,))


class TestReady:
    """As the EPP sees it."""

    @pytest.mark.parametrize(
        ("conditions", "ready"),
        [
            (READY, True),
            ([{"type": "Ready", "status": "False"}], False),
            ([{"type": "Ready", "status": "Unknown"}], False),
            ([{"type": "Ready", "status": "true"}], False),
            ([{"type": "ContainersReady", "status": "True"}], False),
            ([{"type": "PodScheduled", "status": "False"}, *READY], True),
            ([], False),
            (None, False),
        ],
    )
    def test_the_condition_decides(self, conditions: Any, ready: bool) -> None:  # noqa: FBT001 - a row of a table
        assert pod(conditions).ready is ready

    def test_what_is_to_be_deleted_is_not(self) -> None:
        assert pod(deletionTimestamp="2026-01-01T00:00:00Z").ready is False

    def test_a_pod_without_a_status_is_not(self) -> None:
        assert msgspec.convert({"metadata": {"name": "a"}}, Pod).ready is False


class TestActivePorts:
    """Which of the pool's ports a pod serves."""

    @pytest.mark.parametrize(
        ("annotations", "ports"),
        [
            (None, (8000, 8001, 8002)),
            ({"another": "8000"}, (8000, 8001, 8002)),
            ({NEW: "8001"}, (8001,)),
            ({OLD: "8001"}, (8001,)),
            ({NEW: "8000", OLD: "8001"}, (8000,)),
            ({NEW: " 8002 ,8000\t"}, (8000, 8002)),
            ({NEW: "8000,8000"}, (8000,)),
            ({NEW: "8000,9999"}, (8000,)),
            ({NEW: "9999"}, ()),
            ({NEW: "8000,nonsense,"}, (8000,)),
            ({NEW: ""}, ()),
            ({NEW: "  "}, ()),
        ],
    )
    def test_an_annotation_names_them(self, annotations: dict[str, str] | None, ports: tuple[int, ...]) -> None:
        found = pool(8000, 8001, 8002, app="llama").endpoints(pod(annotations=annotations))

        assert tuple(one.port for one in found) == ports


class TestEndpoints:
    """What a pod is in a pool."""

    def test_a_pool_of_one_port_names_its_endpoints_as_their_pods(self) -> None:
        assert pool(app="llama").endpoints(pod()) == (endpoint("llama-0", 8000),)

    def test_a_pool_of_several_ports_has_a_rank_for_each_whichever_are_active(self) -> None:
        assert pool(8000, 8001, 8002, app="llama").endpoints(pod(annotations={NEW: "8000,8002"})) == (
            endpoint("llama-0-rank-0", 8000),
            endpoint("llama-0-rank-2", 8002),
        )

    def test_what_is_not_ready_is_an_endpoint_that_is_not(self) -> None:
        assert pool(app="llama").endpoints(pod([])) == (endpoint("llama-0", 8000, ready=False),)

    @pytest.mark.parametrize("ip", [None, ""])
    def test_a_pod_without_an_address_is_one_that_is_not_ready(self, ip: str | None) -> None:
        assert pool(app="llama").endpoints(pod(ip=ip)) == (endpoint("llama-0", 8000, address="", ready=False),)

    @pytest.mark.parametrize(
        ("selector", "labels", "selected"),
        [
            ({"app": "llama"}, LABELS, True),
            ({"app": "llama", "llm-d.ai/role": "decode"}, LABELS, True),
            ({"app": "qwen"}, LABELS, False),
            ({"app": "llama", "tier": "gold"}, LABELS, False),
            ({"app": "llama"}, {}, False),
            ({"app": "llama"}, None, False),
            ({"app": ""}, {}, False),
            ({}, None, True),
        ],
    )
    def test_all_labels_of_the_selector_must_be_there(
        self,
        selector: dict[str, str],
        labels: dict[str, str] | None,
        selected: bool,  # noqa: FBT001 - a row of a table
    ) -> None:
        assert bool(pool(**selector).endpoints(pod(labels=labels))) is selected

    @pytest.mark.parametrize(
        ("phase", "number"), [("Running", 1), ("Pending", 1), ("Unknown", 1), ("", 1), ("Succeeded", 0), ("Failed", 0)]
    )
    def test_a_pod_that_has_ended_is_none(self, phase: str, number: int) -> None:
        assert len(pool(app="llama").endpoints(pod(phase=phase))) == number

    def test_a_pod_without_a_role_has_none(self) -> None:
        assert pool().endpoints(pod(labels=None)) == (endpoint("llama-0", 8000, labels={}, role=""),)

    def test_an_ipv6_address_is_kept_as_it_is(self) -> None:
        (found,) = pool().endpoints(pod(ip="fd00::7"))

        assert found.destination == "[fd00::7]:8000"


METADATA = {"name": "chat", "namespace": "default"}


class TestInferencePool:
    """Both shapes."""

    def test_v1_selects_by_match_labels_and_has_ports(self) -> None:
        spec = {
            "selector": {"matchLabels": {"app": "llama"}},
            "targetPorts": [{"number": 8000}, {"number": 8001}, {"number": 8000}],
            "appProtocol": "http",
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        }
        found = msgspec.convert({"metadata": METADATA, "spec": spec, "status": {}}, InferencePoolV1)

        assert found.pool() == InferencePool(CHAT, {"app": "llama"}, (8000, 8001))

    def test_v1alpha2_selects_directly_and_has_one_port(self) -> None:
        spec = {"selector": {"app": "llama"}, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}}
        found = msgspec.convert({"metadata": METADATA, "spec": spec}, InferencePoolV1alpha2)

        assert found.pool() == InferencePool(CHAT, {"app": "llama"}, (8000,))

    @pytest.mark.parametrize(
        ("shape", "spec", "message"),
        [
            (InferencePoolV1, {"selector": {"app": "x"}, "targetPorts": [{"number": 1}]}, "`matchLabels`"),
            (InferencePoolV1, {"selector": {"matchLabels": {}}, "targetPorts": []}, "of length >= 1"),
            (InferencePoolV1, {"selector": {"matchLabels": {}}}, "`targetPorts`"),
            (InferencePoolV1, {"targetPorts": [{"number": 1}]}, "`selector`"),
            (InferencePoolV1, {"selector": {"matchLabels": {}}, "targetPorts": [{"number": 0}]}, "`int` >= 1"),
            (InferencePoolV1, {"selector": {"matchLabels": {}}, "targetPorts": [{"number": 65536}]}, "`int` <= 65535"),
            (InferencePoolV1, {"selector": {"matchLabels": {}}, "targetPorts": [{"number": "80"}]}, "`int`, got `str`"),
            (InferencePoolV1, {"selector": {"matchLabels": {"a": 1}}, "targetPorts": [{"number": 1}]}, "`str`, got"),
            (InferencePoolV1alpha2, {"selector": {"matchLabels": {}}, "targetPortNumber": 1}, "`str`, got `object`"),
            (InferencePoolV1alpha2, {"selector": {}}, "`targetPortNumber`"),
            (InferencePoolV1alpha2, {"selector": {}, "targetPortNumber": 0}, "`int` >= 1"),
            (InferencePoolV1alpha2, None, "`object`, got `null`"),
        ],
    )
    def test_what_has_another_shape_is_refused(self, shape: Any, spec: Any, message: str) -> None:
        with pytest.raises(msgspec.ValidationError) as raised:
            msgspec.json.decode(msgspec.json.encode({"metadata": METADATA, "spec": spec}), type=shape)

        assert message in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "document"),
    [
        (Pod, {}),
        (Pod, {"metadata": {}}),
        (Pod, {"metadata": {"name": 1}}),
        (Pod, {"metadata": METADATA, "status": {"podIP": 7}}),
        (Pod, {"metadata": METADATA, "status": {"conditions": [{"type": "Ready"}]}}),
        (Pod, {"metadata": METADATA | {"labels": ["a"]}}),
        (ConfigMap, {"metadata": METADATA, "data": {"a": {}}}),
        (InferenceModelRewrite, {"metadata": METADATA, "spec": {"rules": []}}),
        (
            InferenceModelRewrite,
            {"metadata": METADATA, "spec": {"poolRef": {"name": "a"}, "rules": [{"targets": [{}]}]}},
        ),
    ],
)
def test_an_object_of_another_shape_is_refused(shape: Any, document: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(document), type=shape)


def rule(*targets: tuple[str, int | None] | str, models: tuple[str, ...] = ()) -> dict[str, Any]:
    """A rule for these names, for any if there are none."""
    pairs = [(target, None) if isinstance(target, str) else target for target in targets]
    return {
        "targets": [{"modelRewrite": name} | ({} if weight is None else {"weight": weight}) for name, weight in pairs],
        "matches": [{"model": {"type": "Exact", "value": model}} for model in models],
    }


def rewrite(*rules: dict[str, Any], name: str = "a", created: str = "2026-01-01T00:00:00Z", ref: Any = None) -> Any:
    metadata = {"name": name, "namespace": "default", "creationTimestamp": created}
    spec = {"poolRef": {"name": "chat"} | (ref or {}), "rules": list(rules)}
    return msgspec.convert({"metadata": metadata, "spec": spec}, InferenceModelRewrite)


class TestRewrites:
    """As the EPP applies them."""

    def test_a_name_of_its_own_comes_before_a_rule_for_all(self) -> None:
        found = rewrites([rewrite(rule("base"), rule("lora", models=("llama",)))])

        assert found == {CHAT: Rewrites({"llama": ("lora",)}, ("base",))}
        assert (found[CHAT].of("llama"), found[CHAT].of("other")) == (("lora",), ("base",))

    def test_the_oldest_object_wins(self) -> None:
        younger = rewrite(
            rule("young", models=("llama", "qwen")), rule("all-young"), name="a", created="2026-01-02T00:00:00Z"
        )
        older = rewrite(rule("old", models=("llama",)), name="z", created="2026-01-01T23:59:59Z")
        expected = {CHAT: Rewrites({"llama": ("old",), "qwen": ("young",)}, ("all-young",))}

        assert rewrites([younger, older]) == rewrites([older, younger]) == expected

    def test_of_the_same_age_the_first_by_name_wins(self) -> None:
        one, two = rewrite(rule("one"), name="a"), rewrite(rule("two"), name="b")

        assert rewrites([two, one]) == rewrites([one, two]) == {CHAT: Rewrites({}, ("one",))}

    def test_the_first_rule_of_an_object_wins(self) -> None:
        rules = (rule("first", models=("m",)), rule("second", models=("m",)), rule("third"), rule("fourth"))

        assert rewrites([rewrite(*rules)]) == {CHAT: Rewrites({"m": ("first",)}, ("third",))}

    def test_a_rule_may_be_for_several_names(self) -> None:
        assert rewrites([rewrite(rule("x", models=("m", "n")))]) == {CHAT: Rewrites({"m": ("x",), "n": ("x",)})}

    @pytest.mark.parametrize(
        ("targets", "models"),
        [
            ((("x", 90), ("y", 10)), ("x", "y")),
            ((("x", 0), ("y", 10)), ("y",)),
            ((("x", 0), ("y", 0)), ("x", "y")),
            ((("x", None), ("y", 0)), ("x",)),
            ((("x", 1), ("x", 2)), ("x",)),
        ],
    )
    def test_what_has_no_weight_is_not_drawn_unless_nothing_has(self, targets: Any, models: tuple[str, ...]) -> None:
        assert rewrites([rewrite(rule(*targets))]) == {CHAT: Rewrites({}, models)}

    @pytest.mark.parametrize(
        ("ref", "pools"),
        [
            ({}, (CHAT,)),
            ({"group": "inference.networking.k8s.io"}, (CHAT,)),
            ({"group": "inference.networking.x-k8s.io", "kind": "InferencePool"}, (CHAT,)),
            ({"name": "other"}, (Pool("default", "other"),)),
            ({"group": "example.com"}, ()),
            ({"kind": "Service"}, ()),
        ],
    )
    def test_only_inference_pools_are_meant(self, ref: dict[str, str], pools: tuple[Pool, ...]) -> None:
        assert tuple(rewrites([rewrite(rule("x"), ref=ref)])) == pools

    @pytest.mark.parametrize(
        "matches",
        [[{}], [{"model": None}], [{"model": {"type": "Prefix", "value": "m"}}], [{"headers": [{"name": "x"}]}]],
    )
    def test_a_match_that_is_not_understood_matches_nothing(self, matches: Any) -> None:
        assert rewrites([rewrite(rule("x") | {"matches": matches})]) == {CHAT: Rewrites()}

    def test_a_match_is_exact_unless_it_says_otherwise(self) -> None:
        assert rewrites([rewrite(rule("x") | {"matches": [{"model": {"value": "m"}}]})]) == {
            CHAT: Rewrites({"m": ("x",)})
        }

    def test_a_rule_without_targets_says_nothing(self) -> None:
        assert rewrites([rewrite(rule(models=("m",)), rule(), rule("x"))]) == {CHAT: Rewrites({}, ("x",))}


@pytest.mark.parametrize(
    ("kind", "namespace", "path"),
    [
        (PODS.kinds[0], "a", "/api/v1/namespaces/a/things"),
        (PODS.kinds[0], "", "/api/v1/things"),
        (POOLS.kinds[0], "a", "/apis/inference.networking.k8s.io/v1/namespaces/a/things"),
        (POOLS.kinds[1], "", "/apis/inference.networking.x-k8s.io/v1alpha2/things"),
        (REWRITES.kinds[0], "a", "/apis/llm-d.ai/v1alpha2/namespaces/a/things"),
    ],
)
def test_a_collection_has_a_path_in_one_namespace_and_in_all(kind: Kind, namespace: str, path: str) -> None:
    assert kind.path("things", namespace) == path


def test_a_config_map_is_asked_for_by_its_name() -> None:
    assert config_map("owned-by").field_selector == "metadata.name=owned-by"
