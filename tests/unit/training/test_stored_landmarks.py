from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from training.stored_landmarks import best_box, load_boxes, load_landmarks


def save(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array))
    return path


def test_the_forehead_is_put_in_order_and_the_rest_left(tmp_path: Path) -> None:
    points = np.stack([np.arange(81), 1000 + np.arange(81)], axis=1)
    loaded = load_landmarks(save(tmp_path / "a.npy", points[None]))
    assert loaded.shape == (1, 81, 2)
    assert loaded.dtype == np.float32
    assert loaded[0, :68, 0].tolist() == list(range(68))
    assert loaded[0, 68:, 0].tolist() == [77, 75, 76, 68, 69, 70, 71, 80, 72, 73, 79, 74, 78]
    assert (loaded[0, :, 1] - loaded[0, :, 0] == 1000).all()


def test_68_points_and_a_single_face_without_its_axis(tmp_path: Path) -> None:
    points = np.arange(136).reshape(68, 2)
    loaded = load_landmarks(save(tmp_path / "a.npy", points))
    assert loaded.shape == (1, 68, 2)
    np.testing.assert_array_equal(loaded[0], points)


@pytest.mark.parametrize("shape", [(1, 5, 2), (1, 81, 3), (81,), (1, 1, 81, 2)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \[faces, 81 or 68, 2\]"):
        load_landmarks(save(tmp_path / "a.npy", np.zeros(shape)))


def test_no_face_and_broken_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no face"):
        load_landmarks(save(tmp_path / "a.npy", np.zeros((0, 81, 2))))
    with pytest.raises(InputError, match="not finite"):
        load_landmarks(save(tmp_path / "a.npy", np.full((1, 81, 2), np.nan)))


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_text("hello")
    (tmp_path / "b.npy").touch()
    np.save(tmp_path / "c.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("a.npy", "b.npy", "c.npy", "gone.npy"):
        with pytest.raises(InputError, match=r"not a readable \.npy file"):
            load_landmarks(tmp_path / name)


def retina(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    faces = np.zeros((len(boxes), 7, 2))
    for face, box in zip(faces, boxes, strict=True):
        face[:2] = np.reshape(box, (2, 2))
    return faces


def test_boxes_come_largest_first_and_empty_ones_not_at_all(tmp_path: Path) -> None:
    path = save(tmp_path / "r.npy", retina((0, 0, 10, 10), (5, 5, 45, 55), (9, 9, 9, 30)))
    assert load_boxes(path) == [(5.0, 5.0, 45.0, 55.0), (0.0, 0.0, 10.0, 10.0)]


def test_only_empty_boxes_or_another_shape(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no box with an area"):
        load_boxes(save(tmp_path / "r.npy", retina((9, 9, 9, 30))))
    with pytest.raises(InputError, match=r"expected \[faces, 7, 2\]"):
        load_boxes(save(tmp_path / "r.npy", np.zeros((1, 5, 2))))


def test_of_the_two_largest_boxes_the_better_overlap_wins() -> None:
    landmarks = np.array([[100, 100], [140, 150]], np.float32)
    largest, second, third = (0.0, 0.0, 90.0, 90.0), (95.0, 95.0, 150.0, 160.0), (100.0, 100.0, 140.0, 150.0)
    assert best_box([largest, second, third], landmarks) == second
    assert best_box([largest], landmarks) == largest
