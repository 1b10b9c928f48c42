# SPDX-License-Identifier: Apache-2.0
"""What docs/ shows is what the code does."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from extproc.cli import main
from extproc.envoy.binding import Attachment
from extproc.envoy.metadata import pool_of_cluster
from extproc.observability.metrics import Metrics
from extproc.policy.loading import parse_policy
from extproc.policy.pick import Correction
from extproc.policy.types import Pool, Reason
from tests.compatibility import DOCUMENT, SCENARIOS, table_of
from tests.docs import foreign
from tests.docs.pages import PAGES, ROOT, blocks
from tests.envoys import VERSIONS

ATTACHMENTS = (ROOT / "docs" / "attachments.md").read_text()


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


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


HELP = {name: CliRunner().invoke(main, [name, "--help"]).output for name in main.commands}
FLAGS = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "".join(HELP.values())))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_flag_is_one_that_there_is(page: Path) -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text())) <= FLAGS | foreign.FLAGS.keys()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_one_that_there_is(page: Path) -> None:
    text = page.read_text()
    code = [block.text for block in blocks(text)] + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    called = re.findall(r"(?:^|\| |\$ )owned-by ([a-z]+)", "\n".join(code), re.MULTILINE)

    assert set(called) <= HELP.keys()


def test_the_cluster_of_a_pool_is_spelt_as_istio_does() -> None:
    (cluster,) = re.findall(r"`(outbound\|.*?)…`", ATTACHMENTS)

    assert pool_of_cluster(cluster + "cluster.local", ()) == Pool("default", "chat")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_place_on_a_page_that_is_linked_to_is_there(page: Path) -> None:
    for path, place in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        target = (page.parent / path).read_text() if path else page.read_text()
        assert place in [_slug(heading) for heading in re.findall(r"^#+ (.*)$", target, re.MULTILINE)]


def _slug(heading: str) -> str:
    """The name that a heading has on the site where the pages are read."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_every_page_is_found_from_the_first() -> None:
    found, todo = set[Path](), [ROOT / "docs" / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page not in found and page.suffix == ".md":
            found.add(page)
            todo += [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())]

    assert [page for page in PAGES if page not in found] == []
