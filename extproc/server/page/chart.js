// SPDX-License-Identifier: Apache-2.0
// Decisions per second as stacked columns, and a table under it that says the same in figures.

import { byId, el, number, svg } from "./dom.js";

const MOST = 7; // reasons of their own; what is left is one more
const HEIGHT = 40;
const colours = new Map(); // a reason keeps its colour while the page is open

/** `reasons` has a list of figures for each, the newest last; at most `seconds` of them. */
export function drawChart({ seconds, reasons }) {
  const sum = (figures) => figures.reduce((one, other) => one + other, 0);
  const sorted = Object.entries(reasons).sort(([, one], [, other]) => sum(other) - sum(one));
  const series = sorted.slice(0, MOST).map(([reason, figures]) => ({ reason, figures, colour: colour(reason) }));
  if (sorted.length > MOST) {
    const rest = sorted.slice(MOST).map(([, figures]) => figures);
    const figures = rest[0].map((_, second) => sum(rest.map((each) => each[second])));
    series.push({ reason: `${rest.length} other reasons`, figures, colour: "rest" });
  }
  const length = series[0]?.figures.length ?? 0;
  const tops = Array.from({ length }, (_, second) => sum(series.map(({ figures }) => figures[second])));
  const highest = nice(Math.max(1, ...tops));
  const now = tops.at(-1) ?? 0;
  const said = `${number(now)} decisions per second now, at most ${number(Math.max(0, ...tops))} in the last two minutes`;
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${seconds} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
    svg("path", { class: "grid", d: `M0 0H${seconds}M0 ${HEIGHT / 2}H${seconds}M0 ${HEIGHT}H${seconds}` }),
    ...columns(series, seconds - length, HEIGHT / highest),
  );
  byId("chart").replaceChildren(
    el("div", { class: "plot" }, el("span", { class: "top" }, `${number(highest)}/s`), picture),
    el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, "2 min ago"), el("span", {}, "now")),
    series.length ? legend(series, sum) : el("p", { class: "none" }, "No decision in the last two minutes."),
  );
}

function columns(series, from, scale) {
  const base = [];
  return series.map(({ figures, colour: name }) => {
    const parts = figures.map((figure, second) => {
      const bottom = base[second] ?? HEIGHT;
      base[second] = bottom - figure * scale;
      return figure ? `M${from + second} ${bottom.toFixed(2)}v${(-figure * scale).toFixed(2)}h1V${bottom.toFixed(2)}z` : "";
    });
    return svg("path", { class: `series ${name}`, d: parts.join("") });
  });
}

function legend(series, sum) {
  const rows = series.map(({ reason, figures, colour: name }) => {
    const swatch = svg("svg", { class: "swatch", viewBox: "0 0 1 1", "aria-hidden": "true" });
    swatch.append(svg("path", { class: `series ${name}`, d: "M0 0h1v1H0z" }));
    return el(
      "tr",
      {},
      el("th", { scope: "row", class: "code" }, swatch, reason),
      el("td", { class: "number" }, number(figures.at(-1))),
      el("td", { class: "number" }, number(Math.round(sum(figures)))),
    );
  });
  const head = ["Reason", "now, per s", "2 min"].map((name, place) =>
    el("th", { scope: "col", class: place ? "number" : null }, name),
  );
  const caption = el("caption", { class: "unseen" }, "Decisions by reason");
  return el("table", { class: "legend" }, caption, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

function colour(reason) {
  if (!colours.has(reason)) colours.set(reason, `s${colours.size % MOST}`);
  return colours.get(reason);
}

/** The next of 1, 2, 5, 10, ...: an axis that does not move with every figure. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value);
}
