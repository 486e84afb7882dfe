"""How sure a measured number is: resampling whole videos, because frames of one video are not independent.

Real and fake videos are drawn separately, as many of each as there are, so that every resample has both
classes. A resample is a row of weights: how often each sample's video was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.measures import RankedScores

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

FEWEST_VIDEOS = 2
"""With a single video of a class every resample repeats it and its spread is not seen at all."""

_CELLS_AT_ONCE = 250_000  # weights of one batch of resamples fit a core's cache


def too_few_videos(labels: Labels, videos: Labels) -> bool:
    """Whether a class that is present has so few videos that no interval can be given."""
    return any(
        np.unique(videos[labels == label]).size < FEWEST_VIDEOS for label in (0, 1) if (labels == label).any()
    )


def video_weights(labels: Labels, videos: Labels, resamples: int, seed: int) -> Iterator[Floats]:
    """Draw `resamples` times with replacement among the videos of each class.

    Args:
        labels: int64 [n], one label per video.
        videos: int64 [n], the video of each sample, as a number.
        resamples: how many draws in all.
        seed: the draws are a function of the other arguments and this.

    Yields:
        float64 [B, n], B summing to `resamples`: how often each sample's video was drawn.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(videos, return_inverse=True)
    label_of = np.zeros(names.size, dtype=np.int64)
    label_of[member] = labels
    batch = max(1, _CELLS_AT_ONCE // labels.size)
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = np.zeros((rows, names.size))
        for label in (0, 1):
            pool = np.flatnonzero(label_of == label)
            if pool.size:
                drawn[:, pool] = rng.multinomial(pool.size, np.full(pool.size, 1 / pool.size), size=rows)
        yield drawn[:, member]


def percentile_interval(values: Floats, confidence: float) -> tuple[float, float]:
    """Middle `confidence` share (0.95: from 2.5 to 97.5 %) of the resampled values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def exact_interval_at_bound(rate: float, videos: int, confidence: float) -> tuple[float, float]:
    """Exact binomial interval (Clopper and Pearson 1934) of a rate that was measured as 0 or 1.

    Resampling cannot see beyond what never happened: no false alarm in 10 videos is compatible with a rate of
    up to 31 %, not with 0 to 0.

    Args:
        rate: 0.0 or 1.0.
        videos: independent trials behind it, >= 1.
        confidence: share of the two-sided interval, in (0, 1).
    """
    reach = ((1 - confidence) / 2) ** (1 / videos)
    return (0.0, 1 - reach) if rate == 0 else (reach, 1.0)


def roc_band(
    scores: Floats,
    labels: Labels,
    videos: Labels,
    grid: Floats,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Floats, Floats] | None:
    """Pointwise interval of TPR at each FPR in `grid` (float64 [G], rising, in [0, 1]).

    Returns:
        (low, high), float64 [G] each; None when a class has fewer than two videos.
    """
    if too_few_videos(labels, videos):
        return None
    ranked = RankedScores(scores, labels)
    heights: list[Floats] = []
    for weights in video_weights(labels, videos, resamples, seed):
        curves = ranked.curves(weights)
        heights.extend(np.interp(grid, fpr, tpr) for fpr, tpr in zip(curves.fpr, curves.tpr, strict=True))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.array(heights), (tail, 1 - tail), axis=0)
    return low, high
