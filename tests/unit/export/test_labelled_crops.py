"""Crops for calibration and parity come evenly from all videos, and no real face twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.labelled_crops import gather, gather_for_ranges
from pipeline.crop import crop_face, tight_window
from pipeline.errors import InputError
from training.dataset import load_crop
from training.index import FaceRecord, read_index, write_index

SIZE = 32


def with_fakes(source: Path, folder: Path, videos: int, frames: int) -> Path:
    """A prepared folder with labelled fakes: `videos` of each class, `frames` of each."""
    record = read_index(source)[0]
    folder.mkdir()
    made: list[FaceRecord] = []
    for label, method in ((0, "real"), (1, "Swap")):
        for video in range(videos):
            for frame in range(frames):
                path = folder / f"{method}_{video}_{frame}.jpg"
                path.write_bytes(record.path.read_bytes())
                changes = {"path": path, "video": f"{method}/{video}", "frame": frame, "split": "val"}
                made.append(replace(record, label=label, method=method, **changes))
    write_index(folder, made)
    return folder


def test_each_real_face_comes_once_and_is_blended_as_often_as_needed(prepared: Path) -> None:
    found = gather(prepared, SIZE, images=20)
    assert Counter(found.labels.tolist()) == {0: 4, 1: 16}
    assert found.crops.shape == (20, SIZE, SIZE, 3)
    assert found.fakes == "self-blended"
    assert set(found.methods) == {"real", "self-blended"}
    assert {video for video, label in zip(found.videos, found.labels, strict=True) if label} == {
        "val/0/self-blended",
        "val/1/self-blended",
    }
    # a blend is a frame of its own
    assert len(set(zip(found.videos, found.frames, strict=True))) == 20
    assert any("not how deepfakes are" in note for note in found.notes)
    assert any("fewer than 300 images" in note for note in found.notes)


def test_real_crops_are_the_servers(prepared: Path) -> None:
    found = gather(prepared, SIZE, images=8)
    reals = [record for record in read_index(prepared) if record.split == "val"]
    for crop, record in zip(found.crops, reals, strict=False):
        window = tight_window(record.box, record.width, record.height)
        np.testing.assert_array_equal(crop, crop_face(load_crop(record), window, SIZE))


def test_the_same_request_gives_the_same_pixels_and_another_draw_others(prepared: Path) -> None:
    first, again = gather(prepared, SIZE, images=12), gather(prepared, SIZE, images=12)
    np.testing.assert_array_equal(first.crops, again.crops)
    other = gather(prepared, SIZE, images=12, first_draw=100)
    np.testing.assert_array_equal(first.crops[:4], other.crops[:4])
    assert (first.crops[4:] != other.crops[4:]).any(axis=(1, 2, 3)).all()


def test_labelled_fakes_are_taken_evenly(prepared: Path, tmp_path: Path) -> None:
    folder = with_fakes(prepared, tmp_path / "labelled", videos=3, frames=6)
    found = gather(folder, SIZE, images=12)
    assert found.fakes == "labelled"
    assert set(Counter(found.videos).values()) == {2}
    assert Counter(found.labels.tolist()) == {0: 6, 1: 6}
    fewer = gather(folder, SIZE, images=4)
    assert Counter(fewer.labels.tolist()) == {0: 2, 1: 2}
    assert len(set(fewer.videos)) == 4


def test_ranges_come_from_other_faces_where_there_are_any(prepared: Path, tmp_path: Path) -> None:
    apart = gather_for_ranges(prepared, SIZE, proven_on="val", images=12, seed=5)
    assert apart.split == "train"
    assert not set(apart.videos) & set(gather(prepared, SIZE, images=12).videos)
    folder = with_fakes(prepared, tmp_path / "labelled", videos=1, frames=4)
    same = gather_for_ranges(folder, SIZE, proven_on="val", images=8, seed=5)
    assert same.split == "val"
    assert "the same real faces as the gate's" in same.notes[-1]


def test_some_of_them(prepared: Path) -> None:
    found = gather(prepared, SIZE, images=12)
    some = found.at(np.array([0, 5, 11]))
    assert len(some) == 3
    assert some.videos == (found.videos[0], found.videos[5], found.videos[11])
    np.testing.assert_array_equal(some.crops[1], found.crops[5])


def test_what_cannot_be_gathered_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no real faces in split 'test' \(it has train: 6 real and 0 fake"):
        gather(prepared, SIZE, split="test")
    with pytest.raises(InputError, match="need at least 2"):
        gather(prepared, SIZE, images=1)
    with pytest.raises(InputError, match="is not a prepared folder"):
        gather(tmp_path, SIZE)
