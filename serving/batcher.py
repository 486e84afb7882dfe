"""One bounded queue in front of the network: crops of different requests run together, one after or beside another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.runtime import Answer, Crops, GivesBack, Runtime
from serving.batches import SizeSearch, batch_size, pad, timed
from serving.lanes import LOAD_TIMEOUT_S, Lane, Lanes
from serving.logs import event
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.runtime_thread import NeverRunError

_TRIED_AT_START_S = 0.3
"""So long sizes are tried before a server is ready; those of slow networks are tried when nobody waits."""
_TRIED_AT_LEAST_EVERY_S = 5.0
"""Where somebody always waits, a size is tried all the same so often."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How crops are put together.

    Attributes:
        buckets: Batch sizes the network is run with, ascending; other sizes would make a runtime plan and
            allocate anew.
        find_out: Try the sizes and keep those that make a crop cheaper.
        on_processors: The network runs on processors, whose time counts when sizes are compared.
        most_bytes: Memory that larger sizes may take beyond a single crop's.
        max_wait_s: How long a crop waits for others that were announced.
        capacity: Most crops waiting.
        infer_timeout_s: After this a runtime counts as hung.
        queue_timeout_s: Longest wait of a crop.
        replicas: Runtimes side by side.
        at_once: Batches that each of them runs at the same time.
    """

    buckets: tuple[int, ...]
    find_out: bool = False
    on_processors: bool = False
    most_bytes: float = math.inf
    max_wait_s: float = 0.004
    capacity: int = 1024
    infer_timeout_s: float = 30.0
    queue_timeout_s: float = 20.0
    replicas: int = 1
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class Served:
    """An answer and how long it took: seconds of waiting and of the network's run."""

    answer: Answer
    queue_s: float
    infer_s: float


@dataclass(slots=True, eq=False)
class _Item:
    crops: Crops
    future: asyncio.Future[Served]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Runs crops through runtimes, several requests' at a time.

    Args:
        open_runtime: Loads a runtime; called in the thread that will use it, again when one is replaced.
        image_size: Side of the crops in pixels.
        policy: See there.
        metrics: Where to count.
    """

    def __init__(
        self, open_runtime: Callable[[], Runtime], image_size: int, policy: BatchPolicy, metrics: Metrics
    ) -> None:
        self.lanes = Lanes(open_runtime, image_size, policy.at_once, self._opened)
        self._size = image_size
        self._policy = policy
        self._search = SizeSearch(policy.buckets, policy.most_bytes) if policy.find_out else None
        self._tried = 0.0
        self._buckets = policy.buckets if self._search is None else self._search.sizes
        self._metrics = metrics
        self._waiting: deque[_Item] = deque()
        self._changed = asyncio.Event()
        self._coming = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.last_success = -float("inf")
        """`time.monotonic()` of the last inference that succeeded."""

    @property
    def alive(self) -> bool:
        """Whether a runtime is there to answer."""
        return bool(self.lanes)

    async def start(self) -> None:
        """Load every runtime and warm it up with every batch size, or with those that can be tried quickly.

        Raises:
            InputError: It cannot be loaded.
        """
        try:
            for number in range(self._policy.replicas):
                if self._search is not None and not number:
                    await self._try_quick_sizes(await self.lanes.open(number, ()), self._search)
                else:
                    await self.lanes.open(number, self._buckets)
        except BaseException:
            await self.close()
            raise
        self._spawn(self._dispatch())

    async def close(self) -> None:
        """Stop; what still waits is refused."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.lanes.close()
        while self._waiting:
            _fail(self._waiting.popleft(), _unavailable())

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """While this is open a crop is on its way: a batch that is not full waits a moment for it."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def run(self, crops: Crops) -> Served:
        """Answer for any number of crops, uint8 [N, S, S, 3], N >= 1. Cancelling takes them out of the queue.

        Raises:
            ProblemError: The queue is full, the runtime is being replaced or has failed on them, they waited
                too long, or a logit is not finite.
        """
        if not self.alive:
            self._metrics.shed.labels("runtime").inc()
            raise _unavailable()
        if sum(len(item.crops) for item in self._waiting) + len(crops) > self._policy.capacity:
            self._metrics.shed.labels("queue").inc()
            raise ProblemError("overloaded", "Too many faces wait for the network already.", retry_after=1)
        step = self._buckets[-1]
        parts = [self._put(crops[start : start + step]) for start in range(0, len(crops), step)]
        try:
            async with asyncio.timeout(self._policy.queue_timeout_s + self._policy.infer_timeout_s):
                served = [await part.future for part in parts]
        except TimeoutError:
            self._metrics.shed.labels("queue-timeout").inc()
            raise ProblemError(
                "overloaded", "The network was busy for too long; the request was given up.", retry_after=5
            ) from None
        finally:
            for part in parts:
                # what nobody waits for any more leaves the queue; an error nobody asked for is not one
                if not part.future.cancel() and not part.future.cancelled():
                    part.future.exception()
        return _joined(served)

    async def probe(self) -> bool:
        """Run one black crop through the queue; whether it succeeded."""
        try:
            await self.run(np.zeros((1, self._size, self._size, 3), np.uint8))
        except ProblemError as error:
            event("probe failed", level=logging.WARNING, reason=error.detail)
            return False
        return True

    def _put(self, crops: Crops) -> _Item:
        item = _Item(crops, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._changed.set()
        return item

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _dispatch(self) -> None:
        """Give batches to the lanes whenever crops have come or a lane is free."""
        while True:
            self._changed.clear()
            pause = self._give_out()
            if pause is None:
                await self._changed.wait()
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    def _give_out(self) -> float | None:
        """Start all that can be started now; return how long to wait for crops that were announced, if for any."""
        while self.lanes:
            lane = self.lanes.least_busy()
            waiting, full = self._prune(), self._buckets[-1]
            if self._search is not None and not lane.batches and self._may_try(lane, waiting):
                self._start(lane, self._try_between(lane, self._search))
                continue
            # behind a batch that runs stands only a full one, since others may still grow, and none before a trial
            if not waiting or (lane.batches and (waiting < full or lane.batches > 1 or self._search)):
                break
            left = self._waiting[0].since + self._policy.max_wait_s - time.perf_counter()
            if waiting < full and self._coming and left > 0:
                return left
            batch = self._take(batch_size(waiting, self._buckets))
            self._start(lane, self._run(lane, batch), batch)
        return None

    def _start(self, lane: Lane, work: Coroutine[None, None, None], batch: Sequence[_Item] = ()) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            lane.batches -= 1
            self._changed.set()
            error = None if task.cancelled() else task.exception()
            if error is not None:
                event("a batch failed", level=logging.ERROR, error=error)
            if error is not None or task.cancelled():
                for item in batch:
                    _fail(item, _unavailable())

        lane.batches += 1
        self._spawn(work).add_done_callback(ended)

    def _prune(self) -> int:
        """Forget crops whose request is gone; return how many wait."""
        if any(item.future.done() for item in self._waiting):
            self._waiting = deque(item for item in self._waiting if not item.future.done())
        count = sum(len(item.crops) for item in self._waiting)
        self._metrics.waiting.set(count)
        return count

    def _take(self, size: int) -> list[_Item]:
        taken: list[_Item] = []
        while self._waiting and (not taken or size >= len(self._waiting[0].crops)):
            item = self._waiting.popleft()
            size -= len(item.crops)
            taken.append(item)
        return taken

    async def _run(self, lane: Lane, batch: list[_Item]) -> None:
        """Run a batch and hand out its answers; replace the lane's runtime where it fails."""
        crops = np.concatenate([item.crops for item in batch]) if len(batch) > 1 else batch[0].crops
        padded = pad(crops, self._buckets)

        def work() -> tuple[float, Answer]:
            return time.perf_counter(), lane.runtime.run(padded)

        try:
            # a batch behind another has the time of both
            started, answer = await lane.thread.call(work, self._policy.infer_timeout_s * lane.batches)
        except NeverRunError:
            self._waiting.extendleft(reversed(batch))
        except Exception as error:  # noqa: BLE001 - whatever a runtime throws, it is not trusted again
            self._lose(lane, error, len(crops))
            for item in batch:
                _fail(item, _unavailable())
        else:
            self.last_success = time.monotonic()
            self._metrics.batch_size.observe(len(crops))
            _hand_out(batch, answer, started, time.perf_counter())

    def _lose(self, lane: Lane, error: Exception, crops: int) -> None:
        reason = self.lanes.lose(lane, error, crops, self._buckets[:1])
        if reason is not None:
            self._metrics.replaced.labels(reason).inc()

    def _opened(self) -> None:
        self.last_success = time.monotonic()
        self._changed.set()

    async def _try_quick_sizes(self, lane: Lane, search: SizeSearch) -> None:
        end = time.perf_counter() + _TRIED_AT_START_S
        while search.next is not None and time.perf_counter() + search.expected_s < end:
            await self._try(search.next, lane, search, LOAD_TIMEOUT_S)

    def _may_try(self, lane: Lane, waiting: int) -> bool:
        """Whether to try a batch size now instead of running what waits."""
        if lane.copy:
            return False
        return not (waiting or self._coming) or time.perf_counter() - self._tried > _TRIED_AT_LEAST_EVERY_S

    async def _try_between(self, lane: Lane, search: SizeSearch) -> None:
        """Try a size between two batches. Where that fails the runtime is replaced, and no more is tried."""
        assert search.next is not None  # noqa: S101 - the caller has asked
        try:
            await self._try(search.next, lane, search, self._policy.infer_timeout_s)
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self._search = None
            self._lose(lane, error, search.next)

    async def _try(self, size: int, lane: Lane, search: SizeSearch, timeout: float) -> None:
        crops = np.zeros((size, self._size, self._size, 3), np.uint8)
        work = partial(timed, lambda: lane.runtime.run(crops), on_processors=self._policy.on_processors)
        search.tell(await lane.thread.call(work, timeout))
        self._tried = time.perf_counter()
        self.last_success = time.monotonic()
        self._buckets = search.sizes
        if search.next is None:
            self._search = None
            event("batch sizes found", sizes=self._buckets)
            if search.tried_in_vain and isinstance(lane.runtime, GivesBack):
                await lane.thread.call(lane.runtime.give_back, timeout)


def _hand_out(batch: Sequence[_Item], answer: Answer, started: float, ended: float) -> None:
    place = 0
    for item in batch:
        part = slice(place, place + len(item.crops))
        place = part.stop
        maps = None if answer.evidence is None else answer.evidence[part]
        if not np.isfinite(answer.logits[part]).all():
            _fail(item, ProblemError("network-failed", "The network's answer to a face is not a number."))
        elif not item.future.done():
            own = Answer(answer.logits[part], maps)
            item.future.set_result(Served(own, started - item.since, ended - started))


def _joined(served: Sequence[Served]) -> Served:
    if len(served) == 1:
        return served[0]
    maps = [part.answer.evidence for part in served if part.answer.evidence is not None]
    answer = Answer(
        np.concatenate([part.answer.logits for part in served]), np.concatenate(maps) if maps else None
    )
    return Served(answer, served[0].queue_s, sum(part.infer_s for part in served))


def _fail(item: _Item, error: ProblemError) -> None:
    if not item.future.done():
        item.future.set_exception(error)


def _unavailable() -> ProblemError:
    return ProblemError(
        "runtime-failed", "The runtime has failed and is being replaced; try again.", retry_after=1
    )
