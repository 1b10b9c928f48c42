# SPDX-License-Identifier: Apache-2.0
"""What docs/ shows is what the code does."""

import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from extproc.cli import main
from extproc.envoy.binding import Attachment
from extproc.envoy.metadata import pool_of_cluster
from extproc.observability.metrics import Metrics
from extproc.policy.loading import parse_policy
from extproc.policy.pick import Correction
from extproc.policy.types import Pool, Reason
from tests.builders import HEAD
from tests.compatibility import DOCUMENT, SCENARIOS, VERSIONS, table_of

ROOT = Path(__file__).parents[1]
ATTACHMENTS = (ROOT / "docs" / "attachments.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_envoys_is_what_is_promised_of_them() -> None:
    assert table_of({scenario.title: scenario.expected for scenario in SCENARIOS}) in DOCUMENT.read_text()


def test_every_envoy_of_the_table_is_one_that_is_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pinned = {path.stem.removeprefix("envoy-") for path in (ROOT / "requirements").glob("envoy-*.txt")}

    assert re.findall(r"^ENVOYS := (.*)$", makefile, re.MULTILINE) == [" ".join(VERSIONS)]
    assert pinned == set(VERSIONS)


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", ATTACHMENTS, re.DOTALL))
def test_every_policy_is_accepted(text: str) -> None:
    assert parse_policy(text.encode()).destinations == 3


LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
WORLD = """pools:
- name: chat
  endpoints:
  - {name: a, address: "127.0.0.1:8001", labels: {llm-d.ai/engine-type: vllm, app: llama-canary}, models: [%s]}
  - {name: b, address: "127.0.0.1:8002", labels: {llm-d.ai/engine-type: sglang}, models: [%s], ready: %s}
"""
SAID = {
    "prefer": ("true", [], "owner-preferred", ["127.0.0.1:8002"]),
    "split": ("true", ["-H", "x-request-id: 7"], "owner-drawn", ["127.0.0.1:8001"]),
    "fallback": ("false", ["-H", "x-owned-by: sglang"], "owner-fallback", ["127.0.0.1:8001"]),
    "models": ("true", ["-H", "x-owned-by: vllm"], "rejected-by-policy", []),
    "routing": ("true", ["-H", "x-owned-by: vllm"], "owner-matched", ["127.0.0.1:8001"]),
}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (next(key for key in SAID if key in text), text)
        for text in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "policy.md").read_text(), re.DOTALL)
    ],
)
def test_every_example_of_the_policy_does_what_is_said_of_it(key: str, text: str, tmp_path: Path) -> None:
    ready, arguments, reason, endpoints = SAID[key]
    files = {"endpoints": WORLD % (LLAMA, LLAMA, ready), "policy": HEAD + text, "body": f'{{"model": "{LLAMA}"}}'}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    flags = ["--endpoints-file", str(tmp_path / "endpoints"), "--config-file", str(tmp_path / "policy"), "--json"]
    result = CliRunner().invoke(main, ["explain", *flags, *arguments, "-d", str(tmp_path / "body"), "/v1/completions"])
    found = msgspec.json.decode(result.output)

    assert (found["reason"], found["endpoints"]) == (reason, endpoints)


def test_every_attachment_has_a_section() -> None:
    assert re.findall(r"^## `([a-z]+)`", ATTACHMENTS, re.MULTILINE) == [each.value for each in Attachment]


def test_every_metric_and_outcome_is_one_that_there_is() -> None:
    names = {family.name for family in Metrics().registry.collect()}
    shown = set(re.findall(r"`(owned_by_[a-z_]+?)(?:_total)?[`{]", ATTACHMENTS))

    assert shown <= names
    assert re.findall(r'outcome="([a-z-]+)"', ATTACHMENTS) == [each.value for each in Correction]


def test_every_reason_is_one_that_there_is() -> None:
    reasons = {each.value for each in Reason}

    assert {"hint-without-body", "hint-ipv6", "not-a-pool"} <= reasons & set(re.findall(r"`([a-z0-9-]+)`", ATTACHMENTS))


def test_every_flag_is_one_that_there_is() -> None:
    described = "".join(CliRunner().invoke(main, [command, "--help"]).output for command in ("serve", "explain"))

    assert [flag for flag in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", ATTACHMENTS) if flag not in described] == []


def test_the_cluster_of_a_pool_is_spelt_as_istio_does() -> None:
    (cluster,) = re.findall(r"`(outbound\|.*?)…`", ATTACHMENTS)

    assert pool_of_cluster(cluster + "cluster.local", ()) == Pool("default", "chat")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []
