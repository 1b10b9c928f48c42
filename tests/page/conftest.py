# SPDX-License-Identifier: Apache-2.0
"""A real Chromium, one program for the tests that change nothing of its cluster, and a page of its own for each test."""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright, expect

from tests.page.stage import Stage, staged

ARTIFACTS: Final = "OWNED_BY_ARTIFACTS"
FLAGS: Final = (
    "--no-sandbox",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
Open = Callable[..., Coroutine[Any, Any, Page]]

expect.set_options(timeout=20_000)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        reason = "chromium is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=program, args=[*FLAGS])
        yield running
        await running.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A running program, for tests that leave its endpoints as they are."""
    async with staged(tmp_path_factory.mktemp("page")) as found, found.running():
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Files and engines; the test starts the program."""
    async with staged(tmp_path) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser) -> AsyncIterator[Open]:
    """Opens a URL in a context of its own; in the end no page may have broken a rule or asked anybody else."""
    faults: list[str] = []

    def said(message: ConsoleMessage) -> None:
        # That a request failed is what some tests are about; anything else is a mistake or a rule that was broken.
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            faults.append(message.text)

    async with AsyncExitStack() as stack:

        async def go(url: str, **options: Any) -> Page:
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            page = await context.new_page()

            def asked(request: Request) -> None:
                if not request.url.startswith((url, "data:")):
                    faults.append(f"asked for {request.url}")

            page.on("console", said)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", asked)
            await page.goto(url)
            return page

        yield go
    assert faults == []


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get(ARTIFACTS, tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
