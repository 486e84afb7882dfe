from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.faces import Face, FaceFinder, _face, keep_prominent


def face(side: float) -> Face:
    return Face((0.0, 0.0, side, side), np.zeros((5, 2), np.float32), 0.9)


def test_prominent_faces_have_at_least_half_the_largest_area() -> None:
    large, half, small = face(100.0), face(100 / 2**0.5 + 0.01), face(70.0)
    assert keep_prominent([large, half, small]) == [large, half]
    assert keep_prominent([small, large]) == [large]
    assert keep_prominent([]) == []


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (1, 900), (3000, 40), (31, 33)])
def test_pictures_without_a_face(shape: tuple[int, int]) -> None:
    assert FaceFinder().find(np.zeros((*shape, 3), np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert FaceFinder().find_batch([noise, noise]) == [[], []]


@pytest.mark.parametrize("shape", [(10, 20_000), (20_000, 10), (1, 1), (32, 300), (32, 32)])
def test_what_was_looked_at_before_changes_nothing(shape: tuple[int, int]) -> None:
    finder, picture = FaceFinder(min_score=0.02), np.full((*shape, 3), 90, np.uint8)
    generator = np.random.default_rng(0)
    answers = []
    for side in generator.integers(40, 640, 12):
        finder.find(generator.integers(0, 256, (side, 400, 3), dtype=np.uint8))
        answers.append([(face.box, face.score) for face in finder.find(picture)])
    assert all(answer == answers[0] for answer in answers), answers


def row(x: float, y: float, w: float, h: float) -> np.ndarray:
    return np.array([x, y, w, h, *range(10), 0.8], np.float32)


def test_boxes_are_scaled_back_and_clipped() -> None:
    found = _face(row(-5, 10, 50, 200), np.array([2.0, 3.0], np.float32), 80, 400)
    assert found is not None
    assert found.box == (0.0, 30.0, 80.0, 400.0)
    assert found.points.tolist()[1] == [4.0, 9.0]
    assert found.score == pytest.approx(0.8)


@pytest.mark.parametrize(
    "values", [(100, 10, 50, 50), (10, 10, 0.5, 50), (-60, 0, 50, 50), (0, 0, np.nan, 5)]
)
def test_boxes_with_nothing_left_are_dropped(values: tuple[float, float, float, float]) -> None:
    assert _face(row(*values), np.ones(2, np.float32), 90, 90) is None


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match="max_side must be at least 32"):
        FaceFinder(max_side=8)
    with pytest.raises(InputError, match="min_score must lie between 0 and 1, not 1"):
        FaceFinder(min_score=1.0)


def test_missing_and_wrong_model_files(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(InputError, match="is not a file; expected YuNet's ONNX file"):
        FaceFinder(tmp_path / "gone.onnx").find(image)
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"wrong\.onnx cannot be loaded as YuNet"):
        FaceFinder(wrong).find(image)


def test_a_used_finder_can_be_pickled_with_its_settings() -> None:
    finder = FaceFinder(max_side=320, min_score=0.9)
    finder.find(np.zeros((64, 64, 3), np.uint8))
    copy = pickle.loads(pickle.dumps(finder))  # noqa: S301
    assert copy.__getstate__() == {"model": None, "max_side": 320, "min_score": 0.9}
    assert copy.find(np.zeros((64, 64, 3), np.uint8)) == []


def test_threads_may_share_a_finder() -> None:
    finder = FaceFinder()
    images = [np.full((100 + 20 * n, 300 - 10 * n, 3), n, np.uint8) for n in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(finder.find, images * 3)) == [[]] * 36
