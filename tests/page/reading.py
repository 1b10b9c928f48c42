# SPDX-License-Identifier: Apache-2.0
"""How a test reads a page: tables as lists, what has the focus, how well texts stand out."""

from typing import Any, Final

from playwright.async_api import Page, expect

_TABLE: Final = """(table) => [...table.rows].map(
  (row) => [...row.cells].map((cell) => cell.innerText.replace(/\\s+/g, " ").trim()))"""

_FOCUS: Final = """() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const ring = getComputedStyle(one);
  return {
    name: one.id || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.textContent.trim(),
    ring: ring.outlineStyle !== "none" && parseFloat(ring.outlineWidth) >= 2,
    seen: one.getBoundingClientRect().bottom > 0 && one.checkVisibility({ visibilityProperty: true }),
  };
}"""

# WCAG 2.2's contrast ratio of every text with what is behind it; what is clipped away is not seen.
_CONTRAST: Final = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || node.closest(".unseen, noscript") || !node.checkVisibility()) continue;
    texts += 1;
    const [one, other] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) poor.push(`${text.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return { texts, poor };
}"""


async def table(page: Page, selector: str) -> list[list[str]]:
    """The texts of a table, row by row, its heads too."""
    found: list[list[str]] = await page.locator(selector).evaluate(_TABLE)
    return found


async def settled(page: Page) -> None:
    """Everything has been drawn once."""
    for place in ("#matrix table", "#endpoints-rows tr", "#sources-rows tr", "#decisions-rows tr", "#chart svg"):
        await expect(page.locator(place).first).to_be_attached()


async def focus(page: Page) -> dict[str, Any] | None:
    """What has the focus, whether it has a ring of two pixels and whether it can be seen; None: nothing."""
    found: dict[str, Any] | None = await page.evaluate(_FOCUS)
    return found


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until this has the focus."""
    seen = []
    for _ in range(80):
        await page.keyboard.press("Tab")
        seen.append((await focus(page) or {}).get("name"))
        if seen[-1] == name:
            return
    raise AssertionError(f"{name} is not among {seen}")


async def contrast(page: Page) -> tuple[int, list[str]]:
    """How many texts there are, and those whose contrast is below 4.5 with their ratio."""
    found = await page.evaluate(_CONTRAST)
    return found["texts"], found["poor"]
