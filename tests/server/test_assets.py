# SPDX-License-Identifier: Apache-2.0
"""The page's own files."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette

from extproc.demo.client import Answer, send
from extproc.server import assets
from extproc.server.assets import FILES, page_routes
from tests.server.serving import served

FOLDER = Path(assets.__file__).parent / "page"
SOURCES = {path.name: path.read_text() for path in FOLDER.iterdir()}


async def get(path: str) -> Answer:
    async with served(Starlette(routes=page_routes())) as url:
        return await send(int(url.rpartition(":")[2]), "GET", path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"), ("/chart.js", "text/javascript")],
)
async def test_a_file_is_served_as_what_it_is_and_holds_the_browser_to_it(path: str, kind: str) -> None:
    answer = await get(path)
    headers = {
        name: value for name, value in answer.headers.items() if name not in {"date", "server", "content-length"}
    }

    assert answer.body.decode() == SOURCES[FILES[path]]
    assert headers == {
        "content-type": f"{kind}; charset=utf-8",
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }


def test_every_file_is_served_and_everything_that_is_named_is_a_file() -> None:
    named = set(re.findall(r'(?:from "\./|src="|rel="stylesheet" href=")([^":]+)"', "".join(SOURCES.values())))

    assert set(FILES.values()) == set(SOURCES)
    assert named == set(SOURCES) - {"index.html"}


def test_nothing_is_taken_from_elsewhere_and_no_text_becomes_markup() -> None:
    text = "".join(SOURCES.values())
    links = set(re.findall(r"\w+://[^'\" ]+", text))

    assert links == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=|\sstyle=", text) == []


@pytest.mark.parametrize("name", SOURCES)
def test_every_file_names_its_licence_first(name: str) -> None:
    assert "SPDX-License-Identifier: Apache-2.0" in SOURCES[name].splitlines()[0]


def test_the_scripts_stay_small_enough_to_read() -> None:
    assert sum(len(text.splitlines()) for name, text in SOURCES.items() if name.endswith(".js")) <= 550
