# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document holds against the real program, whatever is sent."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from starlette.routing import Route

from extproc.server.admin import Sources, admin_app
from extproc.server.openapi import document
from tests.server.test_admin import HEAD, Admin

SEED = 20261125


@pytest.fixture
def admin(tmp_path: Path) -> Admin:
    one = Admin(tmp_path)
    # Any model can then have an entry, so that most changes are made and not refused.
    one.write("policy.yaml", HEAD + "match: {models: any}\n")
    return one


@pytest.mark.slow
async def test_a_fuzzer_finds_nothing_that_the_document_does_not_say(admin: Admin) -> None:
    async with admin.server as server:
        flags = ["--checks", "all", "--max-examples", "40", "--seed", str(SEED), "--no-color"]
        flags += ["--exclude-path", "/events", "--header"]  # it has no end
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).parent / "schemathesis"), "run", *flags, "Authorization: Bearer sesame"),
            f"http://127.0.0.1:{server.admin_port}/openapi.json",
            cwd=admin.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()

    assert process.returncode == 0, output
    assert re.search(r"Tested: 14\b", output), output


def test_every_path_of_the_application_is_in_the_document() -> None:
    nothing = Sources(*[lambda: None] * len(Sources._fields))._replace(
        pages=dict.fromkeys(("/statusz", "/configz", "/endpointz", "/flagz"), lambda: None)
    )
    served = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in admin_app(nothing).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }

    page = {("/", "get"), ("/events", "get")}  # the files that it asks for are nobody else's business

    assert {(path, method) for path, methods in document()["paths"].items() for method in methods} == served | page
