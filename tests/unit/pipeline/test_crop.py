from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crop import TEST_MARGIN, crop_face, tight_window
from pipeline.errors import InputError


def test_margin_is_an_eighth_of_the_box_side_rounded_outwards() -> None:
    # 80 wide: 10 each side; 100 high: 12.5 each side, so 37.5 -> 37 and 162.5 -> 163.
    assert tight_window((100.0, 50.0, 180.0, 150.0), 640, 480) == (90, 37, 190, 163)
    assert TEST_MARGIN == 0.125


def test_fractional_boxes_round_outwards() -> None:
    assert tight_window((10.4, 10.6, 20.4, 20.6), 100, 100, (0, 0, 0, 0)) == (10, 10, 21, 21)


def test_margins_are_left_top_right_bottom() -> None:
    assert tight_window((100, 100, 200, 200), 640, 480, (0.1, 0.2, 0.3, 0.4)) == (90, 80, 230, 240)


def test_the_window_is_clipped_to_the_image() -> None:
    assert tight_window((-20.0, -10.0, 60.0, 90.0), 64, 48) == (0, 0, 64, 48)


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 20),
        (10, 20, 20, 10),
        (float("nan"), 0, 10, 10),
        (0, 0, float("inf"), 10),
    ],
)
def test_unusable_boxes_are_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="is not usable"):
        tight_window(box, 100, 100)


def test_a_box_outside_the_image_is_refused_with_the_image_size() -> None:
    with pytest.raises(InputError, match="outside the 100x50 image"):
        tight_window((200, 10, 260, 40), 100, 50)


def test_crop_is_opencvs_bilinear_resize_of_the_window() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    crop = crop_face(image, (5, 7, 65, 47), 32)
    np.testing.assert_array_equal(
        crop, cv2.resize(image[7:47, 5:65], (32, 32), interpolation=cv2.INTER_LINEAR)
    )
    assert crop.flags.c_contiguous


def test_crop_does_not_keep_the_aspect_ratio() -> None:
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 20:] = 255  # the right half of a wide window fills the right half of the square
    crop = crop_face(image, (0, 0, 40, 10), 8)
    assert crop[:, :3].max() == 0
    assert crop[:, 5:].min() == 255


@pytest.mark.parametrize("window", [(5, 5, 5, 9), (9, 5, 5, 9), (0, 0, 41, 10), (-1, 0, 5, 5)])
def test_empty_windows_and_windows_beyond_the_image_are_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="empty or reaches beyond the 40x10 image"):
        crop_face(np.zeros((10, 40, 3), np.uint8), window, 8)


def test_a_crop_needs_a_size() -> None:
    with pytest.raises(InputError, match="positive number of pixels, not 0"):
        crop_face(np.zeros((10, 40, 3), np.uint8), (0, 0, 5, 5), 0)


@given(
    x0=st.floats(-50, 300, width=32),
    y0=st.floats(-50, 200, width=32),
    w=st.floats(3, 200, width=32),
    h=st.floats(3, 200, width=32),
)
def test_every_window_lies_in_the_image_and_holds_the_visible_box(
    x0: float, y0: float, w: float, h: float
) -> None:
    x1, y1 = x0 + w, y0 + h
    if x1 <= 1 or y1 <= 1 or x0 >= 319 or y0 >= 239:
        return
    a, b, c, d = tight_window((x0, y0, x1, y1), 320, 240)
    assert 0 <= a < c <= 320
    assert 0 <= b < d <= 240
    assert a <= max(0, x0)
    assert b <= max(0, y0)
    assert c >= min(320, x1)
    assert d >= min(240, y1)
