// Says what the served detector was measured on and how often it is right there.

import { byId, element } from "./dom.js";
import { count, percent, pointName, score, sentence } from "./words.js";

export function showAbout(facts) {
  byId("served").textContent = facts.bundle.id;
  byId("served").title = `${facts.bundle.artefact} on ${facts.bundle.runtime}`;
  const { frame, video, data, split, fakes } = facts.measured;
  const blended = fakes === "self-blended";
  const paragraphs = [
    `Measured on the ${split} split of “${data}”: ${counts(frame, "frame")} from ${counts(video, "video")}. ` +
      `${auc(frame, "frames")} ${auc(video, "videos")}`,
    blended
      ? "Its fakes were blended from the real faces. So the figures say how well such blending is found; they do not say how well deepfakes are found."
      : null,
  ];
  byId("measured").replaceChildren(
    element("h3", {}, "How often it was right"),
    ...paragraphs.filter(Boolean).map((words) => element("p", {}, words)),
    element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table of thresholds" }, table(facts)),
    element("ul", { class: "small" }, ...remarks(facts).map((note) => element("li", {}, sentence(note)))));
}

const counts = (level, one) => `${count(level.real, `real ${one}`)} and ${count(level.fake, `fake ${one}`)}`;

function auc(level, what) {
  const { value, low, high } = level.auc;
  if (value === null) return "";
  const range = low === null ? ` (${level.auc.reason ?? "no interval"})` : `, 95 % interval ${low.toFixed(3)} to ${high.toFixed(3)}`;
  return `Area under the ROC curve for ${what}: ${value.toFixed(3)}${range}.`;
}

function remarks(facts) {
  const notes = [...facts.notes, ...facts.measured.frame.notes, ...facts.measured.video.notes];
  return [...new Set(notes)];
}

function table(facts) {
  const titles = ["Judges", "Operating point", "Threshold", "Fakes caught", "Real ones called fake"];
  const rows = facts.operating_points.map((point) => element("tr", {},
    element("td", {}, point.level === "video" ? "videos" : "pictures"),
    element("th", { scope: "row" }, pointName(point.name)),
    element("td", { class: "number" }, score(point.threshold)),
    element("td", { class: "number" }, rate(point.tpr, point.tpr_interval)),
    element("td", { class: "number" }, rate(point.fpr, point.fpr_interval))));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)))),
    element("tbody", {}, ...rows));
}

function rate(share, interval) {
  return interval ? `${percent(share)} (${percent(interval[0])} to ${percent(interval[1])})` : percent(share);
}
