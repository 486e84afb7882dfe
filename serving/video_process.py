"""Has videos decoded by child processes, with one kept ready, and kills those that take too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from serving.problems import ProblemError
from serving.video_wire import LENGTH

_ROOT = Path(__file__).resolve().parents[1]
_DIED = "The video's decoder gave up: the video is damaged, or needs more memory or time to decode than is allowed."


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of a decoder.

    Attributes:
        count: Frames, evenly over the video.
        max_pixels: Width times height of a frame.
        max_duration_s: Longest video.
        memory: Address space of the process in bytes.
        cpu_s: Processor time it may use.
        threads: Decoder threads.
    """

    count: int
    max_pixels: int
    max_duration_s: float
    memory: int
    cpu_s: float
    threads: int = 1


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """By the video's header."""

    width: int
    height: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Frame:
    """As `pipeline.video.Frame`, which would load the decoder's libraries into the server.

    Attributes:
        index: Its number in presentation order, from 0.
        time_s: Seconds after the first frame.
        image: RGB uint8 [H, W, 3], upright.
    """

    index: int
    time_s: float
    image: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame and the seconds it took to decode."""

    frame: Frame
    seconds: float


class Decoding:
    """A video being decoded; `facts` are known at once, frames come as they are decoded."""

    def __init__(self, child: _Child, facts: VideoFacts, threads: ThreadPoolExecutor) -> None:
        self.facts = facts
        self._child = child
        self._threads = threads

    async def frames(self) -> AsyncIterator[Decoded]:
        """The frames in time order.

        Raises:
            ProblemError: The video is damaged or over a limit, or its decoder died.
        """
        loop = asyncio.get_running_loop()
        while True:
            started = time.perf_counter()
            frame = await loop.run_in_executor(self._threads, self._child.read_frame)
            if frame is None:
                return
            yield Decoded(frame, time.perf_counter() - started)


class VideoDecoders:
    """Starts decoder processes; one waits ready, so that a request does not pay for its start.

    Args:
        most: Videos decoded at once; the caller keeps to it.
    """

    def __init__(self, most: int) -> None:
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="video")
        self._spare: _Child | None = None

    def start(self) -> None:
        """Keep one process ready."""
        self._spare = _Child()

    def close(self) -> None:
        """End the spare process and the threads."""
        if self._spare is not None:
            self._spare.kill()
            self._spare = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def decode(self, video: IO[bytes], order: Order) -> AsyncIterator[Decoding]:
        """Decode a video, an open file; the process is gone when this ends, however it ends.

        Raises:
            ProblemError: It is no video.
        """
        child, self._spare = self._spare or _Child(), None
        loop = asyncio.get_running_loop()
        try:
            child.order(video.fileno(), order)
            loop.call_soon(self._refill)
            yield Decoding(child, await loop.run_in_executor(self._threads, child.read_facts), self._threads)
        finally:
            child.kill()

    def _refill(self) -> None:
        if self._spare is None:
            self._spare = _Child()


class _Child:
    """One decoder process and the socket to it."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair()
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(_ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - fixed words
                [sys.executable, "-m", "serving.video_child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )

    def order(self, descriptor: int, order: Order) -> None:
        text = json.dumps({name: getattr(order, name) for name in Order.__slots__}).encode()
        try:
            socket.send_fds(self._link, [text], [descriptor])
        except OSError as error:
            raise ProblemError("bad-video", _DIED) from error

    def read_facts(self) -> VideoFacts:
        info = self._message()["info"]
        return VideoFacts(info["width"], info["height"], info["duration_s"])

    def read_frame(self) -> Frame | None:
        message = self._message()
        if "end" in message:
            return None
        image = np.empty((message["height"], message["width"], 3), np.uint8)
        self._fill(image.data.cast("B"))
        return Frame(message["index"], message["time_s"], image)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            # wakes the thread that waits for the next frame
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        self._process.kill()
        self._process.wait()

    def _message(self) -> dict[str, Any]:
        head = bytearray(LENGTH.size)
        self._fill(memoryview(head))
        text = bytearray(LENGTH.unpack(head)[0])
        self._fill(memoryview(text))
        message: dict[str, Any] = json.loads(text)
        if "error" in message:
            raise ProblemError("bad-video", message["error"])
        return message

    def _fill(self, place: memoryview) -> None:
        while len(place):
            try:
                count = self._link.recv_into(place)
            except OSError:
                count = 0
            if not count:
                raise ProblemError("bad-video", _DIED)
            place = place[count:]
