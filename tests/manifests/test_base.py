# SPDX-License-Identifier: Apache-2.0
"""What `base` is made of: the program, as an operator finds it after `kubectl apply -k`."""

from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc import __version__
from extproc.cli import main
from extproc.demo.client import LOOPBACK
from extproc.demo.processes import Server
from extproc.settings import Settings
from tests.manifests.kustomize import ROOT, build, deployed, one

Json = dict[str, Any]

BASE = build(ROOT / "base")
DEPLOYMENT = one(BASE, "Deployment", "owned-by")
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
DEFAULTS = Settings()
SELECTOR = {"app.kubernetes.io/name": "owned-by", "app.kubernetes.io/component": "ext-proc"}


def test_these_are_its_objects() -> None:
    assert sorted((each["kind"], each["metadata"]["name"]) for each in BASE) == [
        ("ConfigMap", "owned-by"),
        ("ConfigMap", "owned-by-routing"),
        ("Deployment", "owned-by"),
        ("PodDisruptionBudget", "owned-by"),
        ("Role", "owned-by"),
        ("RoleBinding", "owned-by"),
        ("Service", "owned-by"),
        ("ServiceAccount", "owned-by"),
    ]


def test_it_says_no_namespace() -> None:
    assert [each["metadata"]["name"] for each in BASE if "namespace" in each["metadata"]] == []


class TestPods:
    """The Deployment."""

    def test_there_are_two_and_a_rollout_never_has_less(self) -> None:
        assert DEPLOYMENT["spec"]["replicas"] == 2
        assert DEPLOYMENT["spec"]["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        }

    def test_they_may_do_as_little_as_can_be(self) -> None:
        assert POD["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert CONTAINER["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_memory_is_bounded_and_cpu_is_not(self) -> None:
        assert {name: set(said) for name, said in CONTAINER["resources"].items()} == {
            "requests": {"cpu", "memory"},
            "limits": {"memory"},
        }

    def test_they_are_spread_over_zones_and_hosts_where_there_are_several(self) -> None:
        assert POD["spec"]["topologySpreadConstraints"] == [
            {
                "topologyKey": key,
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": SELECTOR},
                "matchLabelKeys": ["pod-template-hash"],
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ]

    def test_they_have_the_time_that_a_drain_takes(self) -> None:
        assert POD["spec"]["terminationGracePeriodSeconds"] > DEFAULTS.drain_delay + DEFAULTS.drain_timeout

    def test_no_variable_of_a_service_looks_like_a_flag(self) -> None:
        assert POD["spec"]["enableServiceLinks"] is False
        assert "env" not in CONTAINER

    def test_they_run_as_the_account_that_the_role_is_bound_to(self, tmp_path: Path) -> None:
        binding = one(deployed(tmp_path, namespace="team"), "RoleBinding", "owned-by")

        assert POD["spec"]["serviceAccountName"] == "owned-by"
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "owned-by", "namespace": "team"}]
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "owned-by"}

    def test_the_image_is_of_this_version(self) -> None:
        assert CONTAINER["image"] == f"owned-by:{__version__}"

    def test_the_ports_are_those_where_the_program_listens(self) -> None:
        assert CONTAINER["ports"] == [
            {"name": "grpc-ext-proc", "protocol": "TCP", "containerPort": DEFAULTS.grpc_port},
            {"name": "grpc-health", "protocol": "TCP", "containerPort": DEFAULTS.grpc_health_port},
            {"name": "http-metrics", "protocol": "TCP", "containerPort": DEFAULTS.metrics_port},
        ]

    def test_the_probes_are_these(self) -> None:
        probes = {name: CONTAINER[name] for name in CONTAINER if name.endswith("Probe")}

        assert {name: probe["grpc"] for name, probe in probes.items()} == {
            "startupProbe": {"port": DEFAULTS.grpc_health_port, "service": "liveness"},
            "livenessProbe": {"port": DEFAULTS.grpc_health_port, "service": "liveness"},
            "readinessProbe": {"port": DEFAULTS.grpc_health_port, "service": "readiness"},
        }

    async def test_the_server_answers_each_probe_by_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "endpoints.yaml").write_text("pools: [{name: chat, endpoints: []}]")
        probed = {CONTAINER[name]["grpc"]["service"] for name in CONTAINER if name.endswith("Probe")}
        async with (
            Server("--endpoints-file", str(tmp_path / "endpoints.yaml")) as server,
            grpc.aio.insecure_channel(f"{LOOPBACK}:{server.grpc_health_port}") as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)
            answers = {name: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in probed}

        assert answers == dict.fromkeys(["liveness", "readiness"], health_pb2.HealthCheckResponse.SERVING)


class TestReached:
    """What leads to the pods."""

    def test_the_service_says_that_it_speaks_http_2(self) -> None:
        assert one(BASE, "Service", "owned-by")["spec"] == {
            "selector": SELECTOR,
            "ports": [
                {
                    "name": "grpc-ext-proc",
                    "protocol": "TCP",
                    "port": 9002,
                    "targetPort": "grpc-ext-proc",
                    "appProtocol": "kubernetes.io/h2c",
                },
                {
                    "name": "http-metrics",
                    "protocol": "TCP",
                    "port": 9090,
                    "targetPort": "http-metrics",
                    "appProtocol": "http",
                },
            ],
        }

    def test_the_budget_lets_one_go_at_a_time(self) -> None:
        assert one(BASE, "PodDisruptionBudget", "owned-by")["spec"] == {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": SELECTOR},
        }

    def test_the_deployments_own_selector_finds_them(self) -> None:
        assert DEPLOYMENT["spec"]["selector"] == {"matchLabels": SELECTOR}
        assert POD["metadata"]["labels"].items() >= SELECTOR.items()


class TestPolicy:
    """The ConfigMap `owned-by`."""

    def test_it_is_the_document_that_validate_takes(self) -> None:
        path = ROOT / "base" / "policy.yaml"
        result = CliRunner().invoke(main, ["validate", str(path)])

        assert (result.exit_code, result.output) == (0, f"{path}: ok\n")
        assert one(BASE, "ConfigMap", "owned-by")["data"] == {"policy.yaml": path.read_text()}

    def test_it_is_the_one_that_the_program_is_told_of(self) -> None:
        assert CONTAINER["args"] == ["serve", "--config-map=owned-by"]

    @pytest.mark.parametrize("layer", ["inner", "outer"])
    def test_an_operator_puts_another_in_its_place(self, layer: str, tmp_path: Path) -> None:
        deployed(tmp_path, namespace="team")
        folder = tmp_path / "program" if layer == "inner" else tmp_path
        generator: Json = {"name": "owned-by", "behavior": "replace", "files": ["policy.yaml"]}
        if layer == "outer":
            generator["namespace"] = "team"
        written = yaml.safe_load((folder / "kustomization.yaml").read_text()) | {"configMapGenerator": [generator]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
        (folder / "policy.yaml").write_text("another\n")

        assert one(build(tmp_path), "ConfigMap", "owned-by")["data"] == {"policy.yaml": "another\n"}
