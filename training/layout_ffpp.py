"""Finds FaceForensics++ (and DeepFakeDetection beside it) as its download script lays it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.media_files import VIDEO_SUFFIXES, walk_files
from training.index import SPLITS, Split
from training.media import MediaItem, read_json

COMPRESSIONS = ("raw", "c23", "c40")

_REAL = ("youtube", "actors")
_DFD = ("actors", "DeepFakeDetection")
"""Folders of DeepFakeDetection, which has no official split: all of it is test data."""


def find_ffpp(source: Path, *, compression: str) -> list[MediaItem]:
    """List FaceForensics++.

    Expected below `source`: original_sequences/youtube/<compression>/videos/*.mp4, manipulated_sequences/
    <Method>/<compression>/videos/*.mp4, and the official train.json, val.json, test.json (there or in
    splits/). Where a folder frames/ lies beside videos/, its videos are taken from the frames; with
    landmarks/ and retina/ beside it, the stored landmarks and boxes are used as they are.

    Args:
        source: The data set's folder.
        compression: "raw", "c23" or "c40".

    Returns:
        Items sorted by video id. A manipulated video AAA_BBB belongs to the split and identity of AAA, the
        video it was made from.

    Raises:
        InputError: Nothing there, the split files are missing or do not list a video, unknown compression.
    """
    if compression not in COMPRESSIONS:
        raise InputError(f"Compression {compression!r} is unknown; FF++ has {', '.join(COMPRESSIONS)}.")
    folders = _folders(source, compression)
    videos = {name: _videos(folder) for name, folder in folders.items()}
    if not any(videos.values()):
        raise InputError(_nothing_found(source, compression))
    official = any(videos[name] and name not in _DFD for name in videos)
    splits = _read_splits(source) if official else {}
    items = [
        _item(name, stem, path, folders[name], splits)
        for name, found in videos.items()
        for stem, path in found.items()
    ]
    return sorted(items, key=lambda item: item.video)


def _folders(source: Path, compression: str) -> dict[str, Path]:
    """The folder <name>/<compression> of each collection that is there."""
    originals = source / "original_sequences"
    manipulated = source / "manipulated_sequences"
    found = {name: originals / name / compression for name in _REAL}
    if manipulated.is_dir():
        found |= {
            entry.name: entry / compression for entry in sorted(manipulated.iterdir()) if entry.is_dir()
        }
    return {name: folder for name, folder in found.items() if folder.is_dir()}


def _videos(folder: Path) -> dict[str, Path]:
    """Video name to its file, or to its folder of frames where frames were taken already."""
    found: dict[str, Path] = {}
    if (folder / "videos").is_dir():
        found = {path.stem: path for path in walk_files(folder / "videos", VIDEO_SUFFIXES)}
    if (folder / "frames").is_dir():
        found |= {path.name: path for path in sorted((folder / "frames").iterdir()) if path.is_dir()}
    return found


def _item(name: str, stem: str, path: Path, folder: Path, splits: dict[str, Split]) -> MediaItem:
    real = name in _REAL
    identity = stem.split("_")[0]
    split: Split
    if name in _DFD:
        split, person = "test", f"actor{identity}"
    elif identity in splits:
        split, person = splits[identity], identity
    else:
        raise InputError(
            f"{path}: video {identity} is in none of train.json, val.json, test.json. "
            "Use the official split files, or --layout folder for a data set of your own."
        )
    stored = (folder / "landmarks" / stem, folder / "retina" / stem)
    from_frames = path.is_dir()
    return MediaItem(
        path=path,
        video=f"{name}/{stem}",
        identity=person,
        split=split,
        label=0 if real else 1,
        method="real" if real else name,
        kind="frames" if from_frames else "video",
        stored=stored if from_frames and all(part.is_dir() for part in stored) else None,
    )


def _read_splits(source: Path) -> dict[str, Split]:
    """Video number to split, from the official lists of number pairs."""
    splits: dict[str, Split] = {}
    for split in SPLITS:
        places = (source / f"{split}.json", source / "splits" / f"{split}.json")
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InputError(
                f"{source} lacks {split}.json, looked for there and in splits/: put the official FF++ files "
                "train.json, val.json and test.json (lists of number pairs) beside original_sequences."
            )
        for number in _numbers(path, read_json(path)):
            if splits.setdefault(number, split) != split:
                raise InputError(f"{path}: video {number} is in {splits[number]}.json too.")
    return splits


def _numbers(path: Path, pairs: Any) -> list[str]:
    good = isinstance(pairs, list) and all(
        isinstance(pair, list) and all(isinstance(number, str) for number in pair) for pair in pairs
    )
    if not good:
        raise InputError(f'{path} is not a list of pairs such as [["071", "054"], ...].')
    return [number for pair in pairs for number in pair]


def _nothing_found(source: Path, compression: str) -> str:
    there = sorted(
        {
            path.name
            for kind in ("original_sequences", "manipulated_sequences")
            for path in source.glob(f"{kind}/*/*")
            if path.name in COMPRESSIONS
        }
    )
    hint = f" There is {', '.join(there)}: choose it with --compression." if there else ""
    return (
        f"{source} holds no FF++ video: looked for original_sequences/youtube/{compression}/videos/*.mp4, "
        f"its frames/ folder, and manipulated_sequences/*/{compression}/videos/*.mp4.{hint}"
    )
