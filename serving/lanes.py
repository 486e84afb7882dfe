"""The threads that run the network: which there are, what each has to do, and new ones where a runtime failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.errors import InputError
from pipeline.runtime import Answer, RunsBeside, Runtime
from serving.logs import event
from serving.runtime_thread import RuntimeThread

LOAD_TIMEOUT_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_END_S = 2.0
"""So long a run that is under way is waited for: a process that ends meanwhile crashes when the run comes back. One
that hangs does not come back."""


@dataclass(slots=True, eq=False)
class Lane:
    """A thread that runs a copy of the network, and its batches.

    Attributes:
        copy: Number of the copy.
        thread: The thread.
        runtime: What it calls; of the copy's other lanes, the same network beside it.
        batches: How many it has: one that runs, and one behind it, which need not wait for the loop.
    """

    copy: int
    thread: RuntimeThread
    runtime: Runtime
    batches: int = 0


class Lanes:
    """Opens copies of a network. The lanes of one copy share its memory, and are lost together.

    Args:
        open_runtime: Loads a runtime; called in the thread that will use it, again when one is replaced.
        image_size: Side of the crops in pixels.
        at_once: Lanes of each copy; where there are several, its runtime is a `RunsBeside`.
        opened: Called when a copy has answered for the first time.
    """

    def __init__(
        self, open_runtime: Callable[[], Runtime], image_size: int, at_once: int, opened: Callable[[], None]
    ) -> None:
        self._open = open_runtime
        self._size = image_size
        self._at_once = at_once
        self._opened = opened
        self._lanes: list[Lane] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def least_busy(self) -> Lane:
        """Of those with the fewest batches the first: a lone crop gets the lane whose run takes all threads."""
        return min(self._lanes, key=lambda lane: lane.batches)

    async def open(self, copy: int, sizes: Sequence[int]) -> Lane:
        """Load a copy and run batches of these sizes in each of its lanes, in all at once; return its first lane.

        Raises:
            InputError: It cannot be loaded.
        """
        threads = [RuntimeThread(f"runtime-{copy}-{place}") for place in range(self._at_once)]
        try:
            runtime = await threads[0].call(self._open, LOAD_TIMEOUT_S)
            lanes = [Lane(copy, threads[0], runtime)]
            lanes += [Lane(copy, thread, _beside(runtime)) for thread in threads[1:]]
            for size in sizes:
                runs = (lane.thread.call(partial(self._black, lane, size), LOAD_TIMEOUT_S) for lane in lanes)
                await asyncio.gather(*runs)
        except BaseException:
            for thread in threads:
                thread.abandon()
            raise
        self._lanes += lanes
        self._opened()
        return lanes[0]

    def lose(self, lane: Lane, error: Exception, size: int, sizes: Sequence[int]) -> str | None:
        """Do without a lane's copy from now on, and open another; what stands behind the batch that failed is not run.

        Args:
            lane: Where a batch failed.
            error: How.
            size: Its crops.
            sizes: Batches that the next one is to run first.

        Returns:
            "hung" or "threw"; None where the copy was lost already.
        """
        if lane not in self._lanes:
            return None
        reason = "hung" if isinstance(error, TimeoutError) else "threw"
        event(f"runtime {reason}", level=logging.ERROR, error=error, crops=size)
        for other in [each for each in self._lanes if each.copy == lane.copy]:
            self._lanes.remove(other)
            other.thread.abandon()
        task = asyncio.create_task(self._replace(lane.copy, sizes))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return reason

    async def close(self) -> None:
        """Stop; what runs is waited for, unless it hangs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes:
            lane.thread.abandon()
        await asyncio.gather(*(lane.thread.ended(_END_S) for lane in self._lanes))
        self._lanes.clear()

    async def _replace(self, copy: int, sizes: Sequence[int]) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self.open(copy, sizes)
            except Exception as error:  # noqa: BLE001 - it is tried again, ever more slowly
                event("runtime cannot be replaced yet", level=logging.ERROR, error=error, pause_s=pause)
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _black(self, lane: Lane, size: int) -> Answer:
        return lane.runtime.run(np.zeros((size, self._size, self._size, 3), np.uint8))


def _beside(runtime: Runtime) -> Runtime:
    if not isinstance(runtime, RunsBeside):
        raise InputError(f"{runtime.label} runs one batch at a time; expected a runtime that runs several.")
    return runtime.beside()
