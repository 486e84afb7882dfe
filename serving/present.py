"""Puts an analysis into the shape of the API's answers."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.analysis import Conclusion, ScoredFace, ScoredFrame
from serving.evidence import EvidenceForm, evidence_map
from serving.schemas import (
    AggregationUsed,
    BundleUsed,
    FaceQuality,
    FaceResult,
    FrameResult,
    ImageResult,
    OperatingPointUsed,
    VideoResult,
)

STAGES = ("decode", "find", "crop", "queue", "infer", "total")


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What an answer says besides the analysis."""

    bundle: BundleUsed
    request_id: str
    evidence: EvidenceForm


def face_result(face: ScoredFace, evidence: EvidenceForm) -> FaceResult:
    """One face."""
    seen, quality = face.seen, face.seen.quality
    has_map = face.evidence is not None and seen.window is not None
    return FaceResult(
        box=seen.face.box,
        landmarks=[(float(x), float(y)) for x, y in seen.face.points],
        confidence=min(1.0, max(0.0, seen.face.score)),
        counted=seen.counted,
        p_fake=face.p_fake,
        quality=quality
        and FaceQuality(
            size=quality.size, blur=quality.blur, off_frame=quality.off_frame, notes=list(quality.notes)
        ),
        evidence=evidence_map(face.evidence, seen.window, evidence) if has_map else None,  # type: ignore[arg-type]
    )


def frame_result(frame: ScoredFrame, evidence: EvidenceForm, thumbnail: str | None = None) -> FrameResult:
    """One frame of a video."""
    return FrameResult(
        index=frame.index,
        time_s=frame.time_s or 0.0,
        score=frame.score,
        faces=[face_result(face, evidence) for face in frame.faces],
        thumbnail=thumbnail,
    )


def image_result(
    frame: ScoredFrame, conclusion: Conclusion, timings: dict[str, float], around: Circumstances
) -> ImageResult:
    """A picture."""
    return ImageResult(
        verdict=conclusion.verdict,
        reason=conclusion.reason,
        score=conclusion.aggregate.score,
        operating_point=_point(conclusion),
        aggregation=_aggregation(conclusion),
        width=frame.width,
        height=frame.height,
        bundle=around.bundle,
        request_id=around.request_id,
        timings_ms=milliseconds(timings),
        notes=list(conclusion.notes),
        faces=[face_result(face, around.evidence) for face in frame.faces],
    )


def video_result(
    frames: list[FrameResult],
    size: tuple[int, int],
    conclusion: Conclusion,
    timings: dict[str, float],
    around: Circumstances,
) -> VideoResult:
    """A video, whose frames were presented before; `size` is their width and height."""
    return VideoResult(
        verdict=conclusion.verdict,
        reason=conclusion.reason,
        score=conclusion.aggregate.score,
        operating_point=_point(conclusion),
        aggregation=_aggregation(conclusion),
        width=size[0],
        height=size[1],
        bundle=around.bundle,
        request_id=around.request_id,
        timings_ms=milliseconds(timings),
        notes=list(conclusion.notes),
        frames=frames,
    )


def milliseconds(timings: dict[str, float]) -> dict[str, float]:
    """Seconds by stage as milliseconds, in the road's order."""
    return {stage: round(timings[stage] * 1000, 3) for stage in STAGES if stage in timings}


def _point(conclusion: Conclusion) -> OperatingPointUsed:
    point = conclusion.point
    return OperatingPointUsed(
        name=point.name,
        level=point.level,
        threshold=point.threshold,
        fpr=point.fpr,
        tpr=point.tpr,
        abstain=conclusion.abstain,
    )


def _aggregation(conclusion: Conclusion) -> AggregationUsed:
    score = conclusion.aggregate
    return AggregationUsed(
        rule=score.rule, frames=score.frames, frames_used=score.frames_used, faces=score.faces_used
    )
