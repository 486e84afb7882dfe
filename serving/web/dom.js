// Makes and finds elements; everything a server or a file says goes in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Calls draw(width) now and whenever the element's width changes.
export function whenSized(node, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.round(node.clientWidth);
    if (width > 0 && width !== last) draw((last = width));
  }).observe(node);
}

let unannounced = 0;

// Has a screen reader say a sentence when it is next silent.
export function announce(sentence) {
  clearTimeout(unannounced);
  unannounced = setTimeout(() => { byId("announce").textContent = sentence; }, 100);
}
