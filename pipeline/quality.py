"""Says how good the picture of a face is, so that a score can be taken with the care it deserves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.crop import Window
from pipeline.faces import Face

Note = Literal["small", "blurred", "cut off"]

ENLARGED = 2.0
"""A face whose window must be enlarged more than this many times to fill the network's square is small."""
_BLUR_SIDE = 128
"""Blur is measured at one size, whatever the network's: the Laplacian depends strongly on the scale."""
LEAST_VARIANCE = 50.0
"""Below this a face is blurred. Measured on the clips of `pipeline.assets` at 128 px: sharp faces vary by 1100 and
more, after a Gaussian blur of 1 px by 75 to 100, of 2 px by 15 to 19."""
MOST_OFF_FRAME = 0.05
"""A window that lies further outside the picture than this share of its area is cut off."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the picture of one face is.

    Attributes:
        size: Shorter side of the face box in pixels.
        blur: Variance of the Laplacian of the grey face at 128 px (Pech-Pacheco et al. 2000); low means blurred.
        off_frame: Share of the window around the face that lies outside the picture, 0..1.
        notes: What makes the score less certain.
    """

    size: float
    blur: float
    off_frame: float
    notes: tuple[Note, ...]


def rate(
    face: Face, window: Window, margin: float, frame: tuple[int, int], crop: NDArray[np.uint8]
) -> Quality:
    """Rate the picture of a face.

    Args:
        face: As the face finder gave it.
        window: What was cut out, whole pixels.
        margin: Of the crop rule, as a share of the box side.
        frame: Width and height of the picture.
        crop: RGB uint8 [S, S, 3], what the network sees.
    """
    x0, y0, x1, y1 = face.box
    full = (1 + 2 * margin) ** 2 * (x1 - x0) * (y1 - y0)
    off_frame = _share_outside(face, margin, frame) if full else 0.0
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (_BLUR_SIDE, _BLUR_SIDE), interpolation=cv2.INTER_AREA)
    blur = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    shorter = min(window[2] - window[0], window[3] - window[1])
    points_outside = ((face.points < 0) | (face.points > np.array(frame, np.float32))).any()
    notes: list[Note] = []
    if shorter * ENLARGED < crop.shape[0]:
        notes.append("small")
    if blur < LEAST_VARIANCE:
        notes.append("blurred")
    if off_frame > MOST_OFF_FRAME or points_outside:
        notes.append("cut off")
    return Quality(min(x1 - x0, y1 - y0), blur, off_frame, tuple(notes))


def _share_outside(face: Face, margin: float, frame: tuple[int, int]) -> float:
    """Share of box and margin beyond the picture's edge, before rounding to whole pixels."""
    x0, y0, x1, y1 = face.box
    left, top = x0 - margin * (x1 - x0), y0 - margin * (y1 - y0)
    right, bottom = x1 + margin * (x1 - x0), y1 + margin * (y1 - y0)
    inside = (min(right, frame[0]) - max(left, 0)) * (min(bottom, frame[1]) - max(top, 0))
    share = 1 - inside / ((right - left) * (bottom - top))
    return share if math.isfinite(share) and share > 0 else 0.0
