// A video's frames over time: a chart with a slider in it, a strip of small pictures, and a table.

import { byId, element, svg, whenSized } from "./dom.js";
import { count, frameText, score, seconds } from "./words.js";

const HEIGHT = 160, TOP = 10, BOTTOM = 24, LEFT = 34, RIGHT = 12;

let state = null; // { frames, expected, selected, score, threshold, line, abstain }

export function initTimeline(pick) {
  whenSized(byId("chart"), draw);
  byId("frame").addEventListener("input", (event) => {
    if (state) pick(Math.min(Number(event.target.value), state.frames.length - 1));
  });
  byId("strip").addEventListener("click", (event) => {
    const cell = event.target.closest("[data-frame]");
    if (cell) pick(Number(cell.dataset.frame));
  });
}

export function hideTimeline() {
  state = null;
  byId("timeline").hidden = true;
  byId("strip").replaceChildren();
  byId("frames-table").replaceChildren();
}

export function showTimeline(next) {
  state = next;
  byId("timeline").hidden = state.frames.length === 0;
  fillLegend();
  fillStrip();
  fillTable();
  say();
  draw(Math.round(byId("chart").clientWidth));
}

function say() {
  const { frames, selected, expected } = state;
  const slider = byId("frame");
  slider.max = Math.max(0, expected - 1);
  slider.value = selected;
  const words = frames.length ? frameText(frames[selected], selected, expected) : "";
  slider.setAttribute("aria-valuetext", words);
  byId("moment").textContent = words;
  const bare = frames.filter((frame) => frame.score === null).length;
  const parts = ["The threshold holds for the score of the whole video, not for single frames."];
  if (bare) parts.push(`${count(bare, "frame has", "frames have")} no face and ${bare === 1 ? "takes" : "take"} no part.`);
  byId("timeline-note").textContent = parts.join(" ");
}

function draw(width) {
  if (!state || width === 0) return;
  const { frames, expected, selected, threshold, abstain } = state;
  const right = width - RIGHT;
  const x = (place) => (expected > 1 ? LEFT + (place / (expected - 1)) * (right - LEFT) : (LEFT + right) / 2);
  const y = (value) => TOP + (1 - value) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, 0.5, 1].flatMap((value) => [
    svg("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
    svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)),
  ]);
  if (abstain) {
    parts.unshift(svg("rect", {
      class: "band", x: LEFT, width: right - LEFT, y: y(abstain[1]), height: Math.max(1, y(abstain[0]) - y(abstain[1])),
    }));
  }
  if (threshold !== null) {
    const at = y(Math.min(1, threshold));
    parts.push(svg("line", { class: "threshold", x1: LEFT, x2: right, y1: at, y2: at }));
  }
  if (state.score !== null) {
    parts.push(svg("line", { class: "mean", x1: LEFT, x2: right, y1: y(state.score), y2: y(state.score) }));
  }
  parts.push(...times(x, width), cursor(x(selected)), svg("path", { class: "course", d: course(frames, x, y) }));
  parts.push(...frames.map((frame, place) => point(frame, place, x, y)));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" }, ...parts);
  byId("chart").replaceChildren(picture);
}

// What the lines in the chart are.
function fillLegend() {
  const { score: whole, threshold, abstain } = state;
  const entries = [];
  if (whole !== null) entries.push([svg("line", { class: "mean", x1: 0, x2: 18, y1: 6, y2: 6 }), `video ${score(whole)}`]);
  if (threshold !== null) {
    entries.push([svg("line", { class: "threshold", x1: 0, x2: 18, y1: 6, y2: 6 }), `threshold ${score(threshold)}`]);
  }
  if (abstain) entries.push([svg("rect", { class: "band", width: 18, height: 12 }), "too close to call"]);
  byId("legend").replaceChildren(...entries.map(([mark, words]) => element("span", {},
    svg("svg", { width: 18, height: 12, "aria-hidden": "true" }, mark), words)));
}

function times(x, width) {
  const { frames, expected } = state;
  const most = Math.max(2, Math.floor(width / 110));
  const step = Math.max(1, Math.ceil(expected / most));
  return frames.flatMap((frame, place) => (place % step === 0
    ? [svg("text", { x: x(place), y: HEIGHT - 6, "text-anchor": place === 0 ? "start" : "middle" }, seconds(frame.time_s))]
    : []));
}

const cursor = (at) => svg("line", { class: "cursor", x1: at, x2: at, y1: TOP - 4, y2: HEIGHT - BOTTOM + 4 });

// The line from frame to frame, broken where there is no face.
function course(frames, x, y) {
  let pen = "M";
  return frames.map((frame, place) => {
    if (frame.score === null) {
      pen = "M";
      return "";
    }
    const step = `${pen}${x(place)} ${y(frame.score)}`;
    pen = "L";
    return step;
  }).join("");
}

function point(frame, place, x, y) {
  const selected = place === state.selected ? " selected" : "";
  if (frame.score === null) {
    return svg("path", { class: `bare${selected}`, d: `M${x(place) - 3} ${y(0) - 3}l6 6m0 -6l-6 6` });
  }
  const over = state.line !== null && frame.score >= state.line ? " over" : "";
  return svg("circle", { class: `point${over}${selected}`, cx: x(place), cy: y(frame.score), r: selected ? 5 : 3.2 });
}

function fillStrip() {
  const strip = byId("strip");
  while (strip.children.length > state.frames.length) strip.lastChild.remove();
  for (let place = strip.children.length; place < state.frames.length; place++) {
    const { thumbnail, score: value } = state.frames[place];
    strip.append(element("span", { class: "cell", "data-frame": place },
      thumbnail ? element("img", { alt: "", src: `data:image/jpeg;base64,${thumbnail}` }) : null,
      element("span", {}, value === null ? "no face" : score(value))));
  }
  [...strip.children].forEach((cell, place) => {
    const value = state.frames[place].score;
    cell.classList.toggle("selected", place === state.selected);
    cell.classList.toggle("over", state.line !== null && value !== null && value >= state.line);
  });
  const cell = strip.children[state.selected];
  // not scrollIntoView, which would move the page as well
  if (cell) strip.scrollLeft = cell.offsetLeft - (strip.clientWidth - cell.clientWidth) / 2;
}

function fillTable() {
  const rows = state.frames.map((frame, place) => element("tr", {},
    element("th", { scope: "row" }, String(place + 1)), element("td", {}, seconds(frame.time_s)),
    element("td", {}, frame.score === null ? "no face" : score(frame.score)),
    element("td", {}, String(frame.faces.length))));
  const head = ["Frame", "Time", "Score", "Faces"].map((title) => element("th", { scope: "col" }, title));
  byId("frames-table").replaceChildren(
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}
