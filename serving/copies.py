"""How many copies of a network run side by side, with how many threads and how many crops at once each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.runtime import RunsBeside, Runtime
from serving.memory import give_back, resident_bytes

_UNNOTICED_S = 0.001
"""A lone crop may take so much longer where that lets the processors work without waiting for each other."""
_QUICK_S = 0.01
"""Slower networks are not tried with one thread: reading their file again takes longer than the answer is worth."""
_MOST = 8
"""Most that is found to run at once: the server's own thread has no more work."""
_TRIALS = 5


@dataclass(frozen=True, slots=True)
class Copies:
    """What runs.

    Attributes:
        count: How many.
        threads: Of each.
        at_once: Runs that each has under way at the same time. One alone has all threads; several have one each, share
            the copy's weights, and wait for no other thread.
    """

    count: int
    threads: int
    at_once: int = 1


def given_copies(count: int | None, threads: int | None, cores: int) -> Copies | None:
    """What was set, and what follows from it; None where nothing was."""
    if count is None and threads is None:
        return Copies(1, 1) if cores == 1 else None
    if threads is None:
        return Copies(count or 1, max(1, cores // (count or 1)))
    return Copies(count or 1, threads)


def find_copies(
    together: Runtime, open_alone: Callable[[], Runtime], image_size: int, cores: int, most_bytes: int
) -> tuple[Copies, Runtime]:
    """Choose between a copy for each thread, and one whose threads share a crop or have one each.

    Threads that share a crop wait for each other at every layer, and the longer the busier the cores are: for a small
    network the waiting takes longer than the work that is shared.

    Args:
        together: The network with all threads, not run yet.
        open_alone: Opens it with one.
        image_size: Side of a crop in pixels.
        cores: Two or more.
        most_bytes: Memory that runs beside a first one may take.

    Returns:
        The choice, and the runtime of the first copy.
    """
    # what loading left over would hide what a run takes
    give_back()
    before = resident_bytes()
    quickest = _quickest(together, image_size)
    taken = max(1, resident_bytes() - before)
    if quickest <= _QUICK_S:
        alone = open_alone()
        if _quickest(alone, image_size) <= quickest + _UNNOTICED_S:
            return Copies(min(cores, _MOST), 1), alone
    at_once = min(cores, _MOST, 1 + most_bytes // taken) if isinstance(together, RunsBeside) else 1
    return Copies(1, cores, at_once), together


def _quickest(runtime: Runtime, image_size: int) -> float:
    """Seconds of one crop, the best of a few; of one where that is far from quick."""
    crop = np.zeros((1, image_size, image_size, 3), np.uint8)
    runtime.run(crop)
    best = float("inf")
    for _ in range(_TRIALS):
        started = time.perf_counter()
        runtime.run(crop)
        best = min(best, time.perf_counter() - started)
        if best > 2 * _QUICK_S:
            break
    return best
