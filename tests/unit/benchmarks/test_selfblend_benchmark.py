"""The pair benchmark: its result adds up and can be stored, and its drawn face is a usable one."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.selfblend import STAGES, drawn_face, drawn_faces, markdown, run, upright_landmarks
from pipeline.errors import InputError
from pipeline.images import read_image
from training.index import write_index
from training.masks import MIRROR
from training.selfblend import check_face


def test_result_adds_up_and_can_be_stored() -> None:
    threads = cv2.getNumThreads()
    result = run(pairs=12, sizes=(96, 64))
    assert cv2.getNumThreads() == threads
    assert json.loads(json.dumps(result)) == result
    ms = result["ms"]
    assert set(ms) == {*STAGES, "total", "cpu"}
    assert sum(ms[stage]["mean"] for stage in STAGES) == pytest.approx(ms["total"]["mean"], abs=0.01)
    assert all(0 < spread["p50"] <= spread["p90"] for spread in ms.values())
    assert result["pairs_per_second"] == pytest.approx(1000 / ms["total"]["mean"], rel=0.01)
    assert (result["crop_px"], result["face_px"]) == ([720, 621], [300, 400])
    line = markdown(result)
    assert line.startswith("| self-blended pair @96+64 from 720x621 crops")
    assert f"p50 {ms['total']['p50']:.1f} ms" in line


def test_prepared_folder_is_measured(tmp_path: Path) -> None:
    write_index(tmp_path, drawn_faces(tmp_path))
    assert run(tmp_path, pairs=2, sizes=(32,))["data"] == str(tmp_path)


@pytest.mark.parametrize("settings", [{"pairs": 0}, {"threads": 0}, {"sizes": ()}, {"sizes": (0,)}])
def test_numbers_that_measure_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="must all be 1 or more"):
        run(**settings)  # type: ignore[arg-type]


def test_drawn_face_is_symmetric_and_fits_its_picture() -> None:
    points = upright_landmarks()
    mirrored = points[MIRROR]
    np.testing.assert_allclose(1 - mirrored[:, 0], points[:, 0], atol=1e-6)
    np.testing.assert_allclose(mirrored[:, 1], points[:, 1], atol=1e-6)
    assert points.min() >= 0
    assert points.max() <= 1
    check_face(*drawn_face(width=300, height=280, face=(80, 60, 220, 240)))


def test_drawn_crop_is_as_detailed_as_a_photograph(tmp_path: Path) -> None:
    record = drawn_faces(tmp_path)[0]
    assert read_image(record.path).shape == (621, 720, 3)
    # Portraits stored at the same quality take 0.3 to 0.6 bytes per pixel.
    assert 0.3 < record.path.stat().st_size / (621 * 720) < 0.6
