// Says in plain words what the API says in names and numbers.

export const VERDICTS = {
  fake: "Reads as fake",
  real: "Reads as real",
  uncertain: "Too close to call",
  no_face: "No face found",
};

const RULES = {
  "max-mean": "mean over frames",
  "mean-all": "mean over all faces",
  "topk-mean": "mean of the highest quarter",
  confident: "mean of the frames that are sure",
};

const QUALITY = {
  small: "It is small: it had to be enlarged more than twice.",
  blurred: "It is blurred.",
  "cut off": "It is cut off at the edge.",
};

export const score = (value) => (value === null ? "–" : value.toFixed(3));

export const percent = (share) => {
  const value = share * 100;
  return `${value > 0 && value < 10 ? value.toFixed(1) : value.toFixed(0)} %`;
};

export function sentence(text) {
  const trimmed = text.trim();
  const whole = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?:]$/.test(whole) ? whole : `${whole}.`;
}

export function pointName(name) {
  if (name === "eer") return "balanced (equal error rate)";
  const limit = /^fpr-(.+)%$/.exec(name);
  return limit ? `at most ${limit[1]} % false alarms` : name;
}

export const ruleName = (name) => RULES[name] ?? name;

const interval = (bounds) => (bounds ? ` (${percent(bounds[0])} to ${percent(bounds[1])})` : "");

// measured: of the point's level, how many samples of each class
export function rates(point, measured) {
  const kind = point.level === "video" ? "videos" : "frames";
  const data = `${count(measured.real, `real ${kind.slice(0, -1)}`)} and ${count(measured.fake, "fake one")}`;
  return `On validation data (${data}) this threshold caught ${percent(point.tpr)}${interval(point.tpr_interval)} of the fake ` +
    `${kind} and called ${percent(point.fpr)}${interval(point.fpr_interval)} of the real ones fake.`;
}

export function quality(face) {
  if (!face.quality) return "Not judged: it is less than half as large as the largest face.";
  const notes = face.quality.notes.map((note) => QUALITY[note] ?? note);
  return notes.length ? notes.join(" ") : "Large enough, sharp and whole.";
}

export const seconds = (time) => `${time.toFixed(2)} s`;

export function count(number, one, many = `${one}s`) {
  return number === 1 ? `1 ${one}` : `${number} ${many}`;
}

export function bytes(number) {
  return number >= 1e6 ? `${(number / 2 ** 20).toFixed(1)} MB` : `${Math.ceil(number / 1024)} kB`;
}

export function frameText(frame, place, total) {
  const what = frame.score === null ? "no face" : `score ${score(frame.score)}, ${count(frame.faces.length, "face")}`;
  return `Frame ${place + 1} of ${total}, at ${seconds(frame.time_s)}: ${what}`;
}

export function problemText(problem, retryAfter) {
  const parts = [sentence(problem.title ?? "The server refused")];
  if (problem.detail) parts.push(sentence(problem.detail));
  if (retryAfter) parts.push(`Try again in ${count(Number(retryAfter), "second")}.`);
  return parts.join(" ");
}
