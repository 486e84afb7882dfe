"""A real Chromium in front of a real server, for the tests of the web page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from pipeline.images import save_image
from tests.browser.looking import Looker
from tests.servers import ServerProcess

HERE = Path(__file__).parent
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


# One browser per file and not for the session: while Playwright runs, asyncio.run fails in its thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI must run the browser tests: apt-get install chromium")
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # no sandbox: tests in a container run as root, where Chromium's own cannot start
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def server(bundle_folder: Path) -> Iterator[ServerProcess]:
    """`stillface serve` as a person starts it."""
    running = ServerProcess(bundle_folder, "--set", "runtime_threads=1", "--set", "look_threads=1")
    yield running
    running.kill()


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Looker]]:
    """Opens the page in a fresh profile. At the end: nothing but the server was asked, and nothing broke."""
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    broken: list[str] = []
    opened: list[str] = []

    def make(url: str | None = None, **options: Any) -> Looker:
        address = url or request.getfixturevalue("server").url
        opened.append(address)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda sent: asked.append(_address(sent)))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda message: broken.append(message.text) if _is_breach(message) else None)
        page.goto(address)
        return Looker(page, address)

    yield make
    for context in contexts:
        context.close()
    foreign = [url for url in asked if not url.startswith((*opened, "blob:", "data:"))]
    assert not foreign, "the page asked somebody else"
    assert not broken


@pytest.fixture
def looker(open_page: Callable[..., Looker]) -> Looker:
    return open_page()


@pytest.fixture
def page(looker: Looker) -> Page:
    return looker.page


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, portraits: list[NDArray[np.uint8]]) -> Path:
    """A picture with one face."""
    return _stored(tmp_path_factory, "face.png", portraits[0])


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory: pytest.TempPathFactory, portraits: list[NDArray[np.uint8]]) -> Path:
    """A picture with two faces of about the same size."""
    both = np.concatenate([image[:, 320:960] for image in portraits], axis=1)
    return _stored(tmp_path_factory, "two.png", both)


def _stored(factory: pytest.TempPathFactory, name: str, image: NDArray[np.uint8]) -> Path:
    path = factory.mktemp("pictures") / name
    save_image(path, np.ascontiguousarray(image[::2, ::2]), store="png")
    return path


def _address(sent: Request) -> str:
    return sent.url


def _is_breach(message: Any) -> bool:
    # refused requests are logged as errors too; those are answers that the tests ask for
    return message.type == "error" and "Failed to load resource" not in message.text
