"""What a person can get wrong, through the real command line: one clear sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from training.checkpoint import CheckpointInfo, save_checkpoint
from training.index import read_index, write_index
from training.networks import Detector, NetworkSpec

Script = Callable[..., tuple[int, str, str]]
Written = Callable[..., Path]
Store = Callable[[Path, dict[str, int]], Path]


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """The command left with 2 and one message that holds all the words."""
    code, out, err = outcome
    assert code == 2, out + err
    assert "Traceback" not in out + err
    assert err.startswith("error: ")
    for word in words:
        assert word in err


def test_a_mistyped_key_and_a_wrong_value_are_told_together(run_script: Script, written: Written) -> None:
    outcome = run_script("train_student_only.py", written(bacth_size=8, temperature=-1), "-n", "x")
    refused(outcome, "bacth_size", "batch_size", "temperature")


def test_a_missing_folder(run_script: Script, written: Written, tmp_path: Path) -> None:
    refused(run_script("train_student_only.py", written(data="nowhere"), "-n", "x"), "nowhere", "prepare")
    refused(run_script("stillface.py", "prepare", "nowhere", "--layout", "folder"), "nowhere")
    assert not (tmp_path / "output").exists()


def test_a_split_without_faces(run_script: Script, written: Written, store: Store, tmp_path: Path) -> None:
    folder = store(tmp_path / "no_val", {"train": 4})
    refused(run_script("train_student_only.py", written(data=str(folder)), "-n", "x"), "val", "4 train real")


def test_a_validation_split_of_fakes_alone(
    run_script: Script, written: Written, store: Store, tmp_path: Path
) -> None:
    folder = store(tmp_path / "fakes", {"train": 4, "val": 4})
    records = read_index(folder)
    for record in records:
        if record.split == "val":
            object.__setattr__(record, "label", 1)
            object.__setattr__(record, "method", "Deepfakes")
            object.__setattr__(record, "video", f"Deepfakes/{record.frame}")
    write_index(folder, records)
    refused(
        run_script("train_student_only.py", written(data=str(folder)), "-n", "x"), "no real faces", "val fake"
    )


@pytest.mark.parametrize("content", [b"", b"half"])
def test_a_stored_crop_that_is_empty_or_cut_short(
    run_script: Script, written: Written, store: Store, tmp_path: Path, content: bytes
) -> None:
    folder = store(tmp_path / "broken", {"train": 4, "val": 2})
    victim = folder / "train_1.jpg"
    victim.write_bytes(victim.read_bytes()[:700] if content else b"")
    refused(run_script("train_student_only.py", written(data=str(folder)), "-n", "x"), str(victim))


def test_landmarks_of_another_image(
    run_script: Script, written: Written, store: Store, tmp_path: Path
) -> None:
    folder = store(tmp_path / "shifted", {"train": 4, "val": 2})
    records = read_index(folder)
    object.__setattr__(records[0], "landmarks", records[0].landmarks + np.float32(500))
    write_index(folder, records)
    refused(run_script("train_student_only.py", written(data=str(folder)), "-n", "x"), "landmarks")


def test_teacher_files_of_the_wrong_kind(run_script: Script, written: Written, tmp_path: Path) -> None:
    for name, content in (("empty.tar", b""), ("page.tar", b"<!DOCTYPE html>"), ("text.tar", b"hello")):
        (tmp_path / name).write_bytes(content)
        refused(run_script("main_distillation.py", written(teacher_weights=name), "-n", "x"), name)
    torch.save({"state_dict": {"conv_stem.weight": torch.zeros(2)}}, tmp_path / "other.tar")
    refused(run_script("main_distillation.py", written(teacher_weights="other.tar"), "-n", "x"), "other.tar")
    assert not list((tmp_path / "output").glob("*/weights/*"))


def test_evaluating_what_is_no_checkpoint(run_script: Script, prepared: Path, tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "x.pth")
    refused(
        run_script("stillface.py", "evaluate", "x.pth", prepared, "--split", "val"),
        "x.pth",
        "not a stillface checkpoint",
    )
    refused(run_script("stillface.py", "evaluate", "gone.pth", prepared), "gone.pth")


def test_a_broken_crop_that_a_worker_finds_while_evaluating(
    run_script: Script, store: Store, tmp_path: Path
) -> None:
    data = store(tmp_path / "data", {"test": 2})
    detector = Detector(NetworkSpec(name="test_efficientnet", image_size=32))
    info = CheckpointInfo(
        stage="stage1", epoch=1, val_auc=0.5, threshold=0.5, network=detector.spec, config={}, provenance={}
    )
    save_checkpoint(tmp_path / "x.pth", detector.state_dict(), info)
    victim = data / "test_0.jpg"
    victim.write_bytes(victim.read_bytes()[:700])
    outcome = run_script("stillface.py", "evaluate", "x.pth", data, "--self-blended", "--workers", "1")
    refused(outcome, str(victim))


def test_media_that_cannot_be_used_are_listed_by_reason(run_script: Script, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "empty.mp4").write_bytes(b"")
    (source / "text.mp4").write_bytes(b"not a video at all")
    cv2.imwrite(str(source / "wall.png"), np.full((200, 200, 3), 127, np.uint8))
    outcome = run_script(
        "stillface.py", "prepare", source, "--layout", "folder", "--out", "out", "--workers", "1"
    )
    refused(outcome, "no face")
    assert not (tmp_path / "out" / "index.parquet").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving(
    command: Callable[..., subprocess.Popen[str]], written: Written, tmp_path: Path
) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    running = command("train_student_only.py", written(), "-n", "full", preexec_fn=small_files)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 2, out + err
    assert "Traceback" not in err
    assert "Cannot write" in err
    (run,) = (tmp_path / "output").iterdir()
    assert not [path for path in run.rglob("*") if path.suffix == ".pth" or path.name.startswith(".part-")]
