"""Races several ways to do the same thing in one process, in turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
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
        others: Share of the machine's processor time that other programs took meanwhile. PyTorch's OpenMP threads wait
            for one another at the end of every operator: where one of them is kept off its core all wait, and a
            network of 130 ms takes more than a second. Runtimes that hand out work in pieces hardly notice.
    """

    wall: dict[str, Seconds]
    processor: dict[str, Seconds]
    others: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer one contestant took than another, or another figure with its interval.

    Attributes:
        median: Of the rounds' ratios.
        low, high: 95 % bootstrap interval of that median over the rounds.
    """

    median: float
    low: float
    high: float


def race(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 2,
    run_up: int = 0,
    seed: int = 0,
) -> Race:
    """Run each contestant once per round, in a new order each round.

    Args:
        contestants: By name.
        rounds: 2 or more.
        warm_up: Rounds before, which do not count.
        run_up: Calls in each turn before the one that counts. Without any, each contestant finds the processor's caches
            full of the others' weights, which slows the quick ones most; what is served has the caches to itself.
        seed: Of the orders.
    """
    names = list(contestants)
    wall, processor = np.zeros((2, rounds, len(names)))
    rng = np.random.default_rng(seed)
    before = _spent()
    for number in range(-warm_up, rounds):
        for place in rng.permutation(len(names)):
            for _ in range(run_up):
                contestants[names[place]]()
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
    import psutil  # races are run where everything is installed; the ratios below also where it is not

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # guests are counted as users already
    everyone = sum(times) - idle - sum(getattr(times, name, 0.0) for name in ("guest", "guest_nice"))
    return everyone, time.process_time(), time.perf_counter()


def ratio(slower: Seconds, faster: Seconds, *, seed: int = 0) -> Ratio:
    """Median of `slower / faster` over the rounds, and how sure it is."""
    ratios = slower / faster
    low, high = np.quantile(_medians(ratios, np.random.default_rng(seed)), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def ratio_across(
    slower: Seconds, slower_anchor: Seconds, faster: Seconds, faster_anchor: Seconds, *, seed: int = 0
) -> Ratio:
    """As `ratio`, of two that ran at different times, each in turns with the same anchor.

    What the machine did between the two falls on the anchor alike, so it is divided by that.
    """
    rng = np.random.default_rng(seed)
    first, second = slower / slower_anchor, faster / faster_anchor
    low, high = np.quantile(_medians(first, rng) / _medians(second, rng), (0.025, 0.975))
    return Ratio(float(np.median(first) / np.median(second)), float(low), float(high))


def quantile(rounds: Sequence[Sequence[float] | Seconds], share: float, *, seed: int = 0) -> Ratio:
    """A quantile of all samples, with the 95 % interval of drawing whole rounds again: one round's samples are alike.

    Args:
        rounds: Samples of each round.
        share: 0.5 for the median.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    parts = [np.asarray(part, np.float64) for part in rounds]
    found = [
        np.quantile(np.concatenate([parts[place] for place in drawn]), share)
        for drawn in rng.integers(0, len(parts), (_RESAMPLES // 4, len(parts)))
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return Ratio(float(np.quantile(np.concatenate(parts), share)), float(low), float(high))


def _medians(values: Seconds, rng: np.random.Generator) -> Seconds:
    drawn = values[rng.integers(0, len(values), (_RESAMPLES, len(values)))]
    medians: Seconds = np.median(drawn, axis=1)
    return medians
