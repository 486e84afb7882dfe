"""Which batch sizes a network is run with, and how crops are made to fit them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.runtime import Crops
from serving.memory import resident_bytes

MOST_TRIED, MOST_TRIED_EACH = 16, 4
"""Largest size that is tried where none is set: of one copy of the network, and of each of several.

A copy with one thread saves only calls, and four crops save three of four; more leave the others without work.
"""
_MOST_PADDING = 0.25
"""A batch is filled up to the next size where at most this share of it would be filling."""
_WORTH = 0.98
"""A size is large enough where the cheapest crop of all costs at least this share of its own. Larger batches that win
next to nothing take memory, and their crops wait for each other."""
LONGEST_S = 0.6
"""No size is tried that would take longer. Who comes while a batch runs would have stood behind its crops anyway and
gains; but the crops of one batch wait for each other, and an answer should not take much more than half a second
longer for it."""
CALL_S = 0.0004
"""What each run takes, by each clock, beside the network's own time: a thread is woken, then the event loop."""
_TRIALS = 3
_LONG_S, _LONG_TRIALS = 0.05, 2
"""Of runs of at least this length two are enough: a bad moment of the machine is a small part of them."""


def buckets_up_to(most: int) -> tuple[int, ...]:
    """Powers of two up to `most`, and that itself."""
    sizes = [1]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return tuple(dict.fromkeys([*sizes, most]))


@dataclass(frozen=True, slots=True)
class Took:
    """What a run took.

    Attributes:
        seconds: On the wall's clock.
        cost: By which sizes are compared: on processors both clocks together. Alone on a machine, small runs wait most
            of their time for threads to wake, which processor time does not show; on a busy machine the wall's clock
            shows the neighbours, and processor time does not.
        grown: Bytes by which the process grew meanwhile.
    """

    seconds: float
    cost: float
    grown: int = 0


def timed(work: Callable[[], object], *, on_processors: bool) -> Took:
    """Run something and say what it took."""
    before, wall, processor = resident_bytes(), time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - wall
    cost = seconds + CALL_S + (time.process_time() - processor + CALL_S if on_processors else 0.0)
    return Took(seconds, cost, max(0, resident_bytes() - before))


class SizeSearch:
    """Finds the batch sizes that pay, one run at a time, so that whoever has the runtime decides when.

    Args:
        candidates: Sizes, ascending; the smallest is always used.
        most_bytes: None is tried that would take more memory than this beyond the smallest. A runtime keeps what its
            largest batch took: 66 MiB a crop of mobilevitv2_200 at 256 px.
    """

    def __init__(self, candidates: Sequence[int], most_bytes: float = math.inf) -> None:
        self._candidates = candidates
        self._most_bytes = most_bytes
        self._bytes_per_crop = 0.0
        self._per_crop: dict[int, float] = {}
        self._fastest = 0.0
        self._runs: list[Took] = []

    @property
    def next(self) -> int | None:
        """The size to run next; None when all that may be worth it were tried."""
        place = len(self._per_crop)
        if place == len(self._candidates) or self.expected_s > LONGEST_S:
            return None
        size = self._candidates[place]
        if (size - self._candidates[0]) * self._bytes_per_crop > self._most_bytes:
            return None
        return size

    @property
    def expected_s(self) -> float:
        """How long the next run may take; 0 while nothing is known."""
        place = min(len(self._per_crop), len(self._candidates) - 1)
        return self._candidates[place] * self._fastest

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of those tried, the ones up to the first in which a crop is about as cheap as in any."""
        costs = self._per_crop
        if not costs:
            return (self._candidates[0],)
        # by the cheapest of all and not until the first that does not pay: one bad moment of the machine would decide
        enough = min(costs.values()) / _WORTH
        best = next(size for size, cost in costs.items() if cost <= enough)
        return tuple(size for size in costs if size <= best)

    @property
    def tried_in_vain(self) -> bool:
        """Whether runs of larger sizes than are used took memory that nothing needs any more."""
        return len(self._per_crop) > len(self.sizes)

    def tell(self, took: Took) -> None:
        """What a run of the `next` size took. The first run of a size warms up and does not count."""
        place = len(self._per_crop)
        size = self._candidates[place]
        if not self._runs:
            # by any size: what a smaller one takes may have been taken before
            more = size - (self._candidates[place - 1] if place else 0)
            self._bytes_per_crop = max(self._bytes_per_crop, took.grown / more)
        self._runs.append(took)
        counting = self._runs[1:]
        if len(counting) < (_LONG_TRIALS if took.seconds >= _LONG_S else _TRIALS):
            return
        self._per_crop[size] = min(run.cost for run in counting) / size
        seconds = min(run.seconds for run in counting) / size
        self._fastest = min(self._fastest or seconds, seconds)
        self._runs.clear()


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
