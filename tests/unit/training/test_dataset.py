"""The data road: equal samples however they are made, an order that can be resumed, and broken data named."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.crop import crop_face, tight_window
from pipeline.errors import InputError
from pipeline.images import read_image, save_image
from tests.drawn_faces import stored_face
from training.dataset import (
    Batch,
    BlendedFaces,
    EpochSampler,
    LabelledFaces,
    check_records,
    choose_frames,
    collate,
    sample_generator,
    worker_init,
)
from training.index import FaceRecord
from training.selfblend import make_pair

SIZES = (48, 32)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[FaceRecord]:
    folder = tmp_path_factory.mktemp("prepared")
    return [stored_face(folder, number, video=f"youtube/{number // 3}") for number in range(7)]


def blended(records: Sequence[FaceRecord], *, seed: int = 5, draws: int = 1) -> BlendedFaces:
    return BlendedFaces(records, sizes=SIZES, seed=seed, phase="train", draws=draws)


def loaded(faces: BlendedFaces, sampler: EpochSampler, *, workers: int, epochs: int = 1) -> list[Batch]:
    loader: DataLoader[Any] = DataLoader(
        faces,
        batch_size=sampler.batch_size,
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=worker_init,
        persistent_workers=workers > 0,
        drop_last=sampler.drop_last,
    )
    batches: list[Batch] = []
    for epoch in range(sampler.epoch, sampler.epoch + epochs):
        if epoch > sampler.epoch:
            sampler.set_position(epoch)
        batches.extend(loader)
    return batches


def assert_equal_batches(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.labels, other.labels)
        for crops, others in zip(one.crops, other.crops, strict=True):
            assert torch.equal(crops, others)


def test_sample_is_a_pure_function_of_seed_epoch_and_index(records: list[FaceRecord]) -> None:
    faces = blended(records)
    first = faces[2, 3]
    assert faces[0, 3][0].shape == (2, 48, 48, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, blended(records)[2, 3], strict=True))
    for other in (faces[1, 3], faces[2, 4], blended(records, seed=6)[2, 3]):
        assert not torch.equal(first[0], other[0])


def test_streams_of_seed_epoch_and_index_do_not_meet() -> None:
    first = {sample_generator(*key).integers(1 << 62) for key in np.ndindex(6, 6, 6)}
    assert len(first) == 6**3


def test_all_sizes_show_the_same_pair(records: list[FaceRecord]) -> None:
    record = records[1]
    pair = make_pair(
        read_image(record.path), record.landmarks, record.box, sample_generator(5, 2, 1), phase="train"
    )
    height, width = pair.real.shape[:2]
    for size, crops in zip(SIZES, blended(records)[2, 1], strict=True):
        assert crops.shape == (2, size, size, 3)
        assert crops.dtype == torch.uint8
        for image, crop in ((pair.real, crops[0]), (pair.fake, crops[1])):
            np.testing.assert_array_equal(crop.numpy(), crop_face(image, (0, 0, width, height), size))


def test_draws_are_different_pairs_of_the_same_face(records: list[FaceRecord]) -> None:
    faces = blended(records, draws=3)
    assert len(faces) == 21
    assert not torch.equal(faces[0, 1][0], faces[0, 8][0])
    assert torch.equal(faces[0, 1][0], blended(records)[0, 1][0])
    with pytest.raises(IndexError):
        faces[0, 21]


def test_val_phase_and_quirks_reach_the_blending(records: list[FaceRecord]) -> None:
    record = records[0]
    quirky = BlendedFaces(records, sizes=(40,), seed=0, phase="val", reference_quirks=True)[0, 0][0]
    sane = BlendedFaces(records, sizes=(40,), seed=0, phase="val")[0, 0][0]
    pair = make_pair(
        read_image(record.path),
        record.landmarks,
        record.box,
        sample_generator(0, 0, 0),
        phase="val",
        reference_quirks=True,
    )
    height, width = pair.fake.shape[:2]
    np.testing.assert_array_equal(quirky[1].numpy(), crop_face(pair.fake, (0, 0, width, height), 40))
    assert not torch.equal(quirky, sane)


def test_batch_has_all_reals_first(records: list[FaceRecord]) -> None:
    faces = blended(records)
    samples = [faces[0, index] for index in (4, 2, 6)]
    batch = collate(samples)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.labels.dtype == torch.int64
    assert [crops.shape for crops in batch.crops] == [(6, 48, 48, 3), (6, 32, 32, 3)]
    for place, sample in enumerate(samples):
        for crops, pair in zip(batch.crops, sample, strict=True):
            assert torch.equal(crops[place], pair[0])
            assert torch.equal(crops[place + 3], pair[1])


def test_workers_make_no_difference(records: list[FaceRecord]) -> None:
    batches = []
    for workers in (0, 2):
        faces = blended(records)
        sampler = EpochSampler(len(faces), seed=5, batch_size=2)
        batches.append(loaded(faces, sampler, workers=workers, epochs=2))
    assert len(batches[0]) == 6
    assert_equal_batches(*batches)
    assert not torch.equal(batches[0][0].crops[0], batches[0][3].crops[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_stream_is_the_rest_of_the_straight_one(records: list[FaceRecord], workers: int) -> None:
    faces = blended(records)
    straight = EpochSampler(len(faces), seed=5, batch_size=2)
    straight.set_position(3)
    whole = loaded(faces, straight, workers=0, epochs=2)
    resumed = EpochSampler(len(faces), seed=5, batch_size=2)
    resumed.set_position(3, 2)
    assert_equal_batches(whole[2:], loaded(faces, resumed, workers=workers, epochs=2))


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(50, seed=seed, batch_size=5)
        sampler.set_position(epoch)
        return list(sampler)

    torch.manual_seed(0)
    first = order(1, 4)
    torch.manual_seed(1)
    assert first == order(1, 4)
    assert {epoch for epoch, _ in first} == {4}
    assert sorted(index for _, index in first) == list(range(50))
    assert len({tuple(i for _, i in keys) for keys in (first, order(1, 5), order(2, 4))}) == 3


def test_iterating_does_not_move_the_sampler() -> None:
    sampler = EpochSampler(10, seed=0, batch_size=2)
    sampler.set_position(1, 2)
    assert list(sampler) == list(sampler)
    assert len(sampler) == len(list(sampler)) == 6
    assert (sampler.samples_per_epoch, sampler.batches_per_epoch) == (10, 5)


def test_unshuffled_order_counts_up() -> None:
    sampler = EpochSampler(5, seed=0, batch_size=2, shuffle=False, drop_last=False)
    assert list(sampler) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
    assert sampler.batches_per_epoch == 3
    sampler.set_position(0, 2)
    assert list(sampler) == [(0, 4)]
    sampler.set_position(0, 3)
    assert list(sampler) == []


@pytest.mark.parametrize("length", [23, 24, 31])
def test_ranks_share_an_epoch_without_overlap(length: int) -> None:
    ranks = [EpochSampler(length, seed=0, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    first, second = ([index for _, index in sampler] for sampler in ranks)
    assert len(first) == len(second) == len(ranks[0]) == length // 8 * 4
    assert not set(first) & set(second)
    alone = [index for _, index in EpochSampler(length, seed=0, batch_size=8)]
    assert sorted(first + second) == sorted(alone)


def test_ranks_cover_everything_when_nothing_is_dropped() -> None:
    ranks = [
        EpochSampler(7, seed=0, batch_size=2, shuffle=False, drop_last=False, rank=rank, world_size=3)
        for rank in range(3)
    ]
    shares = [[index for _, index in sampler] for sampler in ranks]
    # Seven among three: two come again from the start.
    assert shares == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    assert [sampler.batches_per_epoch for sampler in ranks] == [2, 2, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpochSampler(3, seed=0, batch_size=4), "do not fill one batch"),
        (lambda: EpochSampler(7, seed=0, batch_size=4, world_size=2), "do not fill one batch"),
        (lambda: EpochSampler(0, seed=0, batch_size=1, drop_last=False), "do not fill one batch"),
        (lambda: EpochSampler(8, seed=0, batch_size=4, rank=2, world_size=2), "Rank 2"),
        (lambda: EpochSampler(8, seed=-1, batch_size=4), "Seed -1"),
        (lambda: EpochSampler(8, seed=0, batch_size=0), "batch size 0"),
        (lambda: EpochSampler(8, seed=0, batch_size=4).set_position(0, 3), "batch 3 does not exist"),
        (lambda: EpochSampler(8, seed=0, batch_size=4).set_position(-1), "epoch -1"),
    ],
)
def test_sampler_refuses_what_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_labelled_faces_are_cut_as_a_server_cuts_them(records: list[FaceRecord]) -> None:
    faces = LabelledFaces([records[0], replace(records[1], label=1, method="Deepfakes")], sizes=SIZES)
    assert len(faces) == 2
    crops, label, row = faces[1]
    assert (label, row) == (1, 1)
    image = read_image(records[1].path)
    window = tight_window(records[1].box, 150, 160)
    for size, crop in zip(SIZES, crops, strict=True):
        np.testing.assert_array_equal(crop.numpy(), crop_face(image, window, size))


def test_broken_crop_is_named_and_not_replaced(records: list[FaceRecord], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not a picture")
    damaged = [*records[:2], replace(records[2], path=broken)]
    for faces in (blended(damaged), LabelledFaces(damaged, sizes=SIZES)):
        with pytest.raises(InputError, match=r"broken\.jpg"):
            faces[(0, 2) if isinstance(faces, BlendedFaces) else 2]  # type: ignore[index]
    with pytest.raises(InputError, match=r"broken\.jpg"):
        check_records(damaged)


def test_missing_and_exchanged_crops_are_named(records: list[FaceRecord], tmp_path: Path) -> None:
    gone = replace(records[0], path=tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"gone\.png"):
        blended([gone])[0, 0]
    other = tmp_path / "other.png"
    save_image(other, np.zeros((20, 30, 3), np.uint8), store="png")
    with pytest.raises(InputError, match="30x20, but the index says 150x160"):
        blended([replace(records[0], path=other)])[0, 0]


def test_landmarks_or_box_of_another_face_are_named(records: list[FaceRecord]) -> None:
    name = records[0].path.name
    with pytest.raises(InputError, match=rf"{name}: Only 0 of 81 landmarks"):
        blended([replace(records[0], landmarks=records[0].landmarks + 500)])[0, 0]
    with pytest.raises(InputError, match=rf"{name}: The landmarks' centre"):
        blended([replace(records[0], box=(0.0, 0.0, 30.0, 30.0))])[0, 0]
    with pytest.raises(InputError, match=rf"{name}: Face box"):
        LabelledFaces([replace(records[0], box=(500.0, 0.0, 600.0, 30.0))], sizes=SIZES)[0]


def test_worker_hands_the_broken_crops_name_on(records: list[FaceRecord], tmp_path: Path) -> None:
    damaged = [replace(record, path=tmp_path / "lost.png") for record in records[:2]]
    sampler = EpochSampler(2, seed=0, batch_size=1)
    with pytest.raises(InputError, match=r"lost\.png"):
        loaded(blended(damaged), sampler, workers=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: BlendedFaces(r[:0], sizes=SIZES, seed=0, phase="train"), "no faces"),
        (lambda r: BlendedFaces(r, sizes=(), seed=0, phase="train"), "Crop sizes"),
        (lambda r: BlendedFaces(r, sizes=(0,), seed=0, phase="train"), "Crop sizes"),
        (lambda r: BlendedFaces(r, sizes=SIZES, seed=-1, phase="train"), "Seed -1"),
        (lambda r: BlendedFaces(r, sizes=SIZES, seed=0, phase="train", draws=0), "draws 0"),
        (lambda r: blended([replace(r[0], label=1, method="Deepfakes")]), "labelled fake"),
        (lambda r: LabelledFaces(r[:0], sizes=SIZES), "no faces"),
        (lambda r: choose_frames(r, 0), "Frames per video"),
    ],
)
def test_datasets_refuse_what_they_cannot_use(
    records: list[FaceRecord], make: Callable[[list[FaceRecord]], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(records)


def test_frames_are_evenly_spaced_and_of_the_largest_face(records: list[FaceRecord]) -> None:
    base = records[0]
    frames = [replace(base, video="a", frame=frame) for frame in (40, 0, 10, 30, 20)]
    second_faces = [replace(base, video="a", frame=frame, face=1) for frame in (0, 10)]
    others = [replace(base, video="b", frame=frame) for frame in (5, 6)]
    chosen = choose_frames([*frames, *second_faces, *others], 3)
    assert [(record.video, record.frame) for record in chosen] == [
        ("a", 0),
        ("a", 20),
        ("a", 40),
        ("b", 5),
        ("b", 6),
    ]
    assert {record.face for record in chosen} == {0}
    everything = choose_frames([*others, *second_faces, *frames], None)
    assert [record.frame for record in everything] == [5, 6, 0, 10, 20, 30, 40]
    assert [record.frame for record in choose_frames(frames, 1)] == [0]


def test_check_records_passes_good_data(records: list[FaceRecord]) -> None:
    check_records(records)


def test_worker_init_leaves_one_thread_and_ctrl_c_to_the_main_process() -> None:
    threads, cv_threads, handler = (
        torch.get_num_threads(),
        cv2.getNumThreads(),
        signal.getsignal(signal.SIGINT),
    )
    try:
        worker_init(0)
        assert torch.get_num_threads() == 1
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        # what is ignored here would be ignored in every process that later tests start
        signal.signal(signal.SIGINT, handler)
        cv2.setNumThreads(cv_threads)
        torch.set_num_threads(threads)


def test_batch_without_a_gpu_is_pinned_only_on_request(records: list[FaceRecord]) -> None:
    batch = collate([blended(records)[0, 0]])
    assert not batch.crops[0].is_pinned()
    if torch.cuda.is_available():
        pinned = batch.pin_memory()
        assert pinned.crops[0].is_pinned()
        assert pinned.labels.is_pinned()
