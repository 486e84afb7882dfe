"""Pictures on the page: what is drawn is what the API says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from pipeline.images import save_image
from tests.browser.looking import Looker

VERDICTS = {"fake": "Reads as fake", "real": "Reads as real", "uncertain": "Too close to call"}


def test_a_dropped_picture_shows_boxes_and_verdict_as_the_api_says(looker: Looker, face: Path) -> None:
    result = looker.ask(face, "image/png")
    looker.drop(face, "image/png")
    looker.wait()
    assert looker.text("verdict") == VERDICTS[result["verdict"]]
    assert result["reason"].lower() in looker.text("reason").lower()
    assert looker.text("filename") == "face.png"
    (found,) = result["faces"]
    assert looker.faces.count() == 1
    assert looker.faces.inner_text() == f"{found['p_fake']:.3f}"
    picture, box = looker.page.locator("#media img").bounding_box(), looker.faces.bounding_box()
    assert picture
    assert box
    scale = picture["width"] / result["width"]
    shown = [box["x"] - picture["x"], box["y"] - picture["y"], box["width"], box["height"]]
    x0, y0, x1, y1 = found["box"]
    assert np.array(shown) == pytest.approx(np.array([x0, y0, x1 - x0, y1 - y0]) * scale, abs=1)
    described = looker.page.locator("#scale svg").get_attribute("aria-label") or ""
    assert f"Score {result['score']:.3f}" in described
    assert f"Threshold {result['operating_point']['threshold']:.3f}" in described


def test_a_pasted_picture(looker: Looker, face: Path) -> None:
    looker.paste(face, "image/png")
    looker.wait()
    assert looker.faces.count() == 1


def test_the_evidence_map_lies_over_the_window_and_can_be_turned_down_and_off(
    looker: Looker, page: Page, face: Path
) -> None:
    (found,) = looker.ask(face, "image/png", evidence="png")["faces"]
    looker.choose(face)
    looker.wait()
    heat = page.locator(".heat")
    x0, y0, x1, y1 = found["evidence"]["window"]
    placed = [float(heat.get_attribute(name) or "nan") for name in ("x", "y", "width", "height")]
    assert placed == [x0, y0, x1 - x0, y1 - y0]
    assert heat.get_attribute("href") == f"data:image/png;base64,{found['evidence']['png']}"
    page.get_by_label("Opacity").fill("20")
    assert heat.get_attribute("opacity") == "0.2"
    page.get_by_label("Evidence map").last.uncheck()
    assert heat.count() == 0


def test_each_of_several_faces_can_be_selected(looker: Looker, page: Page, two_faces: Path) -> None:
    result = looker.ask(two_faces, "image/png")
    looker.choose(two_faces)
    looker.wait()
    scores = [face["p_fake"] for face in result["faces"]]
    assert len(scores) == 2
    radios = page.get_by_role("radio")
    assert radios.count() == 2
    highest = int(np.argmax(scores))
    expect(radios.nth(highest)).to_be_checked()
    looker.faces.nth(1 - highest).click()
    expect(radios.nth(1 - highest)).to_be_checked()
    assert "selected" in (looker.faces.nth(1 - highest).get_attribute("class") or "")
    window = result["faces"][1 - highest]["box"]
    placed = float(page.locator(".heat").get_attribute("x") or "nan")
    assert placed < window[0] < placed + float(page.locator(".heat").get_attribute("width") or "nan")
    radios.nth(1 - highest).press("ArrowDown")
    expect(radios.nth(highest)).to_be_checked()


def test_another_operating_point_judges_again(looker: Looker, page: Page, face: Path) -> None:
    looker.choose(face)
    looker.wait()
    result = looker.ask(face, "image/png", operating_point="fpr-1%")
    page.get_by_label("Operating point").select_option("fpr-1%")
    expect(page.locator("#reason")).to_contain_text(
        re.compile(re.escape(result["reason"][1:])), timeout=30_000
    )
    looker.wait()
    assert looker.text("verdict") == VERDICTS[result["verdict"]]
    described = page.locator("#scale svg").get_attribute("aria-label") or ""
    assert "Threshold 0.950" in described
    assert "caught 90 % of the fake frames and called 10 % of the real ones fake" in looker.text(
        "point-facts"
    )


def test_another_rule_is_asked_for(looker: Looker, page: Page, two_faces: Path) -> None:
    looker.choose(two_faces)
    looker.wait()
    with page.expect_request("**/v1/images?*") as asked:
        page.get_by_label("Scores combined by").select_option("mean-all")
    assert "aggregation=mean-all" in asked.value.url
    looker.wait()
    page.locator("#details summary").click()
    assert "mean-all" in looker.text("details-list")


def test_no_face_is_said_in_words(looker: Looker, tmp_path: Path) -> None:
    save_image(tmp_path / "wall.png", np.full((90, 120, 3), 128, np.uint8), store="png")
    looker.choose(tmp_path / "wall.png")
    looker.wait()
    assert looker.text("verdict") == "No face found"
    assert "no face was found in the picture" in looker.text("reason").lower()
    assert looker.faces.count() == 0


def test_a_picture_that_the_browser_cannot_show_is_judged_all_the_same(
    looker: Looker, page: Page, face: Path, tmp_path: Path
) -> None:
    from PIL import Image

    with Image.open(face) as image:
        image.save(tmp_path / "face.tiff")
    looker.choose(tmp_path / "face.tiff")
    looker.wait()
    assert looker.faces.count() == 1
    stage = page.locator("#media").bounding_box()
    assert stage
    assert stage["width"] / stage["height"] == pytest.approx(640 / 360, rel=0.02)


def test_what_the_detector_was_measured_on_is_said(looker: Looker, page: Page) -> None:
    expect(page.locator("#measured")).to_contain_text("Measured on the val split of “made up”")
    rows = page.locator("#measured tbody tr")
    assert rows.count() == 4
    assert "90 %" in rows.first.inner_text()
    assert page.get_by_text("prove anything").is_visible()


def test_one_file_follows_another(looker: Looker, page: Page, face: Path, two_faces: Path) -> None:
    looker.choose(face)
    looker.wait()
    looker.choose(two_faces)
    expect(looker.faces).to_have_count(2, timeout=30_000)
    assert looker.text("filename") == "two.png"


def test_dark_and_light_follow_the_system(open_page: Callable[..., Looker]) -> None:
    grounds = {
        scheme: open_page(color_scheme=scheme).page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert grounds == {"light": "rgb(247, 247, 245)", "dark": "rgb(17, 19, 22)"}
