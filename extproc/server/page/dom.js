// SPDX-License-Identifier: Apache-2.0
// Elements are made here and nowhere from text: whatever comes from a cluster is a text node or an attribute's value.

export const byId = (id) => document.getElementById(id);

/** An element; `attributes` that are null or false are left out, strings among `children` become text. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

/** Put words into a place that is read out; the same words are not read out again. */
export function tell(id, words) {
  if (byId(id).textContent !== words) byId(id).textContent = words;
}

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
export const number = (value) => NUMBER.format(value);

/** Seconds in words: two units at most. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}
