"""Feeds the networks: self-blended pairs to train on, labelled faces to evaluate on, in a known order.

A sample is a pure function of (seed, epoch, index), whatever the number of workers, and the sampler's
position is two numbers. So a run stopped in mid-epoch goes on with the very images it would have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pipeline.crop import crop_face, tight_window
from pipeline.errors import InputError
from pipeline.images import read_image
from training.index import FaceRecord
from training.selfblend import Phase, check_face, make_pair

Key: TypeAlias = tuple[int, int]
"""Epoch and index of a sample; what the sampler yields and `BlendedFaces` takes."""

# First number of every seed sequence, so that order and pixels never share a stream.
_PIXELS, _ORDER = 1, 2


class Batch(NamedTuple):
    """One training batch, all reals first.

    Attributes:
        crops: uint8 [2B, size, size, 3] RGB, one tensor per size, all showing the same crops.
        labels: int64 [2B], B zeros (real), then B ones (fake).
    """

    crops: tuple[Tensor, ...]
    labels: Tensor

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (the loader calls this where it was asked to pin)."""
        return Batch(tuple(crop.pin_memory() for crop in self.crops), self.labels.pin_memory())


class LabelledFace(NamedTuple):
    """One stored face as it is, at the evaluation margin.

    Attributes:
        crops: uint8 [size, size, 3] RGB, one tensor per size.
        label: 0 real, 1 fake.
        row: Place of the record in the sequence the dataset was made from.
    """

    crops: tuple[Tensor, ...]
    label: int
    row: int


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random stream of one sample: a counter-based generator keyed by seed, epoch and index."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((_PIXELS, seed, epoch, index))))


class BlendedFaces(Dataset[tuple[Tensor, ...]]):
    """Real faces and their self-blended twins.

    `faces[epoch, index]` is uint8 [2, size, size, 3] (0 the real, 1 the fake) for every size, all cut from
    the same pair by the same window. Equal seed, epoch and index give equal pixels in any process.
    """

    def __init__(
        self,
        records: Sequence[FaceRecord],
        *,
        sizes: tuple[int, ...],
        seed: int,
        phase: Phase,
        reference_quirks: bool = False,
        draws: int = 1,
    ) -> None:
        """Take the records as they are.

        Args:
            records: Real faces; `choose_frames` picks them.
            sizes: Sides of the squares wanted, in pixels.
            seed: The run's seed, >= 0.
            phase: "train" or "val", as for `make_pair`.
            reference_quirks: As for `make_pair`.
            draws: Different pairs of each record in an epoch; index i shows record i modulo their number.

        Raises:
            InputError: No records, a fake among them, no or non-positive sizes, a negative seed, no draws.
        """
        if seed < 0 or draws < 1:
            raise InputError(f"Seed {seed} and draws {draws} must be at least 0 and 1: set them higher.")
        fake = next((record for record in records if record.label != 0), None)
        if fake is not None:
            raise InputError(
                f"Self-blending takes real faces only, but {fake.path} is labelled fake ({fake.method}): "
                "leave fakes to evaluation."
            )
        self.records = _checked(records, sizes)
        self.sizes, self.seed = sizes, seed
        self.phase: Phase = phase
        self.reference_quirks = reference_quirks
        self.draws = draws

    def __len__(self) -> int:
        return len(self.records) * self.draws

    def __getitem__(self, key: Key) -> tuple[Tensor, ...]:
        """The pair of one (epoch, index).

        Raises:
            InputError: The stored crop is missing or broken, or its landmarks or box do not fit it.
            IndexError: There is no such index.
        """
        epoch, index = key
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not within the {len(self)} samples of an epoch")
        record = self.records[index % len(self.records)]
        image = load_crop(record)
        try:
            pair = make_pair(
                image,
                record.landmarks,
                record.box,
                sample_generator(self.seed, epoch, index),
                phase=self.phase,
                reference_quirks=self.reference_quirks,
            )
        except InputError as error:
            raise InputError(f"{record.path}: {error}") from error
        return tuple(_squares((pair.real, pair.fake), size) for size in self.sizes)


class LabelledFaces(Dataset[LabelledFace]):
    """Stored real and fake faces as a server would see them: the evaluation margin, nothing changed."""

    def __init__(self, records: Sequence[FaceRecord], *, sizes: tuple[int, ...]) -> None:
        """Take the records as they are.

        Raises:
            InputError: No records, or no or non-positive sizes.
        """
        self.records = _checked(records, sizes)
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> LabelledFace:
        """One face.

        Raises:
            InputError: The stored crop is missing or broken, or its box does not fit it.
        """
        record = self.records[index]
        image = load_crop(record)
        try:
            window = tight_window(record.box, record.width, record.height)
        except InputError as error:
            raise InputError(f"{record.path}: {error}") from error
        crops = tuple(torch.from_numpy(crop_face(image, window, size)) for size in self.sizes)
        return LabelledFace(crops, record.label, index)


def load_crop(record: FaceRecord) -> NDArray[np.uint8]:
    """Read a record's stored crop, RGB uint8 [height, width, 3].

    Raises:
        InputError: The file is missing or broken, or has another size than the index says.
    """
    image = read_image(record.path)
    height, width = image.shape[:2]
    if (width, height) != (record.width, record.height):
        raise InputError(
            f"{record.path} is {width}x{height}, but the index says {record.width}x{record.height}: "
            "the file was changed after it was prepared. Prepare the folder again."
        )
    return image


def collate(samples: Sequence[tuple[Tensor, ...]]) -> Batch:
    """Stack pairs into a batch, all reals first, then all fakes in the same order.

    Args:
        samples: What `BlendedFaces` returned; at least one.
    """
    pairs = len(samples)
    crops = tuple(
        # [B, 2, ...] -> [2, B, ...] -> [2B, ...]
        torch.stack(same_size, dim=1).flatten(0, 1)
        for same_size in zip(*samples, strict=True)
    )
    labels = torch.arange(2, dtype=torch.int64).repeat_interleave(pairs)
    return Batch(crops, labels)


class EpochSampler(Sampler[Key]):
    """Yields (epoch, index) keys: the order of an epoch is a pure function of seed and epoch.

    One iteration is one epoch, from the position given. Each rank of `world_size` takes every
    `world_size`-th key, all ranks equally many. The sampler does not move by itself: call `set_position`
    before each epoch, so that several iterations over one position are equal.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Start at epoch 0, batch 0.

        Args:
            length: Samples in the dataset.
            seed: The run's seed, >= 0.
            batch_size: Samples (pairs) per batch and rank; must be the loader's.
            shuffle: A new order every epoch; otherwise 0, 1, 2, ...
            drop_last: Leave out the samples that fill no batch on every rank. Otherwise every sample comes
                once, and with several ranks the first ones again so that all ranks get equally many.
            rank: Number of this process, from 0.
            world_size: Number of processes.

        Raises:
            InputError: A number is out of range, or an epoch would have no batch.
        """
        if not 0 <= rank < world_size:
            raise InputError(
                f"Rank {rank} does not fit {world_size} processes: expected 0..{world_size - 1}."
            )
        if seed < 0 or batch_size < 1:
            raise InputError(
                f"Seed {seed} and batch size {batch_size} must be at least 0 and 1: set them higher."
            )
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch, self.batch_offset = 0, 0
        if self.batches_per_epoch < 1:
            raise InputError(
                f"{length} samples do not fill one batch of {batch_size} on {world_size} process(es): "
                "lower the batch size or prepare more faces."
            )

    @property
    def samples_per_epoch(self) -> int:
        """Samples of a whole epoch on this rank, whatever the position."""
        if self.drop_last:
            return self.length // (self.batch_size * self.world_size) * self.batch_size
        return -(-self.length // self.world_size)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch on this rank, whatever the position."""
        return -(-self.samples_per_epoch // self.batch_size)

    def set_position(self, epoch: int, batch_offset: int = 0) -> None:
        """Make the next iteration start at a batch of an epoch.

        Args:
            epoch: From 0.
            batch_offset: Batches of this epoch already done.

        Raises:
            InputError: The epoch has no such batch.
        """
        if epoch < 0 or not 0 <= batch_offset <= self.batches_per_epoch:
            raise InputError(
                f"Position epoch {epoch}, batch {batch_offset} does not exist: an epoch here has "
                f"{self.batches_per_epoch} batches. The data or batch size differ from the run to be resumed."
            )
        self.epoch, self.batch_offset = epoch, batch_offset

    def __len__(self) -> int:
        """Samples left from the position to the end of the epoch."""
        return max(0, self.samples_per_epoch - self.batch_offset * self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        order = np.arange(self.length)
        if self.shuffle:
            keyed = np.random.SeedSequence((_ORDER, self.seed, epoch))
            order = np.random.Generator(np.random.Philox(keyed)).permutation(self.length)
        # np.resize repeats from the start where the ranks' share is longer than what is left.
        mine = np.resize(order, self.samples_per_epoch * self.world_size)[self.rank :: self.world_size]
        for index in mine[self.batch_offset * self.batch_size :]:
            yield epoch, int(index)


def choose_frames(records: Sequence[FaceRecord], per_video: int | None) -> list[FaceRecord]:
    """Keep the largest face of evenly spaced frames of each video.

    Args:
        records: Any records; faces other than the largest of their frame are left out.
        per_video: Frames kept per video, the first and the last among them; None keeps all.

    Returns:
        The chosen records, by video in order of first appearance, then by frame.

    Raises:
        InputError: `per_video` is less than 1.
    """
    if per_video is not None and per_video < 1:
        raise InputError(f"Frames per video must be 1 or more, not {per_video}.")
    videos: dict[str, list[FaceRecord]] = {}
    for record in records:
        if record.face == 0:
            videos.setdefault(record.video, []).append(record)
    chosen: list[FaceRecord] = []
    for frames in videos.values():
        frames.sort(key=lambda record: record.frame)
        keep = len(frames) if per_video is None else min(per_video, len(frames))
        places = np.linspace(0, len(frames) - 1, keep).round().astype(int)
        chosen.extend(frames[place] for place in places)
    return chosen


def check_records(records: Sequence[FaceRecord], *, pixels: bool = True) -> None:
    """Refuse the first face that could not be blended, before hours are spent.

    Args:
        records: Faces to check.
        pixels: Also read every crop; otherwise the index is trusted for its size, which takes no time.

    Raises:
        InputError: Landmarks or box do not fit a crop, or (where it is read) it is missing or broken.
    """
    for record in records:
        blank = np.broadcast_to(np.uint8(0), (record.height, record.width, 3))
        image = load_crop(record) if pixels else blank
        try:
            check_face(image, record.landmarks, record.box)
        except InputError as error:
            raise InputError(f"{record.path}: {error}") from error


def worker_init(worker: int) -> None:
    """Give a loader's worker one thread, so that one worker per core does not start cores² threads.

    Ctrl-C reaches every process of the terminal; the main one alone decides when to stop.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _squares(images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    height, width = images[0].shape[:2]
    return torch.from_numpy(np.stack([crop_face(image, (0, 0, width, height), size) for image in images]))


def _checked(records: Sequence[FaceRecord], sizes: tuple[int, ...]) -> list[FaceRecord]:
    if not records:
        raise InputError("There are no faces to read: check the split and the prepared folder.")
    if not sizes or min(sizes) < 1:
        raise InputError(f"Crop sizes must be positive numbers of pixels, not {sizes}.")
    return list(records)
