// The page: takes a file, has the server look at it, and shows what it found.

import { showAbout } from "./about.js";
import { analyse, bundleFacts, key } from "./api.js";
import { chosen, showChoices, showPoint, thresholdFor } from "./choices.js";
import { announce, byId, element } from "./dom.js";
import { paintFaces, showFaces } from "./faces.js";
import { initScale, showScale } from "./scale.js";
import { closeStage, drawOverlay, onArrived, openStage, seek } from "./stage.js";
import { hideTimeline, initTimeline, showTimeline } from "./timeline.js";
import { VERDICTS, bytes, count, sentence } from "./words.js";

const SUFFIXES = {
  image: /\.(bmp|gif|jpe?g|png|ppm|tiff?|webp)$/i,
  video: /\.(avi|flv|m4v|mkv|mov|mp4|mpe?g|m?ts|webm|wmv)$/i,
};

let facts = null;
let current = null; // what is being looked at; see examine()

// --- taking a file ---------------------------------------------------------------------------------------

function kindOf(file) {
  return ["image", "video"].find((kind) => file.type.startsWith(`${kind}/`) || (!file.type && SUFFIXES[kind].test(file.name)));
}

function take(file) {
  if (!file) return;
  const kind = kindOf(file);
  if (!kind) {
    complain(`${file.name} is neither a picture nor a video. Choose a JPEG, PNG or WebP picture, or an MP4, MOV or WebM video.`);
    return;
  }
  const limit = facts?.limits[`max_${kind}_bytes`];
  if (limit && file.size > limit) {
    complain(`${file.name} has ${bytes(file.size)}; this server takes at most ${bytes(limit)}. Choose a smaller one.`);
    return;
  }
  stop();
  openStage(file, kind);
  byId("filename").textContent = file.name;
  examine(file, kind);
}

// Has the server look at a file and shows its answer as it comes.
async function examine(file, kind) {
  const look = { file, kind, frames: [], expected: 0, frame: 0, face: 0, following: true, result: null, cancel: null };
  current = look;
  complain(null);
  reset();
  busy(`Sending ${bytes(file.size)}`, 0);
  announce(`Looking at ${file.name}.`);
  const { done, cancel } = analyse(file, kind, chosen(), {
    sent: (share) => current === look && busy(share < 1 ? "Sending" : "Looking for faces", share < 1 ? share : null),
    event: (event) => current === look && onEvent(look, event),
  });
  look.cancel = cancel;
  try {
    const result = await done;
    if (current === look) conclude(look, result);
  } catch (problem) {
    if (current === look) failed(look, problem);
  }
}

function onEvent(look, event) {
  if (event.event === "start") {
    look.expected = event.frames;
    look.size = [event.width, event.height];
  } else if (event.event === "frame") {
    look.frames.push(event.frame);
    if (look.following) look.frame = look.frames.length - 1;
    busy(`${look.frames.length} of ${look.expected} frames`, look.frames.length / Math.max(1, look.expected));
    showFrame(look);
  }
}

function conclude(look, result) {
  idle();
  look.result = result;
  look.cancel = null;
  look.size = [result.width, result.height];
  if (look.kind === "video") {
    look.frames = result.frames;
    look.expected = result.frames.length;
    // the frame that says most
    if (look.following) look.frame = highest(look.frames.map((frame) => frame.score));
  } else {
    look.frames = [{ faces: result.faces, score: result.score }];
    look.face = highest(result.faces.map((face) => face.p_fake));
  }
  byId("verdict").textContent = VERDICTS[result.verdict];
  byId("verdict").className = `verdict ${result.verdict}`;
  byId("reason").textContent = sentence(result.reason);
  document.title = `${VERDICTS[result.verdict]}: ${look.file.name} - stillface`;
  notes(result);
  details(result);
  showFrame(look);
  announce(`${VERDICTS[result.verdict]}. ${sentence(result.reason)}`);
}

function highest(values) {
  return values.reduce((best, value, place) => ((value ?? -1) > (values[best] ?? -1) ? place : best), 0);
}

function failed(look, problem) {
  idle();
  look.cancel = null;
  if (problem.name === "AbortError") {
    const seen = look.frames.length ? ` ${look.frames.length} of ${look.expected} frames were scored.` : "";
    byId("verdict").textContent = "Cancelled";
    byId("reason").textContent = `There is no verdict.${seen} Choose the file again to start anew.`;
    announce("Cancelled.");
    return;
  }
  byId("verdict").textContent = "No reading";
  byId("reason").textContent = "The file could not be judged; the reason stands above.";
  if (problem.status === 401) askForKey(problem.key);
  else complain(problem.message);
}

function stop() {
  current?.cancel?.();
  current = null;
}

function lookAgain() {
  showPoint(current?.kind);
  if (!current) return;
  const { file, kind } = current;
  stop();
  examine(file, kind);
}

// --- showing ---------------------------------------------------------------------------------------------

function reset() {
  byId("verdict").textContent = "Looking";
  byId("verdict").className = "verdict";
  byId("reason").textContent = current.kind === "video" ? "Each frame is shown as soon as it is scored." : "";
  for (const id of ["faces", "notes", "details", "evidence"]) byId(id).hidden = true;
  document.title = "stillface";
  byId("overlay").replaceChildren();
  showPoint(current.kind);
  showScale(null);
  hideTimeline();
}

// Scores from here on speak for fake: from the threshold, or from the end of the band that is too close to call.
function line(look) {
  return look.result?.operating_point.abstain?.[1] ?? threshold(look);
}

function threshold(look) {
  return look.result?.operating_point.threshold ?? thresholdFor(look.kind)?.threshold ?? null;
}

function view(look) {
  const frame = look.frames[look.frame];
  const evidence = { on: byId("evidence-on").checked, opacity: byId("evidence-opacity").value / 100 };
  return {
    width: look.size[0], height: look.size[1], faces: frame?.faces ?? [], selected: look.face,
    line: line(look), evidence,
  };
}

// Shows the chosen frame (a picture has one) with its faces.
function showFrame(look) {
  const frame = look.frames[look.frame];
  if (!frame) return;
  if (look.kind === "video") {
    seek(frame);
    showTimeline({
      frames: look.frames, expected: look.expected, selected: look.frame, score: look.result?.score ?? null,
      threshold: threshold(look), line: line(look), abstain: look.result?.operating_point.abstain ?? null,
    });
  }
  look.face = Math.min(look.face, Math.max(0, frame.faces.length - 1));
  byId("evidence").hidden = !frame.faces.some((face) => face.evidence);
  showFacesOf(look);
  scale(look);
}

function showFacesOf(look) {
  const shown = view(look);
  const pick = (index) => {
    look.face = index;
    showFacesOf(look);
  };
  drawOverlay(shown, pick);
  showFaces(shown, pick);
  paintFaces(shown);
}

// The score the verdict was given on, among the faces of a picture; nothing until there is a verdict.
function scale(look) {
  if (!look.result) return;
  const { score, operating_point: point, faces = [] } = look.result;
  const others = faces.map((face) => face.p_fake).filter((p) => p !== null && p !== score);
  showScale({ score, threshold: point.threshold, abstain: point.abstain, others });
}

function notes(result) {
  byId("notes").hidden = result.notes.length === 0;
  byId("notes-list").replaceChildren(...result.notes.map((note) => element("li", {}, sentence(note))));
}

function details(result) {
  const { bundle, aggregation, operating_point: point, timings_ms: timings } = result;
  const rows = [
    ["Bundle", bundle.id],
    ["Run by", `${bundle.artefact}, ${bundle.runtime}`],
    ["Operating point", `${point.name}, threshold ${point.threshold.toFixed(6)} per ${point.level}`],
    ["Combined by", aggregation.rule],
    ["Looked at", `${count(aggregation.frames, "frame")}, ${aggregation.frames_used} with a face, ${count(aggregation.faces, "face")} scored`],
    ["Size", `${result.width} x ${result.height} pixels`],
    ["Time", Object.entries(timings).map(([stage, ms]) => `${stage} ${ms.toFixed(0)} ms`).join(", ")],
    ["Request", result.request_id],
  ];
  byId("details").hidden = false;
  byId("details-list").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function busy(words, share) {
  byId("progress").hidden = false;
  byId("cancel").hidden = false;
  byId("reading").setAttribute("aria-busy", "true");
  byId("progress-text").textContent = words;
  if (share === null) byId("progress-bar").removeAttribute("value");
  else byId("progress-bar").value = share;
}

function idle() {
  byId("reading").removeAttribute("aria-busy");
  byId("progress").hidden = true;
  if (document.activeElement === byId("cancel")) byId("reading").focus({ preventScroll: true });
  byId("cancel").hidden = true;
}

function complain(words) {
  byId("alert").hidden = !words;
  byId("alert").textContent = words ?? "";
}

// --- key -------------------------------------------------------------------------------------------------

function askForKey(refused) {
  if (refused !== key.get()) return; // another key was entered while that answer was on its way
  key.forget();
  byId("forget-key").hidden = true;
  byId("key-form").hidden = false;
  if (refused) complain("The server does not know this key. Check it and enter it again.");
  byId("key").focus();
}

function useKey(event) {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  complain(null);
  start();
}

function forgetKey() {
  key.forget();
  stop();
  closeStage();
  location.reload();
}

// Learns what is served; the page works without, but then offers no choices.
async function start() {
  try {
    facts = await bundleFacts();
  } catch (problem) {
    if (problem.status === 401) askForKey(problem.key);
    else complain(problem.message);
    return;
  }
  byId("forget-key").hidden = key.get() === null;
  showAbout(facts);
  showChoices(facts, lookAgain);
  showPoint(current?.kind);
  if (current && !current.result) lookAgain();
}

// --- wiring ----------------------------------------------------------------------------------------------

function wireFiles() {
  for (const input of [byId("file"), byId("camera")]) {
    input.addEventListener("change", () => {
      take(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const dropping = (change) => {
    depth = change === 0 ? 0 : depth + change;
    byId("dropping").hidden = depth <= 0;
  };
  document.addEventListener("dragenter", (event) => carriesFiles(event) && dropping(1));
  document.addEventListener("dragleave", (event) => carriesFiles(event) && dropping(-1));
  document.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    dropping(0);
    take(event.dataTransfer.files[0]);
  });
}

function wireViews() {
  initScale();
  initTimeline((place) => {
    current.frame = place;
    current.following = false;
    showFrame(current);
  });
  onArrived(() => current?.frames.length && showFacesOf(current));
  byId("evidence-on").addEventListener("change", () => showFacesOf(current));
  byId("evidence-opacity").addEventListener("input", () => showFacesOf(current));
  byId("cancel").addEventListener("click", () => current?.cancel?.());
  byId("key-form").addEventListener("submit", useKey);
  byId("forget-key").addEventListener("click", forgetKey);
}

wireFiles();
wireViews();
start();
