"""Runs one task per item in worker processes, and goes on when an item kills the process that works on it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def run_all(
    task: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[tuple[_Item, _Result | None]]:
    """Run a task for every item and give each result as it is done.

    A decoder can crash on a damaged video and take its process along. The items that were under way then are
    run again in a single process, where the one at fault shows itself; only that one is lost.

    Args:
        task: A module-level function; it and the items must be picklable. Exceptions it raises are passed on.
        items: What to run it for.
        workers: Number of processes; with 1, still a process apart from this one.

    Yields:
        The item and its result, None where the item killed its process; in order of completion.
    """
    remaining = list(enumerate(items))
    careful = False
    while remaining:
        # Items start in order, so those under way at a crash are the first ones not done.
        batch = remaining[: workers + 1] if careful else remaining
        processes = 1 if careful else workers
        done: set[int] = set()
        for place, result in _run_until_broken(task, batch, processes):
            done.add(place)
            yield items[place], result
        broke = len(done) < len(batch)
        remaining = [entry for entry in remaining if entry[0] not in done]
        if broke and processes == 1:
            yield remaining.pop(0)[1], None
        careful = broke and processes > 1


def _run_until_broken(
    task: Callable[[_Item], _Result], entries: list[tuple[int, _Item]], workers: int
) -> Iterator[tuple[int, _Result]]:
    """Results by place; stops early, without an exception, when a process dies."""
    spawn = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_set_up_worker)
    try:
        futures: dict[Future[_Result], int] = {}
        with _ctrl_c_held_back():  # submitting starts the processes
            for place, item in entries:
                futures[executor.submit(task, item)] = place
        for future in as_completed(futures):
            try:
                result = future.result()
            except BrokenProcessPool:
                continue
            yield futures.pop(future), result
    except BrokenProcessPool:
        # A process died while items were still being handed in.
        return
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Keep Ctrl-C for later; processes started meanwhile never hear of it, not even while they import.

    The mask of blocked signals is handed down to a child; here what came meanwhile is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up_worker() -> None:
    """One process per core already: no threads below it."""
    cv2.setNumThreads(1)
