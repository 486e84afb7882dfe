// Shows the picture or the frame, and over it the boxes of the faces and the evidence map.

import { byId, element, svg } from "./dom.js";
import { score } from "./words.js";

let address = null; // of the chosen file, for as long as it is shown
let media = null; // <img> or <video>
let broken = false; // whether the browser cannot show the file
let wanted = null; // time that a video is to show next, while it is still going to another
let arrived = () => {};

export function openStage(file, kind) {
  closeStage();
  address = URL.createObjectURL(file);
  media = kind === "video"
    ? element("video", { muted: true, playsinline: true, preload: "auto" })
    : element("img", { alt: "The chosen picture" });
  broken = false;
  media.addEventListener("error", fallBack);
  if (kind === "video") {
    media.muted = true;
    media.addEventListener("seeked", onSeeked);
    media.addEventListener("loadeddata", () => arrived());
  } else {
    media.addEventListener("load", () => arrived());
  }
  media.src = address;
  byId("media").replaceChildren(media, element("div", { id: "overlay", class: "overlay" }));
  byId("media").classList.remove("blank");
  byId("media").hidden = false;
  byId("invite").hidden = true;
}

export function closeStage() {
  if (address) URL.revokeObjectURL(address);
  address = media = wanted = null;
  byId("media").replaceChildren();
  byId("media").hidden = true;
  byId("invite").hidden = false;
}

// Called whenever another picture stands on the stage.
export function onArrived(call) {
  arrived = call;
}

// Has a video show the frame at a time; the latest wish wins.
export function seek(frame) {
  if (broken) {
    showThumbnail(frame);
  } else if (media instanceof HTMLVideoElement) {
    // a millisecond on, so that rounding does not show the frame before
    const time = frame.time_s + 0.001;
    // some phones load no video before it is played: until then the small picture stands in
    if (media.readyState < 2 && frame.thumbnail) media.poster = `data:image/jpeg;base64,${frame.thumbnail}`;
    if (media.seeking) wanted = time;
    else if (Math.abs(media.currentTime - time) > 1e-4) media.currentTime = time;
    else arrived();
  }
}

function onSeeked() {
  if (wanted === null) {
    arrived();
  } else {
    [media.currentTime, wanted] = [wanted, null];
  }
}

function fallBack() {
  broken = true;
  byId("media").classList.add("blank");
  arrived();
}

// A video that the browser cannot play is shown by the server's small pictures.
function showThumbnail(frame) {
  if (!frame.thumbnail) return;
  if (!(media instanceof HTMLImageElement)) {
    const image = element("img", { alt: "Small picture of the frame" });
    image.addEventListener("load", () => arrived());
    media.replaceWith(image);
    media = image;
  }
  byId("media").classList.remove("blank");
  media.src = `data:image/jpeg;base64,${frame.thumbnail}`;
}

// view: { width, height, faces, selected, line, evidence: { on, opacity } }; scores from `line` on speak for fake.
// pick(index) on a click.
export function drawOverlay(view, pick) {
  const overlay = byId("overlay");
  if (!overlay) return;
  if (byId("media").classList.contains("blank")) byId("media").style.aspectRatio = `${view.width} / ${view.height}`;
  else byId("media").style.removeProperty("aspect-ratio");
  const boxes = view.faces.map((face, index) => box(face, index, view, pick));
  overlay.replaceChildren(heat(view), ...boxes);
}

function heat({ width, height, faces, selected, evidence }) {
  const shown = evidence.on ? faces.filter((face, index) => face.evidence && index === selected) : [];
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...shown.flatMap((face) => {
      const [x0, y0, x1, y1] = face.evidence.window;
      const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
      const href = `data:image/png;base64,${face.evidence.png}`;
      return [
        svg("image", { class: "heat", ...place, preserveAspectRatio: "none", opacity: evidence.opacity, href }),
        svg("rect", { class: "window", ...place }),
      ];
    }));
}

// A face's box. The list of faces does the same for keyboards and screen readers.
function box(face, index, view, pick) {
  const [x0, y0, x1, y1] = face.box;
  const kinds = ["face"];
  if (index === view.selected) kinds.push("selected");
  if (!face.counted) kinds.push("uncounted");
  else if (face.p_fake >= view.line) kinds.push("over");
  const words = face.counted ? score(face.p_fake) : "not judged";
  const many = view.faces.length > 1;
  const made = element("button", {
    type: "button", class: kinds.join(" "), tabindex: "-1", "aria-hidden": "true", "data-face": index, onclick: () => pick(index),
  }, element("span", { class: y0 / view.height < 0.08 ? "tag inside" : "tag" }, many ? `${index + 1}  ${words}` : words));
  const share = (part, whole) => `${(100 * part) / whole}%`;
  Object.assign(made.style, {
    left: share(x0, view.width), top: share(y0, view.height),
    width: share(x1 - x0, view.width), height: share(y1 - y0, view.height),
  });
  return made;
}

// Draws what stands in a box on a small square canvas; view as for drawOverlay.
export function cutOut(canvas, face, view) {
  const ready = media instanceof HTMLVideoElement ? media.readyState >= 2 : media?.complete && media.naturalWidth;
  if (!ready) return;
  const scale = (media.videoWidth ?? media.naturalWidth) / view.width;
  const [x0, y0, x1, y1] = face.box;
  const side = Math.max(x1 - x0, y1 - y0) * 1.15;
  const left = (x0 + x1 - side) / 2, top = (y0 + y1 - side) / 2;
  canvas.getContext("2d").drawImage(
    media, left * scale, top * scale, side * scale, side * scale, 0, 0, canvas.width, canvas.height);
}
