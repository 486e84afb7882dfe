"""The one door to every data set layout: a folder and a layout's name become a list of media items."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pipeline.errors import InputError
from training.layout_benchmarks import find_celebdf, find_dfdc, find_dfdcp, find_ffiw
from training.layout_ffpp import find_ffpp
from training.layout_folder import find_folder
from training.media import MediaItem, assign_splits

Layout: TypeAlias = Literal["ffpp", "celebdf", "dfdc", "dfdcp", "ffiw", "folder"]

_BENCHMARKS: dict[str, Callable[[Path], list[MediaItem]]] = {
    "celebdf": find_celebdf,
    "dfdc": find_dfdc,
    "dfdcp": find_dfdcp,
    "ffiw": find_ffiw,
}


def iter_media(
    source: Path,
    layout: Layout,
    *,
    compression: str = "c23",
    methods: Collection[str] | None = None,
    val_share: float = 0.2,
    exclude: Path | None = None,
) -> list[MediaItem]:
    """List the videos and pictures of a data set, each with a split; otherwise as `find_media`.

    Args:
        source: The data set's folder.
        layout: How it lies on disk.
        compression: FF++ only: "raw", "c23" or "c40".
        methods: Only items of these methods ("real" for the unmanipulated); None for all.
        val_share: Share of the people without an official split that goes to "val"; the rest is "train".
        exclude: A folder inside `source` that is not looked into ("folder" only).
    """
    items = find_media(source, layout, compression=compression, methods=methods, exclude=exclude)
    return assign_splits(items, val_share)


def find_media(
    source: Path,
    layout: Layout,
    *,
    compression: str = "c23",
    methods: Collection[str] | None = None,
    exclude: Path | None = None,
) -> list[MediaItem]:
    """List the videos and pictures of a data set; those without an official split have None.

    Args:
        source: The data set's folder.
        layout: How it lies on disk.
        compression: FF++ only: "raw", "c23" or "c40".
        methods: Only items of these methods ("real" for the unmanipulated); None for all.
        exclude: A folder inside `source` that is not looked into ("folder" only).

    Returns:
        Items in an order that is the same in every run; at least one.

    Raises:
        InputError: The folder is missing, holds nothing in that layout, or its lists cannot be used.
    """
    if layout not in get_args(Layout):
        raise InputError(f"There is no layout {layout!r}; there are {', '.join(get_args(Layout))}.")
    if not source.is_dir():
        raise InputError(f"{source} is not a folder: expected a data set in the layout {layout!r}.")
    if layout == "ffpp":
        items = find_ffpp(source, compression=compression)
    elif layout == "folder":
        items = find_folder(source, exclude=exclude)
    else:
        items = _BENCHMARKS[layout](source)
    if not items:
        raise InputError(
            f"{source} holds no video or picture in the layout {layout!r}: check the folder and the layout."
        )
    return _of_methods(source, items, methods)


def _of_methods(source: Path, items: list[MediaItem], methods: Collection[str] | None) -> list[MediaItem]:
    if methods is None:
        return items
    known = sorted({item.method for item in items})
    unknown = sorted(set(methods) - set(known))
    if unknown:
        raise InputError(f"{source} has no method {', '.join(unknown)}; there are: {', '.join(known)}.")
    return [item for item in items if item.method in methods]
