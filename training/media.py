"""What a data set is made of, however it lies on disk: media items, and the split of those without one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from training.index import Split


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One video or picture of a data set.

    Attributes:
        path: The file, or for "frames" the folder of numbered pictures taken from one video.
        video: Id that is unique in the data set, including the manipulation: "Deepfakes/000_003".
        identity: The person shown, where the data set tells.
        split: "train", "val" or "test"; None where the data set does not say, until `assign_splits`.
        label: 0 real, 1 fake.
        method: "real" or the manipulation's name.
        kind: "video", "image" or "frames".
        stored: For "frames": the folders of landmark and of face box files to use instead of finding faces.
    """

    path: Path
    video: str
    identity: str | None
    split: Split | None
    label: Literal[0, 1]
    method: str
    kind: Literal["video", "image", "frames"] = "video"
    stored: tuple[Path, Path] | None = None


def assign_splits(items: Iterable[MediaItem], val_share: float) -> list[MediaItem]:
    """Give items without a split one of "train" and "val", all of one person on the same side.

    The side depends only on a hash of the identity (of the video id where there is none), so it is the same
    in every run and does not change when items are added. Where that would leave one side empty, one person
    is moved so that both have some.

    Args:
        items: Items, some perhaps with a split already, which keep it.
        val_share: Share of the people that goes to "val", 0 or more and below 1.

    Returns:
        The items in their order, all with a split.

    Raises:
        InputError: The share is out of range.
    """
    check_share(val_share)
    items = list(items)
    places = {_group(item): _place(_group(item)) for item in items if item.split is None}
    held_out = {group for group, place in places.items() if place < val_share}
    if val_share > 0 and len(places) >= 2:
        if not held_out:
            held_out = {min(places, key=lambda group: places[group])}
        elif len(held_out) == len(places):
            held_out.remove(max(places, key=lambda group: places[group]))
    return [
        item if item.split else replace(item, split="val" if _group(item) in held_out else "train")
        for item in items
    ]


def check_share(val_share: float) -> None:
    """Refuse a validation share that leaves nothing to train on.

    Raises:
        InputError: It is below 0, or 1 or more.
    """
    if not 0.0 <= val_share < 1.0:
        raise InputError(f"The validation share must be 0 or more and below 1, not {val_share}.")


def read_json(path: Path) -> Any:
    """Read a JSON file of a data set.

    Raises:
        InputError: It is missing or not JSON; the message says where.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from error


def _group(item: MediaItem) -> str:
    return f"identity:{item.identity}" if item.identity is not None else f"video:{item.video}"


def _place(group: str) -> float:
    """A number in [0, 1) that depends on nothing but the group's name."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
