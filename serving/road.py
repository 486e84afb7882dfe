"""Walks the road of `pipeline.analysis` for many requests at once: decode and find in threads, one queue to infer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TypeAlias, TypeVar

from pipeline.analysis import Conclusion, Look, ScoredFrame, total_timings
from pipeline.errors import InputError
from pipeline.images import read_image
from serving.engine import Engine
from serving.evidence import EvidenceForm, thumbnail
from serving.metrics import Metrics
from serving.present import Circumstances, frame_result, image_result, video_result
from serving.problems import ProblemError
from serving.schemas import FrameResult, ImageResult, VideoFrame, VideoResult, VideoStart
from serving.settings import Settings
from serving.video_process import Decoded, Decoding, Order, VideoDecoders

RoadEvents: TypeAlias = AsyncGenerator[VideoStart | VideoFrame | VideoResult, None]
_JOBS_AT_ONCE = 1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request may choose; None takes the bundle's own."""

    request_id: str
    operating_point: str | None = None
    aggregation: str | None = None
    evidence: EvidenceForm = "none"
    frames: int | None = None
    thumbnails: bool = False


class Gate:
    """Lets so many in at once and turns the rest away.

    Args:
        limit: How many.
        reason: Label of those turned away.
        metrics: Where to count.
    """

    def __init__(self, limit: int, reason: str, metrics: Metrics) -> None:
        self._limit = limit
        self._reason = reason
        self._metrics = metrics
        self.inside = 0

    def check(self) -> None:
        """Turn away if full.

        Raises:
            ProblemError: It is full.
        """
        if self.inside >= self._limit:
            self._metrics.shed.labels(self._reason).inc()
            raise ProblemError(
                "overloaded", f"{self.inside} {self._reason} are being worked on already.", retry_after=1
            )

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside while this is open."""
        self.check()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Road:
    """The stages before and after the network.

    Args:
        settings: The server's.
        metrics: Where to count.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(settings.look_threads, thread_name_prefix="look")
        self._decoders = VideoDecoders(settings.max_videos + _JOBS_AT_ONCE)
        self.images = Gate(settings.max_inflight, "requests", metrics)
        self.videos = Gate(settings.max_videos, "videos", metrics)
        metrics.inflight.set_function(lambda: self.images.inside + self.videos.inside)
        metrics.inflight_limit.set(settings.max_inflight + settings.max_videos)

    def start(self) -> None:
        """Make ready what takes time to start."""
        self._decoders.start()

    def close(self) -> None:
        """End threads and processes."""
        self._decoders.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def image(self, engine: Engine, data: bytes, wishes: Wishes) -> ImageResult:
        """Analyse a picture.

        Raises:
            ProblemError: It cannot be read, a wish cannot be met, or the network failed.
        """
        started = time.perf_counter()
        check_wishes(engine, wishes)

        def look() -> tuple[Look, float]:
            begun = time.perf_counter()
            image = read_image(data, max_pixels=self._settings.max_pixels)
            decode = time.perf_counter() - begun
            return engine.analyser.look(image), decode

        try:
            with engine.batcher.announced():
                seen, decode = await self._in_pool(look)
        except InputError as error:
            raise ProblemError("bad-image", str(error)) from error
        frame = await self._weigh(engine, seen, {"decode": decode})
        conclusion = self._conclude(engine, [frame], "image", wishes)
        timings = total_timings([frame], started)
        return image_result(frame, conclusion, timings, self._around(engine, wishes))

    @contextlib.asynccontextmanager
    async def open_video(self, engine: Engine, video: IO[bytes], wishes: Wishes) -> AsyncIterator[Decoding]:
        """Start decoding a video.

        Raises:
            ProblemError: It is no video, or a wish cannot be met.
        """
        check_wishes(engine, wishes)
        settings = self._settings
        order = Order(
            count=self.frames_of(engine, wishes),
            max_pixels=settings.max_video_pixels,
            max_duration_s=settings.max_duration_s,
            memory=settings.video_memory,
            cpu_s=settings.video_timeout_s,
        )
        async with self._decoders.decode(video, order) as decoding:
            yield decoding

    def frames_of(self, engine: Engine, wishes: Wishes) -> int:
        """How many frames of a video are looked at, at most."""
        return wishes.frames or min(engine.bundle.manifest.aggregation.frames, self._settings.max_frames)

    async def video(self, engine: Engine, decoding: Decoding, wishes: Wishes) -> RoadEvents:
        """Analyse a video: what is known at once, each frame as it is scored, the result.

        Raises:
            ProblemError: It is damaged or over a limit, takes too long, or the network failed.
        """
        started = time.perf_counter()
        facts = decoding.facts
        yield VideoStart(
            request_id=wishes.request_id,
            frames=self.frames_of(engine, wishes),
            duration_s=facts.duration_s,
            width=facts.width,
            height=facts.height,
        )
        frames: list[ScoredFrame] = []
        shown: list[FrameResult] = []
        async with contextlib.aclosing(self._scored(engine, decoding, wishes)) as scored:
            async for frame, picture in scored:
                frames.append(frame)
                shown.append(frame_result(frame, wishes.evidence, picture))
                yield VideoFrame(frame=shown[-1])
        conclusion = self._conclude(engine, frames, "video", wishes)
        size = (frames[0].width, frames[0].height)
        timings = total_timings(frames, started)
        yield video_result(shown, size, conclusion, timings, self._around(engine, wishes))

    async def _scored(
        self, engine: Engine, decoding: Decoding, wishes: Wishes
    ) -> AsyncGenerator[tuple[ScoredFrame, str | None], None]:
        """Frames in order; a few are on their way at once, so that they share batches."""
        deadline = asyncio.get_running_loop().time() + self._settings.video_timeout_s
        window = self._settings.look_threads + 1
        pending: deque[asyncio.Task[tuple[ScoredFrame, str | None]]] = deque()
        decoded = decoding.frames()
        more = True
        try:
            while more or pending:
                while more and len(pending) < window:
                    step = await self._before(deadline, anext(decoded, None))
                    more = step is not None
                    if step is not None:
                        pending.append(asyncio.create_task(self._frame(engine, step, wishes)))
                if pending:
                    yield await self._before(deadline, pending.popleft())
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _before(self, deadline: float, work: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except TimeoutError:
            limit = self._settings.video_timeout_s
            raise ProblemError(
                "bad-video", f"The video took longer than {limit:.0f} s. Ask for fewer frames, or cut it."
            ) from None

    async def _frame(self, engine: Engine, step: Decoded, wishes: Wishes) -> tuple[ScoredFrame, str | None]:
        image = step.frame.image

        def look() -> tuple[Look, str | None]:
            return engine.analyser.look(image), thumbnail(image) if wishes.thumbnails else None

        with engine.batcher.announced():
            seen, picture = await self._in_pool(look)
        frame = await self._weigh(
            engine, seen, {"decode": step.seconds}, index=step.frame.index, time_s=step.frame.time_s
        )
        return frame, picture

    async def _weigh(
        self,
        engine: Engine,
        seen: Look,
        timings: dict[str, float],
        *,
        index: int = 0,
        time_s: float | None = None,
    ) -> ScoredFrame:
        answer = None
        if len(seen.crops):
            served = await engine.batcher.run(seen.crops)
            answer = served.answer
            timings |= {"queue": served.queue_s, "infer": served.infer_s}
        frame = engine.analyser.weigh(seen, answer, index=index, time_s=time_s, timings=timings)
        self._metrics.stages(frame.timings)
        return frame

    def _conclude(self, engine: Engine, frames: list[ScoredFrame], kind: str, wishes: Wishes) -> Conclusion:
        conclusion = engine.analyser.conclude(
            frames,
            "frame" if kind == "image" else "video",
            operating_point=wishes.operating_point,
            rule=wishes.aggregation,
        )
        self._metrics.verdicts.labels(kind, conclusion.verdict.value).inc()
        return conclusion

    async def _in_pool(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @staticmethod
    def _around(engine: Engine, wishes: Wishes) -> Circumstances:
        return Circumstances(engine.used, wishes.request_id, wishes.evidence)


def check_wishes(engine: Engine, wishes: Wishes) -> None:
    """Refuse an operating point or a rule that the bundle does not have.

    Raises:
        ProblemError: It does not.
    """
    try:
        engine.analyser.check(wishes.operating_point, wishes.aggregation)
    except InputError as error:
        raise ProblemError("invalid", str(error)) from error
