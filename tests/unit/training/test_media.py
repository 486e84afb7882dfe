from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.media_files import IMAGE_SUFFIXES, walk_files
from training.media import MediaItem, assign_splits, read_json


def item(video: str, identity: str | None = None, split: str | None = None) -> MediaItem:
    return MediaItem(Path(video), video, identity, split, 0, "real")  # type: ignore[arg-type]


def test_people_stay_on_one_side_and_the_share_is_about_kept() -> None:
    items = [item(f"v{n}", identity=f"p{n // 5}") for n in range(2000)]
    assigned = assign_splits(items, 0.2)
    sides: dict[str | None, set[str | None]] = {}
    for entry in assigned:
        sides.setdefault(entry.identity, set()).add(entry.split)
    assert all(len(side) == 1 for side in sides.values())
    share = sum(entry.split == "val" for entry in assigned) / len(assigned)
    assert 0.15 < share < 0.25
    assert {entry.split for entry in assigned} == {"train", "val"}


def test_a_side_does_not_change_when_others_join() -> None:
    few = {entry.video: entry.split for entry in assign_splits([item(f"v{n}") for n in range(50)], 0.2)}
    many = {entry.video: entry.split for entry in assign_splits([item(f"v{n}") for n in range(400)], 0.2)}
    assert all(many[video] == split for video, split in few.items())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("names", [("a", "b"), ("x", "y"), ("one", "two")])
def test_two_people_are_always_divided(names: tuple[str, str], share: float) -> None:
    assert {entry.split for entry in assign_splits([item(name) for name in names], share)} == {"train", "val"}


def test_given_splits_stay_and_no_share_means_no_val() -> None:
    items = [item("a", split="test"), item("b", split="val"), item("c"), item("d")]
    assert [entry.split for entry in assign_splits(items, 0.0)] == ["test", "val", "train", "train"]
    assert [entry.split for entry in assign_splits([item("alone")], 0.2)] in (["train"], ["val"])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(InputError, match="validation share"):
        assign_splits([item("a")], share)


def test_walking_is_sorted_and_passes_over_hidden_and_barred_folders(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/10.jpg", "a/x.png", ".git/y.png", "a/._x.png", "out/crop.jpg", "a/readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [
        path.relative_to(tmp_path).as_posix()
        for path in walk_files(tmp_path, IMAGE_SUFFIXES, exclude=tmp_path / "out")
    ]
    assert found == ["a/x.png", "b/10.jpg", "b/2.JPG"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert [path.name for path in walk_files(tmp_path / "data", IMAGE_SUFFIXES)] == ["a.png"]


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*gone\.json"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"bad\.json is not JSON .*line 1"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bad\.json is not JSON"):
        read_json(tmp_path / "bad.json")
