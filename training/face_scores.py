"""Asks a network about prepared faces and keeps each score beside the face it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from pipeline.errors import InputError
from pipeline.samples import Collected, collect
from pipeline.scoring import p_fake
from training.dataset import BlendedFaces, Key, LabelledFaces, collate, worker_init
from training.index import FaceRecord
from training.loader import batches_of
from training.networks import Detector

SELF_BLENDED = "self-blended"

Progress = Callable[[int], None]
"""Called with the number of faces done since the last call."""


@dataclass(frozen=True, slots=True)
class Network:
    """What scores crops: a detector in PyTorch (`in_torch`), or an artefact in the runtime that serves it.

    Attributes:
        image_size: Side of its crops in pixels.
        answer: Gives logits float64 [N, 2] for crops uint8 [N, image_size, image_size, 3].
        temperature: Of its scores.
    """

    image_size: int
    answer: Callable[[torch.Tensor], NDArray[np.float64]]
    temperature: float = 1.0


def in_torch(detector: Detector, device: torch.device | str) -> Network:
    """A detector as precise as its weights, in evaluation mode while it is asked.

    Args:
        detector: On `device`; its mode is put back after each batch.
        device: Where it is.
    """

    @torch.no_grad()
    def answer(crops: torch.Tensor) -> NDArray[np.float64]:
        was_training = detector.training
        detector.eval()
        try:
            logits: NDArray[np.float64] = detector(crops.to(device, non_blocking=True)).double().cpu().numpy()
        finally:
            detector.train(was_training)
        return logits

    return Network(detector.spec.image_size, answer)


@dataclass(frozen=True, slots=True)
class Scores:
    """A network's answers in the loader's order: logits float64 [n, 2], labels int64 [n]."""

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]


def score_loader(network: Network, loader: DataLoader[Any], *, progress: Progress | None = None) -> Scores:
    """Ask a network about batches of `BlendedFaces` or `LabelledFaces`.

    Args:
        network: What is asked.
        loader: batches whose first item is crops (one uint8 tensor per size), the second labels.
        progress: told after each batch how many faces it had.

    Raises:
        InputError: the loader has no crops of the network's size.
    """
    logits, labels = [], []
    for crops, truth, *_ in batches_of(loader):
        logits.append(network.answer(_of_size(crops, network.image_size)))
        labels.append(truth)
        if progress is not None:
            progress(len(truth))
    return Scores(np.concatenate(logits), torch.cat(labels).numpy())


def _of_size(crops: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    for tensor in crops:
        if tensor.shape[1] == size:
            return tensor
    sizes = [int(tensor.shape[1]) for tensor in crops]
    raise InputError(
        f"the network takes {size} px crops, the loader gives {sizes}; ask the dataset for {size}."
    )


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How crops reach the network: images per batch, loader processes, and where they go."""

    batch_size: int
    workers: int
    device: torch.device


def _loader(dataset: Any, batch_size: int, settings: LoaderSettings, **extra: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=settings.workers,
        worker_init_fn=worker_init,
        pin_memory=settings.device.type == "cuda",
        **extra,
    )


@dataclass(frozen=True, slots=True)
class ScoredFaces:
    """Scored faces with where they come from; all lists have one entry per face."""

    records: list[FaceRecord]
    frames: list[int]
    scores: NDArray[np.float64]

    def collect(self, rule: str) -> Collected:
        """Gather the faces into frames and videos."""
        return collect(
            self.scores,
            [record.label for record in self.records],
            [record.video for record in self.records],
            [record.method for record in self.records],
            frames=self.frames,
            areas=[_area(record) for record in self.records],
            rule=rule,
        )


def _area(record: FaceRecord) -> float:
    left, top, right, bottom = record.box
    return (right - left) * (bottom - top)


def score_records(
    network: Network,
    records: Sequence[FaceRecord],
    settings: LoaderSettings,
    *,
    progress: Progress | None = None,
) -> ScoredFaces:
    """Score stored faces as they are, at the evaluation margin.

    Raises:
        InputError: as `LabelledFaces` and `p_fake`.
    """
    faces = LabelledFaces(records, sizes=(network.image_size,))
    loader = _loader(faces, settings.batch_size, settings)
    scores = p_fake(score_loader(network, loader, progress=progress).logits, network.temperature)
    return ScoredFaces(list(records), [record.frame for record in records], scores)


def score_pairs(
    network: Network,
    records: Sequence[FaceRecord],
    settings: LoaderSettings,
    *,
    seed: int,
    draws: int,
    progress: Progress | None = None,
) -> ScoredFaces:
    """Score real faces and self-blended twins of them, `draws` pairs of each face.

    A pair is a frame of its own, because the blend differs from face to face and draw to draw. The twins'
    video is the source's with "/self-blended" behind it.

    Raises:
        InputError: as `BlendedFaces` and `p_fake`.
    """
    faces = BlendedFaces(records, sizes=(network.image_size,), seed=seed, phase="val")
    keys = [(draw, index) for draw in range(draws) for index in range(len(records))]
    loader = _loader(
        faces, max(1, settings.batch_size // 2), settings, sampler=_InOrder(keys), collate_fn=collate
    )
    result = score_loader(network, loader, progress=progress)
    scores = p_fake(result.logits, network.temperature)
    # a batch holds its reals before its fakes; within each class the order is that of the keys
    ordered = np.concatenate((scores[result.labels == 0], scores[result.labels == 1]))
    reals = list(records) * draws
    twins = [
        replace(record, video=f"{record.video}/{SELF_BLENDED}", label=1, method=SELF_BLENDED)
        for record in reals
    ]
    return ScoredFaces(reals + twins, list(range(len(keys))) * 2, ordered)


class _InOrder(Sampler[Key]):
    """The given keys, in the order given."""

    def __init__(self, keys: list[Key]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)
