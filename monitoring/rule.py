# SPDX-License-Identifier: Apache-2.0
"""Writes the PrometheusRule of manifests/ from alerts.yaml: `python monitoring/rule.py`. With `--check` it tells of a drift.

promtool and a plain Prometheus want the rules bare, the Prometheus Operator wants them in an object, and kustomize cannot make
one from the other. What is edited is alerts.yaml.
"""

import sys
import textwrap
from pathlib import Path
from typing import Final

import click

ALERTS: Final = Path(__file__).with_name("alerts.yaml")
RULE: Final = Path(__file__).parents[1] / "manifests" / "components" / "monitoring" / "prometheusrule.yaml"
HEAD: Final = """\
# SPDX-License-Identifier: Apache-2.0
# Written by monitoring/rule.py from monitoring/alerts.yaml (`make docs`); do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: owned-by
  labels:
    app.kubernetes.io/name: owned-by
    app.kubernetes.io/component: ext-proc
    app.kubernetes.io/managed-by: kustomize
spec:
"""


def rule() -> str:
    """The object, with the groups of alerts.yaml as they are written there."""
    alerts = ALERTS.read_text(encoding="utf-8")
    return HEAD + textwrap.indent(alerts[alerts.index("groups:") :], "  ")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the object is not what alerts.yaml says.")
def run(*, check: bool) -> None:
    """Write the PrometheusRule."""
    if not check:
        RULE.write_text(rule(), encoding="utf-8")
    elif RULE.read_text(encoding="utf-8") != rule():
        click.echo(f"{RULE.name} is not what {ALERTS.name} says: `make docs` writes it.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    run()
