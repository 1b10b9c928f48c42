# SPDX-License-Identifier: Apache-2.0
"""The guide to the admin port: its commands do what it says, at the real program."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.client import Answer, send
from extproc.demo.processes import Server
from tests.builders import HEAD, LLAMA

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "admin.md").read_text()
ENDPOINTS = f"""pools:
- name: chat
  endpoints:
  - {{name: a, address: "127.0.0.1:8001", labels: {{llm-d.ai/engine-type: vllm, app: llama-canary}}, models: [{LLAMA}]}}
  - {{name: b, address: "127.0.0.1:8002", labels: {{llm-d.ai/engine-type: sglang}}, models: [{LLAMA}]}}
"""


def commands() -> list[list[str]]:
    """The words of each curl command of the page."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL):
        lexer = shlex.shlex(block, posix=True, punctuation_chars=False)
        lexer.whitespace_split = True
        words = list(lexer)
        starts: list[int] = [number for number, word in enumerate(words) if word == "curl"]
        found += [words[start + 1 : end] for start, end in pairwise([*starts, len(words)])]
    return found


async def run(words: list[str], port: int) -> Answer:
    """Send what curl would."""
    method, headers, body, url = "", {}, None, ""
    rest = iter(words)
    for word in rest:
        match word:
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest).encode()
            case _:
                url = word
    host, _, path = url.partition("/")
    assert host == "localhost:9091"
    return await send(port, method or ("POST" if body else "GET"), "/" + path, headers, body)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "endpoints.yaml").write_text(ENDPOINTS)
    (tmp_path / "policy.yaml").write_text(HEAD)
    return ["--endpoints-file", str(tmp_path / "endpoints.yaml"), "--config-file", str(tmp_path / "policy.yaml")]


async def test_every_command_does_what_is_said_of_it(flags: list[str]) -> None:
    found: list[tuple[int, Any]] = []
    async with Server(*flags) as server:
        for words in commands():
            answer = await run(words, server.admin_port)
            found.append((answer.status, answer.json() if answer.body else None))

    entry = {"model": LLAMA, "owned_by": "canary", "selector": {"matchLabels": {"app": "llama-canary"}}}
    (created, stored), (shown, entries), (deleted, nothing), (discovered, changes), (explained, explanation) = found
    assert (created, stored.pop("resourceVersion") != "", stored) == (201, True, entry)
    assert (shown, entries["routing"]) == (200, [entry])
    assert (deleted, nothing) == (204, None)
    assert (discovered, changes["errors"]) == (200, {})
    assert (explained, explanation["reason"], explanation["endpoints"]) == (200, "owner-matched", ["127.0.0.1:8002"])


async def test_every_page_of_the_table_is_there(flags: list[str]) -> None:
    pages = re.findall(r"^\| `(/[a-z0-9/]+)` \|", GUIDE, re.MULTILINE)
    async with Server(*flags) as server:
        statuses = {page: (await send(server.admin_port, "GET", page)).status for page in pages}

    assert statuses == dict.fromkeys(["/statusz", "/configz", "/endpointz", "/flagz", "/v1/models"], 200)
