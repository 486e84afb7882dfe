"""Shows what training will see: a picture of real, fake, blend weights and difference for a few stored faces.

Wrong boxes, landmarks or colours are seen here in a second, and in a training curve not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.crop import crop_face
from pipeline.errors import InputError
from pipeline.images import save_image
from training.dataset import choose_frames, load_crop, sample_generator
from training.index import FaceRecord, Split, read_index
from training.selfblend import Pair, Phase, make_pair

AMPLIFICATION = 4
COLUMNS = ("real", "fake", "weight of the source", f"fake - real, x{AMPLIFICATION}")

_CAPTION_HEIGHT = 20
_GAP = 4
_INK, _PAPER = (40, 40, 40), 245


def write_contact_sheet(
    folder: Path,
    out: Path,
    *,
    count: int = 8,
    seed: int = 0,
    split: Split = "train",
    phase: Phase = "train",
    size: int = 256,
    reference_quirks: bool = False,
) -> int:
    """Write a PNG with one row per face: real, fake, blend weights, amplified difference.

    Args:
        folder: A prepared folder.
        out: PNG to write; an older one is replaced.
        count: Rows wanted; fewer are drawn if the split has fewer real faces.
        seed: Seed of the blending.
        split: Which faces to take, evenly spaced over the split's real videos.
        phase: "train" or "val", as for `make_pair`.
        size: Side of each cell in pixels.
        reference_quirks: As for `make_pair`.

    Returns:
        Rows drawn.

    Raises:
        InputError: The folder cannot be used, has no real face in this split, a crop is broken, `count` or
            `size` is not positive, or `out` is no PNG or cannot be written.
    """
    if count < 1 or size < 32:
        raise InputError(f"A contact sheet needs 1 row and 32 pixels or more, not {count} and {size}.")
    if out.suffix.lower() != ".png":
        raise InputError(f"{out} must end in .png: the sheet is stored without loss.")
    faces = choose_frames([r for r in read_index(folder) if r.split == split and r.label == 0], None)
    if not faces:
        raise InputError(
            f"{folder} has no real face in its {split} split: choose another split or prepare more videos."
        )
    places = np.linspace(0, len(faces) - 1, min(count, len(faces))).round().astype(int)
    rows = [_heading(size)]
    for place in places:
        face = faces[place]
        pair = _pair(face, sample_generator(seed, 0, int(place)), phase, reference_quirks)
        caption = f"{face.video}  frame {face.frame}  crop {pair.real.shape[1]}x{pair.real.shape[0]}"
        rows += [_caption_line(caption, size), _row(pair, size)]
    save_image(out, np.concatenate(rows), store="png")
    return len(places)


def _pair(face: FaceRecord, rng: np.random.Generator, phase: Phase, quirks: bool) -> Pair:
    image = load_crop(face)
    try:
        return make_pair(image, face.landmarks, face.box, rng, phase=phase, reference_quirks=quirks)
    except InputError as error:
        raise InputError(f"{face.path}: {error}") from error


def _row(pair: Pair, size: int) -> NDArray[np.uint8]:
    """The four cells of one pair side by side, uint8 [size, width of the sheet, 3]."""
    weights = np.repeat(np.round(pair.mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    difference = pair.fake.astype(np.int16) - pair.real.astype(np.int16)
    # Grey is no difference; brighter is a fake brighter than its real.
    shown = np.clip(128 + AMPLIFICATION * difference, 0, 255).astype(np.uint8)
    height, width = pair.real.shape[:2]
    cells = (pair.real, pair.fake, weights, shown)
    return _side_by_side([crop_face(cell, (0, 0, width, height), size) for cell in cells])


def _side_by_side(cells: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((cells[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    parts = [gap]
    for cell in cells:
        parts += [cell, gap]
    return np.concatenate(parts, axis=1)


def _heading(size: int) -> NDArray[np.uint8]:
    return _side_by_side([_text(name, size) for name in COLUMNS])


def _caption_line(caption: str, size: int) -> NDArray[np.uint8]:
    return _text(caption, len(COLUMNS) * size + (len(COLUMNS) + 1) * _GAP)


def _text(text: str, width: int) -> NDArray[np.uint8]:
    line = np.full((_CAPTION_HEIGHT, width, 3), _PAPER, np.uint8)
    # OpenCV's built-in font knows ASCII only.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(line, plain, (_GAP, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _INK, 1, cv2.LINE_AA)
    return line
