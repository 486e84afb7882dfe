"""Fits what turns logits into decisions on validation data: temperature, operating points, abstain bands.

The temperature is that of Guo et al. 2017, "On Calibration of Modern Neural Networks": the one number T > 0 for
which softmax(logits / T) has the lowest negative log likelihood. It changes no ranking. Both classes weigh the
same, whatever their numbers, because the share of fakes among validation data is nobody's real share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from export.clear_thresholds import cleared
from export.labelled_crops import LabelledCrops
from pipeline.bootstrap import percentile_interval, too_few_videos, video_weights
from pipeline.errors import InputError
from pipeline.manifest import AbstainBand, ScoreCalibration
from pipeline.measures import calibration_error
from pipeline.metrics import FEW_VIDEOS, MetricsReport, Resampling, measure_collected
from pipeline.metrics_report import LevelReport
from pipeline.samples import Samples
from pipeline.scoring import DEFAULT_RULE, Interval, OperatingPoint, p_fake

Floats = NDArray[np.float64]

POINTS = ("eer", "fpr-1%", "fpr-5%")
"""Operating points that a bundle holds, for frames and for videos."""
MAX_ERROR = 0.05
"""Error rate that bounds the abstain band on either side."""
LOWEST, HIGHEST = 0.1, 10.0
"""Temperatures are looked for in between."""
_TEMPERATURE_RESAMPLES = 200


def calibrate(
    crops: LabelledCrops,
    logits: NDArray[np.floating],
    *,
    rule: str = DEFAULT_RULE,
    how: Resampling | None = None,
) -> tuple[ScoreCalibration, MetricsReport]:
    """Fit temperature, operating points and abstain bands.

    Args:
        crops: Labelled validation faces.
        logits: The network's answers in fp32, [N, 2].
        rule: How a video's score comes from its faces.
        how: The bootstrap over videos.

    Returns:
        The calibration, and all measures of the calibrated scores on these data.

    Raises:
        InputError: Logits that are not finite, or one class only.
    """
    if len(set(crops.labels.tolist())) < 2:
        raise InputError(
            f"{crops.data}, split {crops.split}: only {'fake' if crops.labels[0] else 'real'} faces. "
            "Thresholds need both classes: choose a split that has both, or one with real faces only, which are "
            "then blended."
        )
    how = how or Resampling()
    raw = np.asarray(logits, dtype=np.float64)
    p_fake(raw)  # refuses what is not finite
    margin = raw[:, 1] - raw[:, 0]
    members = np.unique(np.asarray(crops.videos), return_inverse=True)[1].astype(np.int64)
    temperature, notes = fit_temperature(margin, crops.labels)
    interval = None
    if not notes:
        interval = _temperature_interval(margin, crops.labels, members, how)
    collected = crops.collect(raw, temperature, rule)
    metrics = measure_collected(collected, how=how)
    points: list[OperatingPoint] = []
    for level, samples in (
        (metrics.overall.frame, collected.frame),
        (metrics.overall.video, collected.video),
    ):
        at_level, said = _points(level, samples, how)
        points += at_level
        notes += said
        fewest = min(level.real_videos, level.fake_videos)
        if level.level == "video" and fewest < FEW_VIDEOS:
            notes.append(f"only {fewest} videos of a class: thresholds for videos are guesses")
    bands = (abstain_band(samples) for samples in (collected.frame, collected.video))
    before, after = (_ece(crops.collect(raw, value, rule).frame) for value in (1.0, temperature))
    return (
        ScoreCalibration(
            temperature=temperature,
            temperature_interval=interval,
            operating_points=tuple(points),
            default_point=POINTS[0],
            abstain=tuple(band for band in bands if band is not None),
            ece_before=before,
            ece_after=after,
            notes=(*crops.notes, *notes),
        ),
        metrics,
    )


def _points(level: LevelReport, samples: Samples, how: Resampling) -> tuple[list[OperatingPoint], list[str]]:
    """The operating points of one level, clear of its samples, and a note for each that acts otherwise by that."""
    fitted = [point for point in level.operating_points if point.name in POINTS]
    points = [cleared(samples, point, how) for point in fitted]
    notes = [
        f"threshold {level.level} {point.name} moved from {before.threshold:.6g} to {point.threshold:.6g}, past one "
        "sample: its neighbours lay so near that rounding would have decided about them"
        for before, point in zip(fitted, points, strict=True)
        if (before.fpr, before.tpr) != (point.fpr, point.tpr)
    ]
    return points, notes


def fit_temperature(margin: Floats, labels: NDArray[np.int64]) -> tuple[float, list[str]]:
    """The temperature with the lowest class-balanced negative log likelihood.

    Args:
        margin: Logit of fake minus logit of real, float64 [N].
        labels: int64 [N], both classes present.

    Returns:
        The temperature, and notes where the data do not determine it: it is 1 where every sample is on the right
        side, since then any sharper score fits better, and the bound where scores say nothing.
    """
    if (margin[labels == 1] > 0).all() and (margin[labels == 0] < 0).all():
        return 1.0, [
            "every validation sample is on its side of 0.5: no temperature can be fitted, it is left at 1"
        ]
    found = _best_temperature(margin, labels, np.ones(labels.size))
    if found > 0.99 * HIGHEST:
        note = f"temperature at its bound {HIGHEST:g}: the scores hardly tell real from fake on these data"
        return HIGHEST, [note]
    if found < 1.01 * LOWEST:
        return LOWEST, [f"temperature at its bound {LOWEST:g}: the validation data are all but separated"]
    return found, []


def _best_temperature(margin: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    sign = np.where(labels == 1, 1.0, -1.0)
    balanced = np.where(
        labels == 1, weights / weights[labels == 1].sum(), weights / weights[labels == 0].sum()
    )

    def loss(log_temperature: float) -> float:
        # -log p of the true class: log(1 + exp(-margin)), without overflow
        return float(balanced @ np.logaddexp(0.0, -sign * margin / np.exp(log_temperature)))

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


def _temperature_interval(
    margin: Floats, labels: NDArray[np.int64], videos: NDArray[np.int64], how: Resampling
) -> Interval | None:
    if too_few_videos(labels, videos) or not how.resamples:
        return None
    count = min(how.resamples, _TEMPERATURE_RESAMPLES)
    drawn = [
        _best_temperature(margin, labels, weights)
        for batch in video_weights(labels, videos, count, how.seed)
        for weights in batch
    ]
    return percentile_interval(np.array(drawn), how.confidence)


def abstain_band(samples: Samples, max_error: float = MAX_ERROR) -> AbstainBand | None:
    """Scores too close to call: between where too many fakes are missed and where too many reals are hit.

    Args:
        samples: Both classes, calibrated scores.
        max_error: Share of a class that may lie on the wrong side of the band's edge.

    Returns:
        None where one threshold keeps both errors within `max_error`.
    """
    scores = np.unique(samples.scores)
    fakes = np.sort(samples.scores[samples.labels == 1])
    reals = np.sort(samples.scores[samples.labels == 0])[::-1]
    # so many may be wrong; the next one may not
    first_fake = fakes[int(max_error * fakes.size)]
    last_real = reals[int(max_error * reals.size)]
    low, high = _edge(scores, first_fake, below=True), _edge(scores, last_real, below=False)
    if high <= low:
        return None
    return AbstainBand(level=samples.level, low=low, high=high, max_error=max_error)


def _edge(scores: Floats, sample: float, *, below: bool) -> float:
    """Halfway from a sample's score to its neighbour below or above, where rounding cannot upset it."""
    place = int(np.searchsorted(scores, sample))
    if below:
        return float((scores[place - 1] + scores[place]) / 2) if place else 0.0
    return float((scores[place] + scores[place + 1]) / 2) if place + 1 < scores.size else 1.0


def _ece(samples: Samples) -> float:
    """Expected calibration error with both classes weighing the same."""
    weights = np.empty(samples.scores.size)
    for label in (0, 1):
        inside = samples.labels == label
        weights[inside] = 1 / inside.sum()
    return float(calibration_error(samples.scores, samples.labels, weights[None])[0])
