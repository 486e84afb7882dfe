"""The contact sheet shows the pairs that training makes, and refuses what it cannot show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.crop import crop_face
from pipeline.errors import InputError
from pipeline.images import read_image
from tests.drawn_faces import stored_face
from training.contact_sheet import AMPLIFICATION, write_contact_sheet
from training.dataset import sample_generator
from training.index import FaceRecord, write_index
from training.selfblend import make_pair

CAPTION, GAP = 20, 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[FaceRecord]]:
    folder = tmp_path_factory.mktemp("prepared")
    records = [stored_face(folder, number) for number in range(5)]
    records.append(
        replace(stored_face(folder, 5, split="val"), label=1, method="Deepfakes", video="Deepfakes/5")
    )
    write_index(folder, records)
    return folder, records


@pytest.mark.parametrize("quirks", [False, True])
def test_sheet_shows_what_training_makes(
    prepared: tuple[Path, list[FaceRecord]], tmp_path: Path, quirks: bool
) -> None:
    folder, records = prepared
    size = 64
    out = tmp_path / "new" / "sheet.png"
    assert write_contact_sheet(folder, out, count=2, seed=3, size=size, reference_quirks=quirks) == 2
    sheet = read_image(out)
    assert sheet.shape == (CAPTION + 2 * (CAPTION + size), 4 * size + 5 * GAP, 3)
    # The rows are the first and the last real face of the split.
    for row, place in ((0, 0), (1, 4)):
        record = records[place]
        pair = make_pair(
            read_image(record.path),
            record.landmarks,
            record.box,
            sample_generator(3, 0, place),
            phase="train",
            reference_quirks=quirks,
        )
        top = CAPTION + row * (CAPTION + size) + CAPTION
        cells = [sheet[top : top + size, GAP + i * (size + GAP) :][:, :size] for i in range(4)]
        height, width = pair.real.shape[:2]
        window = (0, 0, width, height)
        np.testing.assert_array_equal(cells[0], crop_face(pair.real, window, size))
        np.testing.assert_array_equal(cells[1], crop_face(pair.fake, window, size))
        weights = np.repeat(np.round(pair.mask * 255).astype(np.uint8)[..., None], 3, axis=2)
        np.testing.assert_array_equal(cells[2], crop_face(weights, window, size))
        difference = AMPLIFICATION * (pair.fake.astype(int) - pair.real) + 128
        shown = np.clip(difference, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(cells[3], crop_face(shown, window, size))


def test_captions_are_written(prepared: tuple[Path, list[FaceRecord]], tmp_path: Path) -> None:
    write_contact_sheet(prepared[0], tmp_path / "sheet.png", count=1, size=128)
    sheet = read_image(tmp_path / "sheet.png")
    assert (sheet[:CAPTION] < 120).any()
    assert (sheet[CAPTION : 2 * CAPTION] < 120).any()


def test_fewer_faces_give_fewer_rows(prepared: tuple[Path, list[FaceRecord]], tmp_path: Path) -> None:
    assert write_contact_sheet(prepared[0], tmp_path / "sheet.png", count=50, size=32) == 5


def test_sheet_refuses_what_it_cannot_show(prepared: tuple[Path, list[FaceRecord]], tmp_path: Path) -> None:
    folder, _ = prepared
    out = tmp_path / "sheet.png"
    with pytest.raises(InputError, match="no real face in its val split"):
        write_contact_sheet(folder, out, split="val")
    with pytest.raises(InputError, match=r"must end in \.png"):
        write_contact_sheet(folder, tmp_path / "sheet.jpg")
    with pytest.raises(InputError, match="1 row"):
        write_contact_sheet(folder, out, count=0)
    with pytest.raises(InputError, match="32 pixels"):
        write_contact_sheet(folder, out, size=8)
    with pytest.raises(InputError, match="not a prepared folder"):
        write_contact_sheet(tmp_path, out)
    assert not out.exists()


def test_face_that_cannot_be_blended_is_named(tmp_path: Path) -> None:
    record = stored_face(tmp_path, 0)
    write_index(tmp_path, [replace(record, box=(0.0, 0.0, 20.0, 20.0))])
    with pytest.raises(InputError, match=r"0\.png: The landmarks' centre"):
        write_contact_sheet(tmp_path, tmp_path / "sheet.png")
