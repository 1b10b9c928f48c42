# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/, and what stands in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RELEASING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block: its language, its text, and the sentences before it, from the last heading or block on."""

    language: str
    text: str
    before: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    found, end = [], 0
    for match in re.finditer(r"^```([a-z]*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        before = re.split(r"^#.*$", page[end : match.start()], flags=re.MULTILINE)[-1]
        found.append(Block(match[1], match[2], before.strip()))
        end = match.end()
    return found
