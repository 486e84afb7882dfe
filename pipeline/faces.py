"""Finds faces with YuNet: the one face finder behind preparation, evaluation and serving."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import assets
from pipeline.crop import Box
from pipeline.errors import InputError

_OVERLAP = 0.3
"""Boxes that overlap more than this (IoU) are one face."""
_CANDIDATES = 5000
_SMALLEST_SIDE = 2.0
"""Boxes narrower than this after clipping, in pixels, are dropped: nothing could be cropped from them."""
_LEAST_INPUT = 64
"""Smaller sides are padded with black to this many pixels. OpenCV pads to multiples of 32 itself, and where one side
comes to 32 its result depends on what lay in memory before (4.14: "faces" in a strip of one colour, now and then)."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face found in an image.

    Attributes:
        box: x0, y0, x1, y1 in image pixels (x1, y1 exclusive), clipped to the image.
        points: float32 [5, 2], x and y in image pixels: the eye at image-left, the eye at image-right, nose
            tip, mouth corner at image-left, mouth corner at image-right (of an upright face).
        score: The finder's confidence, 0..1.
    """

    box: Box
    points: NDArray[np.float32] = field(compare=False)
    score: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def keep_prominent(faces: Sequence[Face]) -> list[Face]:
    """Keep the faces whose area is at least half of the largest's, in the order given."""
    largest = max((face.area for face in faces), default=0.0)
    return [face for face in faces if face.area >= 0.5 * largest]


class FaceFinder:
    """YuNet through OpenCV, loaded on first use; may be shared by threads and sent to worker processes.

    Args:
        model: YuNet ONNX file; by default the asset "yunet".
        max_side: Longer images are scaled down to this many pixels before the search; boxes are scaled back.
        min_score: Faces below this confidence (0..1) are not reported.

    Raises:
        InputError: A setting is out of range.
    """

    def __init__(self, model: Path | None = None, *, max_side: int = 640, min_score: float = 0.7) -> None:
        if max_side < 32:
            raise InputError(f"max_side must be at least 32 pixels, not {max_side}.")
        if not 0.0 < min_score < 1.0:
            raise InputError(f"min_score must lie between 0 and 1, not {min_score}.")
        self._model = model
        self._max_side = max_side
        self._min_score = min_score
        # OpenCV's detector keeps the input size as state, so each thread has its own.
        self._per_thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "max_side": self._max_side, "min_score": self._min_score}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of one image.

        Args:
            image: RGB uint8 [H, W, 3].

        Returns:
            Faces by area, largest first; empty when there is none.

        Raises:
            InputError: The model file is missing or not YuNet.
        """
        height, width = image.shape[:2]
        scale = min(1.0, self._max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        below, right = max(0, _LEAST_INPUT - size[1]), max(0, _LEAST_INPUT - size[0])
        padded = (
            cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT) if below or right else small
        )
        detector = self._detector()
        detector.setInputSize((padded.shape[1], padded.shape[0]))
        _, rows = detector.detect(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        back = np.array([width / size[0], height / size[1]], np.float32)
        faces = [face for row in rows if (face := _face(row, back, width, height)) is not None]
        return sorted(faces, key=lambda face: (-face.area, face.box))

    def find_batch(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        """Find the faces of several images, which may differ in size; see `find`."""
        return [self.find(image) for image in images]

    def _detector(self) -> Any:
        detector = getattr(self._per_thread, "detector", None)
        if detector is None:
            detector = self._per_thread.detector = self._load()
        return detector

    def _load(self) -> Any:
        path = self._model or assets.fetch("yunet")
        if not path.is_file():
            raise InputError(f"Face finder model {path} is not a file; expected YuNet's ONNX file.")
        try:
            return cv2.FaceDetectorYN.create(
                str(path), "", (320, 320), self._min_score, _OVERLAP, _CANDIDATES
            )
        except cv2.error as error:
            raise InputError(f"{path} cannot be loaded as YuNet's ONNX file: {error.err}.") from error


def _face(row: NDArray[np.float32], back: NDArray[np.float32], width: int, height: int) -> Face | None:
    """A row of YuNet's output (x, y, w, h, 5 points, score) in image pixels; None if nothing is left."""
    if not np.isfinite(row).all():
        return None
    corner, far = row[0:2] * back, (row[0:2] + row[2:4]) * back
    x0, y0 = max(0.0, float(corner[0])), max(0.0, float(corner[1]))
    x1, y1 = min(float(width), float(far[0])), min(float(height), float(far[1]))
    if x1 - x0 < _SMALLEST_SIDE or y1 - y0 < _SMALLEST_SIDE:
        return None
    points = (row[4:14].reshape(5, 2) * back).astype(np.float32)
    score = float(row[14])
    return Face((x0, y0, x1, y1), points, score if math.isfinite(score) else 0.0)
