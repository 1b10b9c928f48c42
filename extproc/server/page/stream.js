// SPDX-License-Identifier: Apache-2.0
// The way to the server: the admin token, and a stream of events that is followed for ever.
// It is read with fetch() because an EventSource cannot send an Authorization header.

const KEY = "owned-by-admin-token";
const SILENCE = 40_000; // the server says something every 15 s at the least
const WAITS = [0.5, 1, 2, 4, 8, 15];

let wake = () => {}; // ends what the loop below waits for now

/** Have the stream asked for anew at once: its answer says whether the token still holds. */
export const again = () => wake();

// A browser opens six connections to a server, for all tabs together: one that nobody sees must not keep one.
document.addEventListener("visibilitychange", again);

/** fetch() with the token, if there is one. */
export function ask(path, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(token && { authorization: `Bearer ${token}` }) };
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
}

/** Keep the token for this tab; one that no header can carry, as an empty one, is forgotten. */
export function remember(token) {
  if (/^[\x21-\x7e]+$/.test(token)) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

/** What an answer that is no 2xx says went wrong. */
export async function problem(answer) {
  const found = (await answer.json().catch(() => ({}))).error ?? {};
  return `${found.message ?? `The server answered ${answer.status}.`}${found.param ? ` (${found.param})` : ""}`;
}

/**
 * Follow `/events` for ever: `event(name, value)` for each, `live()` when it begins, `lost(why, seconds)` when it ends or
 * cannot be had, with the time until the next try. On a 401 `token(refused)` is awaited, then it is tried again at once.
 * While the page is hidden there is no stream: `quiet(words)` says so, and that it is asked for again.
 */
export async function follow({ event, live, lost, token, quiet }) {
  for (let tries = 0; ; ) {
    if (document.hidden) {
      quiet("Paused while hidden");
      await woken();
      quiet("Connecting");
      continue;
    }
    const control = new AbortController();
    let why = "The connection was lost";
    let meant = false; // that this stream ends
    wake = () => {
      meant = true;
      control.abort();
    };
    try {
      const answer = await ask("events", { signal: control.signal });
      if (answer.status === 401) {
        await token(sessionStorage.getItem(KEY) !== null);
        continue;
      }
      if (answer.ok) {
        live();
        await read(answer.body, control, (name, value) => {
          tries = 0;
          if (name === "again") meant = true;
          else event(name, value);
        });
      } else {
        why = await problem(answer);
      }
    } catch (error) {
      if (!(error instanceof TypeError || error.name === "AbortError")) throw error; // a mistake of the page's own
    }
    if (meant) continue;
    const seconds = WAITS[Math.min(tries++, WAITS.length - 1)] * (1 + Math.random() / 4);
    lost(why, seconds);
    const timer = setTimeout(() => wake(), seconds * 1000);
    await woken();
    clearTimeout(timer);
  }
}

function woken() {
  return new Promise((resolve) => {
    wake = resolve;
  });
}

async function read(body, control, event) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const silence = setTimeout(() => control.abort(), SILENCE);
    const { done, value } = await reader.read().finally(() => clearTimeout(silence));
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      // A comment is none. `.` would not do: to it U+2028, which any client can put into a model's name, ends a line.
      const found = /^event: ([^\n]*)\ndata: ([^\n]*)$/.exec(frame);
      if (found) event(found[1], JSON.parse(found[2]));
    }
  }
}
