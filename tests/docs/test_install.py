# SPDX-License-Identifier: Apache-2.0
"""docs/guides/install.md: the request by which a reader sees that the filter is there is answered as the page says."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from extproc.envoy.binding import Attachment, Binding
from extproc.envoy.explain import HttpRequest, explain
from extproc.policy.config import default_policy
from tests.builders import endpoint, snapshot
from tests.docs.pages import ROOT
from tests.manifests.kustomize import deployed

GUIDE = (ROOT / "docs" / "guides" / "install.md").read_text()


@pytest.mark.parametrize("attachment", [each for each in Attachment if each is not Attachment.AFTER])
def test_an_owner_that_nobody_is_gets_the_reason_that_the_page_names(attachment: Attachment) -> None:
    (command,) = re.findall(r"^curl -si (.*)$", GUIDE, re.MULTILINE)
    (reason,) = re.findall(r"^`x-owned-by-reason: ([a-z-]+)` is ours", GUIDE, re.MULTILINE)
    url, flag, header = shlex.split(command)
    name, _, value = header.partition(": ")
    request = HttpRequest("GET", url.removeprefix("http://GATEWAY"), ((name, value),))

    found = explain(request, Binding(attachment), snapshot(endpoint(1, "vllm")), default_policy())

    assert (flag, found.status, found.reason) == ("-H", 404, reason)


@pytest.mark.parametrize("component", ["istio-before", "envoy-gateway", "kgateway", "llm-d-standalone"])
def test_a_program_that_is_away_is_the_status_that_the_gateways_component_sets(component: str, tmp_path: Path) -> None:
    """Without a word of it Envoy answers 500; what each gateway really answers is in tests/manifests."""
    (row,) = re.findall(r"^\| the program \(.*$", GUIDE, re.MULTILINE)
    sets = "ServiceUnavailable" in yaml.safe_dump_all(deployed(tmp_path, [component]))

    assert re.findall(r"(\d+) (on Istio|elsewhere)", row) == [("503", "on Istio"), ("500", "elsewhere")]
    assert sets == component.startswith("istio")
