"""From logits to a verdict: the only place where face scores become a frame's, a video's and a yes or no.

Training, evaluation, the benchmark and the server all call these functions, so that a number measured is the
number served. Scores are probabilities of "fake" in [0, 1]; a video without a face has no score at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InputError

Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Interval = tuple[float, float]
Level = Literal["frame", "video"]
"""Frames and pictures, or videos: the two levels at which everything is measured."""

PROMINENT_SHARE = 0.5
"""A face counts when its area is at least this share of the largest face in the same frame."""

DEFAULT_RULE = "max-mean"
TOP_SHARE = 0.25
CONFIDENT_FAKE, CONFIDENT_FAKE_SHARE = 0.8, 0.4
CONFIDENT_REAL, CONFIDENT_REAL_SHARE = 0.2, 0.9


def p_fake(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probability of "fake" from two-class logits: ``softmax(logits / temperature)[:, 1]``, without overflow.

    Args:
        logits: [N, 2], column 0 real, column 1 fake, any float type.
        temperature: calibration temperature, > 0; 1 leaves the network's own probabilities.

    Returns:
        float64 [N] in [0, 1].

    Raises:
        InputError: wrong shape, a logit that is not finite, or a temperature that is not positive.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise InputError(f"logits have shape {values.shape}; expected [N, 2] (column 0 real, column 1 fake).")
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(
            f"temperature is {temperature}; expected a finite number above 0 (1 = uncalibrated)."
        )
    bad = int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
    if bad:
        raise InputError(
            f"{bad} of {len(values)} rows of logits are NaN or infinite: the network fails on these inputs. "
            "Check its weights and precision (fp16 overflows in some networks); no score is made up for them."
        )
    margin = (values[:, 1] - values[:, 0]) / temperature
    # exp of a non-positive number only: it may underflow to 0, never overflow
    decay = np.exp(-np.abs(margin))
    score: Floats = np.where(margin >= 0, 1.0, decay) / (1.0 + decay)
    return score


@dataclass(frozen=True, slots=True)
class FrameScores:
    """Every face found in one frame.

    Attributes:
        scores: p_fake of each face, float64 [k]; k = 0 when the frame has no face.
        areas: area of each face's box, any one unit, float64 [k], > 0.
        index: the frame's number in its video.
        time_s: the frame's time in seconds, None when unknown (a still image).
    """

    scores: Floats
    areas: Floats
    index: int = 0
    time_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse scores that cannot be averaged."""
        if self.scores.ndim != 1 or self.scores.shape != self.areas.shape:
            raise InputError(
                f"frame {self.index}: {self.scores.size} scores, {self.areas.size} areas; give both per face."
            )
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise InputError(
                f"frame {self.index}: face scores {self.scores.tolist()} are not all within [0, 1]."
            )
        if not ((self.areas > 0) & np.isfinite(self.areas)).all():
            raise InputError(f"frame {self.index}: face areas {self.areas.tolist()} are not all positive.")

    def prominent(self) -> Floats:
        """Scores of the faces that count: area at least half of the frame's largest. float64 [<= k]."""
        if self.scores.size == 0:
            return self.scores
        kept: Floats = self.scores[self.areas >= PROMINENT_SHARE * self.areas.max()]
        return kept

    def score(self) -> float | None:
        """The frame's score: the highest among its prominent faces; None without a face."""
        kept = self.prominent()
        return float(kept.max()) if kept.size else None


def _frame_maxima(frames: Sequence[Floats]) -> Floats:
    return np.array([faces.max() for faces in frames])


def _max_mean(frames: Sequence[Floats]) -> float:
    """Mean over frames of the highest face score in each frame."""
    return float(_frame_maxima(frames).mean())


def _mean_all(frames: Sequence[Floats]) -> float:
    """Mean over all faces of all frames, every face with equal weight."""
    return float(np.concatenate(frames).mean())


def _top_share_mean(frames: Sequence[Floats]) -> float:
    """Mean of the highest quarter (rounded up, at least one) of the frame scores."""
    maxima = np.sort(_frame_maxima(frames))
    return float(maxima[-math.ceil(TOP_SHARE * maxima.size) :].mean())


def _confident(frames: Sequence[Floats]) -> float:
    """Mean of the frames that are sure, where enough of them agree, otherwise the mean of all frames.

    With s the frame scores (max over faces): if more than 40 % of them are above 0.8, the mean of those; else
    if more than 90 % are below 0.2, the mean of those; else the mean of s.
    """
    scores = _frame_maxima(frames)
    sure_fake = scores > CONFIDENT_FAKE
    sure_real = scores < CONFIDENT_REAL
    if sure_fake.mean() > CONFIDENT_FAKE_SHARE:
        return float(scores[sure_fake].mean())
    if sure_real.mean() > CONFIDENT_REAL_SHARE:
        return float(scores[sure_real].mean())
    return float(scores.mean())


RULES: dict[str, Callable[[Sequence[Floats]], float]] = {
    DEFAULT_RULE: _max_mean,
    "mean-all": _mean_all,
    "topk-mean": _top_share_mean,
    "confident": _confident,
}
"""Ways from face scores to a video's score. Input: the prominent faces' scores of each frame with a face."""


@dataclass(frozen=True, slots=True)
class VideoScore:
    """A video's (or a still image's) score and what it rests on.

    Attributes:
        score: p_fake in [0, 1]; None when no frame has a face.
        rule: name in `RULES`.
        frames: frames looked at.
        frames_used: frames with a face.
        faces: faces found.
        faces_used: faces that were large enough to count.
        frame_scores: score of each frame in the order given, None for a frame without a face.
    """

    score: float | None
    rule: str
    frames: int
    frames_used: int
    faces: int
    faces_used: int
    frame_scores: tuple[float | None, ...]


def check_rule(rule: str) -> str:
    """Return `rule` if it is a known aggregation rule.

    Raises:
        InputError: it is not; the message lists those that are.
    """
    if rule not in RULES:
        raise InputError(f"aggregation rule {rule!r} is unknown; choose one of {', '.join(RULES)}.")
    return rule


def video_score(frames: Sequence[FrameScores], rule: str = DEFAULT_RULE) -> VideoScore:
    """Aggregate the faces of a video's frames (or of one still image) into one score.

    Only frames with a face take part; faces smaller than half of their frame's largest are left out.

    Raises:
        InputError: the rule is unknown.
    """
    apply = RULES[check_rule(rule)]
    kept = [prominent for frame in frames if (prominent := frame.prominent()).size]
    return VideoScore(
        score=apply(kept) if kept else None,
        rule=rule,
        frames=len(frames),
        frames_used=len(kept),
        faces=sum(frame.scores.size for frame in frames),
        faces_used=sum(faces.size for faces in kept),
        frame_scores=tuple(frame.score() for frame in frames),
    )


class Verdict(StrEnum):
    """What is said about a video or an image."""

    FAKE = "fake"
    REAL = "real"
    UNCERTAIN = "uncertain"
    NO_FACE = "no_face"


class OperatingPoint(BaseModel):
    """One threshold and what it was measured to do; scores >= threshold are called fake.

    Attributes:
        name: "eer", "fpr-0.1%", "fpr-1%", "fpr-5%", ...
        level: whether the threshold is for frame scores or for video scores; they are not interchangeable.
        threshold: finite; above every real and fake score where even the strictest cut found no fake.
        fpr: share of real samples called fake at this threshold.
        tpr: share of fake samples called fake at this threshold.
        threshold_interval: bootstrap interval over videos, the threshold chosen anew in every resample;
            None when there are too few videos.
        fpr_interval, tpr_interval: bootstrap intervals over videos at this threshold as it stands.
        note: why the point is to be taken with care; None when it is not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    level: Level
    threshold: float
    fpr: Share
    tpr: Share
    threshold_interval: Interval | None = None
    fpr_interval: Interval | None = None
    tpr_interval: Interval | None = None
    note: str | None = None


def judge(score: float | None, threshold: float, abstain: Interval | None = None) -> Verdict:
    """Turn a score into a verdict.

    Args:
        score: p_fake in [0, 1], or None when there was no face.
        threshold: scores >= threshold are fake. Fitted on validation data and stored with the network.
        abstain: (low, high) with low <= threshold <= high: scores in [low, high) are uncertain.

    Raises:
        InputError: a score outside [0, 1], or a band that does not hold the threshold.
    """
    if not math.isfinite(threshold):
        raise InputError(f"threshold is {threshold}; expected a finite number.")
    low, high = abstain if abstain is not None else (threshold, threshold)
    if not low <= threshold <= high:
        raise InputError(
            f"abstain band {low}..{high} does not hold the threshold {threshold}; widen or move it."
        )
    if score is None:
        return Verdict.NO_FACE
    if not 0 <= score <= 1:
        raise InputError(f"score is {score}; expected a probability in [0, 1].")
    if low <= score < high:
        return Verdict.UNCERTAIN
    return Verdict.FAKE if score >= threshold else Verdict.REAL
