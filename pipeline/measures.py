"""Single numbers from scores and labels (AUC, EER, calibration), each also under many reweightings at once.

A bootstrap resample of whole videos is nothing but a weight per sample: how often its video was drawn. Scores
are sorted once; every resample then costs one cumulative sum, so that a thousand take a second, not minutes.

Labels are 0 (real) and 1 (fake); a sample is called fake when its score >= threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.errors import InputError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

SMALLEST_PROBABILITY = 1e-15
"""Log loss clips probabilities to [1e-15, 1 - 1e-15]: a sure mistake costs 34.5 nats and not infinity."""


def check_samples(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Labels]:
    """Return scores as float64 [n] and labels as int64 [n].

    Raises:
        InputError: no sample, unequal lengths, a score that is not finite (it is never replaced), a label
            other than 0 and 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise InputError(f"scores {values.shape} and labels {truth.shape} must be two lists of equal length.")
    if values.size == 0:
        raise InputError("there is no sample to measure; give at least one score with its label.")
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise InputError(
            f"{bad} of {values.size} scores are NaN or infinite. They are not replaced by a guess: "
            "find the inputs they came from, or check the network's weights and precision."
        )
    if not np.isin(truth, (0, 1)).all():
        raise InputError(
            f"labels hold {sorted(set(truth.tolist()))[:5]}; expected 0 (real) and 1 (fake) only."
        )
    return values, truth.astype(np.int64)


def check_probabilities(scores: Floats) -> Floats:
    """Return `scores` if all are within [0, 1].

    Raises:
        InputError: at least one is not, so that calibration has no meaning.
    """
    if scores.min() < 0 or scores.max() > 1:
        raise InputError(
            f"scores run from {scores.min():.4g} to {scores.max():.4g}; expected probabilities in [0, 1] "
            "(apply pipeline.scoring.p_fake to logits first)."
        )
    return scores


def undefined_reason(labels: Labels) -> str | None:
    """Why measures that compare both classes have no value here, or None when they have one."""
    if not (labels == 1).any():
        return "undefined: only real samples"
    if not (labels == 0).any():
        return "undefined: only fake samples"
    return None


def auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the ROC curve, ties counted half; None when only one class is present."""
    values, truth = check_samples(scores, labels)
    return None if undefined_reason(truth) else float(roc_auc_score(truth, values))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Average precision of "fake" (sum of recall steps times precision); None when only one class is present.

    It depends on the share of fakes in the data, unlike AUC and EER.
    """
    values, truth = check_samples(scores, labels)
    if undefined_reason(truth):
        return None
    return min(1.0, float(average_precision_score(truth, values)))  # the sum may round to just above 1


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float] | tuple[None, None]:
    """Equal error rate in [0, 1] and its threshold (see `equal_error`); both None with one class only."""
    values, truth = check_samples(scores, labels)
    if undefined_reason(truth):
        return None, None
    rate, threshold = equal_error(RankedScores(values, truth).curves())
    return float(rate[0]), float(threshold[0])


@dataclass(frozen=True, slots=True)
class Curves:
    """B ROC curves over the same thresholds.

    Attributes:
        thresholds: float64 [K + 1], falling; the first is just above every score, so nothing is called fake.
        fakes_found, reals_hit: float64 [B, K + 1], weight of fake / real samples with score >= threshold.
    """

    thresholds: Floats
    fakes_found: Floats
    reals_hit: Floats

    @property
    def tpr(self) -> Floats:
        """Share of fakes called fake, [B, K + 1]."""
        return self.fakes_found / self.fakes_found[:, -1:]

    @property
    def fpr(self) -> Floats:
        """Share of reals called fake, [B, K + 1]."""
        return self.reals_hit / self.reals_hit[:, -1:]


class RankedScores:
    """Scores sorted once, ready to be reweighted many times.

    Args:
        scores: float64 [n], finite.
        labels: int64 [n], 0 and 1, both present.
    """

    def __init__(self, scores: Floats, labels: Labels) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self._fake_order = order[labels[order] == 1]
        self._real_order = order[labels[order] == 0]
        last_of_tie = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
        fakes_so_far = np.cumsum(labels[order])[last_of_tie]
        self._fakes_at = np.append(0, fakes_so_far)
        self._reals_at = np.append(0, last_of_tie + 1 - fakes_so_far)
        self.thresholds: Floats = np.append(np.nextafter(ranked[0], np.inf), ranked[last_of_tie])

    def curves(self, weights: Floats | None = None) -> Curves:
        """ROC curves under each row of `weights` (float [B, n], >= 0), or one curve with all weights equal.

        Every row must leave some weight on both classes.
        """
        if weights is None:
            weights = np.ones((1, self._fake_order.size + self._real_order.size))
        return Curves(
            self.thresholds,
            _running_weight(weights, self._fake_order, self._fakes_at),
            _running_weight(weights, self._real_order, self._reals_at),
        )


def _running_weight(weights: Floats, order: NDArray[np.intp], counts: NDArray[np.intp]) -> Floats:
    """Total weight of the first counts[k] samples of `order`, for each row and k."""
    running = np.zeros((len(weights), order.size + 1))
    np.cumsum(weights[:, order], axis=1, out=running[:, 1:])
    at_counts: Floats = running[:, counts]
    return at_counts


def curve_auc(curves: Curves) -> Floats:
    """Area under each curve by trapezoids. float64 [B]."""
    steps, tpr = np.diff(curves.fpr, axis=1), curves.tpr
    area: Floats = (steps * (tpr[:, 1:] + tpr[:, :-1])).sum(axis=1) / 2
    return area


def curve_average_precision(curves: Curves) -> Floats:
    """Average precision of each curve: sum of recall step x precision, not interpolated. float64 [B]."""
    called = curves.fakes_found + curves.reals_hit
    precision = curves.fakes_found / np.maximum(called, np.finfo(np.float64).tiny)
    found: Floats = np.diff(curves.tpr, axis=1)
    total: Floats = (found * precision[:, 1:]).sum(axis=1)
    return total


def equal_error(curves: Curves) -> tuple[Floats, Floats]:
    """Equal error rate of each curve and the threshold it is reached at, both float64 [B].

    FPR - FNR rises with every step of the curve. Where a point has FPR = FNR exactly, that is the rate, and
    the threshold is the middle of the gap down to the next score: all thresholds in the gap act alike, and
    the middle is the one that rounding cannot upset. Otherwise rate and threshold are interpolated linearly
    between the two points around the crossing; no threshold gives exactly that rate on these samples then.
    """
    fpr, thresholds = curves.fpr, curves.thresholds
    gap = fpr + curves.tpr - 1.0  # FPR - FNR
    gap[np.abs(gap) < 1e-12] = 0.0  # sums of thirds and the like
    rows = np.arange(len(gap))
    after = np.argmax(gap >= 0, axis=1)
    past = np.argmax(gap > 0, axis=1)
    before = after - 1  # gap starts at -1, so after >= 1
    low, high = gap[rows, before], gap[rows, after]
    share = -low / (high - low)
    rate = fpr[rows, before] + share * (fpr[rows, after] - fpr[rows, before])
    crossing = thresholds[before] + share * (thresholds[after] - thresholds[before])
    middle = (thresholds[after] + thresholds[past]) / 2
    return rate, np.where(high == 0, middle, crossing)


def best_within_fpr(curves: Curves, limit: float) -> tuple[Floats, Floats]:
    """Highest TPR with FPR <= `limit` on each curve, and its threshold, both float64 [B].

    Among thresholds that find as many fakes the highest is taken, lowered to the middle of the gap to the
    next score. When even the strictest cut that finds a fake breaks the limit, TPR is 0 and the threshold
    lies above all scores.
    """
    tpr, thresholds = curves.tpr, curves.thresholds
    allowed = np.where(curves.fpr <= limit + 1e-12, tpr, -1.0)
    best = np.argmax(allowed, axis=1)  # the first of equals: the highest threshold
    found = allowed[np.arange(len(best)), best]
    below = np.minimum(best + 1, thresholds.size - 1)
    middle = np.where(best == 0, thresholds[0], (thresholds[best] + thresholds[below]) / 2)
    return found, middle


def equal_mass_bins(scores: Floats, count: int = 15) -> NDArray[np.int64]:
    """Bin of each sample, int64 [n]: sorted by score and cut into at most `count` runs of near equal size.

    Equal scores never part: a tied run goes to the bin of its first sample, so that the result does not
    depend on the order of the samples.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    first_of_tie = np.searchsorted(ranked, ranked, side="left")
    bins = np.empty(scores.size, dtype=np.int64)
    bins[order] = first_of_tie * count // scores.size
    return bins


def brier(scores: Floats, labels: Labels) -> Floats:
    """Squared error of each probability, float64 [n]; its mean is the Brier score (0 best, 1 worst)."""
    return (scores - labels) ** 2


def log_loss(scores: Floats, labels: Labels) -> Floats:
    """Negative log likelihood of each label in nats, float64 [n]."""
    right = np.where(labels == 1, scores, 1.0 - scores)
    loss: Floats = -np.log(np.clip(right, SMALLEST_PROBABILITY, 1.0))
    return loss


def calibration_error(
    scores: Floats, labels: Labels, weights: Floats | None = None, bins: int = 15
) -> Floats:
    """Expected calibration error over equal-mass bins, float64 [B].

    Sum over bins of |sum of w * (score - label)| / sum of all w. Bins are those of the unweighted samples.

    Args:
        scores: probabilities, float64 [n].
        labels: int64 [n].
        weights: float64 [B, n]; None weighs all samples alike.
        bins: how many bins at most.
    """
    member = equal_mass_bins(scores, bins)[:, None] == np.arange(bins)
    if weights is None:
        weights = np.ones((1, scores.size))
    error: Floats = np.abs(weights @ (member * (scores - labels)[:, None])).sum(axis=1) / weights.sum(axis=1)
    return error
