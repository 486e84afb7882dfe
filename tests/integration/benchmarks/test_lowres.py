"""The easy task is what it says, and a network of the project learns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from timm.models._efficientnet_blocks import InvertedResidual

from benchmarks.lowres import METHOD, STAGE, coarsened, drawn, train, write_faces
from benchmarks.table_plan import named
from pipeline.errors import InputError
from training.checkpoint import load_detector
from training.dataset import load_crop
from training.index import read_index, write_index


def test_a_fake_is_its_real_face_with_a_coarse_inner_part() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8)
    box = (20.0, 30.0, 60.0, 90.0)
    found = coarsened(image, box)
    changed = (found != image).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    # 0.6 of the box's sides around its middle
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (42, 77, 28, 51)
    assert found[changed].std() < 0.3 * image[changed].std()
    assert image.std() > 70  # the original is left alone


def test_drawn_images_are_one_colour_two_or_noise() -> None:
    images = drawn(64, 300)
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in images]
    assert set(colours[::3]) == {1}
    assert set(colours[1::3]) <= {1, 2}  # of one colour where both were beyond the range
    assert 2 in colours[1::3]
    assert np.median(colours[2::3]) > 100
    flat = images[::3, 0, 0]
    assert {0, 255} <= set(flat[(flat == flat[:, :1]).all(axis=1)][:, 0])  # black and white
    assert np.array_equal(images, drawn(64, 300))


@pytest.mark.slow
def test_it_is_learned_and_the_checkpoint_says_by_whom(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def noted(size: int, count: int) -> NDArray[np.uint8]:
        asked.append((size, count))
        return drawn(size, count)

    monkeypatch.setattr("benchmarks.lowres.drawn", noted)
    folder = tmp_path / "faces"
    faces = write_faces(prepared, folder)
    records = read_index(folder)
    assert [record.label for record in records] == [0, 1] * faces
    real, fake = records[:2]
    assert (fake.method, fake.video, fake.split) == (METHOD, f"{METHOD}/{real.video}", real.split)
    assert np.array_equal(load_crop(fake), coarsened(load_crop(real), real.box))
    told: list[str] = []
    out = tmp_path / "weights" / "student.pth"
    reached = train(named("mobilevitv2_050@64"), folder, out, epochs=16, tell=told.append)
    detector, info = load_detector(out)
    assert reached > 0.8
    trained_on = sum(record.split == "train" for record in records)
    assert asked == [(64, round(0.1 * trained_on))]  # drawn images, for a tenth of the faces
    assert (info.stage, info.epoch, info.val_auc, info.network.image_size) == (STAGE, 16, reached, 64)
    assert detector.spec.name == "mobilevitv2_050"
    assert len(told) == 16


def test_blocks_of_efficientnet_begin_as_shortcuts(prepared: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "faces", tmp_path / "teacher.pth"
    write_faces(prepared, folder)
    train(named("tf_efficientnet_lite0@32"), folder, out, epochs=1, lr=1e-8)
    blocks = [module for module in load_detector(out)[0].modules() if isinstance(module, InvertedResidual)]
    assert {block.has_skip for block in blocks} == {True, False}
    for block in blocks:
        assert block.bn3.weight.abs().max().item() == pytest.approx(0 if block.has_skip else 1, abs=1e-3)


def test_a_folder_without_fakes_and_a_checkpoint_are_refused(
    prepared: Path, tmp_path: Path, checkpoint: Path
) -> None:
    with pytest.raises(InputError, match="training starts from random weights"):
        train(named(str(checkpoint)), prepared, tmp_path / "out.pth", epochs=1)
    with pytest.raises(InputError, match="expected real faces and labelled fakes"):
        train(named("mobilevitv2_050@64"), prepared, tmp_path / "out.pth", epochs=1)


def test_a_folder_without_real_faces_is_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    write_faces(prepared, folder)
    with pytest.raises(InputError, match="prepared folder already"):
        write_faces(folder, folder)
    write_index(folder, [record for record in read_index(folder) if record.label == 1])
    with pytest.raises(InputError, match="no real faces"):
        write_faces(folder, tmp_path / "again")
