"""The crop contract: one face box becomes one square of pixels, the same in training, evaluation and serving.

Face box -> a margin on each side as a share of the box side -> clipped to the image -> resized to the
network's square, bilinear, aspect ratio not kept. Nothing else in the project may cut a face.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

Box: TypeAlias = tuple[float, float, float, float]
Window: TypeAlias = tuple[int, int, int, int]
Margins: TypeAlias = tuple[float, float, float, float]

TEST_MARGIN = 0.125
"""Margin on every side for evaluation, parity, benchmark and serving, as a share of the box side."""

MAX_TRAIN_MARGIN = 0.20
"""Largest margin training draws; stored crops must leave at least this much room around the box."""


def tight_window(
    box: Box,
    width: int,
    height: int,
    margins: Margins = (TEST_MARGIN, TEST_MARGIN, TEST_MARGIN, TEST_MARGIN),
) -> Window:
    """Turn a face box into the window of whole pixels that is cut out.

    Args:
        box: x0, y0, x1, y1 in image pixels (x1, y1 exclusive), finite, x1 > x0 and y1 > y0.
        width: Image width in pixels.
        height: Image height in pixels.
        margins: Left, top, right, bottom, each as a share of the box's width (left, right) or height.

    Returns:
        x0, y0, x1, y1 as integers (x1, y1 exclusive), rounded outwards, then clipped to the image.

    Raises:
        InputError: The box is not finite or has no area, or nothing of the window lies in the image.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (x0, y0, x1, y1)) or x1 <= x0 or y1 <= y0:
        raise InputError(
            f"Face box {tuple(box)} is not usable: expected finite x0, y0, x1, y1 with x1 > x0 and y1 > y0."
        )
    left, top, right, bottom = margins
    box_width, box_height = x1 - x0, y1 - y0
    window = (
        max(0, math.floor(x0 - left * box_width)),
        max(0, math.floor(y0 - top * box_height)),
        min(width, math.ceil(x1 + right * box_width)),
        min(height, math.ceil(y1 + bottom * box_height)),
    )
    if window[2] <= window[0] or window[3] <= window[1]:
        raise InputError(
            f"Face box {tuple(box)} lies outside the {width}x{height} image: "
            "check that the boxes belong to this image."
        )
    return window


def crop_face(image: NDArray[np.uint8], window: Window, size: int) -> NDArray[np.uint8]:
    """Cut a window out of an image and resize it to the network's square.

    Args:
        image: RGB uint8 [H, W, 3].
        window: x0, y0, x1, y1 whole pixels within the image, as `tight_window` returns them.
        size: Side of the square in pixels.

    Returns:
        RGB uint8 [size, size, 3], contiguous. Bilinear; the aspect ratio is not kept.

    Raises:
        InputError: The window is empty or reaches beyond the image, or `size` is not positive.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = window
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"Crop window {tuple(window)} is empty or reaches beyond the {width}x{height} image: "
            "make it with tight_window(box, width, height) of the same image."
        )
    if size <= 0:
        raise InputError(f"Crop size must be a positive number of pixels, not {size}.")
    resized = cv2.resize(image[y0:y1, x0:x1], (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)
