# SPDX-License-Identifier: Apache-2.0
"""How the page keeps to its server: when it has a connection, when it has none, and that its token still holds."""

from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Route, expect

from extproc.server.live import AGAIN
from tests.page.conftest import Open
from tests.page.reading import settled
from tests.page.stage import Stage

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

SEEN: Final = """(state) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => state === "hidden" });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""Has a page believe that its tab is seen, or is not: without a window a browser shows all of them."""


async def test_hidden_tabs_keep_no_connection_from_the_one_that_is_seen(shared: Stage, visit: Open) -> None:
    first = await visit(shared.url)
    hidden = [first, *[await first.context.new_page() for _ in range(5)]]
    for page in hidden:
        if page is not first:
            await page.goto(shared.url)
        await expect(page.locator("#connection")).to_have_text("Live")
        await page.evaluate(SEEN, "hidden")
        await expect(page.locator("#connection")).to_have_text("Paused while hidden")
    seen = await first.context.new_page()
    await seen.goto(shared.url)
    await settled(seen)
    await seen.get_by_role("button", name="Explain").click()
    await expect(seen.locator("#explained h3")).to_contain_text("owner-matched")
    await shared.decide(x_owned_by="vllm", x_request_id="while-hidden")
    await expect(seen.get_by_role("cell", name="while-hidden")).to_be_visible()
    held = await first.get_by_role("cell", name="while-hidden").count()
    await first.evaluate(SEEN, "visible")

    await expect(first.locator("#connection")).to_have_text("Live")
    await expect(first.get_by_role("cell", name="while-hidden")).to_be_visible()
    assert held == 0


async def test_a_stream_that_was_to_end_is_taken_up_again_without_a_word(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    asked: list[Route] = []

    async def answer(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            await route.fulfill(content_type="text/event-stream", body=AGAIN.decode())
        else:
            await route.continue_()

    await page.route("**/events", answer)
    await page.evaluate(SEEN, "hidden")
    await expect(page.locator("#connection")).to_have_text("Paused while hidden")
    await page.evaluate("""() => {
      window.said = [];
      const place = document.getElementById("connection");
      new MutationObserver(() => window.said.push(place.textContent)).observe(place, { childList: true });
    }""")
    await page.evaluate(SEEN, "visible")
    await shared.decide(x_owned_by="vllm", x_request_id="again")
    await expect(page.get_by_role("cell", name="again", exact=True)).to_be_visible()

    assert await page.evaluate("window.said") == ["Connecting", "Live"]
    assert len(asked) == 2


async def test_an_explanation_that_does_not_come_is_waited_for_ten_seconds(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await page.evaluate("""() => {
      const timeout = AbortSignal.timeout.bind(AbortSignal);
      AbortSignal.timeout = (milliseconds) => timeout((window.waited = milliseconds) / 100);
    }""")
    held: list[Route] = []
    await page.route("**/explain", lambda route: held.append(route))  # noqa: PLW0108 - playwright takes no method of C
    await page.get_by_role("button", name="Explain").click()

    await expect(page.locator("#explained .problem")).to_have_text(
        "No answer within 10 s. If this page is open in several windows, close some and try again."
    )
    assert (await page.evaluate("window.waited"), len(held)) == (10_000, 1)


async def test_who_explains_after_the_token_was_replaced_is_asked_for_the_new_one(
    stage: Stage, visit: Open, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first-token-of-the-test\n")
    async with stage.running("--admin-token-file", str(file)):
        page = await visit(stage.url)
        field = page.get_by_label("Admin token", exact=True)
        await field.fill("first-token-of-the-test")
        await page.keyboard.press("Enter")
        await settled(page)
        file.write_text("second-token-of-the-test\n")
        await page.get_by_role("button", name="Explain").click()
        await expect(field).to_be_focused()
        await expect(page.locator("main")).to_be_hidden()
        await page.keyboard.type("second-token-of-the-test")
        await page.keyboard.press("Enter")
        await expect(page.locator("#connection")).to_have_text("Live")
        await page.get_by_role("button", name="Explain").click()
        await expect(page.locator("#explained h3")).to_contain_text("owner-matched")
