"""Finds the data sets that detectors are compared on across sources: Celeb-DF, DFDC, DFDC preview, FFIW."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.media_files import VIDEO_SUFFIXES, walk_files
from training.index import Split
from training.media import MediaItem, read_json

_CELEB_FOLDERS: dict[str, Literal[0, 1]] = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}
_CELEB_LIST = "List_of_testing_videos.txt"
_LABELS: dict[str, Literal[0, 1]] = {"real": 0, "fake": 1, "0": 0, "1": 1}
_DFDC_SPLITS: dict[str, Split | None] = {"train": None, "validation": "val", "val": "val", "test": "test"}


def find_celebdf(source: Path) -> list[MediaItem]:
    """List Celeb-DF (v1 or v2): Celeb-real, YouTube-real, Celeb-synthesis and the list of test videos.

    The list's first column is 1 for real. Videos it does not name get no split here (train or val by hash).
    The identity is the first id of the name (id3 in id3_id7_0001.mp4), for YouTube-real the video.

    Raises:
        InputError: The list or every folder is missing; the list names a video that is not there or gives a
            label that contradicts the folder.
    """
    tested = _celeb_test_list(source)
    items = []
    for folder, label in _CELEB_FOLDERS.items():
        for path in walk_files(source / folder, VIDEO_SUFFIXES):
            name = path.relative_to(source).as_posix()
            if tested.get(name, label) != label:
                raise InputError(f"{source / _CELEB_LIST} labels {name} against its folder.")
            person = path.stem if folder == "YouTube-real" else path.stem.split("_")[0]
            items.append(
                MediaItem(
                    path=path,
                    video=name.removesuffix(path.suffix),
                    identity=f"youtube-{person}" if folder == "YouTube-real" else person,
                    split="test" if name in tested else None,
                    label=label,
                    method="Celeb-synthesis" if label else "real",
                )
            )
    missing = sorted(set(tested) - {item.path.relative_to(source).as_posix() for item in items})
    if missing:
        raise InputError(
            f"{source}: {len(missing)} of {len(tested)} test videos are missing, the first is {missing[0]}."
        )
    return items


def _celeb_test_list(source: Path) -> dict[str, int]:
    path = source / _CELEB_LIST
    if not path.is_file():
        raise InputError(
            f"{source} lacks {_CELEB_LIST}: expected Celeb-DF's own folder with its list of test videos."
        )
    tested: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        first, _, name = line.strip().partition(" ")
        if first not in ("0", "1") or not name.strip():
            raise InputError(
                f'{path}, line {number}: expected "1 folder/video.mp4" (1 real, 0 fake), found {line!r}.'
            )
        tested[name.strip()] = 1 - int(first)
    return tested


def find_dfdc(source: Path) -> list[MediaItem]:
    """List the Deepfake Detection Challenge: labels.csv (the test set), or a metadata.json in each part.

    labels.csv has the columns filename and label, its videos lie beside it or in one folder below. A
    metadata.json maps file names to label, split and, for fakes, original; the identity is the original.
    Videos marked "train" get no split here (train or val by hash).

    Raises:
        InputError: Neither file is there, or one cannot be used.
    """
    labels = source / "labels.csv"
    if labels.is_file():
        return _dfdc_test(source, labels)
    parts = sorted(source.glob("metadata.json")) + sorted(source.glob("*/metadata.json"))
    if not parts:
        raise InputError(
            f"{source} holds no DFDC data: looked for labels.csv, metadata.json and */metadata.json."
        )
    return [item for part in parts for item in _dfdc_part(source, part)]


def _dfdc_test(source: Path, labels: Path) -> list[MediaItem]:
    files = {path.name: path for path in walk_files(source, VIDEO_SUFFIXES)}
    items = []
    with labels.open(newline="", encoding="utf-8-sig") as handle:
        rows = csv.DictReader(handle)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise InputError(f"{labels} has the columns {rows.fieldnames}; expected filename and label.")
        for row in rows:
            where = f"{labels}, line {rows.line_num}"
            label = _label(where, row["label"])
            if row["filename"] not in files:
                raise InputError(f"{where}: {row['filename']} is not below {source}.")
            path = files[row["filename"]]
            items.append(_dfdc_item(path, path.stem, None, "test", label))
    return items


def _dfdc_part(source: Path, part: Path) -> list[MediaItem]:
    entries = _mapping(part)
    items = []
    for name, entry in sorted(entries.items()):
        path = part.parent / name
        if not path.is_file():
            continue  # parts are often downloaded incompletely; the others are still good
        where = f"{part}, {name}"
        split = str(entry.get("split", "train")).lower()
        if split not in _DFDC_SPLITS:
            raise InputError(f"{where}: split {split!r} is not one of {', '.join(_DFDC_SPLITS)}.")
        video = path.relative_to(source).with_suffix("").as_posix()
        person = Path(str(entry.get("original") or name)).stem
        items.append(_dfdc_item(path, video, person, _DFDC_SPLITS[split], _label(where, entry.get("label"))))
    return items


def _dfdc_item(
    path: Path, video: str, identity: str | None, split: Split | None, label: Literal[0, 1]
) -> MediaItem:
    return MediaItem(path, video, identity, split, label, "DFDC" if label else "real")


def find_dfdcp(source: Path) -> list[MediaItem]:
    """List the challenge's preview set: dataset.json maps paths to label, set and target_id (the identity).

    Videos of the set "train" get no split here (train or val by hash).

    Raises:
        InputError: dataset.json is missing or cannot be used.
    """
    listing = source / "dataset.json"
    if not listing.is_file():
        raise InputError(f"{source} holds no DFDC preview data: looked for dataset.json.")
    items = []
    for name, entry in sorted(_mapping(listing).items()):
        path = source / name
        if not path.is_file():
            continue
        where = f"{listing}, {name}"
        split = str(entry.get("set", "train")).lower()
        if split not in _DFDC_SPLITS:
            raise InputError(f"{where}: set {split!r} is not one of {', '.join(_DFDC_SPLITS)}.")
        label = _label(where, entry.get("label"))
        person = entry.get("target_id")
        items.append(
            MediaItem(
                path=path,
                video=name.removesuffix(path.suffix),
                identity=None if person is None else str(person),
                split=_DFDC_SPLITS[split],
                label=label,
                method=name.split("/")[0] if label else "real",
            )
        )
    return items


def find_ffiw(source: Path) -> list[MediaItem]:
    """List FFIW-10K's val part, which published results use as a test set; its split here is "test".

    Expected: source/val (real) and target/val (fake) as released, or val/real and val/fake.

    Raises:
        InputError: Neither is there.
    """
    layouts = (
        (source / "source" / "val", source / "target" / "val"),
        (source / "val" / "real", source / "val" / "fake"),
    )
    for real, fake in layouts:
        if real.is_dir() and fake.is_dir():
            return [_ffiw_item(real, path, 0) for path in walk_files(real, VIDEO_SUFFIXES)] + [
                _ffiw_item(fake, path, 1) for path in walk_files(fake, VIDEO_SUFFIXES)
            ]
    raise InputError(
        f"{source} holds no FFIW data: looked for source/val with target/val, and val/real with val/fake."
    )


def _ffiw_item(folder: Path, path: Path, label: Literal[0, 1]) -> MediaItem:
    name = path.relative_to(folder).with_suffix("").as_posix()
    return MediaItem(
        path, f"{'fake' if label else 'real'}/{name}", None, "test", label, "FFIW" if label else "real"
    )


def _mapping(path: Path) -> dict[str, dict[str, Any]]:
    entries = read_json(path)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise InputError(f"{path} does not map file names to their properties.")
    for name in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{path} names {name!r}, which is not a path below its folder.")
    return entries


def _label(where: str, value: Any) -> Literal[0, 1]:
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        raise InputError(f"{where}: label {value!r} is neither real (0) nor fake (1).")
    return label
