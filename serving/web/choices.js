// The operating point and the rule that a person may choose, and what the chosen threshold was measured to do.

import { byId, element } from "./dom.js";
import { pointName, rates, ruleName } from "./words.js";

let facts = null;

export function showChoices(next, changed) {
  facts = next;
  const names = [...new Set(facts.operating_points.map((point) => point.name))];
  fill(byId("point"), names.map((name) => [name, pointName(name)]), facts.default_point);
  fill(byId("rule"), facts.aggregations.map((name) => [name, ruleName(name)]), facts.default_aggregation);
  byId("point").onchange = byId("rule").onchange = changed;
}

function fill(select, options, chosen) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, words]) => element("option", { value }, words)));
  select.value = options.some(([value]) => value === before) ? before : chosen;
  select.disabled = false;
}

// What to ask for, beyond the bundle's own.
export function chosen() {
  const wanted = {};
  if (facts && byId("point").value !== facts.default_point) wanted.operating_point = byId("point").value;
  if (facts && byId("rule").value !== facts.default_aggregation) wanted.aggregation = byId("rule").value;
  return wanted;
}

// The chosen threshold for a kind of file, before there is an answer; null while nothing is known.
export function thresholdFor(kind) {
  const level = kind === "video" ? "video" : "frame";
  const named = (point) => point.level === level && point.name === byId("point").value;
  return facts?.operating_points.find(named) ?? null;
}

export function showPoint(kind) {
  const point = thresholdFor(kind);
  byId("point-facts").textContent = point ? rates(point, facts.measured[point.level]) : "";
}
