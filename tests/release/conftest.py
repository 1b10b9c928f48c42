# SPDX-License-Identifier: Apache-2.0
"""The image's tree, made once for all tests here."""

from collections.abc import Iterator

import pytest

from release.tree import Image, made
from tests.release.container import ENDPOINTS


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The tree, with a file that a volume would bring. Nobody may write to it, as to a container's read-only root."""
    with made({"REVISION": "abc"}) as tree:
        mounted = tree.below(ENDPOINTS)
        mounted.parent.mkdir(parents=True)
        mounted.write_text("pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:1', models: [m]}]}]\n")
        for path in tree.root.rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        tree.root.chmod(0o555)
        yield tree
        for folder in [tree.root, *(path for path in tree.root.rglob("*") if path.is_dir() and not path.is_symlink())]:
            folder.chmod(0o755)
