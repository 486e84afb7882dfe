"""Turns one video or picture into stored face crops, and counts why some of its faces are not stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.crop import MAX_TRAIN_MARGIN, Box, Window, tight_window
from pipeline.errors import InputError
from pipeline.faces import FaceFinder, keep_prominent
from pipeline.images import read_image, save_image
from pipeline.media_files import IMAGE_SUFFIXES
from pipeline.video import sample_frames
from training.index import FaceRecord
from training.landmarks import Landmarker
from training.media import MediaItem
from training.stored_landmarks import best_box, load_boxes, load_landmarks

_LOOSE = (0.5, 1.0, 0.5, 0.4)
"""Room around the box of the 68 points, left, top, right, bottom, as shares of its sides."""
_OUTSIDE = 0.25
"""How far landmarks may lie beyond the image, as a share of their box's sides, and still belong to it."""


_SUFFIXES = {"jpeg": "jpg", "png": "png"}


class _Found(NamedTuple):
    """A face's box and landmarks, both in frame pixels."""

    box: Box
    landmarks: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """What changes the stored crops of a video.

    Attributes:
        frames: Frames taken of each video, evenly in time.
        store: File format of the crops.
        quality: JPEG quality 1..100.
        max_side: Face finder: longer images are scaled down to this side for the search.
        min_score: Face finder: least confidence.
        max_pixels: Largest frame or picture accepted.
        max_duration_s: Longest video accepted.
    """

    frames: int
    store: Literal["jpeg", "png"]
    quality: int
    max_side: int
    min_score: float
    max_pixels: int
    max_duration_s: float


@dataclass(slots=True)
class VideoOutcome:
    """What came of one video.

    Attributes:
        records: One per stored crop.
        frames: Frames looked at.
        skipped: Reason to number of frames (or faces) not used for it.
        unreadable: Why the whole video could not be used; None where it could.
    """

    records: list[FaceRecord] = field(default_factory=list)
    frames: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None


@dataclass(frozen=True, slots=True)
class _Picture:
    """A frame and where its stored landmarks and boxes would lie."""

    index: int
    time_s: float
    image: NDArray[np.uint8]
    stored: tuple[Path, Path] | None = None


def prepare_video(item: MediaItem, settings: VideoSettings, crops: Path) -> VideoOutcome:
    """Store the face crops of one video or picture.

    Args:
        item: The video, picture, or folder of frames.
        settings: How.
        crops: The folder that gets the crops, this video's alone; crops already in it are replaced.

    Returns:
        What came of it. A video that cannot be read is an outcome, not an exception.

    Raises:
        InputError: `crops` cannot be written, or the face finder or landmark model is not available.
    """
    outcome = VideoOutcome()
    finder, landmarker = _tools(settings.max_side, settings.min_score)
    _remove_crops(crops)
    pictures = _pictures(item, settings, outcome)
    while True:
        try:
            picture = next(pictures, None)
        except InputError as error:
            outcome.unreadable = str(error)
            return outcome
        if picture is None:
            return outcome
        outcome.frames += 1
        faces = _faces(picture, finder, landmarker, outcome.skipped)
        for number, (found, window) in enumerate(faces):
            path = crops / f"{picture.index:06d}_{number}.{_SUFFIXES[settings.store]}"
            x0, y0, x1, y1 = window
            crop = picture.image[y0:y1, x0:x1]
            save_image(path, crop, store=settings.store, quality=settings.quality)
            outcome.records.append(_record(item, picture, number, found, window, path))


@cache
def _tools(max_side: int, min_score: float) -> tuple[FaceFinder, Landmarker]:
    """This process's models, loaded once."""
    return FaceFinder(max_side=max_side, min_score=min_score), Landmarker()


def _remove_crops(crops: Path) -> None:
    """Remove the crops of an earlier preparation; folders below belong to other videos."""
    if crops.is_dir():
        for path in crops.iterdir():
            if path.is_file():
                path.unlink()


def _pictures(item: MediaItem, settings: VideoSettings, outcome: VideoOutcome) -> Iterator[_Picture]:
    if item.kind == "image":
        yield _Picture(0, 0.0, read_image(item.path, max_pixels=settings.max_pixels))
    elif item.kind == "frames":
        yield from _numbered_frames(item, settings, outcome)
    else:
        frames = sample_frames(
            item.path,
            settings.frames,
            max_pixels=settings.max_pixels,
            max_duration_s=settings.max_duration_s,
            threads=1,
        )
        for frame in frames:
            yield _Picture(frame.index, frame.time_s, frame.image)


def _numbered_frames(item: MediaItem, settings: VideoSettings, outcome: VideoOutcome) -> Iterator[_Picture]:
    """Frames that were taken out of the video before, evenly over their numbers."""
    numbered = {
        int(path.stem): path
        for path in item.path.iterdir()
        if path.stem.isdecimal() and path.suffix.lower() in IMAGE_SUFFIXES
    }
    usable: list[tuple[int, Path, tuple[Path, Path] | None]] = []
    for number in sorted(numbered):
        path, stored = numbered[number], None
        if item.stored is not None:
            stored = (item.stored[0] / f"{path.stem}.npy", item.stored[1] / f"{path.stem}.npy")
            if not all(part.is_file() for part in stored):
                outcome.skipped["no stored landmarks or face box"] += 1
                continue
        usable.append((number, path, stored))
    if not usable:
        raise InputError(f"{item.path} holds no numbered frame that can be used.")
    count = min(settings.frames, len(usable))
    places = {(len(usable) - 1) * step // max(1, count - 1) for step in range(count)}
    for place in sorted(places):
        number, path, stored = usable[place]
        try:
            image = read_image(path, max_pixels=settings.max_pixels)
        except InputError:
            outcome.skipped["frame cannot be read"] += 1
            continue
        yield _Picture(number, -1.0, image, stored)


def _faces(
    picture: _Picture, finder: FaceFinder, landmarker: Landmarker, skipped: Counter[str]
) -> Iterator[tuple[_Found, Window]]:
    """The faces of one frame that can be stored, largest first; the others are counted by reason."""
    if picture.stored is not None:
        faces = _stored_face(picture.stored, skipped)
    else:
        faces = _search(picture.image, finder, landmarker, skipped)
    height, width = picture.image.shape[:2]
    for found in faces:
        if not _fits(found.landmarks, width, height):
            skipped["landmarks outside the image"] += 1
            continue
        try:
            window = loose_window(found.box, found.landmarks, width, height)
        except InputError:
            skipped["face box outside the image"] += 1
            continue
        yield found, window


def _stored_face(stored: tuple[Path, Path], skipped: Counter[str]) -> Iterator[_Found]:
    """The first face of the landmark file, which is the largest, with the face box that goes with it."""
    try:
        landmarks = load_landmarks(stored[0])[0]
        boxes = load_boxes(stored[1])
    except InputError:
        skipped["stored landmarks or face box cannot be used"] += 1
        return
    yield _Found(best_box(boxes, landmarks), landmarks)


def _search(
    image: NDArray[np.uint8], finder: FaceFinder, landmarker: Landmarker, skipped: Counter[str]
) -> Iterator[_Found]:
    faces = keep_prominent(finder.find(image))
    if not faces:
        skipped["no face"] += 1
    for face in faces:
        landmarks = landmarker.find(image, face)
        if landmarks is None:
            skipped["landmarks not sure"] += 1
        else:
            yield _Found(face.box, landmarks)


def _fits(landmarks: NDArray[np.float32], width: int, height: int) -> bool:
    """Whether landmarks can belong to an image of this size: a little beyond its edge, not far."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    slack = _OUTSIDE * (high - low)
    return bool((low >= -slack).all() and (high <= np.array([width, height]) + slack).all())


def loose_window(box: Box, landmarks: NDArray[np.float32], width: int, height: int) -> Window:
    """The part of a frame that is stored: all that blending and every training margin can need.

    Args:
        box: The face finder's box in frame pixels.
        landmarks: [81 or 68, 2] in frame pixels.
        width: Frame width.
        height: Frame height.

    Returns:
        x0, y0, x1, y1 whole pixels: the 68 points' box with half its width on either side, its height above
        and 0.4 of it below, united with the face box and the largest training margin, clipped to the frame.

    Raises:
        InputError: The box or the landmarks lie outside the frame or have no area.
    """
    low, high = landmarks[:68].min(axis=0).tolist(), landmarks[:68].max(axis=0).tolist()
    by_points = tight_window((*low, *high), width, height, _LOOSE)
    by_box = tight_window(box, width, height, (MAX_TRAIN_MARGIN,) * 4)
    return (
        min(by_points[0], by_box[0]),
        min(by_points[1], by_box[1]),
        max(by_points[2], by_box[2]),
        max(by_points[3], by_box[3]),
    )


def _record(
    item: MediaItem, picture: _Picture, number: int, found: _Found, window: Window, path: Path
) -> FaceRecord:
    x0, y0, x1, y1 = window
    return FaceRecord(
        path=path,
        video=item.video,
        identity=item.identity,
        split=item.split or "train",
        label=item.label,
        method=item.method,
        frame=picture.index,
        time_s=picture.time_s,
        face=number,
        box=(found.box[0] - x0, found.box[1] - y0, found.box[2] - x0, found.box[3] - y0),
        landmarks=(found.landmarks - np.array([x0, y0], np.float32)).astype(np.float32),
        origin=(x0, y0),
        width=x1 - x0,
        height=y1 - y0,
    )
