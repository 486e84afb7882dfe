"""How well a graph of reduced precision still decides like the full one: the figures an int8 graph is chosen by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.drift import sqnr_db
from pipeline.errors import InputError
from pipeline.measures import SMALLEST_PROBABILITY, auc, equal_error_rate
from pipeline.scoring import p_fake

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Reduced against full precision on labelled crops.

    Attributes:
        sqnr_db: Signal to noise of the logits.
        delta_auc: Frame AUC of the reduced graph minus the full one's.
        flips: Share of decisions that change at the full graph's equal-error threshold, expected: see `expected_flips`.
        crops: Crops compared.
    """

    sqnr_db: float
    delta_auc: float
    flips: float
    crops: int

    def __str__(self) -> str:
        return (
            f"SQNR {self.sqnr_db:.1f} dB, AUC {self.delta_auc:+.4f}, "
            f"{self.flips:.1%} of decisions changed, by {self.crops} crops"
        )


@dataclass(frozen=True, slots=True)
class Gate:
    """What reduced precision may cost at most; the defaults are the bundle's gate for int8."""

    min_sqnr_db: float = 20.0
    max_delta_auc: float = 0.005
    max_flips: float = 0.01

    def with_margin(self) -> Gate:
        """What to aim at so that the gate also holds on other faces and in another runtime's arithmetic.

        Of the decisions nearly all: they are expected over all crops, and differ little from faces to faces.
        """
        return Gate(self.min_sqnr_db + 1, self.max_delta_auc * 0.7, self.max_flips * 0.9)

    def failures(self, found: Agreement) -> list[str]:
        """What does not hold, in words; empty where all does."""
        failed = []
        if found.sqnr_db < self.min_sqnr_db:
            failed.append(f"SQNR {found.sqnr_db:.1f} dB is below {self.min_sqnr_db:g}")
        if abs(found.delta_auc) > self.max_delta_auc:
            failed.append(f"AUC moves by {found.delta_auc:+.4f}, more than {self.max_delta_auc:g}")
        if found.flips > self.max_flips:
            failed.append(f"{found.flips:.1%} of decisions change, more than {self.max_flips:.1%}")
        return failed


def compare(full: Logits, reduced: Logits, labels: Labels) -> Agreement:
    """Compare logits float32 [N, 2] of two graphs on the same N crops.

    A graph that answers NaN or infinity agrees in nothing.

    Raises:
        InputError: The full graph's own logits are not finite, or the labels hold one class only.
    """
    scores = p_fake(full)
    before, (_, threshold) = auc(scores, labels), equal_error_rate(scores, labels)
    if before is None or threshold is None:
        raise InputError("comparing precisions needs real and fake crops; the set holds only one class.")
    if not np.isfinite(reduced).all():
        return Agreement(-200.0, -before, 1.0, len(labels))
    changed = p_fake(reduced)
    after = auc(changed, labels)
    flips = expected_flips(scores, changed, threshold)
    return Agreement(sqnr_db(full, reduced), (after or 0.0) - before, flips, len(labels))


def expected_flips(scores: Floats, changed: Floats, threshold: float) -> float:
    """Share of decisions that change if any crop may have any crop's error.

    A hundred crops have one or two near the threshold, whose own errors decide a plain count by luck; all errors at
    all distances are ten thousand trials (measured on two networks: it falls with the noise where the count jumps).
    Errors are taken on the scale of logits, where they depend little on the score.

    Args:
        scores: p_fake [N] of the full graph.
        changed: Of the reduced one.
        threshold: Scores >= it are fake.
    """
    distances = _logit(scores) - _logit(np.float64(threshold))
    errors = _logit(changed) - _logit(scores)
    return float(np.mean((distances[:, None] >= 0) != (distances[:, None] + errors >= 0)))


def _logit(scores: Floats | np.float64) -> Floats:
    """The inverse of the sigmoid; scores of 0 and 1 as the nearest that have one."""
    kept = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.asarray(np.log(kept) - np.log1p(-kept))
