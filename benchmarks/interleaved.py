"""Races several ways to do the same thing in one process, in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Race:
    """What was measured.

    Attributes:
        wall: Seconds by contestant, one per round.
        processor: Seconds of all cores together, likewise; hardly moves when other programs run.
    """

    wall: dict[str, Seconds]
    processor: dict[str, Seconds]


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
    for number in range(-warm_up, rounds):
        for place in rng.permutation(len(names)):
            used, start = time.process_time(), time.perf_counter()
            contestants[names[place]]()
            if number >= 0:
                wall[number, place] = time.perf_counter() - start
                processor[number, place] = time.process_time() - used
    return Race(
        dict(zip(names, wall.T, strict=True)),
        dict(zip(names, processor.T, strict=True)),
    )


def ratio(slower: Seconds, faster: Seconds, *, seed: int = 0) -> Ratio:
    """Median of `slower / faster` over the rounds, and how sure it is."""
    ratios = slower / faster
    rng = np.random.default_rng(seed)
    drawn = ratios[rng.integers(0, len(ratios), (_RESAMPLES, len(ratios)))]
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))
