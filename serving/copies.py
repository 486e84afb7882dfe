"""How many copies of a network run side by side, and with how many threads each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.runtime import Runtime

_UNNOTICED_S = 0.001
"""A lone crop may take so much longer where that lets the processors work without waiting for each other."""
_QUICK_S = 0.01
"""Slower networks are not tried with one thread: reading their file again takes longer than the answer is worth."""
_MOST = 8
"""Most copies that are found: the server's own thread has no more work for them."""
_TRIALS = 5


@dataclass(frozen=True, slots=True)
class Copies:
    """What runs.

    Attributes:
        count: How many.
        threads: Of each.
    """

    count: int
    threads: int


def given_copies(count: int | None, threads: int | None, cores: int) -> Copies | None:
    """What was set, and what follows from it; None where nothing was."""
    if count is None and threads is None:
        return Copies(1, 1) if cores == 1 else None
    if threads is None:
        return Copies(count or 1, max(1, cores // (count or 1)))
    return Copies(count or 1, threads)


def find_copies(
    together: Runtime, open_alone: Callable[[], Runtime], image_size: int, cores: int
) -> tuple[Copies, Runtime]:
    """Choose between all threads for one crop and a crop for each thread.

    Threads that share a crop wait for each other at every layer, and the longer the busier the cores are: for a small
    network the waiting takes longer than the work that is shared.

    Args:
        together: The network with all threads.
        open_alone: Opens it with one.
        image_size: Side of a crop in pixels.
        cores: Two or more.

    Returns:
        The choice, and the runtime of the first copy.
    """
    quickest = _quickest(together, image_size)
    if quickest <= _QUICK_S:
        alone = open_alone()
        if _quickest(alone, image_size) <= quickest + _UNNOTICED_S:
            return Copies(min(cores, _MOST), 1), alone
    return Copies(1, cores), together


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
