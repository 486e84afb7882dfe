from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.faces import Face
from training.landmarks import Landmarker, canonical_from_mesh


def face_at(x0: float, y0: float, x1: float, y1: float) -> Face:
    points = np.array([[x0 + 10, y0 + 20], [x1 - 10, y0 + 20], [0, 0], [0, 0], [0, 0]], np.float32)
    return Face((x0, y0, x1, y1), points, 0.9)


def test_canonical_points_take_the_vertices_meant_and_space_the_jaw_evenly() -> None:
    mesh = np.stack([np.arange(478), np.arange(478) * 2], axis=1).astype(np.float32)
    # An outline from the image-left ear (127) over the chin (152) to the image-right ear (356).
    left = [127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152]
    mesh[left] = np.stack([np.linspace(0, 80, 12) ** 1.1, np.zeros(12)], axis=1)
    points = canonical_from_mesh(mesh)
    assert points.shape == (81, 2)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[0], mesh[127])
    np.testing.assert_allclose(points[8], mesh[152])
    np.testing.assert_allclose(points[16], mesh[356])
    steps = np.diff(points[:9, 0])
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)
    assert points[30, 0] == 4  # nose tip
    assert points[[36, 39, 42, 45], 0].tolist() == [33, 133, 362, 263]  # eye corners
    assert points[[48, 54, 60, 64], 0].tolist() == [61, 291, 78, 308]  # mouth corners
    assert points[74, 0] == 10  # middle of the forehead
    assert points[68, 0] == 162
    assert points[80, 0] == 389


def test_noise_is_not_a_face() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert Landmarker().find(noise, face_at(50, 50, 150, 150)) is None
    assert Landmarker().find(np.zeros((200, 200, 3), np.uint8), face_at(50, 50, 150, 150)) is None


def test_a_loaded_landmarker_can_be_sent_to_another_process() -> None:
    landmarker = Landmarker()
    image = np.zeros((64, 64, 3), np.uint8)
    landmarker.find(image, face_at(5, 5, 60, 60))
    assert pickle.loads(pickle.dumps(landmarker)).find(image, face_at(5, 5, 60, 60)) is None  # noqa: S301


def test_missing_and_wrong_model_files(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(InputError, match="is not a file; expected MediaPipe's face mesh"):
        Landmarker(tmp_path / "gone.tflite").find(image, face_at(5, 5, 60, 60))
    wrong = tmp_path / "wrong.tflite"
    wrong.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"wrong\.tflite cannot be loaded as a face mesh"):
        Landmarker(wrong).find(image, face_at(5, 5, 60, 60))


def test_the_runtime_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    Landmarker().find(np.zeros((64, 64, 3), np.uint8), face_at(5, 5, 60, 60))
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""
