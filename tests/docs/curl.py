# SPDX-License-Identifier: Apache-2.0
"""The curl commands that a page shows, as requests, and what stands under them."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.dataplane.exchange import Request, exchange
from tests.docs.pages import blocks


class Curl(NamedTuple):
    """A command: the port that it names, the request that it sends, what is shown of the answer, and the words before it."""

    line: str
    port: int
    request: Request
    shown: str
    before: str


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str


def commands(page: str) -> Iterator[Curl]:
    """The curl commands of a page's `console` blocks; each block is one, from its `$ ` to the last line of the command."""
    for block in blocks(page):
        if block.language == "console" and block.text.startswith("$ curl "):
            command, shown = _parted(block.text.removeprefix("$ "))
            words = shlex.split(command)
            port, request = _request(words)
            yield Curl(" ".join(words), port, request, shown, block.before)


async def send(curl: Curl, ports: Mapping[int, int]) -> Answer:
    """Send it to where the port that it names really is."""
    async with exchange(ports[curl.port], curl.request) as answer:
        await answer.rest()
        return Answer(answer.status, answer.headers, answer.body.decode())


def says(text: str, shown: str) -> bool:
    """Whether a text is what is shown of it; `...` stands for anything."""
    wanted = ".*".join(re.escape(part) for part in shown.rstrip("\n").split("..."))
    return re.fullmatch(wanted, text.rstrip("\n"), re.DOTALL) is not None


def _parted(text: str) -> tuple[str, str]:
    """The command, which goes on as long as a quote is open, and the rest."""
    lines = text.splitlines(keepends=True)
    for end in range(1, len(lines) + 1):
        command = "".join(lines[:end])
        if command.count("'") % 2 == 0:
            return command, "".join(lines[end:])
    raise AssertionError(f"a quote is left open in\n{text}")


def _request(words: list[str]) -> tuple[int, Request]:
    method, headers, body, url = "", [], None, ""
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-s":
                pass
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers.append((name, value))
            case "-d":
                body = next(rest).encode()
            case _:
                assert not word.startswith("-"), f"what does {word} do?"
                url = word
    parts = urlsplit(url)
    assert (parts.scheme, parts.hostname) == ("http", "localhost"), url
    assert parts.port is not None
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return parts.port, Request(method or ("POST" if body else "GET"), target, tuple(headers), body)
