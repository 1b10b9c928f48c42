# SPDX-License-Identifier: Apache-2.0
"""What docs/guides/observe.md shows is what there is; its access log is written by Envoy in tests/dataplane."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk import environment_variables
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from extproc.cli import main
from extproc.observability import tracing
from extproc.observability.logs import DecisionLine
from extproc.observability.metrics import Metrics
from tests.promtool import promtool

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "observe.md"
GUIDE = PAGE.read_text()


def table(head: str) -> list[list[str]]:
    """The rows of the table whose head begins so, cell by cell."""
    rows = GUIDE[GUIDE.index(head) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_alert_is_listed_with_its_severity() -> None:
    rules = yaml.safe_load((ROOT / "monitoring" / "alerts.yaml").read_text())["groups"][0]["rules"]

    assert [row[:2] for row in table("| alert |")] == [
        [f"`{rule['alert']}`", rule["labels"]["severity"]] for rule in rules
    ]


def test_every_field_of_a_decisions_line_is_listed() -> None:
    listed = [name for row in table("| field | what") for name in re.findall(r"`([^`]+)`", row[0])]

    assert listed == [field.encode_name for field in msgspec.structs.fields(DecisionLine)]


def test_every_variable_is_one_that_the_sdk_reads() -> None:
    known = {value for name, value in vars(environment_variables).items() if name.startswith("OTEL_")}
    defaults = {row[0].strip("`"): row[1].strip("`") for row in table("| variable |")}

    assert set(defaults) - known == set()
    assert defaults["OTEL_SERVICE_NAME"] == tracing.SERVICE
    assert (defaults["OTEL_TRACES_SAMPLER"], defaults["OTEL_TRACES_SAMPLER_ARG"]) == (
        "parentbased_traceidratio",
        str(tracing.RATIO),
    )
    assert defaults["OTEL_BSP_SCHEDULE_DELAY"] == str(BatchSpanProcessor._default_schedule_delay_millis())
    assert defaults["OTEL_BSP_MAX_QUEUE_SIZE"] == str(BatchSpanProcessor._default_max_queue_size())
    assert defaults["OTEL_EXPORTER_OTLP_TIMEOUT"] == str(trace_exporter.DEFAULT_TIMEOUT)


def test_every_metric_is_one_that_there_is() -> None:
    shown = set(re.findall(r"`(owned_by_[a-z_]+)[`{]", GUIDE))

    assert shown
    assert shown <= {each.name for each in Metrics().catalogue}


def test_every_flag_is_one_that_there_is() -> None:
    described = CliRunner().invoke(main, ["serve", "--help"]).output
    theirs = {"--enable-feature"}  # Prometheus'

    assert [
        flag
        for flag in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", GUIDE)
        if flag not in described and flag not in theirs
    ] == []


def test_promtool_accepts_the_scrape_configuration(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(scrape_configs:\n.*?)```", GUIDE, re.DOTALL)
    discovery = "kubernetes_sd_configs:\n  - role: pod\n"
    assert discovery in block
    # Debian builds its Prometheus without the client of a cluster.
    (tmp_path / "prometheus.yaml").write_text(block.replace(discovery, "static_configs: [{targets: [a]}]\n"))
    code, said = promtool("check", "config", str(tmp_path / "prometheus.yaml"))

    assert code == 0, said


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()
