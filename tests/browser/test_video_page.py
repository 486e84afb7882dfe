"""Videos on the page: frames come as they are scored; the timeline is what the API says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.looking import Looker

# Two frames can arrive in one packet: an observer hears of both texts at once, so every record is kept.
_WATCH = """() => {
  window.told = [];
  const tell = (records) => records.forEach((record) =>
    record.addedNodes.forEach((node) => window.told.push(node.textContent)));
  new MutationObserver(tell).observe(document.getElementById("progress-text"), { childList: true });
}"""

_TIME_SHOWN = """async (video) => {
  while (video.seeking) await new Promise((done) => setTimeout(done, 10));
  return video.currentTime;
}"""


@pytest.fixture
def seen(looker: Looker, clip: Path) -> Looker:
    """A video, looked at to the end."""
    looker.page.evaluate(_WATCH)
    looker.choose(clip)
    looker.wait()
    return looker


def test_frames_stream_into_a_timeline_as_the_api_says(seen: Looker, page: Page, clip: Path) -> None:
    result = seen.ask(clip, "video/mp4")
    told = page.evaluate("window.told")
    assert [words for words in told if words.endswith("of 6 frames")] == [
        f"{n} of 6 frames" for n in range(1, 7)
    ]
    assert result["reason"][1:] in seen.text("reason")
    assert page.locator("#chart .point").count() == 6
    assert f"video {result['score']:.3f}" in seen.text("legend")
    assert "threshold 0.450" in seen.text("legend")
    page.get_by_text("The frames as a table").click()
    rows = [row.split() for row in page.locator("#frames-table tbody tr").all_inner_texts()]
    assert [row[3] for row in rows] == [f"{frame['score']:.3f}" for frame in result["frames"]]
    assert [float(row[1]) for row in rows] == pytest.approx(
        [frame["time_s"] for frame in result["frames"]], abs=0.006
    )
    assert page.locator("#strip img").count() == 6


def test_the_timeline_is_a_slider_for_keyboard_and_screen_reader(
    seen: Looker, page: Page, clip: Path
) -> None:
    result = seen.ask(clip, "video/mp4")
    slider = page.get_by_role("slider", name="Frame", exact=True)
    slider.press("Home")
    for place in (0, 1, 2):
        frame = result["frames"][place]
        said = f"Frame {place + 1} of 6, at {frame['time_s']:.2f} s: score {frame['score']:.3f}, 1 face"
        assert slider.get_attribute("aria-valuetext") == said
        assert seen.text("moment") == said
        assert seen.faces.inner_text() == f"{frame['faces'][0]['p_fake']:.3f}"
        shown = page.locator("#media video").evaluate(_TIME_SHOWN)
        assert shown == pytest.approx(frame["time_s"], abs=0.01)
        slider.press("ArrowRight")


def test_a_click_on_a_small_picture_selects_its_frame(seen: Looker, page: Page) -> None:
    page.locator("#strip .cell").nth(4).click()
    assert seen.text("moment").startswith("Frame 5 of 6")
    assert page.locator("#chart .point.selected").count() == 1


def test_a_click_into_the_chart_selects_the_frame_there(seen: Looker, page: Page) -> None:
    point = page.locator("#chart .point").nth(3).bounding_box()
    assert point
    page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    assert seen.text("moment").startswith("Frame 4 of 6")


def test_a_video_can_be_cancelled(looker: Looker, page: Page, clip: Path) -> None:
    session = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 300_000}
    session.send("Network.emulateNetworkConditions", slow)
    looker.choose(clip)
    expect(page.locator("#progress-text")).to_have_text("Sending")
    page.get_by_role("button", name="Cancel").click()
    assert looker.text("verdict") == "Cancelled"
    assert "There is no verdict" in looker.text("reason")
    assert page.get_by_role("button", name="Cancel").count() == 0


def test_small_pictures_stand_in_where_the_browser_cannot_play_the_video(
    looker: Looker, page: Page, clip: Path, tmp_path: Path
) -> None:
    import av

    from pipeline.video import sample_frames

    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for frame in sample_frames(clip, 4):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame.image[::2, ::2].copy(), format="rgb24"))
            )
        container.mux(stream.encode(None))
    looker.choose(path)
    looker.wait()
    expect(page.locator("#media img")).to_be_visible()
    assert looker.faces.count() == 1


def test_the_whole_road_on_a_phone(open_page: Callable[..., Looker], clip: Path) -> None:
    phone = open_page(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    phone.choose(clip)
    phone.wait()
    wide = "document.documentElement.scrollWidth"
    assert phone.page.evaluate(wide) == 360
    verdict, timeline = phone.page.locator("#verdict"), phone.page.locator("#timeline")
    assert verdict.bounding_box()["y"] < timeline.bounding_box()["y"]  # type: ignore[index]
    phone.page.get_by_text("The frames as a table").click()
    phone.page.locator("#details summary").click()
    assert phone.page.evaluate(wide) == 360
    assert phone.page.get_by_text("Use the camera").is_visible()
