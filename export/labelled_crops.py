"""Gathers the labelled crops that scores are calibrated on and formats are proven on, from a prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError
from pipeline.runtime import Crops
from pipeline.samples import Collected, collect
from pipeline.scoring import DEFAULT_RULE, p_fake
from training.dataset import BlendedFaces, LabelledFaces, choose_frames
from training.face_scores import SELF_BLENDED
from training.index import SPLITS, FaceRecord, Split, index_hash, read_index

_T = TypeVar("_T")

FEWEST_IMAGES = 300
"""Fewer than this many and a note says that the numbers are rough."""


@dataclass(frozen=True, slots=True)
class LabelledCrops:
    """Faces as a server would cut them, with what is known of each. All columns have one entry per crop.

    Attributes:
        crops: uint8 RGB [N, size, size, 3], reals first.
        labels: int64 [N], 0 real, 1 fake.
        videos, methods: Full video id (with the manipulation) and manipulation.
        frames: Number of the frame within its video.
        areas: Area of the face's box, pixels.
        data: Name of the prepared folder.
        data_sha256: Hash of its index.
        split: The part they are from.
        fakes: Whether the fakes are labelled deepfakes or blended from the real faces.
        notes: What was used, in sentences.
    """

    crops: Crops
    labels: NDArray[np.int64]
    videos: tuple[str, ...]
    methods: tuple[str, ...]
    frames: tuple[int, ...]
    areas: tuple[float, ...]
    data: str
    data_sha256: str
    split: Split
    fakes: Literal["labelled", "self-blended"]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, places: NDArray[np.int64]) -> LabelledCrops:
        """Those at the given places, int64 [M]."""

        def pick(column: tuple[_T, ...]) -> tuple[_T, ...]:
            return tuple(column[place] for place in places)

        return replace(
            self,
            crops=self.crops[places],
            labels=self.labels[places],
            videos=pick(self.videos),
            methods=pick(self.methods),
            frames=pick(self.frames),
            areas=pick(self.areas),
        )

    def collect(self, logits: ArrayLike, temperature: float = 1.0, rule: str = DEFAULT_RULE) -> Collected:
        """A network's scores of these crops, gathered into frames and videos.

        Args:
            logits: [N, 2].
            temperature: As for `pipeline.scoring.p_fake`.
            rule: As for `pipeline.scoring.video_score`.

        Raises:
            InputError: Logits that are not finite.
        """
        return collect(
            p_fake(logits, temperature),
            self.labels,
            self.videos,
            self.methods,
            frames=self.frames,
            areas=self.areas,
            rule=rule,
        )


def gather(
    data: Path, size: int, *, split: Split = "val", images: int = 300, seed: int = 5, first_draw: int = 0
) -> LabelledCrops:
    """Real faces and fakes of one split, evenly over its videos.

    Where the split has labelled fakes they are used; else each real face is blended with itself, several times
    where there are few. No real face comes twice, so that few real faces are seen to be few.

    Args:
        data: A folder written by `stillface prepare`.
        size: Side of the network's square, pixels.
        split: Part of the folder; validation data, never what the final figures are measured on.
        images: About how many crops, half of them real where the data have as many.
        seed: Of the blends.
        first_draw: Number of the first blend of each face; other numbers give other blends.

    Raises:
        InputError: No such folder or split, no real faces, a broken crop, or fewer than two images asked for.
    """
    if images < 2:
        raise InputError(f"--images {images}: real and fake crops need at least 2; 300 or more are sensible.")
    records = [record for record in read_index(data) if record.split == split]
    reals, fakes = ([record for record in records if record.label == label] for label in (0, 1))
    _refuse_missing_class(data, split, reals)
    chosen = _evenly(reals, images // 2)
    crops = [_as_stored(chosen, size)]
    columns = [chosen]
    frames = [record.frame for record in chosen]
    if fakes:
        twins = _evenly(fakes, images - len(chosen))
        crops.append(_as_stored(twins, size))
        frames += [record.frame for record in twins]
    else:
        draws = -(-(images - len(chosen)) // len(chosen))
        crops.append(_blended(chosen, size, seed, range(first_draw, first_draw + draws)))
        twins = [_twin(record) for record in chosen] * draws
        # each blend is a frame of its own: the highest score of several would not be a frame's
        frames += list(range(len(twins)))
    columns.append(twins)
    everyone = [record for column in columns for record in column]
    kind: Literal["labelled", "self-blended"] = "labelled" if fakes else "self-blended"
    return LabelledCrops(
        crops=np.concatenate(crops),
        labels=np.array([record.label for record in everyone], dtype=np.int64),
        videos=tuple(record.video for record in everyone),
        methods=tuple(record.method for record in everyone),
        frames=tuple(frames),
        areas=tuple(_area(record) for record in everyone),
        data=data.resolve().name,
        data_sha256=index_hash(data),
        split=split,
        fakes=kind,
        notes=_notes(split, kind, chosen, twins),
    )


def gather_for_ranges(data: Path, size: int, *, proven_on: Split, images: int, seed: int) -> LabelledCrops:
    """Crops from which int8 ranges are taken: other faces than the gate's where the folder has them.

    Args:
        data: A prepared folder.
        size: Side of the network's square, pixels.
        proven_on: The split that the gate measures on.
        images: About how many crops.
        seed: Of the blends.

    Returns:
        Crops of the training split; where it has no real faces, other blends of the gate's own faces, which a
        note says.

    Raises:
        InputError: As `gather`.
    """
    index = read_index(data)
    if proven_on != "train" and any(record.split == "train" and record.label == 0 for record in index):
        return gather(data, size, split="train", images=images, seed=seed)
    same = gather(data, size, split=proven_on, images=images, seed=seed, first_draw=1000)
    note = f"the same real faces as the gate's, because {data.name} has no real faces in a split for training"
    return replace(same, notes=(*same.notes, note))


def _refuse_missing_class(data: Path, split: Split, reals: Sequence[FaceRecord]) -> None:
    if reals:
        return
    counts = {name: [0, 0] for name in SPLITS}
    for record in read_index(data):
        counts[record.split][record.label] += 1
    present = ", ".join(
        f"{name}: {real} real and {fake} fake" for name, (real, fake) in counts.items() if real + fake
    )
    raise InputError(
        f"{data} has no real faces in split {split!r} (it has {present}). Scores cannot be calibrated without "
        "them: choose another --split, or prepare real media too."
    )


def _evenly(records: Sequence[FaceRecord], count: int) -> list[FaceRecord]:
    """At most about `count` records, the same number from each video, evenly over its length."""
    videos = list(dict.fromkeys(record.video for record in records))
    if len(videos) > count:
        places = np.linspace(0, len(videos) - 1, max(1, count)).round().astype(int)
        kept = {videos[place] for place in places}
        records = [record for record in records if record.video in kept]
        videos = list(kept)
    return choose_frames(records, max(1, count // len(videos)))


def _as_stored(records: Sequence[FaceRecord], size: int) -> Crops:
    faces = LabelledFaces(records, sizes=(size,))
    return np.stack([faces[index].crops[0].numpy() for index in range(len(faces))])


def _blended(records: Sequence[FaceRecord], size: int, seed: int, draws: range) -> Crops:
    pairs = BlendedFaces(records, sizes=(size,), seed=seed, phase="val")
    fakes = [pairs[draw, index][0][1] for draw in draws for index in range(len(records))]
    return np.asarray(torch.stack(fakes).numpy(), dtype=np.uint8)


def _twin(record: FaceRecord) -> FaceRecord:
    return replace(record, video=f"{record.video}/{SELF_BLENDED}", label=1, method=SELF_BLENDED)


def _area(record: FaceRecord) -> float:
    left, top, right, bottom = record.box
    return (right - left) * (bottom - top)


def _notes(
    split: Split, kind: str, reals: Sequence[FaceRecord], fakes: Sequence[FaceRecord]
) -> tuple[str, ...]:
    videos = [len({record.video for record in records}) for records in (reals, fakes)]
    notes = [
        f"{len(reals)} real faces of {videos[0]} video(s) and {len(fakes)} {kind} fakes of {videos[1]}, split {split}"
    ]
    if kind == SELF_BLENDED:
        notes.append(
            "the fakes were blended from the real faces: thresholds fitted on them say how blending traces are "
            "told from real faces, not how deepfakes are"
        )
    if len(reals) + len(fakes) < FEWEST_IMAGES:
        notes.append(f"fewer than {FEWEST_IMAGES} images: the figures are rough")
    return tuple(notes)
