"""Reads landmarks and face boxes that other tools stored beside frames, into canonical order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.crop import Box
from pipeline.errors import InputError
from training.index import LANDMARK_COUNTS

_FOREHEAD_SOURCE = (77, 75, 76, 68, 69, 70, 71, 80, 72, 73, 79, 74, 78)
"""Where the widespread 81-point predictor keeps the 13 forehead points, listed image-left to image-right."""


def load_landmarks(path: Path) -> NDArray[np.float32]:
    """Read a landmark file.

    Args:
        path: A .npy of [faces, 81 or 68, 2] (or of one face without the first axis), x and y in frame
            pixels, the faces by area, largest first. 81 points are iBUG's 68 and the 13 forehead points in
            the order of the 81-point predictor.

    Returns:
        float32 [faces, 81 or 68, 2] in canonical order.

    Raises:
        InputError: Not such a file, no face in it, or numbers that are not finite.
    """
    array = _load(path)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1] not in LANDMARK_COUNTS or array.shape[2] != 2:
        raise InputError(f"{path} has shape {array.shape}; expected [faces, 81 or 68, 2].")
    _check_faces(path, array)
    if array.shape[1] == 81:
        array = array[:, [*range(68), *_FOREHEAD_SOURCE]]
    return array


def load_boxes(path: Path) -> list[Box]:
    """Read a face finder's file.

    Args:
        path: A .npy of [faces, 7, 2]: the corners x0, y0 and x1, y1, then five points, in frame pixels.

    Returns:
        The boxes, largest first; those without area left out.

    Raises:
        InputError: Not such a file, no usable box in it, or numbers that are not finite.
    """
    array = _load(path)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1:] != (7, 2):
        raise InputError(f"{path} has shape {array.shape}; expected [faces, 7, 2].")
    _check_faces(path, array)
    boxes = [_box(face) for face in array]
    boxes = [box for box in boxes if box[2] > box[0] and box[3] > box[1]]
    if not boxes:
        raise InputError(f"{path} holds no box with an area.")
    return sorted(boxes, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))


def best_box(boxes: list[Box], landmarks: NDArray[np.float32]) -> Box:
    """Of the two largest boxes, the one that overlaps the landmarks' bounding box best.

    Args:
        boxes: At least one box, largest first.
        landmarks: [points, 2] in the same coordinates.

    Returns:
        The chosen box.
    """
    bounds = (*landmarks.min(axis=0).tolist(), *landmarks.max(axis=0).tolist())
    return max(boxes[:2], key=lambda box: _overlap(box, bounds))


def _load(path: Path) -> NDArray[np.float32]:
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable .npy file of numbers ({error}).") from error


def _check_faces(path: Path, array: NDArray[np.float32]) -> None:
    if len(array) == 0:
        raise InputError(f"{path} holds no face.")
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds numbers that are not finite.")


def _box(face: NDArray[np.float32]) -> Box:
    return (float(face[0, 0]), float(face[0, 1]), float(face[1, 0]), float(face[1, 1]))


def _overlap(box: Box, other: Box) -> float:
    """Intersection over union, corners counted as pixels (so + 1), as the stored files' makers do."""
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    shared = max(0.0, width) * max(0.0, height)
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
    return shared / (sum(areas) - shared)
