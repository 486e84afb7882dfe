"""Which files of a folder are pictures and which are videos, by their suffix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)


def walk_files(folder: Path, suffixes: frozenset[str], *, exclude: Path | None = None) -> Iterator[Path]:
    """All files below a folder with one of the suffixes (in any case), in sorted order.

    Hidden files and folders are passed over; links to folders are followed, each real folder once.

    Args:
        folder: Where to look.
        suffixes: Lower-case suffixes with their dot.
        exclude: A folder not to enter.
    """
    seen: set[str] = set()
    barred = exclude.resolve() if exclude else None
    for parent, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or (barred is not None and Path(real) == barred):
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(parent) / name
