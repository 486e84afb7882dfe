from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from training.layouts import find_media, iter_media
from training.media import MediaItem


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def by_video(items: list[MediaItem]) -> dict[str, MediaItem]:
    found = {item.video: item for item in items}
    assert len(found) == len(items)
    return found


def brief(item: MediaItem) -> tuple[object, ...]:
    return (item.split, item.label, item.method, item.identity)


def write_splits(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split, pairs in {
        "train": [["000", "003"]],
        "val": [["001", "002"]],
        "test": [["004", "005"]],
    }.items():
        (root / f"{split}.json").write_text(json.dumps(pairs))


class TestFaceForensics:
    def make(self, root: Path, compression: str = "c23") -> Path:
        touch(
            root,
            *(f"original_sequences/youtube/{compression}/videos/{n:03d}.mp4" for n in range(6)),
            f"manipulated_sequences/Deepfakes/{compression}/videos/000_003.mp4",
            f"manipulated_sequences/Deepfakes/{compression}/videos/002_001.mp4",
            f"manipulated_sequences/FaceShifter/{compression}/videos/004_005.mp4",
        )
        write_splits(root)
        return root

    def test_videos_get_official_splits_and_ids_with_the_manipulation(self, tmp_path: Path) -> None:
        found = by_video(find_media(self.make(tmp_path), "ffpp"))
        assert len(found) == 9
        assert brief(found["youtube/003"]) == ("train", 0, "real", "003")
        assert brief(found["Deepfakes/000_003"]) == ("train", 1, "Deepfakes", "000")
        assert brief(found["Deepfakes/002_001"]) == ("val", 1, "Deepfakes", "002")
        assert brief(found["FaceShifter/004_005"]) == ("test", 1, "FaceShifter", "004")
        assert all(item.kind == "video" for item in found.values())

    def test_methods_choose(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        assert {item.method for item in find_media(tmp_path, "ffpp", methods=["real"])} == {"real"}
        assert len(find_media(tmp_path, "ffpp", methods=["Deepfakes"])) == 2
        with pytest.raises(
            InputError, match="has no method Face2Face; there are: Deepfakes, FaceShifter, real"
        ):
            find_media(tmp_path, "ffpp", methods=["Face2Face"])

    def test_splits_may_lie_in_their_own_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "original_sequences/youtube/raw/videos/004.mp4")
        write_splits(tmp_path / "splits")
        assert find_media(tmp_path, "ffpp", compression="raw")[0].split == "test"

    def test_missing_split_file(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        (tmp_path / "val.json").unlink()
        with pytest.raises(InputError, match=r"lacks val\.json"):
            find_media(tmp_path, "ffpp")

    def test_a_video_in_no_split(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        touch(tmp_path, "original_sequences/youtube/c23/videos/777.mp4")
        with pytest.raises(InputError, match=r"777\.mp4: video 777 is in none of train\.json"):
            find_media(tmp_path, "ffpp")

    def test_a_video_in_two_splits(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        (tmp_path / "test.json").write_text('[["000", "005"]]')
        with pytest.raises(InputError, match=r"test\.json: video 000 is in train\.json too"):
            find_media(tmp_path, "ffpp")

    def test_a_split_file_of_another_shape(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        (tmp_path / "train.json").write_text('{"000": "003"}')
        with pytest.raises(InputError, match="is not a list of pairs"):
            find_media(tmp_path, "ffpp")

    def test_another_compression_is_pointed_out(self, tmp_path: Path) -> None:
        self.make(tmp_path, "c40")
        with pytest.raises(InputError, match="There is c40: choose it with --compression"):
            find_media(tmp_path, "ffpp")
        with pytest.raises(InputError, match=r"'c99' is unknown; FF\+\+ has raw, c23, c40"):
            find_media(tmp_path, "ffpp", compression="c99")

    def test_empty_folder_says_what_was_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"looked for original_sequences/youtube/c23/videos/\*\.mp4"):
            find_media(tmp_path, "ffpp")

    def test_deepfakedetection_is_test_data_without_split_files(self, tmp_path: Path) -> None:
        touch(
            tmp_path,
            "original_sequences/actors/c23/videos/01__exit_phone_room.mp4",
            "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__talking__YVGY8LOK.mp4",
        )
        found = by_video(find_media(tmp_path, "ffpp"))
        assert brief(found["actors/01__exit_phone_room"]) == ("test", 0, "real", "actor01")
        fake = found["DeepFakeDetection/01_02__talking__YVGY8LOK"]
        assert brief(fake) == ("test", 1, "DeepFakeDetection", "actor01")

    def test_frames_with_stored_landmarks_go_before_the_video(self, tmp_path: Path) -> None:
        self.make(tmp_path, "raw")
        tree = "original_sequences/youtube/raw"
        touch(tmp_path, f"{tree}/frames/000/007.png", f"{tree}/frames/001/007.png")
        touch(tmp_path, f"{tree}/landmarks/000/007.npy", f"{tree}/retina/000/007.npy")
        found = by_video(find_media(tmp_path, "ffpp", compression="raw", methods=["real"]))
        assert found["youtube/000"].kind == "frames"
        assert found["youtube/000"].path == tmp_path / tree / "frames" / "000"
        assert found["youtube/000"].stored == (
            tmp_path / tree / "landmarks" / "000",
            tmp_path / tree / "retina" / "000",
        )
        assert (found["youtube/001"].kind, found["youtube/001"].stored) == ("frames", None)
        assert found["youtube/002"].kind == "video"


class TestCelebDF:
    def make(self, root: Path) -> Path:
        touch(
            root,
            *(f"Celeb-real/id{n}_0000.mp4" for n in range(10)),
            "YouTube-real/00170.mp4",
            "YouTube-real/00171.mp4",
            "Celeb-synthesis/id0_id1_0000.mp4",
            "Celeb-synthesis/id1_id0_0002.mp4",
        )
        (root / "List_of_testing_videos.txt").write_text(
            "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n1 Celeb-real/id3_0000.mp4\n\n"
        )
        return root

    def test_the_list_makes_the_test_split_and_one_means_real(self, tmp_path: Path) -> None:
        found = by_video(iter_media(self.make(tmp_path), "celebdf"))
        assert len(found) == 14
        assert brief(found["YouTube-real/00170"]) == ("test", 0, "real", "youtube-00170")
        assert brief(found["Celeb-synthesis/id0_id1_0000"]) == ("test", 1, "Celeb-synthesis", "id0")
        rest = [item for item in found.values() if item.split != "test"]
        assert len(rest) == 11
        assert {item.split for item in rest} == {"train", "val"}

    def test_the_same_person_is_not_in_train_and_val(self, tmp_path: Path) -> None:
        found = by_video(iter_media(self.make(tmp_path), "celebdf"))
        assert found["Celeb-synthesis/id1_id0_0002"].split == found["Celeb-real/id1_0000"].split

    def test_missing_list_and_missing_videos(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"lacks List_of_testing_videos\.txt"):
            find_media(tmp_path, "celebdf")
        self.make(tmp_path)
        (tmp_path / "YouTube-real/00170.mp4").unlink()
        with pytest.raises(
            InputError, match=r"1 of 3 test videos are missing, the first is YouTube-real/00170"
        ):
            find_media(tmp_path, "celebdf")

    def test_a_list_of_another_shape_or_against_the_folders(self, tmp_path: Path) -> None:
        self.make(tmp_path)
        listing = tmp_path / "List_of_testing_videos.txt"
        listing.write_text("1 YouTube-real/00170.mp4\nreal Celeb-real/id3_0000.mp4\n")
        with pytest.raises(InputError, match="line 2"):
            find_media(tmp_path, "celebdf")
        listing.write_text("0 YouTube-real/00170.mp4\n")
        with pytest.raises(InputError, match=r"labels YouTube-real/00170\.mp4 against its folder"):
            find_media(tmp_path, "celebdf")


class TestChallenge:
    def test_labels_csv_is_the_test_set(self, tmp_path: Path) -> None:
        touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
        (tmp_path / "labels.csv").write_text("filename,label\na.mp4,0\nb.mp4,1\n")
        found = by_video(find_media(tmp_path, "dfdc"))
        assert brief(found["a"]) == ("test", 0, "real", None)
        assert brief(found["b"]) == ("test", 1, "DFDC", None)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name,label\na.mp4,0\n", "expected filename and label"),
            ("filename,label\na.mp4,maybe\n", r"line 2: label 'maybe' is neither real"),
            ("filename,label\na.mp4,0\nz.mp4,1\n", r"line 3: z\.mp4 is not below"),
        ],
    )
    def test_labels_csv_that_cannot_be_used(self, tmp_path: Path, text: str, message: str) -> None:
        touch(tmp_path, "a.mp4")
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            find_media(tmp_path, "dfdc")

    def test_training_parts(self, tmp_path: Path) -> None:
        touch(tmp_path, "part_0/aaa.mp4", "part_0/bbb.mp4", "part_1/ccc.mp4")
        (tmp_path / "part_0/metadata.json").write_text(
            json.dumps(
                {
                    "aaa.mp4": {"label": "FAKE", "split": "train", "original": "bbb.mp4"},
                    "bbb.mp4": {"label": "REAL", "split": "train", "original": None},
                    "not_downloaded.mp4": {"label": "REAL", "split": "train"},
                }
            )
        )
        (tmp_path / "part_1/metadata.json").write_text(
            '{"ccc.mp4": {"label": "REAL", "split": "validation"}}'
        )
        found = by_video(find_media(tmp_path, "dfdc"))
        assert brief(found["part_0/aaa"]) == (None, 1, "DFDC", "bbb")
        assert brief(found["part_0/bbb"]) == (None, 0, "real", "bbb")
        assert brief(found["part_1/ccc"]) == ("val", 0, "real", "ccc")
        assert len({item.split for item in iter_media(tmp_path, "dfdc")} - {"train", "val"}) == 0

    def test_metadata_cannot_reach_outside(self, tmp_path: Path) -> None:
        touch(tmp_path, "data/part/a.mp4", "secret.mp4")
        (tmp_path / "data/part/metadata.json").write_text('{"../../secret.mp4": {"label": "REAL"}}')
        with pytest.raises(InputError, match="not a path below its folder"):
            find_media(tmp_path / "data", "dfdc")

    def test_preview(self, tmp_path: Path) -> None:
        touch(tmp_path, "method_A/1/x.mp4", "original_videos/1/y.mp4")
        (tmp_path / "dataset.json").write_text(
            json.dumps(
                {
                    "method_A/1/x.mp4": {"label": "fake", "set": "test", "target_id": 1643, "swapped_id": 7},
                    "original_videos/1/y.mp4": {"label": "real", "set": "train", "target_id": 1643},
                }
            )
        )
        found = by_video(find_media(tmp_path, "dfdcp"))
        assert brief(found["method_A/1/x"]) == ("test", 1, "method_A", "1643")
        assert brief(found["original_videos/1/y"]) == (None, 0, "real", "1643")

    @pytest.mark.parametrize(
        ("layout", "looked_for"), [("dfdc", r"metadata\.json"), ("dfdcp", r"dataset\.json")]
    )
    def test_nothing_there(self, tmp_path: Path, layout: str, looked_for: str) -> None:
        with pytest.raises(InputError, match=looked_for):
            find_media(tmp_path, layout)  # type: ignore[arg-type]


def test_ffiw_in_both_shapes(tmp_path: Path) -> None:
    touch(tmp_path / "released", "source/val/videos/1.mp4", "target/val/videos/1.mp4")
    touch(tmp_path / "plain", "val/real/1.mp4", "val/fake/1.mp4")
    released = [brief(item) for item in find_media(tmp_path / "released", "ffiw")]
    assert released == [("test", 0, "real", None), ("test", 1, "FFIW", None)]
    assert [brief(item) for item in find_media(tmp_path / "plain", "ffiw")] == released
    with pytest.raises(InputError, match="holds no FFIW data"):
        find_media(tmp_path, "ffiw")


def test_unknown_layout_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no layout 'kitti'; there are ffpp, celebdf, dfdc, dfdcp, ffiw, folder"
    ):
        find_media(tmp_path, "kitti")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is not a folder"):
        find_media(tmp_path / "gone", "folder")
