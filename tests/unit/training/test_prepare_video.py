"""Preparation from stored landmarks, which needs no model, so synthetic frames do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.crop import tight_window
from pipeline.errors import InputError
from pipeline.images import read_image, save_image
from training.media import MediaItem
from training.prepare_video import VideoSettings, loose_window, prepare_video

SETTINGS = VideoSettings(
    frames=8, store="png", quality=98, max_side=640, min_score=0.7, max_pixels=10_000_000, max_duration_s=60.0
)


def landmarks_in(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """81 points of which the first 68 span the box given; the forehead's lie above it."""
    rng = np.random.default_rng(0)
    points = rng.uniform([x0, y0], [x1, y1], (81, 2))
    points[0], points[1] = (x0, y0), (x1, y1)
    points[68:, 1] = y0 - 5
    return points.astype(np.float32)


def tree_item(
    root: Path, frames: dict[int, np.ndarray | None], box: tuple[float, ...] | None = None
) -> MediaItem:
    folders = [root / name / "000" for name in ("frames", "landmarks", "retina")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, points in frames.items():
        image = np.full((240, 320, 3), number % 250, np.uint8)
        save_image(folders[0] / f"{number:03d}.png", image, store="png")
        if points is not None:
            np.save(folders[1] / f"{number:03d}.npy", points[None])
            retina = np.zeros((1, 7, 2))
            retina[0, :2] = np.reshape(box or (100, 60, 180, 160), (2, 2))
            np.save(folders[2] / f"{number:03d}.npy", retina)
    return MediaItem(folders[0], "youtube/000", "000", "train", 0, "real", "frames", (folders[1], folders[2]))


def test_the_loose_crop_by_hand() -> None:
    # 80 wide, 60 high: 40 left and right, 60 above, 24 below; the face box asks for less.
    points = landmarks_in(120, 100, 200, 160)
    assert loose_window((120, 90, 200, 160), points, 640, 480) == (80, 40, 240, 184)
    # A larger face box with a fifth of its 200 on every side wins where it reaches further.
    assert loose_window((50, 60, 250, 260), points, 640, 480) == (10, 20, 290, 300)
    # Clipped to the frame.
    assert loose_window((120, 90, 200, 160), points, 230, 170) == (80, 40, 230, 170)


coordinates = st.floats(-40, 400, width=32)


@given(
    x0=coordinates,
    y0=coordinates,
    w=st.floats(8, 300, width=32),
    h=st.floats(8, 300, width=32),
    margins=st.tuples(*[st.one_of(st.just(0.125), st.floats(0.05, 0.2))] * 4),
)
def test_a_tight_window_is_the_same_in_the_frame_and_in_the_stored_crop(
    x0: float, y0: float, w: float, h: float, margins: tuple[float, float, float, float]
) -> None:
    width, height = 320, 240
    box = tuple(float(np.float32(value)) for value in (x0, y0, x0 + w, y0 + h))
    assume(box[0] < width - 1 and box[1] < height - 1 and box[2] > 1 and box[3] > 1)
    points = landmarks_in(100, 80, 160, 150)
    left, top, right, bottom = loose_window(box, points, width, height)
    # As the index stores it: float32, relative to the crop's whole-pixel origin.
    in_crop = tuple(
        float(np.float32(value - origin)) for value, origin in zip(box, (left, top, left, top), strict=True)
    )
    window = tight_window(in_crop, right - left, bottom - top, margins)
    in_frame = tight_window(box, width, height, margins)
    assert (window[0] + left, window[1] + top, window[2] + left, window[3] + top) == in_frame


def test_stored_landmarks_are_taken_as_they_are(tmp_path: Path) -> None:
    points = landmarks_in(110, 80, 170, 150)
    points[68:, 0] = np.arange(13) + 110
    item = tree_item(tmp_path, {5: points})
    outcome = prepare_video(item, SETTINGS, tmp_path / "crops")
    (record,) = outcome.records
    assert (record.frame, record.time_s, record.face) == (5, -1.0, 0)
    assert record.path == tmp_path / "crops" / "000005_0.png"
    crop = read_image(record.path)
    assert crop.shape == (record.height, record.width, 3)
    assert (crop == 5).all()
    origin = np.array(record.origin)
    np.testing.assert_allclose(record.landmarks[:68] + origin, points[:68], atol=1e-4)
    source = [77, 75, 76, 68, 69, 70, 71, 80, 72, 73, 79, 74, 78]
    np.testing.assert_allclose(record.landmarks[68:] + origin, points[source], atol=1e-4)
    assert record.box[0] + record.origin[0] == 100
    assert record.box[3] + record.origin[1] == 160


def test_frames_are_ordered_by_number_and_taken_evenly(tmp_path: Path) -> None:
    points = landmarks_in(110, 80, 170, 150)
    numbers = [0, 40, 80, 120, 160, 200, 240, 999, 1000, 1040, 1080, 1120, 1160, 1200, 1240]
    item = tree_item(tmp_path, dict.fromkeys(numbers, points))
    outcome = prepare_video(item, SETTINGS, tmp_path / "crops")
    # Names sort 1000 before 999; numbers do not. 15 frames, 8 wanted: every second.
    assert [record.frame for record in outcome.records] == [0, 80, 160, 240, 1000, 1080, 1160, 1240]


def test_what_cannot_be_used_is_counted_by_reason(tmp_path: Path) -> None:
    points = landmarks_in(110, 80, 170, 150)
    item = tree_item(tmp_path, {1: points, 2: None, 3: points, 4: points, 5: landmarks_in(600, 80, 700, 150)})
    (tmp_path / "frames/000/003.png").write_bytes(b"broken")
    (tmp_path / "landmarks/000/004.npy").write_bytes(b"broken")
    outcome = prepare_video(item, SETTINGS, tmp_path / "crops")
    assert [record.frame for record in outcome.records] == [1]
    assert outcome.skipped == {
        "no stored landmarks or face box": 1,
        "frame cannot be read": 1,
        "stored landmarks or face box cannot be used": 1,
        "landmarks outside the image": 1,
    }
    assert outcome.unreadable is None


def test_a_face_box_outside_the_image_is_skipped(tmp_path: Path) -> None:
    item = tree_item(tmp_path, {1: landmarks_in(110, 80, 170, 150)}, box=(900, 900, 990, 990))
    outcome = prepare_video(item, SETTINGS, tmp_path / "crops")
    assert outcome.records == []
    assert outcome.skipped == {"face box outside the image": 1}


def test_no_usable_frame_at_all(tmp_path: Path) -> None:
    outcome = prepare_video(tree_item(tmp_path, {1: None}), SETTINGS, tmp_path / "crops")
    assert outcome.unreadable is not None
    assert "holds no numbered frame that can be used" in outcome.unreadable


def test_crops_of_an_earlier_run_are_replaced_and_other_videos_left(tmp_path: Path) -> None:
    item = tree_item(tmp_path, {7: landmarks_in(110, 80, 170, 150)})
    stale, other = tmp_path / "crops/000001_0.png", tmp_path / "crops/nested/000001_0.png"
    for path in (stale, other):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    prepare_video(item, SETTINGS, tmp_path / "crops")
    assert not stale.exists()
    assert other.exists()


def test_an_output_folder_that_cannot_be_written_is_not_the_videos_fault(tmp_path: Path) -> None:
    item = tree_item(tmp_path, {7: landmarks_in(110, 80, 170, 150)})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        prepare_video(item, SETTINGS, tmp_path / "file" / "crops")
