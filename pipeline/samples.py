"""Face scores gathered into frame scores and video scores, the two levels at which everything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError
from pipeline.measures import check_probabilities, check_samples
from pipeline.scoring import DEFAULT_RULE, FrameScores, Level, check_rule, video_score

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Scored samples of one level: float64 scores, int64 labels, int64 videos, str methods, [n] each."""

    level: Level
    scores: Floats
    labels: Labels
    videos: Labels
    methods: NDArray[np.str_]

    def only(self, keep: NDArray[np.bool_]) -> Samples:
        """The samples where `keep` (bool [n]) holds."""
        return Samples(
            self.level, self.scores[keep], self.labels[keep], self.videos[keep], self.methods[keep]
        )


@dataclass(frozen=True, slots=True)
class Collected:
    """Face scores gathered into frames and videos, the latter by `rule`."""

    frame: Samples
    video: Samples
    faces: int
    faces_used: int
    rule: str


def _same_length(count: int, **columns: Sequence[object] | NDArray[np.generic]) -> None:
    for name, column in columns.items():
        if len(column) != count:
            raise InputError(f"{name} has {len(column)} entries for {count} scores; give one per face.")


def _one_per_video(name: str, values: NDArray[np.generic], member: Labels, videos: NDArray[np.str_]) -> None:
    """Refuse a video that has two labels or two methods: resampling by video would mix the classes."""
    first = np.zeros(videos.size, dtype=np.intp)
    first[member[::-1]] = np.arange(member.size)[::-1]
    other = np.flatnonzero(values != values[first[member]])
    if other.size:
        video = str(videos[member[other[0]]])
        raise InputError(
            f"video {video!r} has two {name}s ({values[first[member[other[0]]]]} and {values[other[0]]}); "
            "video ids must include the manipulation, as in 'Deepfakes/000_003'."
        )


def collect(
    scores: ArrayLike,
    labels: ArrayLike,
    videos: Sequence[str],
    methods: Sequence[str],
    *,
    frames: Sequence[int] | None = None,
    areas: Sequence[float] | None = None,
    rule: str = DEFAULT_RULE,
) -> Collected:
    """Gather face scores into frame scores (max over prominent faces) and video scores (by `rule`).

    Args:
        scores: p_fake of each face, [n] in [0, 1].
        labels: 0 real, 1 fake, [n].
        videos: full id of each face's video, including the manipulation; one label and method per id.
        methods: manipulation of each face ("real" or a name).
        frames: number of each face's frame within its video; None: every face is a frame of its own.
        areas: area of each face's box, any one unit; None: all alike.
        rule: name in `pipeline.scoring.RULES`.

    Raises:
        InputError: as `check_samples`, scores outside [0, 1], unequal lengths, a video with two labels.
    """
    check_rule(rule)
    values, truth = check_samples(scores, labels)
    check_probabilities(values)
    numbers = np.arange(values.size) if frames is None else np.asarray(frames)
    sizes = np.ones(values.size) if areas is None else np.asarray(areas, dtype=np.float64)
    _same_length(values.size, videos=videos, methods=methods, frames=numbers, areas=sizes)
    kinds = np.asarray(methods, dtype=np.str_)
    names, member = np.unique(np.asarray(videos, dtype=np.str_), return_inverse=True)
    _one_per_video("label", truth, member, names)
    _one_per_video("method", kinds, member, names)

    order = np.lexsort((numbers, member))
    new_frame = np.append(True, (np.diff(member[order]) != 0) | (np.diff(numbers[order]) != 0))
    starts = np.flatnonzero(new_frame)
    heads = order[starts]
    clip: list[list[FrameScores]] = [[] for _ in names]
    for faces in np.split(order, starts[1:]):
        frame = FrameScores(values[faces], sizes[faces], index=int(numbers[faces[0]]))
        clip[member[faces[0]]].append(frame)
    judged = [video_score(clip_frames, rule) for clip_frames in clip]
    # every frame and video here has a face, so that no score is None
    frame_scores = np.array([score for video in judged for score in video.frame_scores], dtype=np.float64)
    first = heads[np.append(True, np.diff(member[heads]) != 0)]
    return Collected(
        frame=Samples("frame", frame_scores, truth[heads], member[heads], kinds[heads]),
        video=Samples(
            "video",
            np.array([video.score for video in judged], dtype=np.float64),
            truth[first],
            member[first],
            kinds[first],
        ),
        faces=values.size,
        faces_used=sum(video.faces_used for video in judged),
        rule=rule,
    )
