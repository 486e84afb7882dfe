"""Stores drawn faces as preparation stores real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from benchmarks.selfblend import drawn_face
from pipeline.images import save_image
from training.index import FaceRecord, Split


def stored_face(
    folder: Path,
    number: int,
    *,
    split: Split = "train",
    video: str | None = None,
    name: str | None = None,
    store: Literal["jpeg", "png"] = "png",
    size: tuple[int, int] = (150, 160),
    face: tuple[int, int, int, int] = (40, 30, 110, 120),
) -> FaceRecord:
    """The real face of a seed: its crop of a size (width, height) in a folder, and its record."""
    width, height = size
    image, landmarks, box = drawn_face(width=width, height=height, face=face, seed=number)
    path = folder / f"{name or number}.{'png' if store == 'png' else 'jpg'}"
    save_image(path, image, store=store)
    return FaceRecord(
        path=path,
        video=video or f"youtube/{number}",
        identity=None,
        split=split,
        label=0,
        method="real",
        frame=number,
        time_s=number / 25,
        face=0,
        box=box,
        landmarks=landmarks,
        origin=(0, 0),
        width=width,
        height=height,
    )
