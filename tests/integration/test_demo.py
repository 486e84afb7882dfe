"""The demo's whole road on the real clips, with epochs of seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "epochs=1", "draws_per_face=1", "val_draws=1", "image_size=64", "teacher_image_size=64", "batch_size=16",
    "teacher=mobilevitv2_050", "min_teacher_auc=0", "threads=2", "workers=1",
)  # fmt: skip


@pytest.mark.slow
def test_demo_goes_from_clips_to_the_table_of_three(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "stillface.py"), "demo", "--out", str(tmp_path / "demo")]
    for setting in SMALL:
        command += ["--set", setting]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Two actors prove that the road works" in done.stdout
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert list(result["reports"]) == ["teacher", "stage 1", "stage 2"]
    for report in result["reports"].values():
        assert 0 <= report["metrics"]["overall"]["frame"]["auc"]["value"] <= 1
    index = json.loads((tmp_path / "demo" / "data" / "report.json").read_text())
    assert {split: by["real"]["videos"] for split, by in index["stored"].items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    for stage in ("teacher", "stage1", "stage2"):
        (run,) = (tmp_path / "demo" / "runs").glob(f"{stage}_*")
        assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "demo" / f"{stage}_report" / "roc.png").is_file()


def test_demo_splits_by_identity() -> None:
    from training.demo import CLIPS

    trained = {identity for _, split, identity in CLIPS if split == "train"}
    measured = {identity for _, split, identity in CLIPS if split != "train"}
    assert trained
    assert measured
    assert not trained & measured


def test_the_demos_networks_can_be_built_at_their_sizes() -> None:
    from training.config import load_settings
    from training.networks import build_student

    settings = load_settings(ROOT / "configs" / "demo.json", "stage2")
    build_student(settings.student, image_size=settings.image_size, pretrained=settings.pretrained)
    build_student(
        settings.teacher, image_size=settings.teacher_image_size, pretrained=settings.teacher_pretrained
    )
