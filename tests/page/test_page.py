# SPDX-License-Identifier: Apache-2.0
"""The status page of the real program in a real Chromium."""

import struct
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.page.conftest import Open
from tests.page.reading import contrast, focus, settled, tab_to, table
from tests.page.stage import IMAGE, LLAMA, QWEN, SCRIPT, Stage, member

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NONE = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
CHAT = "#matrix [aria-label='Pool default/chat'] table"
ENDPOINTS = "#endpoints-rows tr"


# What it shows


async def test_the_matrix_has_the_ready_endpoints_of_each_model_and_engine(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)

    assert await table(page, CHAT) == [
        ["Model", "sglang", "vllm"],
        [SCRIPT, NONE, "1 of 1"],
        [QWEN, NONE, "1 of 1"],
        [LLAMA, "1 of 2", "1 of 1"],
        ["all endpoints", "1 of 2", "3 of 3"],
    ]
    assert await table(page, "#matrix [aria-label='Pool team-a/embed'] table") == [
        ["Model", "triton"],
        ["models not known", "1 of 1"],
        ["all endpoints", "1 of 1"],
    ]


async def test_more_engines_than_a_table_holds_are_one_column(stage: Stage, visit: Open) -> None:
    stage.chat = [member(f"e-{number}", f"127.0.0.1:{number}", f"e{number}", LLAMA) for number in range(10, 45)]
    stage.write()
    async with stage.running():
        page = await visit(stage.url)
        await settled(page)
        head, *rows = await table(page, CHAT)

    assert head == ["Model", *[f"e{number}" for number in range(10, 40)], "5 more engines"]
    assert rows == [[name, *["1 of 1"] * 30, "5 of 5"] for name in (LLAMA, "all endpoints")]


async def test_an_endpoint_has_its_labels_models_queue_and_cache(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await expect(page.locator(ENDPOINTS).first).to_contain_text("42 %")
    _, first, _, third, *_ = await table(page, "#endpoints table")
    address = shared.engines.endpoints[0].address

    assert first == [
        *("default/llama-vllm-0", "default/chat", address, "vllm", "ready", "decode", "3", "42 %", LLAMA),
        "app=llama llm-d.ai/engine-type=vllm llm-d.ai/role=decode",
    ]
    assert third == [
        *("default/llama-sglang-1", "default/chat", "127.0.0.1:7", "sglang", "not ready", NONE, NONE, NONE, LLAMA),
        "app=llama llm-d.ai/engine-type=sglang",
    ]


async def test_the_sources_have_their_age_and_what_is_wrong_with_them(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    rows = await table(page, "#sources table")

    assert rows[1][:2] == ["endpoints", "loaded"]
    assert rows[1][2].endswith((" s", " min"))
    assert rows[1][3] == str(shared.file)
    assert rows[2] == ["models", "0 of 1 answer", NONE, "/v1/models of endpoints"]
    assert rows[3][0].startswith("127.0.0.1:9: cannot connect")
    assert [(row[0], row[3], row[2].endswith(" s")) for row in rows[4:5]] == [("load", "/metrics of endpoints", True)]


async def test_a_decision_appears_with_its_reason_and_is_counted_in_the_chart(stage: Stage, visit: Open) -> None:
    async with stage.running():
        page = await visit(stage.url)
        await expect(page.locator("#chart")).to_contain_text("No decision in the last two minutes.")
        await expect(page.locator("#decisions-rows")).to_have_text("None yet.")
        await stage.decide(3, x_owned_by="sglang", x_request_id="r-1", authorization="Bearer secret")
        await stage.decide(x_owned_by="tgi", x_request_id="r-2")
        legend = page.locator("#chart table tbody tr")
        await expect(legend).to_have_text(["owner-matched03", "owner-not-found01"], timeout=30_000)
        rows = await table(page, "#decisions table")
        label = await page.locator("#chart svg[role=img]").get_attribute("aria-label")
        text = await page.content()
        where = stage.engines.endpoints[1].address

    assert [row[1:8] for row in rows[1:]] == [
        ["reject", "owner-not-found", "tgi", NONE, NONE, "0", NONE],
        *[["restrict", "owner-matched", "sglang", "sglang", NONE, "1", f"{where} {TIMES}3"]] * 3,
    ]
    assert [row[9:] for row in rows[1:]] == [["before", "r-2"], *[["before", "r-1"]] * 3]
    assert label is not None
    assert "decisions per second now" in label
    assert "secret" not in text


async def test_the_filter_leaves_the_endpoints_that_have_every_word(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await page.get_by_label("Filter").fill("app=LLAMA sglang")
    await expect(page.locator(ENDPOINTS)).to_have_count(2)
    await page.get_by_label("Filter").fill("not ready")
    names = [row[0] for row in await table(page, "#endpoints table")]

    assert names == ["Endpoint", "default/llama-sglang-1"]
    await expect(page.locator("#endpoints-shown")).to_have_text("1 of 6 shown")


# It is live


async def test_an_endpoint_that_goes_leaves_the_page_and_one_that_comes_enters_it(stage: Stage, visit: Open) -> None:
    async with stage.running():
        page = await visit(stage.url)
        await settled(page)
        await page.evaluate("document.body.dataset.loaded = 'once'")
        await page.get_by_label("Filter").fill("default/chat")
        await expect(page.locator(ENDPOINTS)).to_have_count(5)
        stage.remove("llama-vllm-0")
        await expect(page.locator(ENDPOINTS)).to_have_count(4)
        await expect(page.locator(CHAT)).to_contain_text("2 of 2")
        gone = await table(page, CHAT)
        stage.chat.append(member("new", "127.0.0.1:6", "tgi", LLAMA))
        stage.write()
        await expect(page.locator(CHAT)).to_contain_text("tgi")
        come = await table(page, CHAT)

    assert gone[3:] == [[LLAMA, "1 of 2", NONE], ["all endpoints", "1 of 2", "2 of 2"]]
    assert come[3:] == [[LLAMA, "1 of 2", "1 of 1", NONE], ["all endpoints", "1 of 2", "1 of 1", "2 of 2"]]
    assert await page.evaluate("document.body.dataset.loaded") == "once"


async def test_a_paused_page_stands_still_until_it_is_resumed(shared: Stage, visit: Open) -> None:
    paused, other = await visit(shared.url), await visit(shared.url)
    await settled(paused)
    await paused.get_by_role("button", name="Pause").click()
    await shared.decide(x_owned_by="vllm", x_request_id="while-paused")
    await expect(other.get_by_role("cell", name="while-paused")).to_be_visible()
    held = await paused.get_by_role("cell", name="while-paused").count()
    await paused.get_by_role("button", name="Resume").click()

    await expect(paused.get_by_role("cell", name="while-paused")).to_be_visible()
    assert held == 0


async def test_a_lost_connection_is_said_and_taken_up_again(stage: Stage, visit: Open) -> None:
    async with stage.running() as server:
        page = await visit(stage.url)
        await settled(page)
        await expect(page.get_by_role("status").filter(has_text="Live")).to_be_visible()
        port = str(server.admin_port)
    await expect(page.locator("#connection")).to_contain_text("The connection was lost. Next try in")
    stage.remove("hostile")
    async with stage.running("--admin-port", port):
        await expect(page.locator("#connection")).to_have_text("Live")
        await expect(page.locator(ENDPOINTS)).to_have_count(5)


# It explains


async def test_a_request_is_explained_step_by_step(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await expect(page.get_by_label("Pool", exact=True)).to_have_value("default/chat")
    await page.get_by_label("Headers").fill("X-Owned-By: sglang")
    await page.get_by_label("Body").fill(f'{{"model": "{LLAMA}"}}')
    await page.get_by_label("Attachment").select_option("picker")
    await page.get_by_role("button", name="Explain").click()
    await expect(page.locator("#explained h3")).to_have_text("restrict owner-matched")
    where = shared.engines.endpoints[1].address
    facts = await page.locator("#explained .facts > *").all_inner_texts()

    assert dict(zip(facts[::2], facts[1::2], strict=True)) == {
        "asked for": "sglang",
        "named by": "x-owned-by",
        "model": LLAMA,
        "body read": "yes",
        "owner": "sglang",
        "endpoints": where,
        "destination": f"{where},{where},{where}",
        "headers set": f"x-gateway-destination-endpoint: {where},{where},{where}",
    }
    assert await table(page, "#explained table") == [
        ["Step", "eligible before", "after"],
        ["pool default/chat", "5", "4"],
        ["owner sglang", "4", "1"],
        [f"model {LLAMA}", "1", "1"],
    ]


async def test_what_cannot_be_explained_is_said_in_words(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await page.get_by_label("Path").fill("nowhere")
    await page.get_by_role("button", name="Explain").click()
    await expect(page.locator("#explained .problem")).to_contain_text("begins with /")
    refused = await page.locator("#explained").inner_text()
    await page.get_by_label("Path").fill("/v1/completions")
    await page.get_by_label("Headers").fill("x-owned-by vllm")
    await page.get_by_role("button", name="Explain").click()

    await expect(page.locator("#explained")).to_have_text("“x-owned-by vllm” is not a header: write it as name: value")
    assert "(path)" in refused


# It is safe


async def test_markup_in_the_clusters_texts_and_in_requests_is_text(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await shared.decide(x_owned_by="vllm", x_gateway_model_name=IMAGE, x_request_id=SCRIPT)
    await expect(page.get_by_role("cell", name=SCRIPT).last).to_be_visible()
    await page.get_by_label("Headers").fill(f"x-owned-by: {IMAGE}")
    await page.get_by_label("Body").fill(f'{{"model": "{LLAMA}"}}')
    await page.get_by_role("button", name="Explain").click()
    await expect(page.locator("#explained")).to_contain_text("owner-malformed")
    labels = await page.locator(ENDPOINTS, has_text="hostile").locator(".labels li").all_inner_texts()
    made = await page.evaluate("[...document.querySelectorAll('img, script')].map((one) => one.getAttribute('src'))")

    assert labels == [f"{SCRIPT}=1", "llm-d.ai/engine-type=vllm", f"note={IMAGE}"]
    assert (made, await page.title()) == (["page.js"], "owned-by")


async def test_what_ends_a_line_for_a_script_is_text_too(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await shared.decide(x_owned_by="vllm", x_gateway_model_name="a\N{LINE SEPARATOR}b", x_request_id="two-lines")

    await expect(page.get_by_role("cell", name="two-lines")).to_be_visible()


async def test_the_browser_is_held_to_text_even_if_a_line_of_the_page_were_wrong(
    shared: Stage, browser: Browser
) -> None:
    page = await browser.new_page()
    await page.goto(shared.url)
    tried = await page.evaluate(
        "(text) => { try { document.body.innerHTML = text; return 'done'; } catch (error) { return error.name; } }",
        IMAGE,
    )
    await page.close()

    assert tried == "TypeError"


async def test_the_admin_token_is_asked_for_and_kept_for_the_tab_alone(
    stage: Stage, visit: Open, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret-token-of-the-test\n")
    async with stage.running("--admin-token-file", str(file)):
        page = await visit(stage.url)
        field = page.get_by_label("Admin token", exact=True)
        await expect(field).to_be_focused()
        await expect(page.locator("main")).to_be_hidden()
        await page.keyboard.type("no token: \N{EURO SIGN}")
        await page.keyboard.press("Enter")
        await expect(field).to_have_value("")
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("That token was refused.")
        await page.keyboard.type("s3cret-token-of-the-test")
        await page.keyboard.press("Enter")
        await expect(page.locator("#connection")).to_have_text("Live")
        await settled(page)
        await page.get_by_role("button", name="Explain").click()
        await expect(page.locator("#explained h3")).to_contain_text("owner-matched")
        await page.reload()
        await expect(page.locator("#connection")).to_have_text("Live")
        kept = await page.evaluate("[localStorage.length, document.cookie, location.search, location.hash]")
        other = await visit(stage.url)
        await expect(other.get_by_label("Admin token", exact=True)).to_be_visible()

    assert kept == [0, "", "", ""]


# It is for everybody


async def test_tab_reaches_everything_in_reading_order_and_shows_where_it_is(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    reached = []
    await page.keyboard.press("Tab")
    while (one := await focus(page)) is not None and len(reached) < 60:
        reached.append(one)
        await page.keyboard.press("Tab")

    assert [one["name"] for one in reached] == [
        *("Skip to content", "Models", "Rates", "Sources", "Endpoints", "Decisions", "Explain", "pause"),
        *("Pool default/chat", "Pool team-a/embed", "sources-title", "filter", "endpoints-title", "decisions-title"),
        *("method", "path", "headers", "body", "attachment", "pool", "cluster", "pick", "Explain"),
    ]
    assert [one["name"] for one in reached if not (one["ring"] and one["seen"])] == []


async def test_everything_can_be_done_with_the_keyboard(shared: Stage, visit: Open) -> None:
    await shared.decide(40, x_owned_by="vllm")
    page = await visit(shared.url)
    await settled(page)
    await expect(page.locator("#decisions-rows tr")).not_to_have_count(1)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")  # the skip link
    await tab_to(page, "filter")
    await page.keyboard.type("sglang-0")
    await expect(page.locator(ENDPOINTS)).to_have_count(1)
    await tab_to(page, "decisions-title")
    await page.keyboard.press("PageDown")
    await expect(page.locator("#decisions-rows tr").first).not_to_be_in_viewport()
    await tab_to(page, "headers")
    await page.keyboard.press("Control+a")
    await page.keyboard.type("x-owned-by: sglang, vllm")
    await tab_to(page, "attachment")
    await page.keyboard.type("picker")
    await tab_to(page, "Explain")
    await page.keyboard.press("Enter")
    await expect(page.locator("#explained")).to_contain_text("headers set")
    await tab_to(page, "pause")
    await page.keyboard.press("Space")

    await expect(page.get_by_role("button", name="Resume")).to_be_focused()


async def test_a_table_that_is_drawn_anew_keeps_the_focus(stage: Stage, visit: Open) -> None:
    async with stage.running():
        page = await visit(stage.url)
        await settled(page)
        await tab_to(page, "Pool default/chat")
        stage.remove("llama-vllm-0")
        await expect(page.locator(CHAT)).to_contain_text("2 of 2")

        assert (await focus(page) or {}).get("name") == "Pool default/chat"


async def test_everything_has_a_name_for_who_does_not_see_it(shared: Stage, visit: Open) -> None:
    page = await visit(shared.url)
    await settled(page)
    await page.get_by_role("button", name="Explain").click()
    await expect(page.locator("#explained table")).to_be_visible()
    nameless = await page.evaluate("""() => [
      ...[...document.querySelectorAll("input, select, textarea")].filter((one) => !one.labels.length),
      ...[...document.querySelectorAll("table")].filter((one) => !one.caption?.textContent),
      ...document.querySelectorAll("th:not([scope])"),
      ...document.querySelectorAll("[role=region]:not([aria-label], [aria-labelledby])"),
      ...[...document.querySelectorAll("[aria-labelledby]")].filter(
        (one) => !document.getElementById(one.getAttribute("aria-labelledby"))),
      ...[...document.querySelectorAll("[id]")].filter((one) => document.querySelectorAll(`#${one.id}`).length > 1),
    ].map((one) => one.outerHTML)""")
    headings = await page.locator("h1, h2, h3").evaluate_all("(all) => all.map((one) => one.tagName).join(' ')")
    landmarks = [await page.get_by_role(role).count() for role in ("banner", "navigation", "main")]

    assert (nameless, headings, landmarks) == ([], "H1" + 7 * " H2" + " H3", [1, 1, 1])


@pytest.mark.parametrize("width", [320, 390])
async def test_a_phone_does_not_scroll_sideways_but_its_tables_do(shared: Stage, visit: Open, width: int) -> None:
    page = await visit(shared.url, **PHONE | {"viewport": {"width": width, "height": 844}})
    await settled(page)
    await page.get_by_role("button", name="Explain").tap()
    await expect(page.locator("#explained table")).to_be_visible()
    widths = await page.evaluate("""() => ({
      page: document.documentElement.scrollWidth,
      sticking: [...document.querySelectorAll("main *")].filter(
        (one) => one.getBoundingClientRect().right > innerWidth && !one.closest(".box")).map((one) => one.outerHTML),
      boxes: [...document.querySelectorAll(".tall")].map((box) => box.scrollWidth > box.clientWidth && box.tabIndex),
    })""")

    assert widths == {"page": width, "sticking": [], "boxes": [0, 0]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_in_light_and_in_dark(shared: Stage, visit: Open, scheme: Any) -> None:
    page = await visit(shared.url, color_scheme=scheme)
    await shared.decide(x_owned_by="tgi")
    await settled(page)
    await page.get_by_label("Path").fill("nowhere")
    await page.get_by_role("button", name="Explain").click()
    await expect(page.locator("#explained .problem")).to_be_visible()
    await expect(page.locator("#decisions-rows .ill").first).to_be_visible()
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    texts, poor = await contrast(page)

    assert ground == {"light": "rgb(244, 245, 247)", "dark": "rgb(15, 18, 22)"}[scheme]
    assert texts > 100
    assert poor == []


async def test_nothing_moves_for_who_wants_it_still(shared: Stage, visit: Open) -> None:
    asked = "getComputedStyle(document.documentElement).scrollBehavior"
    still = await visit(shared.url, reduced_motion="reduce")
    other = await visit(shared.url)

    assert [await page.evaluate(asked) for page in (still, other)] == ["auto", "smooth"]


SHOTS: dict[str, tuple[int, dict[str, Any]]] = {
    "light": (1440, {"color_scheme": "light", "viewport": {"width": 1440, "height": 900}}),
    "dark": (1440, {"color_scheme": "dark", "viewport": {"width": 1440, "height": 900}}),
    "phone": (390, {"color_scheme": "light"} | PHONE),
}


async def test_screenshots_are_kept(stage: Stage, visit: Open, artifacts: Path) -> None:
    stage.remove("hostile")
    async with stage.running():
        clock = (await visit(stage.url)).locator("#uptime")
        for second in range(8):  # so that there is something to see in the chart
            before = await clock.inner_text()
            await stage.decide(
                12 + second % 5, x_owned_by="vllm", x_gateway_model_name=LLAMA, x_request_id=f"r-{second}"
            )
            await stage.decide(4 + second % 3, x_owned_by="sglang")
            await stage.decide(second % 3, x_owned_by="tgi")
            await stage.decide(3)
            await expect(clock).not_to_have_text(before)
        for name, (_, options) in SHOTS.items():
            page = await visit(stage.url, **options)
            await settled(page)
            await expect(page.locator("#chart table")).to_contain_text("owner-matched")
            await page.get_by_role("button", name="Explain").click()
            await expect(page.locator("#explained table")).to_be_visible()
            await page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
            await page.screenshot(path=artifacts / f"page-{name}.png", full_page=True)
    widths = {name: struct.unpack(">I", (artifacts / f"page-{name}.png").read_bytes()[16:20])[0] for name in SHOTS}

    assert widths == {name: width for name, (width, _) in SHOTS.items()}
