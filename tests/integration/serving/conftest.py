"""Servers and pictures for the tests of the API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.settings import Settings
from tests.servers import ServerThread


def encoded(image: NDArray[np.uint8], kind: str = "png") -> bytes:
    """A picture as a file."""
    _, data = cv2.imencode(f".{kind}", np.asarray(image)[..., ::-1])
    return data.tobytes()


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """A command that configures logging in this process does so for one test only."""
    loggers = [logging.getLogger(name) for name in (None, "stillface.serving", "uvicorn")]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="session")
def face_png(portraits: list[NDArray[np.uint8]]) -> bytes:
    """A real face, small enough to be quick."""
    small = cv2.resize(portraits[0], (640, 360), interpolation=cv2.INTER_AREA)
    return encoded(np.asarray(small, np.uint8))


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """Twelve frames of a real clip at a quarter of its pixels."""
    import av

    from pipeline.video import sample_frames

    path = tmp_path_factory.mktemp("clips") / "small.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for frame in sample_frames(clip, 12):
            small = cv2.resize(frame.image, (640, 360), interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def start(bundle_folder: Path) -> Iterator[Callable[..., ServerThread]]:
    """Starts servers with given settings; all are stopped at the end of the module."""
    running: list[ServerThread] = []

    def make(**changes: Any) -> ServerThread:
        given = {"bundle": bundle_folder, "runtime_threads": 1, "look_threads": 2, "max_batch": 8, **changes}
        running.append(ServerThread(Settings(**given)))
        return running[-1]

    yield make
    for server in running:
        if server.thread.is_alive():
            server.stop()


@pytest.fixture(scope="module")
def server(start: Callable[..., ServerThread]) -> ServerThread:
    """A server with default settings."""
    return start()
