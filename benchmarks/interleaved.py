"""Races several ways to do the same thing in one process, in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Race:
    """What was measured.

    Attributes:
        wall: Seconds by contestant, one per round.
        processor: Seconds of all cores together, likewise; hardly moves when other programs run.
        others: Share of the machine's processor time that other programs took meanwhile. PyTorch's OpenMP threads wait
            for one another at the end of every operator: where one of them is kept off its core all wait, and a
            network of 130 ms takes more than a second. Runtimes that hand out work in pieces hardly notice.
    """

    wall: dict[str, Seconds]
    processor: dict[str, Seconds]
    others: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer one contestant took than another.

    Attributes:
        median: Of the rounds' ratios.
        low, high: 95 % bootstrap interval of that median over the rounds.
    """

    median: float
    low: float
    high: float


def race(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 2, seed: int = 0
) -> Race:
    """Run each contestant once per round, in a new order each round.

    Args:
        contestants: By name.
        rounds: 2 or more.
        warm_up: Rounds before, which do not count.
        seed: Of the orders.
    """
    names = list(contestants)
    wall, processor = np.zeros((2, rounds, len(names)))
    rng = np.random.default_rng(seed)
    before = _spent()
    for number in range(-warm_up, rounds):
        for place in rng.permutation(len(names)):
            used, start = time.process_time(), time.perf_counter()
            contestants[names[place]]()
            if number >= 0:
                wall[number, place] = time.perf_counter() - start
                processor[number, place] = time.process_time() - used
    everyone, own, passed = (after - earlier for earlier, after in zip(before, _spent(), strict=True))
    return Race(
        dict(zip(names, wall.T, strict=True)),
        dict(zip(names, processor.T, strict=True)),
        others=max(0.0, everyone - own) / (passed * (os.cpu_count() or 1)),
    )


def _spent() -> tuple[float, float, float]:
    """Processor seconds of all programs, processor seconds of this one, and the time."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # guests are counted as users already
    everyone = sum(times) - idle - sum(getattr(times, name, 0.0) for name in ("guest", "guest_nice"))
    return everyone, time.process_time(), time.perf_counter()


def ratio(slower: Seconds, faster: Seconds, *, seed: int = 0) -> Ratio:
    """Median of `slower / faster` over the rounds, and how sure it is."""
    ratios = slower / faster
    rng = np.random.default_rng(seed)
    drawn = ratios[rng.integers(0, len(ratios), (_RESAMPLES, len(ratios)))]
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))
