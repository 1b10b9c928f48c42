# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from extproc.cli import main
from extproc.policy.problems import schema
from tests.certificates import Authority, Issued, write

POLICY = "apiVersion: owned-by/v1alpha1\nkind: OwnedByPolicy\n"
ENDPOINTS = """pools:
- name: chat
  endpoints:
  - {name: a, address: "127.0.0.1:8001", labels: {llm-d.ai/engine-type: vllm}, models: [m]}
  - {name: b, address: "127.0.0.1:8002", labels: {llm-d.ai/engine-type: sglang}, models: [m]}
"""

EXPLAINED = """\
decision     restrict (owner-matched)
asked for    sglang
named by     engine
model        m
body read    yes
owner        sglang
endpoints    127.0.0.1:8002
destination  127.0.0.1:8002,127.0.0.1:8002,127.0.0.1:8002
steps        filter                            eligible before -> after
             pool default/chat                 2 -> 2
             owner sglang                      2 -> 1
             model m                           1 -> 1
"""


STEPS = """\
steps        filter                            eligible before -> after
             pool default/chat                 2 -> 2
             owner sglang                      2 -> 1
             model m                           1 -> 1
"""
ASKED = """\
decision     restrict (owner-matched)
asked for    sglang
named by     engine
model        m
body read    yes
owner        sglang
endpoints    127.0.0.1:8002
"""
ATTEMPTS = ",".join(["127.0.0.1:8002"] * 3)
DESTINATION = f"destination  {ATTEMPTS}\n"
HEADERS_SET = f"headers set  x-gateway-destination-endpoint: {ATTEMPTS}\n"
BY_ATTACHMENT = {
    "before": ([], DESTINATION),
    "after": (["--pick", "127.0.0.1:8001"], f"{DESTINATION}EPP's pick   rewritten\n{HEADERS_SET}"),
    "picker": ([], DESTINATION + HEADERS_SET),
    "header": ([], "headers set  x-owned-by: sglang, x-gateway-model-name: m\nroute        chosen anew\n"),
}
CLUSTERS = {
    "a pool's": ("outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local", "restrict (hint-without-body)"),
    "no pool's": ("outbound|80||web.default.svc.cluster.local", "passthrough (not-a-pool)"),
    "an unknown pool's": ("outbound|54321||chat-ip-31e06f7d.prod.svc.cluster.local", "reject (pool-unknown)"),
}
PICKS = {
    "kept": ("127.0.0.1:8002", "kept"),
    "narrowed": ("127.0.0.1:8001, 127.0.0.1:8002", "narrowed"),
    "rewritten": ("10.0.0.1:1", "rewritten"),
    "none": ("", "epp-bypassed"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "endpoints.yaml").write_text(ENDPOINTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, text: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, input=text)
    return result.exit_code, result.output


@pytest.mark.usefixtures("folder")
class TestValidate:
    """`owned-by validate`."""

    def test_a_good_policy_is_ok(self) -> None:
        assert run("validate", "policy.yaml") == (0, "policy.yaml: ok\n")

    def test_a_mistake_is_named_with_its_line(self, folder: Path) -> None:
        (folder / "policy.yaml").write_text(POLICY + "gard: false\n")

        assert run("validate", "policy.yaml") == (
            1,
            "Error: policy.yaml: line 3: Object contains unknown field `gard`, did you mean `guard`?\n",
        )

    def test_every_mistake_has_a_line_of_its_own(self, folder: Path) -> None:
        (folder / "policy.yaml").write_text(POLICY + "destinations: 0\nguard: 1\n")
        code, output = run("validate", "policy.yaml")

        assert (code, [line.partition(": line ")[2][:1] for line in output.splitlines()]) == (1, ["3", "4"])

    def test_what_no_endpoint_is_is_a_problem_if_endpoints_are_given(self, folder: Path) -> None:
        (folder / "policy.yaml").write_text(POLICY + "whenAbsent: {action: prefer, owners: [tgi]}\n")

        assert run("validate", "policy.yaml") == (0, "policy.yaml: ok\n")
        assert run("validate", "--endpoints-file", "endpoints.yaml", "policy.yaml") == (
            1,
            "Error: policy.yaml: whenAbsent.owners: prefers `tgi`, but no endpoint is that\n",
        )

    def test_the_schema_is_printed(self) -> None:
        code, output = run("validate", "--schema")

        assert (code, msgspec.json.decode(output)) == (0, msgspec.json.decode(msgspec.json.encode(schema())))

    @pytest.mark.parametrize("more", [["policy.yaml"], ["--endpoints-file", "endpoints.yaml"]])
    def test_the_schema_stands_alone(self, more: list[str]) -> None:
        code, output = run("validate", "--schema", *more)

        assert (code, output.splitlines()[-1]) == (2, "Error: --schema stands alone: it checks no file")

    def test_without_a_file_there_is_nothing_to_check(self) -> None:
        code, output = run("validate")

        assert (code, output.splitlines()[-1]) == (2, "Error: a FILE is needed, or --schema")

    def test_a_missing_file_is_a_usage_error(self) -> None:
        code, output = run("validate", "none.yaml")

        assert (code, output.splitlines()[-1]) == (2, "Error: none.yaml: No such file or directory")


@pytest.mark.usefixtures("folder")
class TestExplain:
    """`owned-by explain`."""

    def test_it_shows_what_the_session_decided(self) -> None:
        arguments = ["--endpoints-file", "endpoints.yaml", "-d", "-", "/v1/chat/completions"]
        text = '{"model": "m", "engine": "sglang"}'

        assert run("explain", *arguments, text=text) == (
            0,
            EXPLAINED,
        )

    @pytest.mark.parametrize("attachment", BY_ATTACHMENT)
    def test_it_shows_what_each_attachment_does(self, attachment: str) -> None:
        more, shown = BY_ATTACHMENT[attachment]
        arguments = ["--endpoints-file", "endpoints.yaml", "--attachment", attachment, *more, "-d", "-", "/v1/x"]

        assert run("explain", *arguments, text='{"model": "m", "engine": "sglang"}') == (0, ASKED + shown + STEPS)

    @pytest.mark.parametrize(("cluster", "decision"), CLUSTERS.values(), ids=CLUSTERS)
    def test_it_takes_into_account_where_the_route_leads(self, cluster: str, decision: str) -> None:
        arguments = ["--cluster", cluster, "-X", "POST", "-H", "x-owned-by: sglang", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments)

        assert (code, output.splitlines()[0]) == (0, f"decision     {decision}")

    def test_a_pool_that_is_named_counts_for_more_than_where_the_route_leads(self) -> None:
        cluster, _ = CLUSTERS["no pool's"]
        arguments = ["--pool", "default/chat", "--cluster", cluster, "-H", "x-owned-by: sglang", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments)

        assert (code, output.splitlines()[0]) == (0, "decision     restrict (hint-without-body)")

    @pytest.mark.parametrize(("pick", "correction"), PICKS.values(), ids=PICKS)
    def test_it_shows_what_becomes_of_a_pick(self, pick: str, correction: str) -> None:
        arguments = ["--attachment", "after", "--pick", pick, "--json", "-H", "x-owned-by: sglang", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments)
        found = msgspec.json.decode(output)

        assert (code, found["correction"], found["destination"]) == (0, correction, ",".join(["127.0.0.1:8002"] * 3))

    def test_it_shows_the_body_that_the_engine_gets(self, folder: Path) -> None:
        (folder / "policy.yaml").write_text(POLICY + "body: {strip: true}\n")
        arguments = ["--config-file", "policy.yaml", "-d", "-", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments, text='{"engine": "sglang"}\n')
        lines = output.splitlines()

        assert (code, [line for line in lines if not line or line.startswith("body  ")]) == (0, ["body         {}"])

    def test_the_columns_make_room_for_a_long_name(self) -> None:
        arguments = ["-H", "x-owned-by: " + "x" * 40, "-X", "POST", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments)

        assert (code, output.splitlines()[-3:]) == (
            0,
            [
                "steps        filter" + " " * 42 + "eligible before -> after",
                "             pool default/chat" + " " * 31 + "2 -> 2",
                "             owner " + "x" * 40 + "  2 -> 0",
            ],
        )

    def test_it_shows_what_a_body_comes_to_that_is_cut(self) -> None:
        arguments = ["--truncated-at", "12", "-d", "-", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments, text='{"engine": "sglang"}')

        assert (code, output.splitlines()[:3]) == (
            0,
            ["decision     passthrough (owner-absent)", "asked for    no owner", "body read    in part"],
        )

    def test_it_shows_what_a_body_comes_to_that_streams(self, folder: Path) -> None:
        (folder / "policy.yaml").write_text(POLICY + "body: {maxBytes: 7}\n")
        arguments = ["--config-file", "policy.yaml", "--body", "stream", "-d", "-", "/v1/x"]
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments, text='{"engine": "sglang"}')

        assert (code, output.splitlines()[0]) == (0, "decision     reject (body-too-large)")

    def test_an_attachment_that_is_none_is_a_usage_error(self) -> None:
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", "--attachment", "behind", "/v1/x")

        assert (code, output.splitlines()[-1]) == (
            2,
            "Error: Invalid value for '--attachment': 'behind' is not one of 'before', 'after', 'picker', 'header'.",
        )

    def test_json_is_one_object(self) -> None:
        arguments = [
            "--endpoints-file",
            "endpoints.yaml",
            "--json",
            "-X",
            "POST",
            "-H",
            "x-owned-by: tgi",
            "/v1/completions",
        ]
        code, output = run("explain", *arguments)
        found = msgspec.json.decode(output)

        assert (code, found["decision"], found["status"], found["reason"]) == (0, "reject", 404, "owner-not-found")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-H", "nonsense", "/v1/models"], "Error: `nonsense` is not a header: write it as 'name: value'"),
            (["v1/models"], "Error: `v1/models` is not a path: it begins with /"),
            (
                ["--pool", "chat", "/v1/models"],
                "Error: Invalid value for '--pool': x-owned-by-pool: `chat` is not namespace/name",
            ),
            (
                ["--body", "stream", "--truncated-at", "5", "/v1/models"],
                "Error: --body stream and --truncated-at exclude each other: a body that streams is not cut",
            ),
        ],
    )
    def test_what_cannot_be_read_is_a_usage_error(self, arguments: list[str], message: str) -> None:
        code, output = run("explain", "--endpoints-file", "endpoints.yaml", *arguments)

        assert (code, output.splitlines()[-1]) == (2, message)


@pytest.mark.usefixtures("folder")
class TestServe:
    """`owned-by serve`, as far as it does not serve."""

    def test_a_bad_file_at_start_is_exit_1(self, folder: Path) -> None:
        (folder / "policy.yaml").write_text("")

        code, output = run("serve", "--endpoints-file", "endpoints.yaml", "--config-file", "policy.yaml")

        assert (code, output.splitlines()[-1]) == (1, "Error: policy.yaml: the document is empty")

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda one, _: (one.certificate, None), "tls.key cannot be read: No such file or directory"),
            (lambda one, _: (b"x", one.key), "tls.crt holds no certificate in PEM, or a broken one"),
            (
                lambda one, other: (one.certificate, other.key),
                "tls.key is not the key of the first certificate in tls.crt",
            ),
        ],
        ids=["missing", "bad", "mismatched"],
    )
    def test_a_pair_that_cannot_be_served_with_at_start_is_exit_1(
        self, folder: Path, spoil: Callable[[Issued, Issued], tuple[bytes, bytes | None]], message: str
    ) -> None:
        authority = Authority()
        certificate, key = spoil(authority.issue(), authority.issue())
        write(folder / "certs", certificate, key or b"")
        if key is None:
            (folder / "certs" / "tls.key").unlink()

        code, output = run(
            "serve", "--endpoints-file", "endpoints.yaml", "--secure-serving", "--cert-path", str(folder / "certs")
        )

        assert (code, output.splitlines()[-1]) == (1, f"Error: {folder / 'certs'}: {message}")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--config-file policy.yaml --config-map owned-by", "--config-file and --config-map exclude each other"),
            ("--endpoints-file endpoints.yaml --namespaces a", "--endpoints-file and --namespaces exclude each other"),
            (
                "--endpoints-file endpoints.yaml --endpoint-selector a=b --endpoint-target-ports 1",
                "--endpoints-file and --endpoint-selector exclude each other",
            ),
            ("--endpoint-selector a=b", "--endpoint-selector and --endpoint-target-ports go together"),
            ("--endpoint-target-ports 1", "--endpoint-selector and --endpoint-target-ports go together"),
            (
                "--endpoint-selector a=b --endpoint-target-ports 1 --namespaces *",
                "--endpoint-selector needs namespaces by name",
            ),
            ("--endpoint-selector a!=b", "`a!=b` is not a list of key=value"),
            ("--endpoint-selector a", "`a` is not a list of key=value"),
            ("--endpoint-target-ports 80,0", "`80,0` is not a list of ports from 1 to 65535"),
            ("--namespaces a,*", "`a,*` is not a list of namespaces, nor `*` for all"),
            ("--namespaces A", "`A` is not a list of namespaces, nor `*` for all"),
            ("--config-map a/b/c", "`a/b/c` is not [namespace/]name"),
            ("--cert-path certs", "--cert-path needs --secure-serving: without it there is no TLS"),
            ("--enable-cert-reload", "--enable-cert-reload needs --secure-serving: without it there is no TLS"),
            (
                "--secure-serving --enable-cert-reload",
                "--enable-cert-reload needs --cert-path: a certificate of our own making does not change",
            ),
            ("--secure-serving --cert-path policy.yaml", "Directory 'policy.yaml' is a file."),
            ("--probe-interval 30ms", "--probe-interval must be 1s or longer, or 0s for never"),
            ("--probe-timeout 0s", "--probe-timeout must be longer than nothing"),
            ("--refresh-metrics-interval 30ms", "--refresh-metrics-interval must be 50ms or longer, or 0s for never"),
            (
                "--attachment picker --metrics-staleness-threshold 2s",
                "--metrics-staleness-threshold must be at least three times --refresh-metrics-interval",
            ),
            (
                "--refresh-metrics-interval 2s --metrics-staleness-threshold 5s",
                "--metrics-staleness-threshold must be at least three times --refresh-metrics-interval",
            ),
        ],
    )
    def test_flags_that_make_no_sense_are_a_usage_error(self, arguments: str, message: str) -> None:
        code, output = run("serve", *arguments.split())

        assert (code, message in output.splitlines()[-1]) == (2, True), output

    def test_without_a_file_and_without_a_cluster_the_error_says_where_it_looked(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setenv("HOME", str(folder))

        code, output = run("serve")

        assert (code, output.splitlines()[-1]) == (1, f"Error: {folder}/.kube/config: No such file or directory")

    def test_what_the_flags_say_is_what_the_process_gets(self) -> None:
        line = (
            "--namespaces team-a,team-b --endpoint-selector app=x,tier==gpu --endpoint-target-ports 8000,8001,8000 "
            "--config-map team-a/rules --probe-interval 1m --probe-token-file token"
        )
        context = main.commands["serve"].make_context("serve", line.split())
        given = {name: context.params[name] for name in ("namespaces", "endpoint_selector", "endpoint_target_ports")}

        assert given == {
            "namespaces": ("team-a", "team-b"),
            "endpoint_selector": {"app": "x", "tier": "gpu"},
            "endpoint_target_ports": (8000, 8001),
        }
        assert (context.params["config_map"], context.params["probe_interval"]) == ("team-a/rules", 60.0)

    def test_every_flag_has_its_variable(self) -> None:
        serve = main.commands["serve"]
        expected = {
            option.name: "OWNED_BY_" + option.opts[0].removeprefix("--").replace("-", "_").upper()
            for option in serve.params
        }

        assert {option.name: getattr(option, "envvar", None) for option in serve.params} == expected


def test_a_health_check_of_nobody_is_exit_1(free_port: int) -> None:
    assert run("health", "--grpc-health-port", str(free_port)) == (
        1,
        f"Error: 127.0.0.1:{free_port}: UNAVAILABLE\n",
    )


@pytest.fixture
def free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
