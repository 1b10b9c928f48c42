// SPDX-License-Identifier: Apache-2.0
// The form that asks where a request would go, and its answer.

import { byId, el } from "./dom.js";
import { again, ask, problem } from "./stream.js";

const TIMEOUT = 10_000;

let offered = false;

/** Offer the pools of these tables; what is chosen stays chosen. The first time the form is filled with what there is. */
export function offer(tables) {
  const select = byId("pool");
  const pools = tables.map(({ pool }) => pool);
  const chosen = offered ? select.value : (pools[0] ?? "");
  select.replaceChildren(select.options[0], ...pools.map((pool) => el("option", { value: pool }, pool)));
  select.value = pools.includes(chosen) ? chosen : "";
  if (offered || !pools.length) return;
  offered = true;
  const { engines, rows } = tables[0];
  const row = rows.find(({ model, cells }) => model !== null && cells.some((cell) => cell?.ready));
  const engine = engines[(row?.cells ?? []).findIndex((cell) => cell?.ready)];
  const untouched = (field) => field.value === field.defaultValue;
  if (engine && untouched(byId("headers"))) byId("headers").value = `x-owned-by: ${engine}`;
  if (row && untouched(byId("body"))) byId("body").value = JSON.stringify({ model: row.model });
}

export async function submit(event) {
  event.preventDefault();
  try {
    const answer = await ask("explain", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(request()),
      signal: AbortSignal.timeout(TIMEOUT),
    });
    if (answer.status === 401) again(); // the stream gets the same answer, and asks for the token
    show(answer.ok ? found(await answer.json()) : fault(await problem(answer)));
  } catch (error) {
    show(fault(words(error)));
  }
}

function words(error) {
  if (error instanceof TypeError) return "The server cannot be reached.";
  if (error.name !== "TimeoutError") return error.message;
  return `No answer within ${TIMEOUT / 1000} s. If this page is open in several windows, close some and try again.`;
}

function request() {
  const value = (id) => byId(id).value;
  const headers = {};
  for (const line of value("headers").split("\n").filter((one) => one.trim())) {
    const [, name, rest] = /^\s*([^:\s]+)\s*:(.*)$/.exec(line) ?? [];
    if (!name) throw new Error(`“${line.trim()}” is not a header: write it as name: value`);
    if (Object.hasOwn(headers, name.toLowerCase())) throw new Error(`The header ${name} stands twice.`);
    headers[name.toLowerCase()] = rest.trim();
  }
  const asked = { method: value("method"), path: value("path"), headers, body: value("body") };
  const attached = { attachment: value("attachment"), cluster: value("cluster"), pick: value("pick") };
  return { ...asked, ...attached, ...(value("pool") && { pool: value("pool") }) };
}

const show = (...nodes) => byId("explained").replaceChildren(...nodes);
const amount = (value) => el("td", { class: "number" }, value);
const fault = (message) => el("p", { class: "problem" }, message);

function found(one) {
  const steps = one.steps.map((step) =>
    el("tr", {}, el("th", { scope: "row", class: "code" }, step.filter), ...[step.before, step.after].map(amount)),
  );
  const head = ["Step", "eligible before", "after"].map((name, place) => el("th", { scope: "col", class: place > 0 && "number" }, name));
  const kind = { restrict: "well", reject: "ill" }[one.decision] ?? "";
  return el(
    "div",
    {},
    el("h3", {}, el("span", { class: kind }, one.decision), " ", el("span", { class: "code" }, one.reason)),
    el("dl", { class: "facts" }, ...one.facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: "code" }, value)])),
    steps.length
      ? el(
          "div",
          { class: "box", role: "region", tabindex: "0", "aria-label": "Steps" },
          el("table", {}, el("caption", { class: "unseen" }, "Steps"), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...steps)),
        )
      : null,
  );
}
