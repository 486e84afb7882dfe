"""The shape of what was measured: numbers with intervals and reasons, as they are stored in JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline.scoring import Level, OperatingPoint


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Model):
    """A measured number with its bootstrap interval over videos.

    A rate (TPR, FPR, accuracy) that is 0 or 1 in every resample has the exact binomial interval for its
    number of videos instead of one without width.
    `value` is None where the data cannot give it; `low` and `high` are None without enough videos or
    resamples. `reason` says why something is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


class ReliabilityBin(_Model):
    """One equal-mass bin: its score range, number of samples, their mean score and the share that is fake."""

    low: float
    high: float
    count: int
    mean_score: float
    fake_share: float


class AtThreshold(_Model):
    """Rates at a threshold fitted elsewhere. Accuracy is the share judged right, whatever the class mix."""

    threshold: float
    accuracy: Estimate
    balanced_accuracy: Estimate
    tpr: Estimate
    fpr: Estimate
    specificity: Estimate


class LevelReport(_Model):
    """All measures of one set of samples, where a sample is a frame or a video.

    Attributes:
        real, fake: number of samples of each class.
        real_videos, fake_videos: number of videos they come from.
        tpr_at_fpr: best TPR within each false-alarm limit; its interval includes choosing the threshold anew.
        operating_points: thresholds measured on this very data. Take them from validation data into use,
            never from a test set.
        at_threshold: rates at the threshold that was given; None when none was.
        ece: expected calibration error over 15 equal-mass bins. Resampling can only add to it, so its
            interval leans upward.
        log_loss: mean negative log likelihood in nats.
        notes: what to keep in mind when reading the numbers.
    """

    level: Level
    real: int
    fake: int
    real_videos: int
    fake_videos: int
    auc: Estimate
    average_precision: Estimate
    eer: Estimate
    tpr_at_fpr: dict[str, Estimate]
    operating_points: list[OperatingPoint]
    at_threshold: AtThreshold | None
    ece: Estimate
    brier: Estimate
    log_loss: Estimate
    reliability: list[ReliabilityBin]
    notes: list[str]


class ScopeReport(_Model):
    """One set of videos, measured per frame and per video."""

    frame: LevelReport
    video: LevelReport


class MetricsReport(_Model):
    """Measures over all videos and for each manipulation against all real videos."""

    overall: ScopeReport
    methods: dict[str, ScopeReport]
    faces: int
    faces_used: int
    rule: str
    threshold: float | None
    resamples: int
    confidence: float
    seed: int
