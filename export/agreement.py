"""How well a graph of reduced precision still decides like the full one: the figures an int8 graph is chosen by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import pdtri

from export.drift import sqnr_db
from pipeline.errors import InputError
from pipeline.measures import SMALLEST_PROBABILITY, auc, equal_error_rate
from pipeline.scoring import p_fake

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

_HOLDS: Final = 0.8
"""How surely the share aimed at is to hold the bound when decisions are counted."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What an error of the logits may change: where the full network's scores lie, and what is decided by them.

    Attributes:
        margins: Fake logit minus real logit, float64 [N], of faces like those that thresholds act on; not of faces
            the network was trained on, whose margins are wider.
        thresholds: Margins >= one are fake by it, float64 [M].
    """

    margins: Floats
    thresholds: Floats

    @classmethod
    def by(cls, logits: ArrayLike, thresholds: Iterable[float], temperature: float = 1.0) -> Decisions:
        """From logits [N, 2], and thresholds of p_fake at a temperature."""
        at = temperature * logit(np.array(list(thresholds), np.float64))
        return cls(_margins(logits), at)

    def expected_flips(self, errors: Floats) -> float:
        """Share of decisions that change at the threshold where most do, if any face may have any of the errors.

        A hundred faces have one or two near a threshold, whose own errors decide a plain count by luck; all errors
        at all distances are ten thousand trials (measured on two networks: it falls with the noise where the count
        jumps).

        Args:
            errors: Of the margin, float64 [K]. Near a threshold they are larger than on faces the network is sure of,
                so that of a well trained network more may flip than is expected; the gate counts.
        """
        distances = (self.margins[:, None] - self.thresholds)[:, None]
        crossed = (distances >= 0) != (distances + errors[:, None] >= 0)
        return float(crossed.mean(axis=(0, 1)).max())


@dataclass(frozen=True, slots=True)
class Agreement:
    """Reduced against full precision on labelled crops.

    Attributes:
        sqnr_db: Signal to noise of the logits.
        delta_auc: Frame AUC of the reduced graph minus the full one's.
        flips: Share of decisions that change, expected: see `Decisions.expected_flips`.
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

    def with_margin(self, faces: int) -> Gate:
        """What to aim at so that the gate also holds on other faces and in another runtime's arithmetic.

        Of a share expected, chance makes more or less when it is counted: on 150 faces 0.5 % hold a bound of 1 % in
        four of five cases, on 1,000 faces 0.8 % do (the Poisson distribution's quantile).

        Args:
            faces: That the gate counts on.
        """
        flips = self.max_flips
        if flips < 1:
            flips = min(flips, float(pdtri(int(flips * faces), _HOLDS)) / faces)
        return Gate(self.min_sqnr_db + 1, self.max_delta_auc * 0.7, flips)

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


def compare(full: Logits, reduced: Logits, labels: Labels, decisions: Decisions | None = None) -> Agreement:
    """Compare logits float32 [N, 2] of two graphs on the same N crops.

    A graph that answers NaN or infinity agrees in nothing.

    Args:
        full: In full precision.
        reduced: In reduced precision.
        labels: 0 real, 1 fake.
        decisions: What errors may change; None for the full graph's own, at its equal-error threshold.

    Raises:
        InputError: The full graph's own logits are not finite, or the labels hold one class only.
    """
    scores = p_fake(full)
    before, (_, threshold) = auc(scores, labels), equal_error_rate(scores, labels)
    if before is None or threshold is None:
        raise InputError("comparing precisions needs real and fake crops; the set holds only one class.")
    if not np.isfinite(reduced).all():
        return Agreement(-200.0, -before, 1.0, len(labels))
    after = auc(p_fake(reduced), labels)
    decisions = decisions or Decisions.by(full, [threshold])
    flips = decisions.expected_flips(_margins(reduced) - _margins(full))
    return Agreement(sqnr_db(full, reduced), (after or 0.0) - before, flips, len(labels))


def _margins(logits: ArrayLike) -> Floats:
    values = np.asarray(logits, np.float64)
    return np.asarray(values[:, 1] - values[:, 0])


def logit(scores: Floats) -> Floats:
    """The inverse of the sigmoid, float64; scores of 0 and 1 as the nearest that have one."""
    kept = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.asarray(np.log(kept) - np.log1p(-kept))
