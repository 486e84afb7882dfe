"""Whole preparations from stored landmarks: no model and no real face is needed, real processes run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import InputError
from pipeline.images import read_image, save_image
from training import prepare
from training.index import INDEX_NAME, index_hash, read_index

QUIET = Console(quiet=True)
FRAMES = (0, 40, 999, 1000)


def make_tree(root: Path, videos: int = 4, frames: tuple[int, ...] = FRAMES) -> Path:
    """FaceForensics++'s originals with frames, landmarks and boxes stored beside them."""
    tree = root / "original_sequences/youtube/raw"
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    points = rng.uniform([110, 80], [170, 150], (1, 81, 2))
    box = np.zeros((1, 7, 2))
    box[0, :2] = [[100, 60], [180, 160]]
    save_image(root / "frame.png", image, store="png")
    for video in range(videos):
        for name in ("frames", "landmarks", "retina"):
            (tree / name / f"{video:03d}").mkdir(parents=True)
        for frame in frames:
            stem = f"{video:03d}/{frame:03d}"
            shutil.copy(root / "frame.png", tree / "frames" / f"{stem}.png")
            np.save(tree / "landmarks" / f"{stem}.npy", points)
            np.save(tree / "retina" / f"{stem}.npy", box)
    numbers = [f"{video:03d}" for video in range(max(videos, 4))]
    for split, pairs in {"train": [numbers[2:]], "val": [numbers[:1]], "test": [numbers[1:2]]}.items():
        (root / f"{split}.json").write_text(json.dumps(pairs))
    return root


def run(source: Path, out: Path, **settings: object) -> prepare.PrepareReport:
    options: dict[str, object] = {"compression": "raw", "workers": 1, "console": QUIET} | settings
    return prepare.run(source, "ffpp", out, **options)  # type: ignore[arg-type]


def test_a_tree_with_stored_landmarks_is_prepared_without_any_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLFACE_CACHE", str(tmp_path / "no cache"))
    report = run(make_tree(tmp_path / "ff"), tmp_path / "out", workers=2)
    records = read_index(tmp_path / "out")
    assert report.faces == len(records) == 16
    assert [record.video for record in records[::4]] == [f"youtube/{n:03d}" for n in range(4)]
    assert [record.frame for record in records[:4]] == list(FRAMES)
    assert [record.split for record in records[::4]] == ["val", "test", "train", "train"]
    assert report.stored == {
        "train": {"real": {"videos": 2, "faces": 8}},
        "val": {"real": {"videos": 1, "faces": 4}},
        "test": {"real": {"videos": 1, "faces": 4}},
    }
    for record in records[:2]:
        assert read_image(record.path).shape == (record.height, record.width, 3)
        assert record.path.suffix == ".jpg"
    assert not (tmp_path / "no cache").exists()
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["faces"] == 16
    assert written["videos_short"] == 4  # 4 frames each where 32 were asked for


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "ff")
    for workers in (1, 2):
        run(source, tmp_path / f"out{workers}", workers=workers)
    assert index_hash(tmp_path / "out1") == index_hash(tmp_path / "out2")


def test_a_second_run_does_nothing_again(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "ff"), tmp_path / "out"
    run(source, out)
    first = index_hash(out)
    stamps = {record.path: record.path.stat().st_mtime_ns for record in read_index(out)}
    report = run(source, out)
    assert (report.videos, report.videos_reused, report.faces) == (4, 4, 16)
    assert index_hash(out) == first
    assert {record.path: record.path.stat().st_mtime_ns for record in read_index(out)} == stamps


def test_a_changed_setting_a_changed_source_or_a_lost_crop_is_done_again(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "ff", videos=3), tmp_path / "out"
    run(source, out)
    assert run(source, out, frames_per_video=2).videos_reused == 0
    assert [record.frame for record in read_index(out)] == [0, 1000] * 3
    assert len(list((out / "crops").rglob("*.jpg"))) == 6  # the other frames' crops are gone
    changed = source / "original_sequences/youtube/raw/retina/001/040.npy"
    np.save(changed, np.load(changed) + 1)
    assert run(source, out, frames_per_video=2).videos_reused == 2
    read_index(out)[0].path.unlink()
    assert run(source, out, frames_per_video=2).videos_reused == 2
    assert read_index(out)[0].path.is_file()


def test_another_split_needs_no_new_crops(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "ff"), tmp_path / "out"
    run(source, out)
    splits = [(source / f"{name}.json") for name in ("train", "val", "test")]
    texts = [path.read_text() for path in splits]
    for path, text in zip(splits, [texts[1], texts[0], texts[2]], strict=True):
        path.write_text(text)
    assert run(source, out).videos_reused == 4
    assert [record.split for record in read_index(out)[::4]] == ["train", "test", "val", "val"]


def test_a_video_that_left_the_source_leaves_the_index(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "ff"), tmp_path / "out"
    run(source, out)
    shutil.rmtree(source / "original_sequences/youtube/raw/frames/003")
    assert run(source, out).videos == 3
    assert {record.video for record in read_index(out)} == {"youtube/000", "youtube/001", "youtube/002"}


def test_nothing_usable_tells_the_reasons_and_leaves_no_index(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "ff", videos=2), tmp_path / "out"
    run(source, out)
    for path in source.rglob("landmarks/*/*.npy"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"Not one face .* 2 videos .*stored landmarks .* cannot be used: 8"):
        run(source, out)
    assert not (out / INDEX_NAME).exists()
    assert json.loads((out / "report.json").read_text())["faces"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames_per_video": 0}, "Frames per video must be at least 1, not 0"),
        ({"quality": 101}, "quality must lie between 1 and 100, not 101"),
        ({"workers": 0}, "At least one worker"),
        ({"val_share": 1.0}, "validation share"),
        ({"min_score": 2.0}, "min_score"),
        ({"compression": "c23"}, "There is raw: choose it with --compression"),
    ],
)
def test_settings_are_checked_first(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    make_tree(tmp_path / "ff", videos=1)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "ff", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_the_output_folder_must_be_another(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "ff", videos=1)
    with pytest.raises(InputError, match="must not be the data set's own folder"):
        run(source, source)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: name a folder"):
        run(source, tmp_path / "file")


RUNNER = """
import sys
from pathlib import Path
from training.prepare import run
if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), "ffpp", Path(sys.argv[2]), compression="raw", workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "ff", videos=160, frames=tuple(range(0, 160, 10))), tmp_path / "out"
    script = tmp_path / "runner.py"
    script.write_text(RUNNER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob(".parts/*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    # To the whole group, as a terminal does: the workers get it too.
    subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors
    finished = len(list(out.glob(".parts/*.parquet")))
    assert 2 <= finished < 160
    assert not (out / INDEX_NAME).exists()
    report = run(source, out, workers=2)
    assert report.videos_reused == finished
    assert report.faces == len(read_index(out)) == 160 * 16
