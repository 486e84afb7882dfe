"""What the API answers, as it stands in the OpenAPI document; `stillface predict --json` writes the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.metrics_report import Estimate
from pipeline.scoring import Interval, Level, Verdict

Share = Annotated[float, Field(ge=0, le=1)]
Pixels = tuple[float, float, float, float]
FaceNote = Literal["small", "blurred", "cut off"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FaceQuality(_Model):
    """How good the picture of a face is."""

    size: float = Field(description="Shorter side of the face box in pixels.", examples=[212.0])
    blur: float = Field(
        description="Variance of the Laplacian of the grey face at 128 px; below 50 the face is blurred.",
        examples=[1180.4],
    )
    off_frame: Share = Field(
        description="Share of the window around the face that lies outside the picture.", examples=[0.0]
    )
    notes: list[FaceNote] = Field(
        description="What makes the score less certain: `small` (enlarged more than twice for the network), "
        "`blurred`, `cut off` (at the picture's edge)."
    )


class EvidenceMap(_Model):
    """Where in the face the network sees traces of forgery: its class-activation map, fake minus real."""

    window: tuple[int, int, int, int] = Field(
        description="x0, y0, x1, y1 in pixels of the picture: the part that the map lies over."
    )
    scale: float = Field(
        description="Logit difference shown at full opacity; the map's largest magnitude, at least 1."
    )
    grid: list[list[float]] | None = Field(
        default=None, description="Rows of logit differences, positive where a cell speaks for fake."
    )
    png: str | None = Field(
        default=None,
        description="Base64 of a transparent PNG with one pixel per cell, to be stretched over the window: red "
        "speaks for fake, blue for real, the more opaque the more strongly.",
    )


class FaceResult(_Model):
    """One face."""

    box: Pixels = Field(
        description="x0, y0, x1, y1 in pixels of the picture.", examples=[[102.5, 64.0, 298.1, 330.7]]
    )
    landmarks: list[tuple[float, float]] = Field(
        description="x, y in pixels of: eye at image-left, eye at image-right, nose tip, mouth corner at "
        "image-left, mouth corner at image-right.",
        min_length=5,
        max_length=5,
    )
    confidence: Share = Field(description="How sure the face finder is that this is a face.")
    counted: bool = Field(
        description="Whether the face takes part in the verdict: at least half the area of the largest."
    )
    p_fake: Share | None = Field(
        description="Calibrated probability that the face is forged; null when it is not counted."
    )
    quality: FaceQuality | None = Field(description="Null when the face is not counted.")
    evidence: EvidenceMap | None = Field(
        default=None, description="On request, and where the network has such a map."
    )


class FrameResult(_Model):
    """One frame of a video."""

    index: int = Field(ge=0, description="Its number in the video.")
    time_s: float = Field(ge=0, description="Seconds after the first frame.")
    score: Share | None = Field(description="Highest p_fake of its counted faces; null without a face.")
    faces: list[FaceResult] = Field(description="By area, largest first.")
    thumbnail: str | None = Field(
        default=None, description="On request: base64 of a JPEG at most 160 pixels wide."
    )


class OperatingPointUsed(_Model):
    """The threshold that was applied and what it did on validation data."""

    name: str = Field(examples=["eer"])
    level: Level = Field(description="`frame` for pictures, `video` for videos.")
    threshold: float = Field(description="Scores at or above it are fake.")
    fpr: Share = Field(description="Share of real validation samples called fake.")
    tpr: Share = Field(description="Share of fake validation samples called fake.")
    abstain: tuple[float, float] | None = Field(
        description="Scores from the first to just below the second are `uncertain`; null without such a band."
    )


class AggregationUsed(_Model):
    """How faces and frames became one score."""

    rule: str = Field(examples=["max-mean"])
    frames: int = Field(description="Frames looked at.")
    frames_used: int = Field(description="Frames with a face.")
    faces: int = Field(description="Faces scored.")


class BundleUsed(_Model):
    """What answered."""

    id: str = Field(examples=["mobilevitv2_200-0123456789ab"])
    artefact: str = Field(examples=["onnx"])
    runtime: str = Field(examples=["onnxruntime 1.32.0 CPU"])


class _Result(_Model):
    verdict: Verdict = Field(description="`fake`, `real`, `uncertain` or `no_face`.")
    reason: str = Field(description="How the verdict came about, in one sentence.")
    score: Share | None = Field(description="Calibrated probability of forgery; null without a face.")
    operating_point: OperatingPointUsed
    aggregation: AggregationUsed
    width: int = Field(description="Of the picture or frame, in pixels, upright.")
    height: int
    bundle: BundleUsed
    request_id: str = Field(description="Also in the header X-Request-ID and in the server's log.")
    timings_ms: dict[str, float] = Field(
        description="Milliseconds by stage: `decode`, `find` (faces), `crop`, `queue` (waiting for a batch), "
        "`infer`, and `total`.",
        examples=[{"decode": 4.1, "find": 9.8, "crop": 0.4, "queue": 0.3, "infer": 31.0, "total": 46.2}],
    )
    notes: list[str] = Field(description="What to keep in mind with this verdict.")


class ImageResult(_Result):
    """A picture, analysed."""

    kind: Literal["image"] = "image"
    faces: list[FaceResult] = Field(description="By area, largest first; empty when there is none.")


class VideoResult(_Result):
    """A video, analysed."""

    kind: Literal["video"] = "video"
    frames: list[FrameResult] = Field(description="The frames looked at, in time order.")


class Problem(BaseModel):
    """What went wrong (RFC 9457, `application/problem+json`)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Stable name of the kind of problem.", examples=["/problems/bad-image"])
    title: str = Field(description="The kind of problem in words.", examples=["The picture cannot be read"])
    status: int = Field(ge=400, le=599, examples=[422])
    detail: str = Field(description="What was given, what was expected, and the way out.")
    request_id: str


class BatchItem(_Model):
    """One picture of a batch: its result or its problem, never both."""

    name: str = Field(description="File name as it was sent, or its number.")
    result: ImageResult | None = None
    problem: Problem | None = None


class BatchResult(_Model):
    """Several pictures, in the order they were sent."""

    items: list[BatchItem]
    request_id: str


class VideoStart(_Model):
    """First event of a streamed video."""

    event: Literal["start"] = "start"
    request_id: str
    frames: int = Field(description="Frames that will be looked at, at most.")
    duration_s: float = Field(description="By the video's header; 0 where it does not say.")
    width: int
    height: int


class VideoFrame(_Model):
    """A frame of a streamed video, sent as soon as it is scored."""

    event: Literal["frame"] = "frame"
    frame: FrameResult


class VideoEnd(_Model):
    """Last event of a streamed video; its `result.frames` repeat the frames sent before."""

    event: Literal["result"] = "result"
    result: VideoResult


class VideoFailed(_Model):
    """Last event of a streamed video that could not be finished."""

    event: Literal["error"] = "error"
    problem: Problem


class Job(_Model):
    """A long video that is analysed in the background."""

    id: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    frames_done: int = Field(ge=0)
    frames: int = Field(ge=0, description="Frames that will be looked at, at most; 0 while unknown.")
    created_at: str = Field(description="ISO 8601, UTC.")
    expires_at: str | None = Field(description="When the result is deleted; null while it is not finished.")
    result: VideoResult | None = None
    problem: Problem | None = None


class OfferedPoint(_Model):
    """An operating point that a request may name."""

    name: str
    level: Level
    threshold: float
    fpr: Share
    tpr: Share
    fpr_interval: Interval | None = Field(default=None, description="95 % interval over videos.")
    tpr_interval: Interval | None = Field(default=None, description="95 % interval over videos.")
    note: str | None = None


class LevelMeasured(_Model):
    """How well frames, or videos, of the validation data were told apart."""

    real: int = Field(description="Real samples.")
    fake: int = Field(description="Fake samples.")
    auc: Estimate = Field(description="Area under the ROC curve.")
    notes: list[str]


class Measured(_Model):
    """The validation data, and how well its samples were told apart."""

    data: str = Field(description="Name of the prepared folder.")
    split: str
    fakes: Literal["labelled", "self-blended"] = Field(
        description="Whether the fakes are deepfakes or were blended from the real faces."
    )
    frame: LevelMeasured
    video: LevelMeasured


class BundleFacts(_Model):
    """What is served, what may be chosen, and what is allowed."""

    bundle: BundleUsed
    network: str = Field(examples=["mobilevitv2_200"])
    image_size: int = Field(description="Side of the square that the network sees, in pixels.")
    has_evidence: bool
    operating_points: list[OfferedPoint]
    default_point: str
    aggregations: list[str]
    default_aggregation: str
    frames: int = Field(description="Frames of a video looked at by default.")
    measured: Measured = Field(description="Which data the rates come from.")
    notes: list[str] = Field(description="What to keep in mind about the thresholds.")
    limits: dict[str, int | float] = Field(description="Of this server: bytes, pixels, seconds, counts.")


class Health(_Model):
    """Whether the server is alive or ready."""

    status: Literal["alive", "ready"]
