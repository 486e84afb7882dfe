"""From a picture or a video to a verdict: the one road that `predict`, the server and the parity gate walk.

The road has three stages, so that a server can put a queue between them: `Analyser.look` finds and crops the
faces of a frame, a `Runtime` answers for the crops, `Analyser.weigh` turns the answer into scores. After the last
frame `Analyser.conclude` judges. `pipeline.road` walks it in one thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.crop import Window, crop_face, tight_window
from pipeline.faces import Face, FaceFinder, keep_prominent
from pipeline.quality import Quality, rate
from pipeline.runtime import Answer, Crops
from pipeline.scoring import (
    DEFAULT_RULE,
    FrameScores,
    Interval,
    Level,
    OperatingPoint,
    Verdict,
    VideoScore,
    judge,
    p_fake,
    video_score,
)

MAX_FACES = 64
"""Most faces of one frame that are scored; of more, the largest."""


@dataclass(frozen=True, slots=True)
class SeenFace:
    """A face before it is scored.

    Attributes:
        face: As the face finder gave it.
        counted: Whether it takes part in the verdict: at least half as large as the frame's largest.
        window: What is cut out of the frame, whole pixels; None for a face that is not counted.
        quality: None for a face that is not counted.
    """

    face: Face
    counted: bool
    window: Window | None = None
    quality: Quality | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """A frame with its faces found and cut out.

    Attributes:
        width, height: Of the frame in pixels.
        faces: By area, largest first.
        crops: uint8 [k, S, S, 3] of the k counted faces, in their order; k may be 0.
        timings: Seconds by stage: "find", "crop".
    """

    width: int
    height: int
    faces: tuple[SeenFace, ...]
    crops: Crops
    timings: dict[str, float]


@dataclass(frozen=True, slots=True)
class ScoredFace:
    """A face with its score.

    Attributes:
        seen: What was found.
        p_fake: Calibrated probability of "fake"; None for a face that is not counted.
        evidence: float32 [h, w] over the face's window, positive where a cell speaks for fake; None where the
            network has none or the face is not counted.
    """

    seen: SeenFace
    p_fake: float | None
    evidence: NDArray[np.float32] | None = field(compare=False)


@dataclass(frozen=True, slots=True)
class ScoredFrame:
    """A frame with its score.

    Attributes:
        index: Its number in the video, 0 for a picture.
        time_s: Seconds after the first frame; None for a picture.
        width, height: In pixels.
        faces: By area, largest first.
        score: Highest p_fake of the counted faces; None without a face.
        timings: Seconds by stage.
    """

    index: int
    time_s: float | None
    width: int
    height: int
    faces: tuple[ScoredFace, ...]
    score: float | None
    timings: dict[str, float]

    def for_scoring(self) -> FrameScores:
        """The counted faces as `pipeline.scoring` takes them."""
        counted = [(face.p_fake, face.seen.face.area) for face in self.faces if face.p_fake is not None]
        return FrameScores(
            scores=np.array([score for score, _ in counted], np.float64),
            areas=np.array([area for _, area in counted], np.float64),
            index=self.index,
            time_s=self.time_s,
        )


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What is said of a picture or a video.

    Attributes:
        verdict: fake, real, uncertain or no_face.
        reason: One sentence on how it came about.
        level: "frame" for a picture, "video" for a video: thresholds of one do not hold for the other.
        aggregate: The score and what it rests on.
        point: The operating point used.
        abstain: Scores in [low, high) are uncertain; None without a band.
        notes: What to keep in mind.
    """

    verdict: Verdict
    reason: str
    level: Level
    aggregate: VideoScore
    point: OperatingPoint
    abstain: Interval | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """A picture or a video, analysed.

    Attributes:
        frames: One for a picture.
        conclusion: The verdict.
        timings: Seconds by stage over all frames ("decode", "find", "crop", "infer") and "total".
    """

    frames: tuple[ScoredFrame, ...]
    conclusion: Conclusion
    timings: dict[str, float]


class Analyser:
    """A bundle's crop rule, face finder, calibration and thresholds; may be shared by threads.

    Args:
        bundle: Opened, so that its files are those it was exported with.
        max_faces: Most faces of a frame that are scored.
    """

    def __init__(self, bundle: Bundle, *, max_faces: int = MAX_FACES) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.image_size = manifest.network.image_size
        self._margin = manifest.crop.margin
        self._temperature = manifest.calibration.temperature
        self._max_faces = max_faces
        self._finder = FaceFinder(
            bundle.path(manifest.face_finder.file),
            max_side=manifest.face_finder.max_side,
            min_score=manifest.face_finder.min_score,
        )

    def look(self, image: NDArray[np.uint8]) -> Look:
        """Find the faces of a frame (RGB uint8 [H, W, 3]) and cut out those that count."""
        height, width = image.shape[:2]
        started = time.perf_counter()
        found = self._finder.find(image)
        found_at = time.perf_counter()
        # by area, largest first: the prominent ones lead
        counted = len(keep_prominent(found)[: self._max_faces])
        faces, crops = [], []
        for face in found[:counted]:
            window = tight_window(face.box, width, height, (self._margin,) * 4)
            crop = crop_face(image, window, self.image_size)
            quality = rate(face, window, self._margin, (width, height), crop)
            faces.append(SeenFace(face, True, window, quality))
            crops.append(crop)
        faces += [SeenFace(face, False) for face in found[counted:]]
        side = self.image_size
        stacked = np.stack(crops) if crops else np.empty((0, side, side, 3), np.uint8)
        timings = {"find": found_at - started, "crop": time.perf_counter() - found_at}
        return Look(width, height, tuple(faces), stacked, timings)

    def weigh(
        self,
        look: Look,
        answer: Answer | None,
        *,
        index: int = 0,
        time_s: float | None = None,
        timings: dict[str, float] | None = None,
    ) -> ScoredFrame:
        """Turn a runtime's answer for `look.crops` (None where there are none) into scores.

        Raises:
            InputError: A logit is not finite: the network fails on this input.
        """
        scores = [] if answer is None else p_fake(answer.logits, self._temperature).tolist()
        maps = answer.evidence if answer is not None else None
        faces = [
            ScoredFace(
                seen,
                scores[place] if seen.counted else None,
                maps[place] if maps is not None and seen.counted else None,
            )
            for place, seen in enumerate(look.faces)
        ]
        return ScoredFrame(
            index=index,
            time_s=time_s,
            width=look.width,
            height=look.height,
            faces=tuple(faces),
            score=max(scores, default=None),
            timings={**look.timings, **(timings or {})},
        )

    def check(self, operating_point: str | None, rule: str | None) -> None:
        """Refuse an operating point or a rule that is unknown, before any work is done.

        Raises:
            InputError: There is none of that name; the message lists those that are.
        """
        self.conclude([], "frame", operating_point=operating_point, rule=rule)
        self.conclude([], "video", operating_point=operating_point, rule=rule)

    def conclude(
        self,
        frames: Sequence[ScoredFrame],
        level: Level,
        *,
        operating_point: str | None = None,
        rule: str | None = None,
    ) -> Conclusion:
        """Judge the frames of a video, or the one of a picture.

        Args:
            frames: In time order.
            level: "frame" for a picture, "video" for a video.
            operating_point: Name of one of the bundle's; None: its default.
            rule: How faces and frames become one score; None: the bundle's for a video, the highest face for
                a picture.

        Raises:
            InputError: No such operating point at this level, or no such rule.
        """
        point = self.bundle.operating_point(level, operating_point)
        band = self.bundle.abstain_band(point)
        # thresholds for frames are fitted on the highest face, whatever rule makes a video's score
        own_rule = DEFAULT_RULE if level == "frame" else self.bundle.manifest.aggregation.rule
        aggregate = video_score([frame.for_scoring() for frame in frames], rule or own_rule)
        verdict = judge(aggregate.score, point.threshold, band)
        notes = [] if point.note is None else [f"operating point {point.name}: {point.note}"]
        if aggregate.rule != own_rule:
            notes.append(f"the thresholds were fitted for the rule {own_rule}, not for {aggregate.rule}")
        return Conclusion(
            verdict, _reason(aggregate, point, band, verdict), level, aggregate, point, band, tuple(notes)
        )


def _reason(aggregate: VideoScore, point: OperatingPoint, band: Interval | None, verdict: Verdict) -> str:
    if aggregate.score is None:
        where = "the picture" if point.level == "frame" else f"any of the {aggregate.frames} frames looked at"
        return f"no face was found in {where}, so there is nothing to judge"
    said = f"the score {aggregate.score:.4f}"
    threshold = f"the threshold {point.threshold:.4f} of operating point {point.name}"
    if verdict is Verdict.UNCERTAIN and band is not None:
        return f"{said} lies between {band[0]:.4f} and {band[1]:.4f}, where the detector errs too often to decide"
    return f"{said} is {'at or above' if verdict is Verdict.FAKE else 'below'} {threshold}"


def total_timings(frames: Sequence[ScoredFrame], started: float) -> dict[str, float]:
    """Seconds by stage over all frames, and "total" since `started` (of `time.perf_counter`)."""
    totals: dict[str, float] = {}
    for frame in frames:
        for stage, seconds in frame.timings.items():
            totals[stage] = totals.get(stage, 0.0) + seconds
    totals["total"] = time.perf_counter() - started
    return totals
