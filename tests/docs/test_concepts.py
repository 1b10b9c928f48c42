# SPDX-License-Identifier: Apache-2.0
"""docs/concepts.md: the words are the code's."""

import re

from extproc.envoy.binding import Attachment
from extproc.policy.types import MEANINGS, Reason
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "concepts.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n\n(.*?)(?=\n## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_concept_is_explained_in_an_order_in_which_it_can_be_read() -> None:
    assert list(SECTIONS) == [
        "Owner",
        "Model",
        "Endpoint",
        "Pool",
        "Endpoint Picker",
        "Subset hint",
        "Destination",
        "Attachment",
        "Guard",
        "Snapshot",
        "Policy",
        "Decision",
        "Reason",
    ]


def test_the_decisions_are_those_of_the_reasons() -> None:
    decisions = {decision for meaning in MEANINGS.values() for decision in meaning.decisions}

    assert set(re.findall(r"^\| `([a-z]+)` \|", SECTIONS["Decision"], re.MULTILINE)) == decisions


def test_the_attachments_are_all_named() -> None:
    named = re.findall(r"`([a-z]+)`", SECTIONS["Attachment"])

    assert list(dict.fromkeys(named)) == [attachment.value for attachment in Attachment]


def test_the_reasons_that_are_named_are_some() -> None:
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", SECTIONS["Reason"]))

    assert named
    assert named <= {reason.value for reason in Reason}
