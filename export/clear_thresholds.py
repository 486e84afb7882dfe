"""Puts a threshold clear of the faces it was fitted on, so that they are not decided by the rounding of a runtime."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from export.agreement import logit
from pipeline.metrics import FPR_LIMITS, Resampling, measure
from pipeline.metrics_report import Estimate
from pipeline.samples import Samples
from pipeline.scoring import Interval, OperatingPoint

Floats = NDArray[np.float64]

CLEAR: Final = 0.05
"""Logits of the calibrated scores, at least, from a threshold to the nearest face: 0.0125 of p_fake at a half, a little
more than the 0.01 within which the gate lets float16 change a decision."""


def cleared(samples: Samples, point: OperatingPoint, how: Resampling | None = None) -> OperatingPoint:
    """Move a threshold that lies within `CLEAR` of a face into the middle of its gap, or of a wider one beside it.

    An equal-error threshold is found between two faces of the very set that the gate counts on, and these may lie a
    millionth apart: then any rounding whatsoever moves one across. Where no place between them is clear, the widest is
    taken of their gap and the two beside it, which one face more or less on the other side reaches. That face is within
    what the set can tell of the rates anyway, and a bound on the false-alarm rate stays kept.

    Args:
        samples: Both classes, calibrated scores in [0, 1], of the point's level.
        point: Measured on them.
        how: The bootstrap, for intervals of the rates where they change.

    Returns:
        The point as it was where it is clear; else with its new threshold, and with rates measured there.
    """
    edges = np.concatenate(([-np.inf], np.unique(samples.scores), [np.inf]))
    place = int(np.searchsorted(edges, point.threshold)) - 1  # edges[place] < threshold <= edges[place + 1]
    around = logit(np.array([edges[place], point.threshold, edges[place + 1]]))
    if np.diff(around).min() >= CLEAR or (place == edges.size - 2 and edges[place] >= 1):
        return point
    chosen = place
    if _width(edges, place) < 2 * CLEAR:
        beside = _neighbours(samples, edges, place, FPR_LIMITS.get(point.name, 1.0))
        chosen = max([place, *beside], key=partial(_width, edges))
    moved = point.model_copy(update={"threshold": _middle(edges, chosen)})
    return moved if chosen == place else _measured(samples, moved, how)


def _neighbours(samples: Samples, edges: Floats, place: int, fpr_limit: float) -> list[int]:
    """Gaps beside one that a single face separates from it and that keep the limit; none that decides all alike."""
    reals = samples.scores[samples.labels == 0]
    kept = []
    for gap, crossed in ((place - 1, edges[place]), (place + 1, edges[place + 1])):
        if not 1 <= gap <= edges.size - 3 or np.count_nonzero(samples.scores == crossed) > 1:
            continue
        if (reals >= edges[gap + 1]).mean() <= fpr_limit:
            kept.append(gap)
    return kept


def _width(edges: Floats, gap: int) -> float:
    """Of a gap, in logits."""
    return float(np.diff(_in_logits(edges, gap))[0])


def _in_logits(edges: Floats, gap: int) -> Floats:
    """Both ends of a gap; before the first face and after the last it is as wide as can be."""
    ends = edges[gap : gap + 2]
    return np.where(np.isfinite(ends), logit(np.clip(ends, 0, 1)), ends)


def _middle(edges: Floats, gap: int) -> float:
    """Halfway between the logits of both ends; beyond the last face halfway to 0 or 1."""
    low, high = edges[gap : gap + 2]
    if not np.isfinite(low):
        return float(high / 2)
    if not np.isfinite(high):
        return float((low + 1) / 2)
    middle = float(expit(_in_logits(edges, gap).mean()))
    return middle if low < middle <= high else float(high)  # beyond 1e-15 of 1 logits tell nothing apart


def _measured(samples: Samples, point: OperatingPoint, how: Resampling | None) -> OperatingPoint:
    """The point with the rates that its threshold has on the samples."""
    found = measure(samples, threshold=point.threshold, how=how).at_threshold
    assert found is not None  # noqa: S101 - a threshold was given
    return point.model_copy(
        update={
            "fpr": found.fpr.value,
            "tpr": found.tpr.value,
            "fpr_interval": _interval(found.fpr),
            "tpr_interval": _interval(found.tpr),
        }
    )


def _interval(estimate: Estimate) -> Interval | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
