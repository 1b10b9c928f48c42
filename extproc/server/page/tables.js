// SPDX-License-Identifier: Apache-2.0
// The tables: models by engines, endpoints, decisions, sources.

import { byId, el, number, span, tell } from "./dom.js";

const boxes = new Map(); // by pool; kept, so that a table that is drawn anew keeps focus and scroll position
const rest = el("p", { class: "hint" });

/** `more` pools have no table. */
export function drawMatrix(tables, more) {
  for (const pool of boxes.keys()) {
    if (!tables.some((one) => one.pool === pool)) boxes.delete(pool);
  }
  const wanted = tables.map((one) => {
    if (!boxes.has(one.pool)) {
      boxes.set(one.pool, el("div", { class: "box", role: "region", tabindex: "0", "aria-label": `Pool ${one.pool}` }));
    }
    boxes.get(one.pool).replaceChildren(matrix(one));
    return boxes.get(one.pool);
  });
  const place = byId("matrix");
  if (!wanted.length) wanted.push(el("p", { class: "none" }, "No pool is known yet."));
  if (more) {
    rest.textContent = `and ${number(more)} more pools`;
    wanted.push(rest);
  }
  if (wanted.some((box, index) => place.children[index] !== box) || place.children.length !== wanted.length) {
    place.replaceChildren(...wanted);
  }
}

function matrix({ pool, engines, more_engines: others, rows, more_models: unseen, total }) {
  const columns = engines.map((engine) => el("th", { scope: "col", class: "number" }, engine || "unknown engine"));
  if (others) columns.push(el("th", { scope: "col", class: "number muted" }, `${number(others)} more engines`));
  const line = (head, cells) => el("tr", {}, head, ...cells.map(cell));
  const lines = rows.map(({ model, cells }) =>
    line(el("th", { scope: "row", class: model === null ? "muted" : "code" }, model ?? "models not known"), cells),
  );
  if (unseen) {
    const more = `and ${number(unseen)} more models`;
    lines.push(el("tr", {}, el("th", { scope: "row", class: "muted" }, more), el("td", { colspan: columns.length })));
  }
  return el(
    "table",
    { class: "matrix" },
    el("caption", {}, "Pool ", el("span", { class: "code" }, pool)),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"), ...columns)),
    el("tbody", {}, ...lines),
    el("tfoot", {}, line(el("th", { scope: "row" }, "all endpoints"), total)),
  );
}

function cell(one) {
  if (!one) return el("td", { class: "number muted" }, "–");
  const state = one.ready === one.known ? "well" : one.ready ? "part" : "ill";
  return el("td", { class: `number ${state}` }, el("b", {}, number(one.ready)), ` of ${number(one.known)}`);
}

let shown = { total: 0, endpoints: [] };

/** Draw the endpoints, those of last time if none are given, as the filter has them. */
export function drawEndpoints(given = shown) {
  shown = given;
  const words = byId("filter").value.toLowerCase().replace("not ready", "not-ready").split(/\s+/);
  const found = shown.endpoints.filter((one) => words.every((word) => text(one).includes(word)));
  byId("endpoints-rows").replaceChildren(...found.map(endpoint));
  const all = number(shown.total);
  const of = shown.total > shown.endpoints.length ? `the first ${number(shown.endpoints.length)} of ${all}` : all;
  tell("endpoints-shown", `${number(found.length)} of ${of} shown`);
}

function text(one) {
  const labels = Object.entries(one.labels).map(([name, value]) => `${name}=${value}`);
  const words = [one.namespace, one.name, one.pool, one.destination, one.owner, one.role, one.ready ? "ready" : "not-ready"];
  return [...words, ...(one.models ?? ["not known"]), ...labels].join(" ").toLowerCase();
}

function endpoint(one) {
  const labels = Object.entries(one.labels).map(([name, value]) => el("li", {}, name, el("b", {}, `=${value}`)));
  const models = (one.models ?? []).map((model) => el("li", {}, model));
  if (one.more_models) models.push(el("li", { class: "muted" }, `and ${number(one.more_models)} more`));
  const none = one.models === null ? "not known" : "none";
  return el(
    "tr",
    {},
    el("th", { scope: "row", class: "code" }, el("span", { class: "muted" }, `${one.namespace}/`), one.name),
    el("td", { class: "code" }, one.pool),
    el("td", { class: "code" }, one.destination || "–"),
    el("td", {}, one.owner || "unknown"),
    el("td", { class: one.ready ? "well" : "ill" }, one.ready ? "ready" : "not ready"),
    el("td", {}, one.role || "–"),
    el("td", { class: "number" }, one.waiting === null ? "–" : number(one.waiting)),
    el("td", { class: "number" }, one.kv_cache === null ? "–" : `${Math.round(one.kv_cache * 100)} %`),
    el("td", { class: "models" }, models.length ? el("ul", { class: "code" }, ...models) : el("span", { class: "muted" }, none)),
    el("td", {}, labels.length ? el("ul", { class: "code labels" }, ...labels) : "–"),
  );
}

export function drawDecisions(decisions) {
  const rows = decisions.map((one) => {
    const at = new Date(one.at * 1000);
    const time = at.toLocaleTimeString("en-GB") + "." + String(at.getMilliseconds()).padStart(3, "0");
    const kind = { restrict: "well", reject: "ill" }[one.decision];
    return el(
      "tr",
      {},
      el("td", { class: "code" }, el("time", { datetime: at.toISOString() }, time)),
      el("td", { class: kind ?? null }, one.decision),
      el("td", { class: "code" }, one.reason),
      el("td", { class: "code" }, one.owners.join(", ") || "–"),
      el("td", { class: "code" }, one.owner || "–"),
      el("td", { class: "code" }, one.model || "–"),
      el("td", { class: "number" }, number(one.endpoints)),
      el("td", { class: "code" }, counted(one.destination) || "–"),
      el("td", { class: "number" }, number(one.microseconds)),
      el("td", {}, one.attachment),
      el("td", { class: "code" }, one["x-request-id"] || "–"),
    );
  });
  if (!rows.length) rows.push(el("tr", {}, el("td", { colspan: 11, class: "muted" }, "None yet.")));
  byId("decisions-rows").replaceChildren(...rows);
}

/** `a,a,b` as `a ×2, b`: a destination is repeated for as many attempts as Envoy makes. */
function counted(list) {
  const counts = new Map();
  for (const one of list.split(",")) counts.set(one, (counts.get(one) ?? 0) + 1);
  return [...counts].map(([one, count]) => (count > 1 ? `${one} ×${count}` : one)).join(", ");
}

/** `now` is the server's, in seconds since 1970. */
export function drawSources(sources, now) {
  const rows = sources.flatMap((one) => [
    el(
      "tr",
      { class: one.error ? "open" : null },
      el("th", { scope: "row" }, one.name),
      el("td", {}, one.state),
      el("td", { class: "number" }, one.since === null ? "–" : span(now - one.since)),
      el("td", { class: "code" }, one.where),
    ),
    ...(one.error ? [el("tr", {}, el("td", { colspan: 4, class: "problem" }, one.error))] : []),
  ]);
  byId("sources-rows").replaceChildren(...rows);
}
