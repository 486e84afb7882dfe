// Lists the faces of the picture or frame; one of them is selected.

import { byId, element } from "./dom.js";
import { cutOut } from "./stage.js";
import { percent, quality, score } from "./words.js";

// view: as for drawOverlay; pick(index)
export function showFaces(view, pick) {
  const { faces, selected, line } = view;
  byId("faces").hidden = faces.length === 0;
  byId("faces-title").textContent = faces.length > 1 ? `${faces.length} faces` : "The face";
  const list = byId("faces-list");
  // rows stay from frame to frame, so that neither the focus nor the small pictures are lost
  while (list.children.length > faces.length) list.lastChild.remove();
  while (list.children.length < faces.length) list.append(row(list.children.length));
  [...list.children].forEach((made, index) => {
    const face = faces[index];
    const input = made.querySelector("input");
    input.checked = index === selected;
    input.onchange = () => pick(index);
    const value = made.querySelector(".value");
    value.textContent = face.counted ? score(face.p_fake) : "not judged";
    value.className = face.counted ? "value" : "value none";
    value.classList.toggle("over", face.counted && line !== null && face.p_fake >= line);
  });
  showFacts(faces[selected]);
}

function row(index) {
  return element("label", { class: "face-row" },
    element("input", { type: "radio", name: "face", value: index }),
    element("canvas", { width: 80, height: 80, "aria-hidden": "true" }),
    element("span", {}, `Face ${index + 1}`), element("span", { class: "value" }));
}

function showFacts(face) {
  const facts = byId("face-facts");
  if (!face) {
    facts.replaceChildren();
    return;
  }
  const size = Math.round(Math.min(face.box[2] - face.box[0], face.box[3] - face.box[1]));
  facts.replaceChildren(
    element("p", {}, quality(face)),
    element("p", { class: "small" }, `${size} pixels across. The face finder is ${percent(face.confidence)} sure of it.`));
}

// Fills the small pictures, once the frame stands on the stage.
export function paintFaces(view) {
  byId("faces-list").querySelectorAll("canvas").forEach((canvas, index) => {
    if (view.faces[index]) cutOut(canvas, view.faces[index], view);
  });
}
