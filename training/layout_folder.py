"""Finds the pictures and videos of any folder tree, labelled by its folders' names or by a labels.csv."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from pipeline.errors import InputError
from pipeline.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, walk_files
from training.index import Split
from training.media import MediaItem

LABELS_FILE = "labels.csv"
COLUMNS = ("path", "label", "split", "identity", "method")

_Value = TypeVar("_Value")
_SPLIT_NAMES: dict[str, Split] = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
_LABEL_NAMES: dict[str, Literal[0, 1]] = {"real": 0, "0": 0, "fake": 1, "1": 1}


def find_folder(source: Path, *, exclude: Path | None = None) -> list[MediaItem]:
    """List a folder tree.

    A folder named train, val or test sets the split of what is below it, one named real or fake the label
    (real where there is neither); the first folder below fake is the manipulation's name. With a labels.csv
    in `source` only the files it names are taken, and what it says goes before the folders' names.

    Args:
        source: The tree's top; its own name and those above it mean nothing.
        exclude: A folder inside that is not looked into (the output folder).

    Returns:
        Items sorted by video id; the split is None where nothing sets it.

    Raises:
        InputError: A path that is both real and fake, or a labels.csv that cannot be used (with the line).
    """
    table = source / LABELS_FILE
    if table.is_file():
        items = _from_table(source, table)
    else:
        items = [
            _from_path(source, path)
            for path in walk_files(source, IMAGE_SUFFIXES | VIDEO_SUFFIXES, exclude=exclude)
        ]
    return sorted(_with_unique_ids(source, items), key=lambda item: item.video)


def _from_path(source: Path, path: Path) -> MediaItem:
    relative = path.relative_to(source)
    folders = [part.lower() for part in relative.parts[:-1]]
    splits = {_SPLIT_NAMES[part] for part in folders if part in _SPLIT_NAMES}
    labels = {part for part in folders if part in ("real", "fake")}
    if len(splits) > 1 or len(labels) > 1:
        raise InputError(
            f"{path}: its folders say both {' and '.join(sorted(splits if len(splits) > 1 else labels))}. "
            "Rename one of them."
        )
    fake = "fake" in labels
    below = relative.parts[folders.index("fake") + 1 : -1] if fake else ()
    methods = [part for part in below if part.lower() not in _SPLIT_NAMES]
    return MediaItem(
        path=path,
        video=relative.with_suffix("").as_posix(),
        identity=None,
        split=next(iter(splits), None),
        label=1 if fake else 0,
        method=(methods[0] if methods else "fake") if fake else "real",
        kind="video" if path.suffix.lower() in VIDEO_SUFFIXES else "image",
    )


def _with_unique_ids(source: Path, items: list[MediaItem]) -> list[MediaItem]:
    """Tell a.jpg and a.mp4 of one folder apart by keeping their suffixes."""
    uses = Counter(item.video for item in items)
    return [
        item if uses[item.video] == 1 else replace(item, video=item.path.relative_to(source).as_posix())
        for item in items
    ]


def _from_table(source: Path, table: Path) -> list[MediaItem]:
    items: dict[Path, MediaItem] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.DictReader(handle, restkey="", restval="")
            _check_columns(table, list(rows.fieldnames or ()))
            for row in rows:
                where = f"{table}, line {rows.line_num}"
                if "" in row:
                    raise InputError(f"{where}: more cells than columns.")
                cells = {name: str(row.get(name, "")).strip() for name in COLUMNS}
                item = _from_row(where, source, cells)
                if item.path in items:
                    raise InputError(f"{where}: {cells['path']} is listed twice.")
                items[item.path] = item
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is not a CSV file in UTF-8 ({error}).") from error
    return list(items.values())


def _check_columns(table: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or "path" not in names or len(set(names)) < len(names):
        raise InputError(
            f"{table}, line 1: the columns are {', '.join(names) or 'missing'}; "
            f"expected path and any of {', '.join(COLUMNS[1:])}, each once."
        )


def _from_row(where: str, source: Path, cells: dict[str, str]) -> MediaItem:
    item = _from_path(source, _listed_file(where, source, cells["path"]))
    if cells["label"]:
        label = _looked_up(where, "label", cells["label"], _LABEL_NAMES)
        if label != item.label:
            item = replace(item, label=label, method="fake" if label else "real")
    if cells["split"]:
        item = replace(item, split=_looked_up(where, "split", cells["split"], _SPLIT_NAMES))
    if cells["method"]:
        if (cells["method"].lower() == "real") != (item.label == 0):
            kind = "fake" if item.label else "real"
            raise InputError(f"{where}: method {cells['method']!r} does not go with the label {kind}.")
        item = replace(item, method="real" if item.label == 0 else cells["method"])
    return replace(item, identity=cells["identity"] or None)


def _listed_file(where: str, source: Path, cell: str) -> Path:
    if not cell or Path(cell).is_absolute() or ".." in Path(cell).parts:
        raise InputError(f"{where}: path {cell!r} is not a path below {source}.")
    path = source / cell
    if not path.is_file():
        raise InputError(f"{where}: {path} is not a file.")
    if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        raise InputError(f"{where}: {path.name} is neither a picture nor a video by its suffix.")
    return path


def _looked_up(where: str, column: str, cell: str, names: Mapping[str, _Value]) -> _Value:
    value = names.get(cell.lower())
    if value is None:
        raise InputError(f"{where}: {column} {cell!r} is not one of {', '.join(names)}.")
    return value
