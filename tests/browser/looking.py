"""The page as a test sees it, and the checks of its accessibility."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Locator, Page, expect

WAIT_MS = 60_000

_DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: carried }));
  }
}"""

_PASTE = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, clipboardData: carried }));
}"""

_CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => ({
    r: top.r * top.a + under.r * (1 - top.a), g: top.g * top.a + under.g * (1 - top.a),
    b: top.b * top.a + under.b * (1 - top.a), a: 1,
  });
  const light = ({ r, g, b }) => [r, g, b]
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    if (!node) return parse(getComputedStyle(document.documentElement).backgroundColor);
    const own = parse(getComputedStyle(node).backgroundColor);
    return own.a === 1 ? own : over(own, ground(node.parentElement));
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, noscript, .skip")) continue;
    const style = getComputedStyle(node);
    const drawn = node instanceof SVGElement ? style.fill : style.color;
    const under = ground(node instanceof SVGElement ? node.closest("div") : node);
    const [a, b] = [light(over(parse(drawn), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([walk.currentNode.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  return found;
}"""


@dataclass(frozen=True, slots=True)
class Looker:
    """Somebody who looks at the page.

    Attributes:
        page: The page.
        url: Of the server.
    """

    page: Page
    url: str

    def choose(self, path: Path) -> None:
        """Choose a file as with the button."""
        self.page.set_input_files("#file", path)

    def drop(self, path: Path, kind: str) -> None:
        """Drop a file onto the page."""
        self.page.evaluate(_DROP, [path.name, kind, base64.b64encode(path.read_bytes()).decode()])

    def paste(self, path: Path, kind: str) -> None:
        """Paste a file."""
        self.page.evaluate(_PASTE, [path.name, kind, base64.b64encode(path.read_bytes()).decode()])

    def wait(self) -> None:
        """Wait for the verdict."""
        expect(self.page.locator("#details")).to_be_visible(timeout=WAIT_MS)

    def text(self, name: str) -> str:
        """Text of the element with an id."""
        return self.page.locator(f"#{name}").inner_text()

    @property
    def faces(self) -> Locator:
        """Boxes on the picture."""
        return self.page.locator(".face")

    def contrasts(self) -> list[tuple[str, float]]:
        """Every text that is visible, with its contrast to what lies under it."""
        return [(words, ratio) for words, ratio in self.page.evaluate(_CONTRASTS)]

    def unnamed(self) -> list[str]:
        """Roles of what can be focused but has no name for a screen reader."""
        session = self.page.context.new_cdp_session(self.page)
        nodes: list[dict[str, Any]] = session.send("Accessibility.getFullAXTree")["nodes"]
        found = []
        for node in nodes:
            traits = {trait["name"]: trait["value"].get("value") for trait in node.get("properties", ())}
            role = node.get("role", {}).get("value")
            named = str(node.get("name", {}).get("value", "")).strip()
            if traits.get("focusable") and not node["ignored"] and role != "RootWebArea" and not named:
                found.append(str(role))
        return found

    def ask(self, path: Path, kind: str, **query: str) -> dict[str, Any]:
        """What the API says of a file."""
        where = f"{self.url}/v1/{kind.partition('/')[0]}s"
        answer = requests.post(
            where, params=query, data=path.read_bytes(), headers={"content-type": kind}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found
