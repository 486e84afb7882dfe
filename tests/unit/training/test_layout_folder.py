from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from training.layouts import find_media, iter_media
from training.media import MediaItem


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path) -> dict[str, tuple[object, ...]]:
    items = find_media(root, "folder")
    return {item.video: (item.split, item.label, item.method, item.kind) for item in items}


def test_folder_names_set_split_label_and_method(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/real/a.mp4",
        "train/fake/deepfakes/b.MOV",
        "VAL/Fake/c.jpg",
        "testing/real/d.png",
        "e.webm",
        "fake/train/swap/f.mp4",
    )
    assert found(tmp_path) == {
        "train/real/a": ("train", 0, "real", "video"),
        "train/fake/deepfakes/b": ("train", 1, "deepfakes", "video"),
        "VAL/Fake/c": ("val", 1, "fake", "image"),
        "testing/real/d": ("test", 0, "real", "image"),
        "e": (None, 0, "real", "video"),
        "fake/train/swap/f": ("train", 1, "swap", "video"),
    }


def test_names_above_the_source_mean_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "fake/test/data/a.mp4")
    assert found(tmp_path / "fake" / "test" / "data") == {"a": (None, 0, "real", "video")}


def test_contradictory_folders(tmp_path: Path) -> None:
    touch(tmp_path, "real/fake/a.mp4")
    with pytest.raises(InputError, match="its folders say both fake and real"):
        find_media(tmp_path, "folder")


def test_a_picture_and_a_video_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.jpg", "b.jpg")
    assert set(found(tmp_path)) == {"a.mp4", "a.jpg", "b"}


def test_an_empty_tree(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt", ".hidden.mp4")
    with pytest.raises(InputError, match="holds no video or picture in the layout 'folder'"):
        find_media(tmp_path, "folder")


def test_without_splits_videos_are_divided_the_same_way_every_time(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.mp4" for n in range(40)))
    first = [item.split for item in iter_media(tmp_path, "folder", val_share=0.3)]
    assert first == [item.split for item in iter_media(tmp_path, "folder", val_share=0.3)]
    assert 4 <= first.count("val") <= 20


class TestLabelsFile:
    def make(self, root: Path, text: str) -> Path:
        touch(root, "train/real/a.mp4", "b.mp4", "c.jpg", "unlisted.mp4")
        (root / "labels.csv").write_text(text, encoding="utf-8")
        return root

    def read(self, root: Path, text: str) -> dict[str, MediaItem]:
        return {item.video: item for item in find_media(self.make(root, text), "folder")}

    def test_it_chooses_files_and_goes_before_folder_names(self, tmp_path: Path) -> None:
        items = self.read(
            tmp_path,
            "\ufeffpath,label,split,identity,method\n"
            "train/real/a.mp4,fake,val,anna,swap\n"
            'b.mp4,1,,"Bob, B.",\n'
            "c.jpg,,,,\n",
        )
        assert set(items) == {"train/real/a", "b", "c"}
        a, b, c = items["train/real/a"], items["b"], items["c"]
        assert (a.split, a.label, a.method, a.identity) == ("val", 1, "swap", "anna")
        assert (b.split, b.label, b.method, b.identity) == (None, 1, "fake", "Bob, B.")
        assert (c.split, c.label, c.method, c.identity) == (None, 0, "real", None)

    def test_only_path_is_required(self, tmp_path: Path) -> None:
        items = self.read(tmp_path, "path\ntrain/real/a.mp4\n")
        assert items["train/real/a"].split == "train"

    def test_one_person_stays_on_one_side(self, tmp_path: Path) -> None:
        rows = "".join(f"{n}.mp4,{'p' + str(n % 4)}\n" for n in range(24))
        touch(tmp_path, *(f"{n}.mp4" for n in range(24)))
        (tmp_path / "labels.csv").write_text("path,identity\n" + rows)
        sides: dict[str | None, set[str | None]] = {}
        for item in iter_media(tmp_path, "folder"):
            sides.setdefault(item.identity, set()).add(item.split)
        assert all(len(side) == 1 for side in sides.values())
        assert {next(iter(side)) for side in sides.values()} == {"train", "val"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "path,colour\nb.mp4,red\n",
                r"line 1: the columns are path, colour; expected path and any of label",
            ),
            ("label\nreal\n", "line 1: the columns are label; expected path"),
            ("path,path\nb.mp4,b.mp4\n", "line 1.*each once"),
            ("", "line 1: the columns are missing"),
            ("path,label\nb.mp4,maybe\n", r"line 2: label 'maybe' is not one of real, 0, fake, 1"),
            ("path,split\nc.jpg,\nb.mp4,dev\n", r"line 3: split 'dev' is not one of train"),
            ("path\ngone.mp4\n", r"line 2: .*gone\.mp4 is not a file"),
            ("path\nlabels.csv\n", r"line 2: labels\.csv is neither a picture nor a video"),
            ("path\n../x.mp4\n", r"line 2: path '\.\./x\.mp4' is not a path below"),
            ("path\n/etc/passwd\n", "line 2: path '/etc/passwd' is not a path below"),
            ("path,label\nb.mp4,real\nb.mp4,fake\n", r"line 3: b\.mp4 is listed twice"),
            ("path,label\nb.mp4,real,extra\n", "line 2: more cells than columns"),
            ("path,label,method\nb.mp4,real,swap\n", "line 2: method 'swap' does not go with the label real"),
            ("path,label,method\nb.mp4,fake,real\n", "line 2: method 'real' does not go with the label fake"),
        ],
    )
    def test_mistakes_are_told_by_line(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            self.read(tmp_path, text)

    def test_not_utf8(self, tmp_path: Path) -> None:
        self.make(tmp_path, "")
        (tmp_path / "labels.csv").write_bytes("path\nb\u00e9.mp4\n".encode("latin-1"))
        with pytest.raises(InputError, match="not a CSV file in UTF-8"):
            find_media(tmp_path, "folder")

    def test_a_list_of_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no video or picture"):
            self.read(tmp_path, "path,label\n")
