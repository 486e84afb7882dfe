"""Evidence maps as grids and pictures."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from serving.evidence import evidence_map, thumbnail

CELLS = np.array([[4.0, -2.0], [0.0, 1.0]], np.float32)


def test_a_grid_keeps_the_numbers() -> None:
    shown = evidence_map(CELLS, (1, 2, 30, 40), "grid")
    assert shown is not None
    assert shown.grid == [[4.0, -2.0], [0.0, 1.0]]
    assert shown.window == (1, 2, 30, 40)
    assert shown.png is None
    assert evidence_map(CELLS, (1, 2, 30, 40), "none") is None


def test_a_picture_is_red_for_fake_blue_for_real_and_clear_for_nothing() -> None:
    shown = evidence_map(CELLS, (0, 0, 9, 9), "png")
    assert shown is not None
    assert shown.png is not None
    data = np.frombuffer(base64.b64decode(shown.png), np.uint8)
    blue, _, red, alpha = np.moveaxis(np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)), 2, 0)
    assert alpha.tolist() == [[255, 128], [0, 64]]
    assert red[0, 0] > blue[0, 0]
    assert blue[0, 1] > red[0, 1]


def test_weak_evidence_is_not_stretched() -> None:
    shown = evidence_map(CELLS / 100, (0, 0, 9, 9), "png")
    assert shown is not None
    assert shown.scale == 1.0


@pytest.mark.parametrize("shape", [(720, 1280, 3), (30, 20, 3), (2000, 10, 3)])
def test_thumbnails_are_small(shape: tuple[int, int, int]) -> None:
    data = np.frombuffer(base64.b64decode(thumbnail(np.zeros(shape, np.uint8))), np.uint8)
    height, width = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)).shape[:2]
    assert width <= 160
    assert height <= 320
