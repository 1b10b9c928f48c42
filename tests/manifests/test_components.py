# SPDX-License-Identifier: Apache-2.0
"""What each component that needs no gateway adds to `base`, and that one does not undo another."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.cli import main
from extproc.flags import refuse_contradictions
from tests.manifests.kustomize import ROOT, deployed, one
from tests.manifests.schema import faults

Json = dict[str, Any]

SELECTOR = {"app.kubernetes.io/name": "owned-by", "app.kubernetes.io/component": "ext-proc"}
GATEWAY = {"gateway.networking.k8s.io/gateway-name": "llm-d-inference-gateway"}


def deployment(documents: list[Json]) -> Json:
    found: Json = one(documents, "Deployment", "owned-by")["spec"]
    return found


def container(documents: list[Json]) -> Json:
    (found,) = deployment(documents)["template"]["spec"]["containers"]
    return dict(found)


def added(folder: Path, component: str) -> set[tuple[str, str, str]]:
    """Kind, namespace and name of what a component has of its own."""
    (folder / "with").mkdir()
    (folder / "without").mkdir()
    found = [
        {(each["kind"], each["metadata"]["namespace"], each["metadata"]["name"]) for each in documents}
        for documents in (
            deployed(folder / "with", [component], namespace="team"),
            deployed(folder / "without", namespace="team"),
        )
    ]
    return found[0] - found[1]


@pytest.mark.parametrize("name", sorted(folder.name for folder in (ROOT / "components").iterdir()))
def test_the_program_takes_the_arguments_with_each_component(name: str, tmp_path: Path) -> None:
    needed = ["istio-before"] if name == "only-when-asked" else []
    command, *arguments = container(deployed(tmp_path, [*needed, name]))["args"]
    context = main.commands[command].make_context(command, arguments)  # it raises what click says of a wrong one

    refuse_contradictions(context.params)
    assert (command, context.params["config_map"]) == ("serve", "owned-by")


class TestAutoscaling:
    """As many pods as the CPU asks for."""

    def test_it_adds_an_autoscaler(self, tmp_path: Path) -> None:
        assert added(tmp_path, "autoscaling") == {("HorizontalPodAutoscaler", "team", "owned-by")}

    def test_it_scales_the_deployment_by_cpu(self, tmp_path: Path) -> None:
        spec = one(deployed(tmp_path, ["autoscaling"]), "HorizontalPodAutoscaler", "owned-by")["spec"]

        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "owned-by"}
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
        assert [(each["type"], each["resource"]["name"]) for each in spec["metrics"]] == [("Resource", "cpu")]

    def test_the_deployment_no_longer_says_how_many(self, tmp_path: Path) -> None:
        assert "replicas" not in deployment(deployed(tmp_path, ["autoscaling"]))


class TestMonitoring:
    """For the Prometheus Operator and Grafana."""

    def test_it_adds_what_the_operator_and_grafana_look_for(self, tmp_path: Path) -> None:
        assert added(tmp_path, "monitoring") == {
            ("ServiceMonitor", "team", "owned-by"),
            ("PrometheusRule", "team", "owned-by"),
            ("ConfigMap", "team", "owned-by-dashboard"),
        }

    def test_the_monitor_finds_the_service_and_its_port(self, tmp_path: Path) -> None:
        documents = deployed(tmp_path, ["monitoring"])
        monitor, service = one(documents, "ServiceMonitor", "owned-by"), one(documents, "Service", "owned-by")

        assert monitor["spec"] == {
            "selector": {"matchLabels": SELECTOR},
            "endpoints": [{"port": "http-metrics", "interval": "15s", "honorLabels": True}],
        }
        assert service["metadata"]["labels"].items() >= SELECTOR.items()
        assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
        assert [port["port"] for port in service["spec"]["ports"] if port["name"] == "http-metrics"] == [9090]

    def test_the_alerts_are_those_of_the_folder_monitoring(self, tmp_path: Path) -> None:
        alerts = yaml.safe_load((ROOT.parent / "monitoring" / "alerts.yaml").read_text())

        assert one(deployed(tmp_path, ["monitoring"]), "PrometheusRule", "owned-by")["spec"] == alerts

    def test_the_dashboard_is_that_of_the_folder_monitoring(self, tmp_path: Path) -> None:
        found = one(deployed(tmp_path, ["monitoring"]), "ConfigMap", "owned-by-dashboard")
        text = (ROOT.parent / "monitoring" / "dashboard.json").read_text()

        assert found["data"] == {"dashboard.json": text}
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert len(text) < 200_000  # kubectl keeps a copy in an annotation, which may have 256 KiB


class TestNetworkPolicy:
    """Who may reach whom."""

    @pytest.fixture
    def spec(self, tmp_path: Path) -> Json:
        found: Json = one(deployed(tmp_path, ["network-policy"], namespace="team"), "NetworkPolicy", "owned-by")["spec"]
        return found

    def test_it_is_about_the_programs_pods_and_both_directions(self, spec: Json) -> None:
        assert spec["podSelector"] == {"matchLabels": SELECTOR}
        assert spec["policyTypes"] == ["Ingress", "Egress"]

    def test_the_gateway_and_prometheus_reach_them(self, spec: Json) -> None:
        assert spec["ingress"] == [
            {"from": [_of("team") | {"podSelector": {"matchLabels": GATEWAY}}], "ports": _tcp(9002)},
            {"from": [_of("monitoring")], "ports": _tcp(9090)},
        ]

    def test_they_reach_the_engines_the_api_server_and_names(self, spec: Json) -> None:
        engines = {"podSelector": {"matchLabels": {"llm-d.ai/inference-serving": "true"}}}

        assert spec["egress"] == [
            {"to": [_of("team") | engines], "ports": _tcp(8000)},
            {"ports": _tcp(443, 6443)},
            {"to": [_of("kube-system")], "ports": [{"protocol": "UDP", "port": 53}, *_tcp(53)]},
        ]

    def test_an_operator_says_where_the_gateway_is(self, tmp_path: Path) -> None:
        place = "/spec/ingress/0/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"
        patch = yaml.safe_dump([{"op": "replace", "path": place, "value": "gateways"}])
        patches = [{"target": {"kind": "NetworkPolicy", "name": "owned-by"}, "patch": patch}]
        spec = one(deployed(tmp_path, ["network-policy"], patches=patches), "NetworkPolicy", "owned-by")["spec"]

        assert spec["ingress"][0]["from"] == [_of("gateways") | {"podSelector": {"matchLabels": GATEWAY}}]

    def test_envoy_gateways_envoys_are_reached_by_the_patch_that_the_component_shows(self, tmp_path: Path) -> None:
        text = (ROOT / "components" / "network-policy" / "kustomization.yaml").read_text()
        shown = re.search(r"^#   (patches:\n(?:#   .*\n)+)", text, re.MULTILINE)
        assert shown
        patches = yaml.safe_load(shown[1].replace("\n#   ", "\n"))["patches"]
        policy = one(deployed(tmp_path, ["network-policy"], patches=patches), "NetworkPolicy", "owned-by")
        envoys = {"gateway.envoyproxy.io/owning-gateway-name": "llm-d-inference-gateway"}

        assert faults(policy) == []
        assert policy["spec"]["ingress"][0] == {
            "from": [_of("envoy-gateway-system") | {"podSelector": {"matchLabels": envoys}}],
            "ports": _tcp(9002),
        }


class TestAdminReadonly:
    """Nobody changes the routing."""

    def test_the_program_is_told_and_its_role_loses_update(self, tmp_path: Path) -> None:
        documents = deployed(tmp_path, ["admin-readonly"])
        rules = one(documents, "Role", "owned-by")["rules"]

        assert container(documents)["args"] == ["serve", "--config-map=owned-by", "--admin-read-only"]
        assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch", "create"}
        assert [rule["resources"] for rule in rules if "create" in rule["verbs"]] == [["events"]]


class TestTls:
    """The ext_proc port speaks TLS."""

    def test_the_program_serves_with_the_mounted_secret(self, tmp_path: Path) -> None:
        documents = deployed(tmp_path, ["tls"])
        pod, of_base = deployment(documents)["template"]["spec"], {"serve", "--config-map=owned-by"}

        assert [each for each in container(documents)["args"] if each not in of_base] == [
            "--secure-serving",
            "--cert-path=/etc/owned-by/tls",
            "--enable-cert-reload",
        ]
        assert container(documents)["volumeMounts"] == [
            {"name": "tls", "mountPath": "/etc/owned-by/tls", "readOnly": True}
        ]
        assert pod["volumes"] == [{"name": "tls", "secret": {"secretName": "owned-by-tls", "defaultMode": 0o440}}]
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]

    def test_health_stays_plain(self, tmp_path: Path) -> None:
        assert container(deployed(tmp_path, ["tls"]))["readinessProbe"]["grpc"] == {
            "port": 9003,
            "service": "readiness",
        }

    def test_istio_speaks_it_too(self, tmp_path: Path) -> None:
        rule = one(deployed(tmp_path, ["istio-before", "tls"]), "DestinationRule", "owned-by")

        assert rule["spec"]["trafficPolicy"]["tls"] == {"mode": "SIMPLE", "insecureSkipVerify": True}

    def test_it_is_refused_with_an_envoy_that_would_go_on_speaking_plain(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match=r"/data/envoy\.yaml"):
            deployed(tmp_path, ["llm-d-standalone", "tls"])


def _of(namespace: str) -> Json:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}


def _tcp(*ports: int) -> list[Json]:
    return [{"protocol": "TCP", "port": port} for port in ports]
