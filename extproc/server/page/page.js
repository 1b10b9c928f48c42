// SPDX-License-Identifier: Apache-2.0
// The page: what comes from the server is drawn where it belongs.

import { drawChart } from "./chart.js";
import { byId, number, span, tell } from "./dom.js";
import { offer, submit } from "./explain.js";
import { follow, remember } from "./stream.js";
import { drawDecisions, drawEndpoints, drawMatrix, drawSources } from "./tables.js";

const latest = {}; // the last event of each name
let paused = false;
let drawnMatrix = "";

const draw = {
  overview(one) {
    byId("version").textContent = one.version;
    byId("generation").textContent = number(one.generation);
    byId("streams").textContent = number(one.streams);
    const waiting = Object.keys(one.components).filter((name) => !one.components[name]);
    byId("state").textContent = one.ready ? "ready" : `not ready: ${waiting.join(", ")}`;
    byId("state").className = `state ${one.ready ? "well" : "ill"}`;
    document.title = one.ready ? "owned-by" : "not ready – owned-by";
    const text = JSON.stringify([one.matrix, one.more_pools]); // the rest changes far more often
    if (text === drawnMatrix) return;
    drawnMatrix = text;
    drawMatrix(one.matrix, one.more_pools);
    offer(one.matrix);
  },
  endpoints: drawEndpoints,
  decisions: drawDecisions,
  rates(one) {
    drawChart(one);
    if (!latest.overview) return;
    byId("uptime").textContent = span(one.at - latest.overview.started_at);
    drawSources(latest.overview.sources, one.at);
  },
};

function event(name, value) {
  latest[name] = value;
  if (!paused) drawSafely(name);
}

function drawSafely(name) {
  try {
    draw[name]?.(latest[name]);
  } catch (error) {
    reportError(error); // a mistake of ours must not look like a lost connection
  }
}

function say(words, kind) {
  tell("connection", words);
  byId("connection").className = `connection ${kind}`;
}

function live() {
  byId("login").hidden = true;
  byId("main").hidden = false;
  say("Live", "well");
}

function lost(why, seconds) {
  say(`${why.replace(/\.$/, "")}. Next try in ${span(Math.ceil(seconds))}.`, "ill");
}

const quiet = (words) => say(words, "part");

function token(refused) {
  const form = byId("login");
  remember("");
  quiet("Waiting for the admin token");
  byId("main").hidden = true;
  byId("login-error").textContent = refused ? "That token was refused." : "";
  form.hidden = false;
  byId("token").focus();
  return new Promise((resolve) => {
    form.onsubmit = (submitted) => {
      submitted.preventDefault();
      remember(byId("token").value.trim());
      byId("token").value = "";
      resolve();
    };
  });
}

function pause() {
  paused = !paused;
  byId("pause").textContent = paused ? "Resume" : "Pause";
  if (!paused) Object.keys(latest).forEach(drawSafely);
}

byId("pause").addEventListener("click", pause);
byId("filter").addEventListener("input", () => drawEndpoints());
byId("explain-form").addEventListener("submit", submit);
follow({ event, live, lost, token, quiet });
