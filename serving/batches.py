"""Which batch sizes a network is run with, and how crops are made to fit them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.runtime import Crops

MOST_TRIED = 16
"""Largest size that is tried where none is set."""
_MOST_PADDING = 0.25
"""A batch is filled up to the next size where at most this share of it would be filling."""
_WORTH = 0.97
"""Larger sizes are kept where a crop takes at most this share of its time alone."""
_BOUND_S = 0.05
"""A network that takes longer than this for one crop is bound by its arithmetic, not by calls: larger batches would
cost memory and win nothing (measured: mobilevitv2_200 at 256 px on two cores, 0.18 s of processor time per crop from 1
to 8 at once, 100 MiB more for each)."""
_LONGEST_S = 0.15
"""No batch is tried that would take longer: everybody else waits for it."""
_CALL_S = 0.0004
"""What each run costs beside the network's own time: a thread is woken, then the event loop."""
_TRIALS = 3
_BEYOND_DOUBT = 2


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Powers of two up to `most`, and that itself."""
    sizes = [1]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return tuple(dict.fromkeys([*sizes, most]))


def wall_and_processor() -> float:
    """Seconds of both clocks together.

    Alone on a machine, small runs wait most of their time for threads to wake, which processor time does not show; on
    a busy machine the wall's clock shows the neighbours, and processor time does not.
    """
    return time.perf_counter() + time.process_time()


def paying_buckets(
    run: Callable[[int], object], candidates: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> tuple[int, ...]:
    """The sizes up to the one in which a crop is cheapest; the smallest alone where that wins nothing.

    Args:
        run: Runs the network on so many crops.
        candidates: Ascending.
        clock: Seconds; `wall_and_processor` where the network runs on processors.
    """
    smallest = candidates[0]
    per_crop = {smallest: (_seconds(run, smallest, clock) + _CALL_S) / smallest}
    for size in candidates[1:]:
        if per_crop[smallest] > _BOUND_S or size * min(per_crop.values()) > _LONGEST_S:
            break
        per_crop[size] = (_seconds(run, size, clock) + _CALL_S) / size
    # the cheapest of all and not the first that does not pay: one bad moment of the machine would decide
    best = min(per_crop, key=per_crop.__getitem__)
    if per_crop[best] > _WORTH * per_crop[smallest]:
        best = smallest
    return tuple(size for size in per_crop if size <= best)


def _seconds(run: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    """Best of a few runs after one that warms up; of one where that is far beyond doubt, so that starting is quick."""
    run(size)
    best = float("inf")
    for _ in range(_TRIALS):
        started = clock()
        run(size)
        best = min(best, clock() - started)
        if best > _BEYOND_DOUBT * size * _BOUND_S:
            break
    return best


def batch_size(waiting: int, buckets: Sequence[int]) -> int:
    """How many of `waiting` crops to run now: all that fit, unless too much of the batch would be filling."""
    above = next((bucket for bucket in buckets if bucket >= waiting), buckets[-1])
    if waiting >= above or (above - waiting) / above <= _MOST_PADDING:
        return min(waiting, above)
    return max(bucket for bucket in buckets if bucket <= waiting)


def pad(crops: Crops, buckets: Sequence[int]) -> Crops:
    """Fill a batch with black crops up to the next size."""
    target = next(bucket for bucket in buckets if bucket >= len(crops))
    if target == len(crops):
        return crops
    return np.concatenate([crops, np.zeros((target - len(crops), *crops.shape[1:]), np.uint8)])
