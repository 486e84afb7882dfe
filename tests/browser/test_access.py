"""The page for those who use a keyboard, a screen reader, little contrast or little motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.looking import Looker


def test_keyboard_alone_leads_from_file_to_verdict_and_face(
    looker: Looker, page: Page, two_faces: Path
) -> None:
    # heard from the start: Playwright turns interception on without waiting, so a chooser opened at once is lost
    page.on("filechooser", lambda chooser: chooser.set_files(two_faces))
    expect(page.get_by_label("Operating point")).to_be_enabled()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the reading"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Enter")
    expect(page.locator("#filename")).to_have_text(two_faces.name)
    looker.wait()
    visited = []
    for _ in range(20):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        if visited[-1] == "rule":
            break
    assert visited == ["evidence-on", "evidence-opacity", "face", "point", "rule"]


def test_what_has_the_focus_is_seen(looker: Looker, page: Page, face: Path) -> None:
    looker.choose(face)
    looker.wait()
    outlines = []
    for _ in range(6):
        page.keyboard.press("Tab")
        outlines.append(
            page.evaluate("""() => {
              const at = document.activeElement;
              const shown = [at, at.closest(".button"), at.closest(".plot")].filter(Boolean);
              return shown.some((node) => getComputedStyle(node).outlineStyle !== "none");
            }""")
        )
    assert all(outlines)


def test_the_verdict_is_announced(looker: Looker, page: Page, face: Path) -> None:
    looker.choose(face)
    looker.wait()
    said = page.get_by_role("status").filter(has_text=looker.text("verdict"))
    expect(said).to_contain_text(looker.text("reason"))


def test_landmarks_and_headings(looker: Looker, page: Page) -> None:
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("banner").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    for name in ("Picture or video", "No reading yet", "What this detector can tell, and what it cannot"):
        assert page.get_by_role("region", name=name).count() == 1, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_enough_contrast(
    open_page: Callable[..., Looker], scheme: str, clip: Path
) -> None:
    looker = open_page(color_scheme=scheme)
    expect(looker.page.locator("#measured table")).to_be_visible()
    assert looker.unnamed() == []
    looker.choose(clip)
    looker.wait()
    looker.page.get_by_text("The frames as a table").click()
    looker.page.locator("#details summary").click()
    assert looker.unnamed() == []
    texts = looker.contrasts()
    assert len(texts) > 60
    assert [text for text in texts if text[1] < 4.5] == []


def test_nothing_moves_for_those_who_asked_for_stillness(open_page: Callable[..., Looker]) -> None:
    looker = open_page(reduced_motion="reduce")
    looker.page.evaluate("document.getElementById('progress').hidden = false")
    assert (
        looker.page.locator("#progress-bar").evaluate("(bar) => getComputedStyle(bar).animationName")
        == "none"
    )


def test_the_start_on_a_narrow_phone_does_not_scroll_sideways(open_page: Callable[..., Looker]) -> None:
    looker = open_page(viewport={"width": 320, "height": 640})
    expect(looker.page.locator("#measured table")).to_be_visible()
    assert looker.page.evaluate("document.documentElement.scrollWidth") == 320
