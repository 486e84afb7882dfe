"""Long videos as jobs: analysed in the background one after the other, polled and cancelled by their id."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Literal

from serving.engine import Engines
from serving.logs import event
from serving.metrics import Metrics
from serving.problems import ProblemError, problem_of
from serving.road import Road, RoadEvents, Wishes
from serving.schemas import Job, Problem, VideoFrame, VideoResult, VideoStart
from serving.settings import Settings

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_KEPT_PER_WAITING = 8
"""Finished jobs kept at most, for each that may wait."""


@dataclass(slots=True, eq=False)
class _Entry:
    id: str
    owner: str | None
    wishes: Wishes
    video: IO[bytes]
    resources: AsyncExitStack
    state: State = "waiting"
    frames_done: int = 0
    frames: int = 0
    created: float = field(default_factory=time.time)
    finished: float | None = None
    result: VideoResult | None = None
    problem: Problem | None = None
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self.finished is not None


class Jobs:
    """The jobs of one server; they live in its memory and end with it.

    Args:
        settings: How many wait and how long results are kept.
        engines: The bundle in service when a job's turn comes.
        road: What does the work.
        metrics: Where to count.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        road: Road,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._road = road
        self._metrics = metrics
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._turn = asyncio.Lock()

    @property
    def unfinished(self) -> int:
        """Jobs that wait or run."""
        return sum(not entry.over for entry in self._entries.values())

    def check(self) -> None:
        """Turn a job away if too many wait, or if there are no jobs here.

        Raises:
            ProblemError: It is turned away.
        """
        if not self._settings.max_jobs:
            raise ProblemError("conflict", "This server runs no jobs. Send a shorter video.")
        if self.unfinished >= self._settings.max_jobs:
            self._metrics.shed.labels("jobs").inc()
            raise ProblemError("overloaded", f"{self.unfinished} jobs wait already.", retry_after=10)

    def add(self, video: IO[bytes], resources: AsyncExitStack, owner: str | None, wishes: Wishes) -> Job:
        """Queue a video.

        Args:
            video: Open; it stays so until the job is over.
            resources: Closed when the job is over.
            owner: Id of the key that may see it.
            wishes: Of the request.

        Raises:
            ProblemError: Too many wait.
        """
        self.check()
        self._forget()
        entry = _Entry(secrets.token_urlsafe(16), owner, wishes, video, resources, created=self._clock())
        self._entries[entry.id] = entry
        entry.task = asyncio.create_task(self._run(entry))
        return self._shown(entry)

    def get(self, job: str, owner: str | None) -> Job:
        """A job as it stands.

        Raises:
            ProblemError: There is none of that id for that key.
        """
        return self._shown(self._entry(job, owner))

    async def cancel(self, job: str, owner: str | None) -> Job:
        """Stop a job; one that is over is forgotten.

        Raises:
            ProblemError: There is none of that id for that key.
        """
        entry = self._entry(job, owner)
        if entry.over:
            del self._entries[job]
        elif entry.task is not None:
            entry.task.cancel()
            await asyncio.gather(entry.task, return_exceptions=True)
        return self._shown(entry)

    async def drain(self) -> None:
        """Let the running job finish; those that wait are cancelled."""
        for entry in self._entries.values():
            if entry.state == "waiting" and entry.task is not None:
                entry.task.cancel()
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop everything."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, entry: _Entry) -> None:
        try:
            async with self._turn:
                entry.state = "running"
                with self._engines.current.use() as engine:
                    async with self._road.open_video(engine, entry.video, entry.wishes) as decoding:
                        await self._follow(entry, self._road.video(engine, decoding, entry.wishes))
            entry.state = "done"
        except ProblemError as error:
            entry.state, entry.problem = "failed", problem_of(error, entry.wishes.request_id)
        except asyncio.CancelledError:
            entry.state = "cancelled"
        except Exception as error:  # noqa: BLE001 - the job says so, the log says why
            event("job failed", level=40, error=error, job=entry.id, request_id=entry.wishes.request_id)
            mistake = ProblemError("internal", "See the server's log.")
            entry.state, entry.problem = "failed", problem_of(mistake, entry.wishes.request_id)
        finally:
            entry.finished = self._clock()
            with contextlib.suppress(asyncio.CancelledError):
                await entry.resources.aclose()
            event("job over", job=entry.id, request_id=entry.wishes.request_id, state=entry.state)

    @staticmethod
    async def _follow(entry: _Entry, events: RoadEvents) -> None:
        async with contextlib.aclosing(events):
            async for item in events:
                if isinstance(item, VideoStart):
                    entry.frames = item.frames
                elif isinstance(item, VideoFrame):
                    entry.frames_done += 1
                else:
                    entry.result = item

    def _entry(self, job: str, owner: str | None) -> _Entry:
        self._forget()
        entry = self._entries.get(job)
        if entry is None or entry.owner != owner:
            raise ProblemError(
                "not-found", "There is no such job: it never was, is another key's, or expired."
            )
        return entry

    def _forget(self) -> None:
        """Drop results that were kept long enough, and the oldest where there are too many."""
        now = self._clock()
        over = [entry for entry in self._entries.values() if entry.finished is not None]
        surplus = len(over) - _KEPT_PER_WAITING * self._settings.max_jobs
        for place, entry in enumerate(over):
            if place < surplus or now - (entry.finished or now) > self._settings.job_keep_s:
                del self._entries[entry.id]

    def _shown(self, entry: _Entry) -> Job:
        expires = None if entry.finished is None else entry.finished + self._settings.job_keep_s
        return Job(
            id=entry.id,
            state=entry.state,
            frames_done=entry.frames_done,
            frames=entry.frames,
            created_at=_iso(entry.created),
            expires_at=None if expires is None else _iso(expires),
            result=entry.result,
            problem=entry.problem,
        )


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
