"""What the parity gate shows every form of the network: labelled faces, and seeded images that anyone can draw again.

The drawn ones are made with integer arithmetic only, so that every machine draws the same bytes and a bundle can be
proven where the faces may not go.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.labelled_crops import LabelledCrops
from pipeline.runtime import Crops

_SEED = 20
_DRAWN = {"noise": 8, "clouds": 24}


@dataclass(frozen=True, slots=True)
class ParityInputs:
    """Crops to compare on, the labelled ones first.

    Attributes:
        crops: uint8 RGB [N, size, size, 3].
        kinds: Name of each crop's kind, [N]: "real", "fake", "noise", "clouds", "black", "white", "checkerboard".
        labelled: Where the first crops come from; None where there are only drawn ones.
    """

    crops: Crops
    kinds: NDArray[np.str_]
    labelled: LabelledCrops | None

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def labelled_count(self) -> int:
        """How many of the crops are labelled faces."""
        return 0 if self.labelled is None else len(self.labelled)

    def thinned(self, labelled: int) -> NDArray[np.int64]:
        """Places of at most so many labelled crops, evenly, and of all drawn ones; int64, rising."""
        count = self.labelled_count
        kept = np.unique(np.linspace(0, count - 1, min(labelled, count)).round().astype(np.int64))
        return np.concatenate((kept, np.arange(count, len(self))))


def build_inputs(size: int, labelled: LabelledCrops | None) -> ParityInputs:
    """Labelled crops, if any, and the drawn ones behind them."""
    drawn, kinds = drawn_crops(size)
    if labelled is None:
        return ParityInputs(drawn, kinds, None)
    names = np.where(labelled.labels == 1, "fake", "real")
    return ParityInputs(np.concatenate((labelled.crops, drawn)), np.concatenate((names, kinds)), labelled)


def drawn_crops(size: int) -> tuple[Crops, NDArray[np.str_]]:
    """Seeded noise and clouds, black, white and a checkerboard.

    Returns:
        uint8 RGB [35, size, size, 3] and the kind of each, [35].
    """
    rng = np.random.default_rng(_SEED)
    noise = rng.integers(0, 256, (_DRAWN["noise"], size, size, 3), dtype=np.uint8)
    clouds = np.stack([_cloud(rng, size) for _ in range(_DRAWN["clouds"])])
    rows, columns = np.indices((size, size))
    board = np.repeat(((rows // 8 + columns // 8) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    flat = np.stack([np.zeros_like(board), np.full_like(board, 255), board])
    kinds = ["noise"] * len(noise) + ["clouds"] * len(clouds) + ["black", "white", "checkerboard"]
    return np.concatenate((noise, clouds, flat)), np.array(kinds)


def digest(crops: Crops) -> str:
    """SHA-256 of the pixels, to know that two machines drew the same."""
    return hashlib.sha256(np.ascontiguousarray(crops).tobytes()).hexdigest()


def _cloud(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Octaves of smooth noise, each half as strong as the one before: about the spectrum of a photograph."""
    total = np.zeros((size, size, 3), dtype=np.int64)
    weight, cells = 64, 2
    while cells <= size:
        coarse = rng.integers(0, 256, (cells + 1, cells + 1, 3), dtype=np.int64)
        total += weight * _smooth(coarse, size)
        weight, cells = weight // 2, cells * 2
        if weight == 0:
            break
    low, high = int(total.min()), int(total.max())
    return np.asarray((total - low) * 255 // max(1, high - low), dtype=np.uint8)


def _smooth(coarse: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Bilinear enlargement [k + 1, k + 1, 3] -> [size, size, 3] in whole numbers."""
    cells = len(coarse) - 1
    place = np.arange(size) * cells * 256 // size
    cell, part = place // 256, place % 256
    part_rows, part_columns = part[:, None, None], part[None, :, None]
    rows = coarse[cell] * (256 - part_rows) + coarse[cell + 1] * part_rows
    both = rows[:, cell] * (256 - part_columns) + rows[:, cell + 1] * part_columns
    return np.asarray(both // 65536, dtype=np.int64)
