"""The demo's whole road on the real clips, with epochs of seconds, and `make export` of what it trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.parity_report import read_parity
from pipeline.bundle import open_bundle

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "epochs=1", "draws_per_face=1", "val_draws=1", "image_size=64", "teacher_image_size=64", "batch_size=16",
    "teacher=mobilevitv2_050", "min_teacher_auc=0", "threads=2", "workers=1",
)  # fmt: skip


FORMATS = {"onnx", "onnx-fp16", "onnx-int8", "onnx-cuda", "openvino", "openvino-int8", "tensorrt-rtx"}
"""All that can be made without a GPU."""


def in_checkout(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would, on the code of this checkout."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": path},
    )


@pytest.mark.slow
def test_demo_goes_from_clips_to_the_table_of_three_and_to_a_bundle(tmp_path: Path) -> None:
    # One test, for the bundle needs the demo's minutes of training.
    check_demo(tmp_path)
    check_export(tmp_path)


def check_demo(tmp_path: Path) -> None:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    done = in_checkout(
        sys.executable, str(ROOT / "stillface.py"), "demo", "--out", str(tmp_path / "demo"), *settings
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


def check_export(tmp_path: Path) -> None:
    """Each format is proven, or put away with its reason; the exit code says which."""
    out = tmp_path / "bundle"
    done = in_checkout(
        "make", "--old-file=.venv/.ready", "export",
        f"BIN={Path(sys.executable).parent}",
        f"CHECKPOINT={tmp_path}/demo/runs/stage2_*/weights/BEST.pth",
        f"CALIBRATION={tmp_path}/demo/data",
        f"BUNDLE={out}",
        "ARGS=--images 100 --threads 2",
    )  # fmt: skip
    assert "Warning" not in done.stderr, done.stderr[-2000:]
    bundle, report = open_bundle(out), read_parity(out)
    verdicts = {item.name: item for item in report.artefacts}
    assert set(verdicts) == FORMATS
    broken = [name for name, item in verdicts.items() if item.verdict == "broken"]
    # make answers 2 to any failure and says which it was
    assert done.returncode == (2 if broken else 0), done.stderr[-2000:]
    assert ("Error 3" in done.stderr) == bool(broken)

    manifest = bundle.manifest
    proven = {item.name for item in manifest.artefacts}
    rejected = {item.name: item.reason for item in manifest.rejected}
    unproven = {item.name: item.reason for item in manifest.unproven}
    assert sorted([*proven, *rejected, *unproven]) == sorted(FORMATS)
    assert {"onnx", "openvino"} <= proven
    for name, item in verdicts.items():
        if item.verdict == "passed":
            assert bundle.artefact(name).parity.passed
        elif item.verdict == "unproven":
            assert (out / "unproven" / name).is_dir()
            assert unproven[name]
        else:
            assert item.reason
            assert item.reason in rejected[name]
            assert (out / "rejected" / name / "report.json").is_file()
            assert rejected[name].startswith("not worth it") == (item.verdict == "not worth it")
    assert {path.name for path in (out / "artefacts").iterdir()} == proven


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
