# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the alerts ask for metrics that there are, and say what promtool understands."""

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from extproc.envoy.binding import Attachment
from extproc.observability.metrics import Family, Metrics
from extproc.policy.pick import Correction
from extproc.policy.types import Decision, Reason
from tests.promtool import promtool

FOLDER = Path(__file__).parents[1] / "monitoring"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
DASHBOARD = msgspec.json.decode((FOLDER / "dashboard.json").read_bytes())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in ALERTS}
EXPRESSIONS |= {f"{panel['title']}, {t['refId']}": t["expr"] for panel in PANELS for t in panel["targets"]}

VALUES = {
    "attachment": {each.value for each in Attachment},
    "decision": {each.__name__.lower() for each in get_args(Decision)},
    "reason": {each.value for each in Reason},
    "outcome": {each.value for each in Correction},
    "ready": {"true", "false"},
    "result": {"ok", "failed", "sent"},
    "cause": {"protocol", "internal"},
    "job": {"$job"},
}
"""What the labels can be that an expression compares."""
TARGET = {"job", "instance"}
"""The labels that Prometheus gives a series by itself."""


def families() -> dict[str, Family]:
    """Each name of a series, and the metric that it is of."""
    found: dict[str, Family] = {}
    for each in Metrics().catalogue:
        parts = ("_bucket", "_sum", "_count") if each.type == "histogram" else ("",)
        found |= {each.name + part: each for part in parts}
    return found


FAMILIES = families()


def labels_of(series: str) -> set[str]:
    """The labels that a series has."""
    return {*FAMILIES[series].labels, *TARGET, *(["le"] if series.endswith("_bucket") else [])}


def named(expression: str) -> list[tuple[str, str]]:
    """The series that an expression names, and what it asks of each."""
    return re.findall(r"\b(owned_by_\w+)(?:\{([^}]*)\})?", expression)


def test_promtool_accepts_the_alerts() -> None:
    code, said = promtool("check", "rules", "--lint-fatal", str(FOLDER / "alerts.yaml"))

    assert (code, f"SUCCESS: {len(ALERTS)} rules found" in said) == (0, True), said


@pytest.mark.slow
def test_each_alert_fires_when_it_must_and_no_other_one_does() -> None:
    code, said = promtool("test", "rules", str(FOLDER / "alerts_test.yaml"))

    assert code == 0, said


def test_each_alert_is_seen_firing() -> None:
    samples = [sample for test in TESTS for check in test["promql_expr_test"] for sample in check["exp_samples"]]
    fired = {re.search(r'alertname="(\w+)"', sample["labels"])[1] for sample in samples}  # type: ignore[index]

    assert fired == {rule["alert"] for rule in ALERTS}


def test_each_alert_says_what_is_the_matter_and_what_to_do() -> None:
    severities = {"critical", "warning", "info"}

    assert [rule["alert"] for rule in ALERTS if set(rule["annotations"]) != {"summary", "description"}] == []
    assert [rule["alert"] for rule in ALERTS if rule["labels"].get("severity") not in severities] == []


def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    filled = [target["expr"].replace("$__rate_interval", "5m").replace("$job", ".*") for target in TARGETS]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(filled)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    code, said = promtool("check", "rules", str(tmp_path / "rules.yaml"))

    assert (code, f"SUCCESS: {len(rules)} rules found" in said) == (0, True), said


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_metric_and_label_is_one_that_there_is(expression: str) -> None:
    series = named(expression)
    grouped = {label for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in re.split(r",\s*", labels)}
    known = set().union(*(labels_of(name) for name, _ in series))

    assert series
    assert grouped <= known
    for name, asked in series:
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', asked):
            assert label in labels_of(name)
            assert set(value.split("|")) <= VALUES[label]


def test_each_alert_templates_labels_that_are_left() -> None:
    for rule in ALERTS:
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        kept = {label for labels in grouped for label in re.split(r",\s*", labels)}
        if not re.search(r"\b(sum|max|min|absent|count)\b", rule["expr"]):
            kept = set().union(*(labels_of(name) for name, _ in named(rule["expr"])))

        assert shown <= kept, rule["alert"]


def test_each_legend_shows_labels_that_are_left() -> None:
    for target in TARGETS:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])

        assert shown == {label for labels in grouped for label in re.split(r",\s*", labels)} - {"le"}, target


def test_the_dashboard_shows_every_metric() -> None:
    shown = {FAMILIES[name].name for target in TARGETS for name, _ in named(target["expr"])}

    assert shown == {each.name for each in Metrics().catalogue}


def test_the_dashboard_asks_whatever_data_source_is_chosen() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}

    assert {name: each["type"] for name, each in variables.items()} == {"datasource": "datasource", "job": "query"}
    assert [each["datasource"] for each in (*PANELS, *TARGETS, variables["job"]) if each["datasource"] != source] == []
    assert "__inputs" not in DASHBOARD


def test_the_dashboards_panels_say_what_they_show_and_do_not_overlap() -> None:
    def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        return not beside and not (a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"])

    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert [panel["title"] for panel in PANELS if not panel["title"] or not panel["description"].endswith(".")] == []
    assert [(one["title"], other["title"]) for one, other in combinations(everything, 2) if overlap(one, other)] == []


def test_the_prometheus_rule_of_the_manifests_is_written_from_the_alerts() -> None:
    done = subprocess.run([sys.executable, FOLDER / "rule.py", "--check"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
