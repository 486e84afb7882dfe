// Draws the score on a scale from 0 (real) to 1 (fake), with the threshold and the band that is too close to call.

import { byId, svg, whenSized } from "./dom.js";
import { score } from "./words.js";

const HEIGHT = 74, AXIS = 38, LOWER = 68, SIDE = 10;

let shown = null;

export function initScale() {
  whenSized(byId("scale"), draw);
}

// reading: { score, threshold, abstain, others: other faces' scores } or null
export function showScale(reading) {
  shown = reading;
  draw(Math.round(byId("scale").clientWidth));
}

function draw(width) {
  if (width === 0) return;
  const x = (value) => SIDE + value * (width - 2 * SIDE);
  const parts = [];
  if (shown?.abstain) {
    const [low, high] = shown.abstain;
    parts.push(svg("rect", { class: "band", x: x(low), y: AXIS - 8, width: Math.max(1, x(high) - x(low)), height: 16 }));
  }
  parts.push(svg("line", { class: "axis", x1: x(0), x2: x(1), y1: AXIS, y2: AXIS }));
  for (let tenth = 0; tenth <= 10; tenth++) {
    const long = tenth % 5 === 0;
    parts.push(svg("line", { class: "axis", x1: x(tenth / 10), x2: x(tenth / 10), y1: AXIS, y2: AXIS + (long ? 8 : 5) }));
  }
  if (shown) {
    parts.push(...reading(x, width));
  } else {
    parts.push(label(x(0), LOWER, "0 real", "start"), label(x(1), LOWER, "1 fake", "end"));
  }
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": described(),
  }, ...parts);
  byId("scale").replaceChildren(picture);
}

function reading(x, width) {
  const { threshold, others = [] } = shown;
  const inside = (place, room) => Math.min(width - room / 2 - 2, Math.max(room / 2 + 2, place));
  const at = x(Math.min(1, Math.max(0, threshold)));
  const parts = [
    svg("line", { class: "threshold", x1: at, x2: at, y1: AXIS - 12, y2: AXIS + 14 }),
    label(inside(at, 100), LOWER, `threshold ${score(threshold)}`, "middle"),
  ];
  if (at > 120) parts.push(label(x(0), LOWER, "0 real", "start"));
  if (at < width - 120) parts.push(label(x(1), LOWER, "1 fake", "end"));
  parts.push(...others.map((other) => svg("circle", { class: "other", cx: x(other), cy: AXIS, r: 3.5 })));
  if (shown.score !== null) {
    const to = x(shown.score);
    const kind = shown.score >= (shown.abstain?.[1] ?? threshold) ? "marker over" : "marker";
    parts.push(svg("path", { class: kind, d: `M${to} ${AXIS - 2}l-6.5 -11h13z` }));
    parts.push(label(inside(to, 44), AXIS - 18, score(shown.score), "middle", "value"));
  }
  return parts;
}

function label(x, y, words, anchor, kind = null) {
  return svg("text", { x, y, "text-anchor": anchor, class: kind }, words);
}

function described() {
  if (!shown) return "Scale from 0, real, to 1, fake; no score yet";
  const band = shown.abstain
    ? ` Scores from ${score(shown.abstain[0])} to ${score(shown.abstain[1])} are too close to call.` : "";
  const what = shown.score === null ? "No score." : `Score ${score(shown.score)} on a scale from 0, real, to 1, fake.`;
  return `${what} Threshold ${score(shown.threshold)}.${band}`;
}
