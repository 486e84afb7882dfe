"""Turns an evidence map into what a browser or a program can take: a grid of numbers or a small PNG."""

from __future__ import annotations

import base64
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.crop import Window
from serving.schemas import EvidenceMap

EvidenceForm = Literal["none", "grid", "png"]

_RED, _BLUE = (203, 24, 29), (33, 102, 172)
_LEAST_SCALE = 1.0
"""A map whose logit differences stay below this is shown as faint as it is, not stretched to full colour."""


def evidence_map(cells: NDArray[np.float32], window: Window, form: EvidenceForm) -> EvidenceMap | None:
    """Present an evidence map.

    Args:
        cells: float32 [h, w], positive where a cell speaks for fake.
        window: The part of the picture it lies over.
        form: "grid": numbers; "png": base64 of an RGBA PNG with one pixel per cell; "none": nothing.
    """
    if form == "none":
        return None
    scale = max(_LEAST_SCALE, float(np.abs(cells).max()))
    if form == "grid":
        return EvidenceMap(window=window, scale=scale, grid=np.round(cells.astype(float), 4).tolist())
    return EvidenceMap(window=window, scale=scale, png=base64.b64encode(_png(cells, scale)).decode())


def thumbnail(image: NDArray[np.uint8], width: int = 160) -> str:
    """Base64 of a JPEG of a frame (RGB uint8 [H, W, 3]), at most `width` pixels wide and twice as high."""
    scale = min(1.0, width / image.shape[1], 2 * width / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpeg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 75])
    return base64.b64encode(data.tobytes()).decode()


def _png(cells: NDArray[np.float32], scale: float) -> bytes:
    picture = np.empty((*cells.shape, 4), np.uint8)
    # OpenCV stores blue first
    picture[..., :3] = np.where(cells[..., None] >= 0, _RED[::-1], _BLUE[::-1])
    picture[..., 3] = np.round(np.abs(cells) / scale * 255)
    _, data = cv2.imencode(".png", picture)
    return data.tobytes()
