"""An easy task, and networks trained on it in minutes: trained weights for `bench export` and `bench gate`.

The fakes are the real faces of a prepared folder with their inner part pasted back at a tenth of its resolution. No
detector of deepfakes comes of that; weights do, whose answers are those of a network that has learned its task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from benchmarks.table_plan import Entry
from pipeline.crop import Box
from pipeline.errors import InputError
from pipeline.images import save_image
from pipeline.measures import auc
from training.backbones import published_settings
from training.checkpoint import CheckpointInfo, save_checkpoint
from training.dataset import LabelledFaces, load_crop
from training.face_scores import in_torch
from training.index import INDEX_NAME, FaceRecord, Split, index_hash, read_index, write_index
from training.networks import Detector, NetworkSpec, build_from_spec
from training.run_folder import provenance_of
from training.runtime import seed_everything

METHOD: Final = "lowres"
STAGE: Final = "easy-task"
"""Stage of such a checkpoint."""
COARSER: Final = 10
"""Times fewer pixels on each side of the inner part."""
_INNER: Final = 0.6
"""Side of the inner part, as a share of the face box's."""
DRAWN_SHARE: Final = 0.1
"""Drawn images among the training crops, as a share of the faces."""
_BATCH: Final = 8
_WARM_UP: Final = 0.1
"""Share of the steps in which the learning rate rises."""
_SEED: Final = 5


def write_faces(source: Path, out: Path) -> int:
    """Write a prepared folder of the real faces of another, each with its coarse twin as a labelled fake.

    Args:
        source: Written by `stillface prepare`.
        out: New folder.

    Returns:
        How many real faces there are; there are as many fakes.

    Raises:
        InputError: No real faces in `source`, or `out` is a prepared folder already, or cannot be written.
    """
    if (out / INDEX_NAME).exists():
        raise InputError(f"{out} is a prepared folder already: give a new one, or delete it first.")
    reals = [record for record in read_index(source) if record.label == 0]
    if not reals:
        raise InputError(f"{source} has no real faces: prepare a folder that has (`stillface prepare`).")
    records: list[FaceRecord] = []
    for number, record in enumerate(reals):
        image = load_crop(record)
        for label, pixels in enumerate((image, coarsened(image, record.box))):
            method = METHOD if label else record.method
            path = out / "crops" / method / f"{number:05d}.png"
            save_image(path, pixels, store="png")
            video = f"{METHOD}/{record.video}" if label else record.video
            records.append(replace(record, path=path, label=label, method=method, video=video))
    write_index(out, records)
    return len(reals)


def coarsened(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """The image with the inner part of a face at a tenth of its resolution.

    Args:
        image: RGB uint8 [H, W, 3].
        box: The face's x0, y0, x1, y1, pixels.

    Returns:
        A changed copy.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    x, y, half_width, half_height = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    left, right = (int(np.clip(x + side * _INNER * half_width, 0, width)) for side in (-1, 1))
    top, bottom = (int(np.clip(y + side * _INNER * half_height, 0, height)) for side in (-1, 1))
    inner = image[top:bottom, left:right]
    few = (max(1, inner.shape[1] // COARSER), max(1, inner.shape[0] // COARSER))
    small = cv2.resize(inner, few, interpolation=cv2.INTER_AREA)
    changed = image.copy()
    changed[top:bottom, left:right] = cv2.resize(small, inner.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return changed


def drawn(size: int, count: int) -> NDArray[np.uint8]:
    """Images of one colour, checkerboards and noise, in turns.

    Without them BatchNorm's statistics are those of faces alone: noise took a teacher trained for minutes past what
    float16 holds, and two networks were undecided about black, where rounding shows most. Drawn otherwise
    than what the gate shows (`export.parity_inputs`), which must not be learned by heart; plain black and white are in
    both.

    Args:
        size: Side in pixels.
        count: How many.

    Returns:
        RGB uint8 [count, size, size, 3]; the same for the same arguments.
    """
    rng = np.random.default_rng(_SEED)
    rows, columns = np.indices((size, size))
    images = np.empty((count, size, size, 3), np.uint8)
    for number in range(count):
        # Beyond the range, so that black and white are common; grey half of the time.
        one, other = (rng.integers(-128, 384, rng.choice((1, 3))).clip(0, 255) for _ in range(2))
        cell = 2 ** rng.integers(0, 6)
        board = (rows // cell + columns // cell)[..., None] % 2
        share = (0, board, rng.random((size, size, 3)))[number % 3]
        images[number] = one + share * (other - one)
    return images


def train(
    entry: Entry,
    data: Path,
    out: Path,
    *,
    epochs: int,
    lr: float = 1e-3,
    tell: Callable[[str], None] = lambda _: None,
) -> float:
    """Train a network with random weights to tell a folder's labelled fakes from its real faces.

    Cross-entropy, AdamW, a rate that rises and falls as half a cosine, crops mirrored at random, drawn images among
    the fakes. BatchNorm's statistics are taken anew of all training crops at the end (Wu and Johnson 2021, "Rethinking
    'Batch' in BatchNorm"): the running ones of few small batches are far off in a deep network.

    Args:
        entry: The network.
        data: Prepared folder with labelled fakes in its splits train and val.
        out: Checkpoint to write.
        epochs: Passes over the training faces.
        lr: Highest learning rate.
        tell: Told of each epoch.

    Returns:
        AUC on the split val.

    Raises:
        InputError: A folder without labelled fakes, a checkpoint in place of a name, or weights that ended up not
            finite.
    """
    if entry.checkpoint is not None:
        raise InputError(f"{entry.checkpoint}: training starts from random weights; give NAME@SIZE of timm.")
    seed_everything(_SEED)
    crops, labels = _with_drawn(*_faces(data, "train", entry.image_size))
    held_out, truth = _faces(data, "val", entry.image_size)
    published = published_settings(entry.name)
    spec = NetworkSpec(name=entry.name, image_size=entry.image_size, mean=published.mean, std=published.std)
    detector = build_from_spec(spec).train()
    _begin_as_shortcuts(detector)
    steps = epochs * -(-len(crops) // _BATCH)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=_WARM_UP)
    for epoch in range(epochs):
        losses = [
            _step(detector, optimizer, rate, images, wanted)
            for images, wanted in _batches(crops, labels, epoch)
        ]
        tell(f"{entry.title}: epoch {epoch + 1} of {epochs}, loss {np.mean(losses):.4f}")
    _take_statistics(detector, crops)
    reached = auc(_scores(detector, held_out), truth)
    assert reached is not None  # noqa: S101 - `_faces` gave both classes
    info = CheckpointInfo(
        stage=STAGE,
        epoch=epochs,
        val_auc=reached,
        threshold=None,
        network=spec,
        config={
            "task": METHOD,
            "epochs": epochs,
            "lr": lr,
            "batch_size": _BATCH,
            "drawn_share": DRAWN_SHARE,
            "seed": _SEED,
        },
        provenance=provenance_of(index_hash(data)),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, detector.state_dict(), info)
    return reached


def _faces(data: Path, split: Split, size: int) -> tuple[Tensor, Tensor]:
    """Crops uint8 [N, size, size, 3] and labels int64 [N] of one split."""
    records = [record for record in read_index(data) if record.split == split]
    if len({record.label for record in records}) < 2:
        raise InputError(
            f"{data}, split {split}: expected real faces and labelled fakes; `bench lowres-faces` makes such a folder."
        )
    faces = LabelledFaces(records, sizes=(size,))
    crops = torch.stack([faces[index].crops[0] for index in range(len(faces))])
    return crops, torch.tensor([record.label for record in records])


def _with_drawn(crops: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and drawn images labelled fake: faces they are not."""
    others = torch.from_numpy(drawn(crops.shape[1], round(DRAWN_SHARE * len(crops))))
    return torch.cat((crops, others)), torch.cat((labels, labels.new_ones(len(others))))


def _begin_as_shortcuts(detector: Detector) -> None:
    """Let every residual block of EfficientNet pass its input on (Goyal et al. 2017, section 5.1).

    Dozens of them with random weights multiply whatever BatchNorm has not met.
    """
    for module in detector.modules():
        if isinstance(module, InvertedResidual) and module.has_skip:
            nn.init.zeros_(module.bn3.weight)


def _batches(crops: Tensor, labels: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches, shuffled, each half mirrored; a last one of a single crop has no statistics."""
    chance = torch.Generator().manual_seed(epoch)
    for places in torch.split(torch.randperm(len(crops), generator=chance), _BATCH):
        images = crops[places]
        mirrored = torch.rand(len(places), generator=chance) < 0.5
        images[mirrored] = images[mirrored].flip(2)
        if len(places) > 1:
            yield images, labels[places]


def _step(
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    images: Tensor,
    labels: Tensor,
) -> float:
    loss = nn.functional.cross_entropy(detector(images), labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
    optimizer.step()
    rate.step()
    return float(loss.detach())


@torch.no_grad()
def _take_statistics(detector: Detector, crops: Tensor) -> None:
    """Set BatchNorm's statistics to the mean of those of all batches."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
    mixed = crops[torch.randperm(len(crops), generator=torch.Generator().manual_seed(_SEED))]
    for images in torch.split(mixed, _BATCH):
        detector(images)


def _scores(detector: Detector, crops: Tensor) -> NDArray[np.float64]:
    network = in_torch(detector, "cpu")
    logits = np.concatenate([network.answer(images) for images in torch.split(crops, _BATCH)])
    return np.asarray(logits[:, 1] - logits[:, 0])
