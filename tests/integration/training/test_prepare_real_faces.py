"""Preparation of real faces: the clips and models are third-party files, fetched once and cached."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pipeline import assets
from pipeline.crop import tight_window
from pipeline.errors import InputError
from pipeline.faces import FaceFinder
from pipeline.images import read_image, save_image
from pipeline.video import sample_frames
from training import prepare
from training.index import read_index
from training.landmarks import Landmarker

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def clips() -> list[Path]:
    try:
        for name in ("yunet", "face_landmarker"):
            assets.fetch(name)
        return [assets.fetch(name) for name in ("clip_01", "clip_03")]
    except InputError as error:
        pytest.skip(f"needs third-party files that cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def portraits(clips: list[Path]) -> list[NDArray[np.uint8]]:
    return [next(iter(sample_frames(clip, 1))).image for clip in clips]


def write_video(path: Path, images: list[NDArray[np.uint8]], rotation: int = 0) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_boxes_points_and_landmarks_agree(portraits: list[NDArray[np.uint8]]) -> None:
    for image in portraits:
        (face,) = FaceFinder().find(image)
        points = Landmarker().find(image, face)
        assert points is not None
        width = face.box[2] - face.box[0]
        own = np.array(
            [points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]]
        )
        # Two independent models; both number from image-left.
        np.testing.assert_allclose(own, face.points, atol=0.08 * width)
        assert points[0, 0] < points[8, 0] < points[16, 0]  # jaw: image-left, chin, image-right
        assert points[8, 1] > points[:68, 1].max() - 0.02 * width
        assert points[68, 0] < points[74, 0] < points[80, 0]  # forehead: image-left to image-right
        assert points[74, 1] < points[:, 1].min() + 0.02 * width


@pytest.mark.parametrize("degrees", [-35, 20, 45])
def test_landmarks_follow_a_turned_head(portraits: list[NDArray[np.uint8]], degrees: int) -> None:
    image = portraits[0]
    (face,) = FaceFinder().find(image)
    upright = Landmarker().find(image, face)
    centre = ((face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2)
    turn = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    turned = cv2.warpAffine(image, turn, (image.shape[1], image.shape[0]))
    found = FaceFinder().find(turned)
    points = Landmarker().find(turned, found[0])
    assert upright is not None
    assert points is not None
    expected = upright @ turn[:, :2].T + turn[:, 2]
    eyes = float(np.linalg.norm(upright[36] - upright[45]))
    assert np.linalg.norm(points - expected, axis=1).mean() < 0.06 * eyes


def test_large_pictures_give_the_same_box(portraits: list[NDArray[np.uint8]]) -> None:
    image = portraits[0]
    (face,) = FaceFinder().find(image)
    large = cv2.resize(image, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_LINEAR)
    (found,) = FaceFinder().find(large)
    side = face.box[2] - face.box[0]
    np.testing.assert_allclose(np.array(found.box) / 2.5, face.box, atol=0.04 * side)
    np.testing.assert_allclose(found.points / 2.5, face.points, atol=0.04 * side)


def test_faces_come_by_area(portraits: list[NDArray[np.uint8]]) -> None:
    one, two = portraits
    both = np.hstack([cv2.resize(one, None, fx=0.4, fy=0.4), cv2.resize(two, (512, 288))])
    half = cv2.resize(both, None, fx=0.5, fy=0.5)
    stacked = np.vstack([both, np.pad(half, ((0, 0), (0, both.shape[1] - half.shape[1]), (0, 0)))])
    faces = FaceFinder().find(stacked)
    assert len(faces) == 4
    areas = [face.area for face in faces]
    assert areas == sorted(areas, reverse=True)


def test_good_and_bad_files_together(
    tmp_path: Path, clips: list[Path], portraits: list[NDArray[np.uint8]]
) -> None:
    source = tmp_path / "data"
    (source / "real" / "nested").mkdir(parents=True)
    (source / "fake" / "swap").mkdir(parents=True)
    shutil.copy(clips[0], source / "real" / "woman or man.mp4")
    shutil.copy(clips[1], source / "fake" / "swap" / "b.mp4")
    small = [cv2.resize(portrait, (640, 360)) for portrait in portraits]
    write_video(source / "real" / "one frame.mp4", small[:1])
    sideways = np.ascontiguousarray(np.rot90(small[0], -1))
    write_video(source / "real" / "phone.mp4", [sideways] * 3, rotation=90)
    pair = np.hstack([small[0][:, 100:540], small[1][:, 100:540]])
    save_image(source / "real" / "nested" / "pair.png", pair, store="png")
    write_video(source / "real" / "wall.mp4", [np.full((128, 128, 3), 90, np.uint8)] * 6)
    (source / "real" / "empty.mp4").touch()
    (source / "real" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (source / "real" / "notes.mp4").write_text("not a video")

    out = source / "prepared"  # inside the source, and still not taken for data the second time
    report = prepare.run(source, "folder", out, frames_per_video=4, workers=2, console=QUIET)

    records = read_index(out)
    faces = {video: [r for r in records if r.video == video] for video in {r.video for r in records}}
    assert {video: len(found) for video, found in faces.items()} == {
        "real/woman or man": 4,
        "fake/swap/b": 4,
        "real/one frame": 1,
        "real/phone": 3,
        "real/nested/pair": 2,
    }
    assert {r.method for r in faces["fake/swap/b"]} == {"swap"}
    assert {r.label for r in faces["fake/swap/b"]} == {1}
    assert [r.face for r in faces["real/nested/pair"]] == [0, 1]
    assert {r.split for r in records} == {"train", "val"}
    assert set(report.unreadable) == {"real/empty", "real/broken", "real/notes"}
    assert report.skipped == {"no face": 4}
    assert (report.videos, report.videos_used) == (9, 5)
    for record in records:
        assert read_image(record.path).shape == (record.height, record.width, 3)
        tight_window(record.box, record.width, record.height)
        assert (record.landmarks > -0.3 * record.width).all()
        # Upright: the brows lie above the chin, also in the video that was stored sideways.
        assert record.landmarks[19, 1] < record.landmarks[8, 1] - 0.3 * (record.box[3] - record.box[1])

    again = prepare.run(source, "folder", out, frames_per_video=4, workers=1, console=QUIET)
    assert (again.videos, again.videos_reused) == (9, 9)


def test_nothing_but_faceless_videos(tmp_path: Path, clips: list[Path]) -> None:
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data" / "wall.mp4", [np.full((128, 128, 3), 90, np.uint8)] * 3)
    with pytest.raises(
        InputError, match="Not one face could be stored from 1 videos or pictures: no face: 3"
    ):
        prepare.run(tmp_path / "data", "folder", tmp_path / "out", workers=1, console=QUIET)
