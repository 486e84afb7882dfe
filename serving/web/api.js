// Talks to the server: sends a file, reports how much is sent, and hands on each line of a streamed answer.

import { problemText } from "./words.js";

const KEY = "stillface-key";

// What went wrong; `key` is the one that the refused request carried.
export class Problem extends Error {
  constructor(text, status = 0, key = null) {
    super(text);
    this.status = status;
    this.key = key;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

const headers = (carried) => (carried ? { Authorization: `Bearer ${carried}` } : {});

const SILENT = "The server did not answer. Check that it is running and that you are connected, then try again.";

export async function bundleFacts() {
  const carried = key.get();
  let response;
  try {
    response = await fetch("/v1/bundle", { headers: headers(carried) });
  } catch {
    throw new Problem(SILENT);
  }
  if (!response.ok) throw problemOf(response.status, await response.text(), response.headers.get("Retry-After"), carried);
  return response.json();
}

// The parts of a request that a person chooses.
function query(kind, choices) {
  const wanted = new URLSearchParams({ evidence: "png", ...choices });
  if (kind === "video") wanted.set("thumbnails", "true");
  return wanted;
}

// Sends a picture or a video.
//   on.sent(share), on.event(object) for each line of a streamed answer.
// Returns { done: Promise of the result, cancel() }. An aborted request rejects with AbortError.
// XMLHttpRequest and not fetch: only it tells how much of a large video has been sent.
export function analyse(file, kind, choices, on) {
  const carried = key.get();
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    const lines = new Lines((line) => on.event(JSON.parse(line)));
    request.open("POST", `/v1/${kind}s?${query(kind, choices)}`);
    for (const [name, value] of Object.entries(headers(carried))) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", file.type || "application/octet-stream");
    if (kind === "video") request.setRequestHeader("Accept", "application/x-ndjson");
    const streamed = () => (request.getResponseHeader("Content-Type") ?? "").startsWith("application/x-ndjson");
    request.upload.onprogress = (event) => event.lengthComputable && on.sent(event.loaded / event.total);
    request.upload.onload = () => on.sent(1);
    request.onprogress = () => streamed() && lines.take(request.responseText);
    request.onerror = () => reject(new Problem(SILENT));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onload = () => {
      if (request.status !== 200) {
        reject(problemOf(request.status, request.responseText, request.getResponseHeader("Retry-After"), carried));
      } else if (!streamed()) {
        resolve(JSON.parse(request.responseText));
      } else {
        lines.take(request.responseText);
        const last = lines.last ? JSON.parse(lines.last) : {};
        if (last.event === "result") resolve(last.result);
        else if (last.event === "error") reject(new Problem(problemText(last.problem), last.problem.status));
        else reject(new Problem("The answer broke off before the verdict. Try again."));
      }
    };
    request.send(file);
  });
  return { done, cancel: () => request.abort() };
}

// Cuts a text that grows into lines, each handed on once.
class Lines {
  constructor(give) {
    this.give = give;
    this.read = 0;
    this.last = null;
  }

  take(text) {
    for (let end = text.indexOf("\n", this.read); end >= 0; end = text.indexOf("\n", this.read)) {
      const line = text.slice(this.read, end).trim();
      this.read = end + 1;
      if (line) this.give((this.last = line));
    }
  }
}

function problemOf(status, text, retryAfter, carried) {
  try {
    return new Problem(problemText(JSON.parse(text), retryAfter), status, carried);
  } catch {
    return new Problem(`The server answered with status ${status}.`, status, carried);
  }
}
