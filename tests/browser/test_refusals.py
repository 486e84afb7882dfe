"""What the page says when something cannot be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.looking import Looker
from tests.servers import ServerProcess


def test_a_damaged_picture_is_refused_in_a_sentence(looker: Looker, page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    looker.choose(tmp_path / "broken.jpg")
    expect(page.get_by_role("alert")).to_contain_text("cannot be read as a picture", timeout=30_000)
    assert "{" not in looker.text("alert")
    assert looker.text("verdict") == "No reading"


def test_a_damaged_video_is_refused_in_a_sentence(looker: Looker, page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 200)
    looker.choose(tmp_path / "broken.mp4")
    expect(page.get_by_role("alert")).to_contain_text("The video cannot be used", timeout=30_000)
    assert looker.text("verdict") == "No reading"


def test_what_is_neither_picture_nor_video_is_not_sent(looker: Looker, page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    looker.choose(tmp_path / "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is neither a picture nor a video")
    assert "POST" not in sent


def test_after_a_refusal_a_good_picture_is_judged(
    looker: Looker, page: Page, tmp_path: Path, face: Path
) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    looker.choose(tmp_path / "empty.png")
    expect(page.get_by_role("alert")).to_be_visible(timeout=30_000)
    looker.choose(face)
    looker.wait()
    expect(page.locator("#alert")).to_be_hidden()
    assert looker.faces.count() == 1


@pytest.fixture(scope="module")
def locked(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server that asks for a key and takes pictures of at most 900 kB, and such a key."""
    from serving.keys import add_key

    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    made = add_key(keys, "tester", per_minute=600, admin=False)
    settings = ("runtime_threads=1", "look_threads=1", "max_image_bytes=900000")
    pairs = [part for setting in settings for part in ("--set", setting)]
    running = ServerProcess(bundle_folder, "--keys", keys, *pairs)
    yield running.url, made
    running.kill()


def test_a_key_is_asked_for_and_kept_in_this_tab_only(
    open_page: Callable[..., Looker], locked: tuple[str, str], face: Path
) -> None:
    url, key = locked
    looker = open_page(url)
    field = looker.page.get_by_label("This server asks for an API key")
    expect(field).to_be_focused()
    field.fill("sf_wrong")
    field.press("Enter")
    expect(looker.page.get_by_role("alert")).to_contain_text("does not know this key")
    looker.choose(face)
    expect(field).to_be_visible()
    field.fill(key)
    field.press("Enter")
    looker.wait()  # what was chosen before is judged now
    stored = "[localStorage.length, document.cookie, sessionStorage.getItem('stillface-key')]"
    assert looker.page.evaluate(stored) == [0, "", key]
    looker.page.reload()
    expect(looker.page.locator("#measured table")).to_be_visible()
    looker.page.get_by_role("button", name="Forget key").click()
    expect(field).to_be_visible()
    assert looker.page.evaluate("sessionStorage.length") == 0


def test_a_late_refusal_does_not_forget_the_key_entered_meanwhile(
    open_page: Callable[..., Looker], locked: tuple[str, str], face: Path
) -> None:
    url, key = locked
    looker = open_page(url)
    page = looker.page
    field = page.get_by_label("This server asks for an API key")
    expect(field).to_be_focused()
    held: dict[str, Route] = {}

    def hold(route: Route) -> None:
        if "/v1/bundle" in route.request.url or "authorization" not in route.request.headers:
            held[route.request.url.partition("/v1/")[2].partition("?")[0]] = route
        else:
            route.continue_()

    page.route("**/v1/*", hold)
    looker.choose(face)
    expect(page.locator("#verdict")).to_have_text("Looking")
    field.fill(key)
    field.press("Enter")
    expect(field).to_be_hidden()
    with page.expect_response("**/v1/images*") as refusal:
        held["images"].continue_()
    assert refusal.value.status == 401
    expect(page.locator("#verdict")).to_have_text("No reading")
    held["bundle"].continue_()
    looker.wait()
    assert page.evaluate("sessionStorage.getItem('stillface-key')") == key


def test_too_large_a_picture_is_not_sent(
    open_page: Callable[..., Looker], locked: tuple[str, str], tmp_path: Path
) -> None:
    url, key = locked
    looker = open_page(url)
    looker.page.get_by_label("This server asks for an API key").fill(key)
    looker.page.keyboard.press("Enter")
    expect(looker.page.locator("#measured table")).to_be_visible()
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(1_000_000))
    looker.choose(tmp_path / "large.png")
    expect(looker.page.get_by_role("alert")).to_contain_text("this server takes at most")


def test_a_server_that_is_gone_is_said(
    open_page: Callable[..., Looker], bundle_folder: Path, face: Path
) -> None:
    running = ServerProcess(bundle_folder, "--set", "runtime_threads=1")
    looker = open_page(running.url)
    expect(looker.page.locator("#measured table")).to_be_visible()
    running.kill()
    looker.choose(face)
    expect(looker.page.get_by_role("alert")).to_contain_text("did not answer")
