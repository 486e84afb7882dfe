"""Quality notes on faces: small, blurred, cut off."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.crop import crop_face, tight_window
from pipeline.faces import Face, FaceFinder
from pipeline.quality import Quality, rate


def rated(image: NDArray[np.uint8], face: Face, size: int = 256) -> Quality:
    height, width = image.shape[:2]
    window = tight_window(face.box, width, height)
    return rate(face, window, 0.125, (width, height), crop_face(image, window, size))


def test_a_sharp_whole_face_has_no_note(portraits: list[NDArray[np.uint8]]) -> None:
    for image in portraits:
        quality = rated(image, FaceFinder().find(image)[0])
        assert quality.notes == ()
        assert quality.off_frame == 0.0
        assert 250 < quality.size < 400


def test_blur_is_the_same_whatever_the_network_sees(portraits: list[NDArray[np.uint8]]) -> None:
    image = portraits[0]
    face = FaceFinder().find(image)[0]
    soft = cv2.GaussianBlur(image, (0, 0), 8)
    for size in (128, 256, 380):
        assert rated(image, face, size).notes == ()
        assert rated(np.asarray(soft, np.uint8), face, size).notes == ("blurred",)


def test_a_small_face_is_said_to_be(portraits: list[NDArray[np.uint8]]) -> None:
    image = np.asarray(cv2.resize(portraits[0], None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA), np.uint8)
    face = FaceFinder().find(image)[0]
    assert "small" in rated(image, face, 256).notes
    assert "small" not in rated(image, face, 64).notes


def test_a_face_at_the_edge_is_cut_off(portraits: list[NDArray[np.uint8]]) -> None:
    image = portraits[0]
    face = FaceFinder().find(image)[0]
    middle = int((face.box[0] + face.box[2]) / 2) - 40
    half = np.ascontiguousarray(image[:, middle:])
    (left, top, right, bottom), points = face.box, face.points - np.array([middle, 0], np.float32)
    at_edge = Face((max(0.0, left - middle), top, right - middle, bottom), points, face.score)
    quality = rated(half, at_edge)
    assert "cut off" in quality.notes
    # of a box 1 wide with 1/8 around it, 1/8 of 10/8 lies outside
    assert abs(quality.off_frame - 0.1) < 1e-6
