"""What a set of scores is worth: every measure with its interval, per frame and per video, per manipulation.

A measure that the data cannot give (AUC without fakes) is null with the reason beside it, never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.bootstrap import (
    exact_interval_at_bound,
    percentile_interval,
    too_few_videos,
    video_weights,
)
from pipeline.measures import (
    RankedScores,
    auc,
    average_precision,
    best_within_fpr,
    brier,
    calibration_error,
    curve_auc,
    curve_average_precision,
    equal_error,
    equal_error_rate,
    equal_mass_bins,
    log_loss,
    undefined_reason,
)
from pipeline.metrics_report import (
    AtThreshold,
    Estimate,
    LevelReport,
    MetricsReport,
    ReliabilityBin,
    ScopeReport,
)
from pipeline.samples import Collected, Samples, collect
from pipeline.scoring import DEFAULT_RULE, Interval, OperatingPoint

__all__ = [
    "AtThreshold",
    "Estimate",
    "LevelReport",
    "MetricsReport",
    "Resampling",
    "ScopeReport",
    "auc",
    "average_precision",
    "collect",
    "equal_error_rate",
    "measure",
    "measure_collected",
    "reliability",
    "summarise",
]

Floats = NDArray[np.float64]

FPR_LIMITS = {"fpr-0.1%": 0.001, "fpr-1%": 0.01, "fpr-5%": 0.05}
"""False-alarm rates that operating points are measured for."""

CALIBRATION_BINS = 15
FEW_VIDEOS = 20
"""Below this many videos of a class a note says that the intervals are rough."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are drawn: number of resamples (0: no intervals), confidence in (0, 1), seed."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


GIVEN = "given"


def _rates(samples: Samples, cutoffs: dict[str, float], weights: Floats) -> dict[str, Floats]:
    """TPR and FPR at each cutoff and accuracy at the given one, under each row of weights. float64 [B]."""
    fake = samples.labels == 1
    weight_fake, weight_real = weights @ fake, weights @ ~fake
    rates: dict[str, Floats] = {}
    for name, cutoff in cutoffs.items():
        called = samples.scores >= cutoff
        if fake.any():
            rates[f"tpr {name}"] = (weights @ (called & fake)) / weight_fake
        if not fake.all():
            rates[f"fpr {name}"] = (weights @ (called & ~fake)) / weight_real
        if name == GIVEN:
            rates["accuracy"] = (weights @ (called == fake)) / (weight_fake + weight_real)
    return rates


def _statistics(
    samples: Samples, ranked: RankedScores | None, cutoffs: dict[str, float], weights: Floats
) -> dict[str, Floats]:
    """Every measure under each row of weights (float64 [B, n]); float64 [B] each."""
    scores, labels = samples.scores, samples.labels
    total = weights.sum(axis=1)
    values = _rates(samples, cutoffs, weights)
    values["brier"] = weights @ brier(scores, labels) / total
    values["log_loss"] = weights @ log_loss(scores, labels) / total
    values["ece"] = calibration_error(scores, labels, weights, CALIBRATION_BINS)
    if ranked is not None:
        curves = ranked.curves(weights)
        values["auc"] = curve_auc(curves)
        values["average_precision"] = curve_average_precision(curves)
        values["eer"], values["threshold eer"] = equal_error(curves)
        for name, limit in FPR_LIMITS.items():
            values[name], values[f"threshold {name}"] = best_within_fpr(curves, limit)
    if GIVEN in cutoffs and ranked is not None:
        values["balanced_accuracy"] = (values[f"tpr {GIVEN}"] + 1 - values[f"fpr {GIVEN}"]) / 2
    if f"fpr {GIVEN}" in values:
        values["specificity"] = 1 - values[f"fpr {GIVEN}"]
    return values


class _Measured:
    """Point values and resampled values of one set of samples, given out as estimates."""

    def __init__(self, samples: Samples, threshold: float | None, how: Resampling) -> None:
        self.samples = samples
        self.how = how
        self.undefined = undefined_reason(samples.labels)
        ranked = None if self.undefined else RankedScores(samples.scores, samples.labels)
        self.cutoffs = {} if threshold is None else {GIVEN: threshold}
        if ranked is not None:
            curves = ranked.curves()
            self.cutoffs["eer"] = float(equal_error(curves)[1][0])
            for name, limit in FPR_LIMITS.items():
                self.cutoffs[name] = float(best_within_fpr(curves, limit)[1][0])
        once = np.ones((1, samples.scores.size))
        point = _statistics(samples, ranked, self.cutoffs, once)
        self.point = {name: float(value[0]) for name, value in point.items()}
        for name, score in (("auc", auc), ("average_precision", average_precision)):
            value = score(samples.scores, samples.labels)
            if value is not None:
                self.point[name] = value
        self.no_interval = self._why_no_interval()
        self.drawn = {} if self.no_interval else self._draw(ranked)

    def _why_no_interval(self) -> str | None:
        if self.how.resamples == 0:
            return "no interval: resampling is switched off"
        if too_few_videos(self.samples.labels, self.samples.videos):
            return "no interval: a class has a single video"
        return None

    def _draw(self, ranked: RankedScores | None) -> dict[str, Floats]:
        batches = [
            _statistics(self.samples, ranked, self.cutoffs, weights)
            for weights in video_weights(
                self.samples.labels, self.samples.videos, self.how.resamples, self.how.seed
            )
        ]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def interval(self, name: str) -> Interval | None:
        """Interval of a statistic, None where none can be given."""
        if name not in self.drawn:
            return None
        low, high = percentile_interval(self.drawn[name], self.how.confidence)
        videos = self._videos_behind(name)
        if low == high and low in (0, 1) and videos:
            return exact_interval_at_bound(low, videos, self.how.confidence)
        return low, high

    def _videos_behind(self, name: str) -> int:
        """Videos whose verdicts a rate counts; 0 for a statistic that is no rate."""
        counts = count_videos(self.samples)
        if name == "accuracy":
            return counts[0] + counts[1]
        if name.startswith("tpr ") or name in FPR_LIMITS:
            return counts[1]
        return counts[0] if name.startswith("fpr ") or name == "specificity" else 0

    def estimate(self, name: str) -> Estimate:
        """A statistic with its interval, or the reason why there is none."""
        if name not in self.point:
            return Estimate(value=None, reason=self.undefined)
        low, high = self.interval(name) or (None, None)
        return Estimate(value=self.point[name], low=low, high=high, reason=self.no_interval)

    def operating_point(self, name: str) -> OperatingPoint:
        """The threshold called `name` on this data and what it does."""
        return OperatingPoint(
            name=name,
            level=self.samples.level,
            threshold=self.cutoffs[name],
            fpr=self.point[f"fpr {name}"],
            tpr=self.point[f"tpr {name}"],
            threshold_interval=self.interval(f"threshold {name}"),
            fpr_interval=self.interval(f"fpr {name}"),
            tpr_interval=self.interval(f"tpr {name}"),
            note=self._point_note(name),
        )

    def _point_note(self, name: str) -> str | None:
        real = int((self.samples.labels == 0).sum())
        if name in FPR_LIMITS and real * FPR_LIMITS[name] < 1:
            return f"only {real} real samples: a false-alarm rate below 1/{real} cannot be told from 0"
        return None

    def at_threshold(self) -> AtThreshold | None:
        """Rates at the threshold that was given."""
        if GIVEN not in self.cutoffs:
            return None
        return AtThreshold(
            threshold=self.cutoffs[GIVEN],
            accuracy=self.estimate("accuracy"),
            balanced_accuracy=self.estimate("balanced_accuracy"),
            tpr=self.estimate(f"tpr {GIVEN}"),
            fpr=self.estimate(f"fpr {GIVEN}"),
            specificity=self.estimate("specificity"),
        )


def count_videos(samples: Samples) -> tuple[int, int]:
    """Number of real and of fake videos."""
    real, fake = (np.unique(samples.videos[samples.labels == label]).size for label in (0, 1))
    return real, fake


def reliability(scores: Floats, labels: NDArray[np.int64]) -> list[ReliabilityBin]:
    """Equal-mass reliability bins in rising order of score; empty bins (ties) are left out."""
    member = equal_mass_bins(scores, CALIBRATION_BINS)
    return [
        ReliabilityBin(
            low=float(scores[inside].min()),
            high=float(scores[inside].max()),
            count=int(inside.sum()),
            mean_score=float(scores[inside].mean()),
            fake_share=float(labels[inside].mean()),
        )
        for inside in (member == number for number in np.unique(member))
    ]


def measure(
    samples: Samples, *, threshold: float | None = None, how: Resampling | None = None
) -> LevelReport:
    """All measures of one level's samples."""
    measured = _Measured(samples, threshold, how or Resampling())
    videos = count_videos(samples)
    points = ["eer", *FPR_LIMITS] if measured.undefined is None else []
    notes = [measured.undefined] if measured.undefined else []
    for label, name in ((0, "real"), (1, "fake")):
        if 0 < videos[label] < FEW_VIDEOS:
            notes.append(f"only {videos[label]} {name} videos: the intervals are rough")
    return LevelReport(
        level=samples.level,
        real=int((samples.labels == 0).sum()),
        fake=int((samples.labels == 1).sum()),
        real_videos=videos[0],
        fake_videos=videos[1],
        auc=measured.estimate("auc"),
        average_precision=measured.estimate("average_precision"),
        eer=measured.estimate("eer"),
        tpr_at_fpr={name: measured.estimate(name) for name in FPR_LIMITS},
        operating_points=[measured.operating_point(name) for name in points],
        at_threshold=measured.at_threshold(),
        ece=measured.estimate("ece"),
        brier=measured.estimate("brier"),
        log_loss=measured.estimate("log_loss"),
        reliability=reliability(samples.scores, samples.labels),
        notes=notes,
    )


def measure_collected(
    collected: Collected,
    *,
    threshold: float | None = None,
    video_threshold: float | None = None,
    how: Resampling | None = None,
) -> MetricsReport:
    """All measures, over everything and for each manipulation against all reals.

    Args:
        collected: From `collect`.
        threshold: As in `summarise`.
        video_threshold: For scores of videos, where they have one of their own.
        how: As in `summarise`.
    """
    how = how or Resampling()
    of_videos = threshold if video_threshold is None else video_threshold

    def scope(method: str | None) -> ScopeReport:
        levels = []
        for samples, cut in ((collected.frame, threshold), (collected.video, of_videos)):
            kept = samples
            if method is not None:
                kept = samples.only((samples.labels == 0) | (samples.methods == method))
            levels.append(measure(kept, threshold=cut, how=how))
        return ScopeReport(frame=levels[0], video=levels[1])

    fakes = collected.video.methods[collected.video.labels == 1]
    return MetricsReport(
        overall=scope(None),
        methods={str(method): scope(str(method)) for method in np.unique(fakes)},
        faces=collected.faces,
        faces_used=collected.faces_used,
        rule=collected.rule,
        threshold=threshold,
        resamples=how.resamples,
        confidence=how.confidence,
        seed=how.seed,
    )


def summarise(
    scores: ArrayLike,
    labels: ArrayLike,
    videos: Sequence[str],
    methods: Sequence[str],
    *,
    frames: Sequence[int] | None = None,
    areas: Sequence[float] | None = None,
    threshold: float | None = None,
    rule: str = DEFAULT_RULE,
    how: Resampling | None = None,
) -> MetricsReport:
    """Measure face scores at frame and video level; see `collect` for the arguments and what is refused.

    Args:
        scores: p_fake of each face, [n] in [0, 1].
        labels: 0 real, 1 fake, [n].
        videos: full id of each face's video, including the manipulation.
        methods: manipulation of each face.
        frames: number of each face's frame within its video; None: every face is a frame of its own.
        areas: area of each face's box; None: all alike.
        threshold: fitted on other (validation) data; None: no accuracy is given.
        rule: how a video's score comes from its faces.
        how: the bootstrap; None: 1000 resamples, 95 %, seed 0.

    Raises:
        InputError: as `collect`.
    """
    collected = collect(scores, labels, videos, methods, frames=frames, areas=areas, rule=rule)
    return measure_collected(collected, threshold=threshold, how=how)
