"""How far one set of answers lies from another: plain numbers, no verdicts.

Infinite and NaN answers are counted and left out of the other numbers; a single one fails the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from export.labelled_crops import LabelledCrops
from pipeline.bootstrap import percentile_interval, too_few_videos, video_weights
from pipeline.measures import RankedScores, calibration_error, curve_auc, equal_error
from pipeline.metrics import Estimate
from pipeline.runtime import Answer
from pipeline.scoring import OperatingPoint, p_fake

Floats = NDArray[np.float64]

SMALLEST = 1e-3
"""Relative differences are taken of at least this much, so that a logit near 0 does not make them endless."""

LARGE = 5.0
"""From this logit on, float32's own noise decides: hundreds of layers leave some 1e-5 of a value unsure, and drawn
images can drive a network to logits of hundreds, where neighbouring float32 numbers lie 6e-5 apart."""


@dataclass(frozen=True, slots=True)
class Unsure:
    """What crops are allowed beyond any bound, because the reference itself is no surer of its answers; or such gaps.

    Attributes:
        logits: float64 [N], of either logit.
        evidence: float64 [N], of any cell.
    """

    logits: Floats
    evidence: Floats

    def at(self, places: NDArray[np.int64] | slice) -> Unsure:
        """For some of the crops."""
        return Unsure(self.logits[places], self.evidence[places])


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Difference(_Model):
    """Answers of one form of the network against another's, over `count` crops.

    Attributes:
        count: Crops compared.
        non_finite: Crops with a NaN or infinite logit.
        max_abs, mean_abs, p99_abs: Of both logits.
        max_scaled: As `max_abs`, but of what lies beyond the crop's allowance, and divided by max(1, the crop's
            largest reference logit / `LARGE`).
        max_rel, mean_rel, p99_rel: Of both logits, relative to the reference's (at least `SMALLEST`).
        max_abs_p, mean_abs_p: Of p_fake at the bundle's temperature.
        cosine: Between all logits as one vector.
        sqnr_db: 20 log10(|reference| / |difference|); None where there is no difference at all.
        evidence_max_abs: Of the evidence map; None where a form has none.
        evidence_share: Of what lies beyond the crop's allowance, as a share of the largest reference value.
    """

    count: int
    non_finite: int
    max_abs: float
    mean_abs: float
    p99_abs: float
    max_scaled: float
    max_rel: float
    mean_rel: float
    p99_rel: float
    max_abs_p: float
    mean_abs_p: float
    cosine: float
    sqnr_db: float | None
    evidence_max_abs: float | None
    evidence_share: float | None


class Flips(_Model):
    """Decisions that change at one operating point.

    Attributes:
        point: Level and name, such as "frame eer".
        threshold: Scores >= it are fake.
        flips: Samples that fall on the other side.
        compared: Samples: crops at frame level, videos at video level.
        furthest: Largest distance from the threshold of a flipped sample's reference score; None without flips.
        on: Labelled faces, or images that were drawn.
    """

    on: Literal["faces", "drawn"]
    point: str
    threshold: float
    flips: int
    compared: int
    furthest: float | None

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_told_no_more(cls, stored: Any) -> Any:
        """A bundle may hold a report that also counts flips near a threshold, which once were excused."""
        if isinstance(stored, dict):
            return {name: value for name, value in stored.items() if name != "on_threshold"}
        return stored


class LabelledDeltas(_Model):
    """Measures on the labelled crops, the artefact's minus the reference's, with intervals over videos."""

    auc: Estimate
    eer: Estimate
    ece: Estimate
    reference_auc: float
    artefact_auc: float


class Allowed(_Model):
    """Drawn images that lie beyond the bounds and within what the reference is sure of.

    Attributes:
        crops: How many.
        max_abs: Largest difference of a logit among them.
        most: Largest such difference that one of them may have.
        evidence_max_abs: Largest difference of a cell of the evidence map among them.
        evidence_most: Largest that one of them may have.
    """

    crops: int
    max_abs: float
    most: float
    evidence_max_abs: float
    evidence_most: float


def difference(
    reference: Answer, other: Answer, temperature: float, unsure: Unsure | None = None
) -> Difference:
    """Compare two answers for the same crops, of which some may be allowed more."""
    ref, got = reference.logits.astype(np.float64), other.logits.astype(np.float64)
    fine = np.isfinite(ref).all(axis=1) & np.isfinite(got).all(axis=1)
    ref, got = ref[fine], got[fine]
    bad = int((~fine).sum())
    if not fine.any():
        ref = got = np.zeros((1, 2))
    gap = np.abs(ref - got)
    beyond = gap if unsure is None or not fine.any() else np.maximum(gap - unsure.logits[fine, None], 0)
    relative = gap / np.maximum(np.abs(ref), SMALLEST)
    gap_p = np.abs(p_fake(ref, temperature) - p_fake(got, temperature))
    evidence = _evidence(reference, other, unsure)
    return Difference(
        count=int(fine.size),
        non_finite=bad,
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        p99_abs=float(np.quantile(gap, 0.99)),
        max_scaled=float((beyond / scale_of(ref)).max()),
        max_rel=float(relative.max()),
        mean_rel=float(relative.mean()),
        p99_rel=float(np.quantile(relative, 0.99)),
        max_abs_p=float(gap_p.max()),
        mean_abs_p=float(gap_p.mean()),
        cosine=_cosine(ref, got),
        sqnr_db=sqnr_db(ref, got),
        evidence_max_abs=None if evidence is None else evidence[0],
        evidence_share=None if evidence is None else evidence[1],
    )


def sqnr_db(reference: Floats, other: Floats) -> float | None:
    """Signal to noise of `other` in decibels; None where both are equal or the reference is all zero."""
    noise, signal = float(np.linalg.norm(reference - other)), float(np.linalg.norm(reference))
    return None if noise == 0 or signal == 0 else float(20 * np.log10(signal / noise))


def _cosine(first: Floats, second: Floats) -> float:
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum() / length) if length else 1.0


def scale_of(logits: Floats) -> Floats:
    """By what a bound for logits [N, 2] is multiplied, [N, 1]; see `LARGE`."""
    return np.asarray(np.maximum(1, np.abs(logits).max(axis=1, keepdims=True) / LARGE))


def _evidence(reference: Answer, other: Answer, unsure: Unsure | None) -> tuple[float, float] | None:
    if reference.evidence is None or other.evidence is None:
        return None
    ref, got = reference.evidence.astype(np.float64), other.evidence.astype(np.float64)
    fine = np.isfinite(ref) & np.isfinite(got)
    if not fine.any():
        return 0.0, 0.0
    gap = np.abs(np.where(fine, ref, 0) - np.where(fine, got, 0))
    beyond = gap if unsure is None else np.maximum(gap - unsure.evidence[:, None, None], 0)
    return float(gap.max()), float(beyond.max()) / max(float(np.abs(ref[fine]).max()), SMALLEST)


def beyond_bounds(
    reference: Answer, other: Answer, *, max_abs_logit: float, max_evidence_share: float
) -> NDArray[np.bool_]:
    """Which crops do not hold bounds for logits and evidence by themselves, [N]; finite answers."""
    gaps = crop_gaps(reference, other)
    beyond = gaps.logits > max_abs_logit * scale_of(reference.logits.astype(np.float64))[:, 0]
    if reference.evidence is not None:
        beyond |= gaps.evidence > max_evidence_share * max(float(np.abs(reference.evidence).max()), SMALLEST)
    return np.asarray(beyond)


def crop_gaps(reference: Answer, other: Answer) -> Unsure:
    """The largest difference of each crop's logits, and of its evidence (0 where a form has none); finite answers."""
    logits = np.abs(reference.logits.astype(np.float64) - other.logits).max(axis=1)
    if reference.evidence is None or other.evidence is None:
        return Unsure(logits, np.zeros_like(logits))
    return Unsure(logits, np.abs(reference.evidence.astype(np.float64) - other.evidence).max(axis=(1, 2)))


def allowed(reference: Answer, other: Answer, unsure: Unsure, beyond: NDArray[np.bool_]) -> Allowed | None:
    """What the crops beyond the bounds were granted; None where it is nothing. Finite answers."""
    granted = beyond & (unsure.logits > 0)
    if not granted.any():
        return None
    gaps = crop_gaps(reference, other).at(np.flatnonzero(granted))
    most = unsure.at(np.flatnonzero(granted))
    return Allowed(
        crops=int(granted.sum()),
        max_abs=float(gaps.logits.max()),
        most=float(most.logits.max()),
        evidence_max_abs=float(gaps.evidence.max()),
        evidence_most=float(most.evidence.max()),
    )


def flips(
    point: OperatingPoint, reference: Floats, other: Floats, on: Literal["faces", "drawn"] = "faces"
) -> Flips:
    """Count the decisions that change at one threshold; both float64 [N]."""
    changed = (reference >= point.threshold) != (other >= point.threshold)
    distance = np.abs(reference - point.threshold)[changed]
    return Flips(
        on=on,
        point=f"{point.level} {point.name}",
        threshold=point.threshold,
        flips=int(changed.sum()),
        compared=int(changed.size),
        furthest=float(distance.max()) if distance.size else None,
    )


def drawn_flips(
    points: Sequence[OperatingPoint],
    reference: NDArray[np.floating],
    other: NDArray[np.floating],
    temperature: float,
) -> tuple[Flips, ...]:
    """Flips of drawn images at each operating point for frames; logits [N, 2], finite."""
    before, after = p_fake(reference, temperature), p_fake(other, temperature)
    return tuple(flips(point, before, after, "drawn") for point in points if point.level == "frame")


def face_flips(
    points: Sequence[OperatingPoint],
    labelled: LabelledCrops,
    reference: NDArray[np.floating],
    other: NDArray[np.floating],
    temperature: float,
    rule: str,
) -> tuple[Flips, ...]:
    """Flips of labelled faces at each operating point for frames, and of their videos at those for videos.

    Args:
        points: Operating points.
        labelled: The crops.
        reference: Logits of the crops, [N, 2], finite.
        other: Likewise.
        temperature: Of the scores.
        rule: From frames to videos.
    """
    scores = [
        {
            "frame": p_fake(logits, temperature),
            "video": labelled.collect(logits, temperature, rule).video.scores,
        }
        for logits in (reference, other)
    ]
    return tuple(flips(point, scores[0][point.level], scores[1][point.level]) for point in points)


def labelled_deltas(
    labelled: LabelledCrops,
    reference: NDArray[np.floating],
    other: NDArray[np.floating],
    temperature: float,
    *,
    resamples: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> LabelledDeltas:
    """Change of AUC, EER and ECE of frame scores; logits [N, 2] of the labelled crops, finite."""
    before, after = (labelled.collect(logits, temperature).frame for logits in (reference, other))
    ranked = [RankedScores(samples.scores, samples.labels) for samples in (before, after)]

    def measured(weights: Floats) -> dict[str, list[Floats]]:
        curves = [one.curves(weights) for one in ranked]
        return {
            "auc": [curve_auc(curve) for curve in curves],
            "eer": [equal_error(curve)[0] for curve in curves],
            "ece": [
                calibration_error(samples.scores, samples.labels, weights) for samples in (before, after)
            ],
        }

    point = measured(np.ones((1, before.scores.size)))
    drawn: dict[str, list[Floats]] = {name: [] for name in point}
    reason = "a class has a single video" if too_few_videos(before.labels, before.videos) else None
    if reason is None:
        for weights in video_weights(before.labels, before.videos, resamples, seed):
            for name, (first, second) in measured(weights).items():
                drawn[name].append(second - first)
    estimates = {}
    for name, (first, second) in point.items():
        interval = percentile_interval(np.concatenate(drawn[name]), confidence) if drawn[name] else None
        low, high = interval or (None, None)
        estimates[name] = Estimate(value=float(second[0] - first[0]), low=low, high=high, reason=reason)
    auc_before, auc_after = (float(values[0]) for values in point["auc"])
    return LabelledDeltas(**estimates, reference_auc=auc_before, artefact_auc=auc_after)
