"""The export benchmark races real artefacts and its result adds up; a race is fair and its ratios are the rounds'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.export_entrants import FOR_ANY, enter_checkpoint
from benchmarks.export_speed import RATIOS, markdown, run
from benchmarks.interleaved import race, ratio
from pipeline.bundle import open_bundle
from pipeline.errors import InputError
from training.networks import NetworkSpec


@pytest.mark.slow
def test_result_adds_up_and_can_be_stored() -> None:
    student, teacher = (
        NetworkSpec(name="mobilevitv2_050", image_size=64),
        NetworkSpec(name="test_efficientnet", image_size=48),
    )
    result = run(images=16, rounds=2, threads=1, specs=(student, teacher))
    assert json.loads(json.dumps(result)) == result
    assert {name for row in RATIOS for name in row[:2]} <= set(result["ms"])
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in result["ratios"])
    assert set(result["entrants"]["student"]["seconds"]) == {
        "onnx",
        "calibration",
        "onnx-int8",
        "openvino",
        "openvino-int8",
    }
    assert "| student onnx " in markdown(result)


@pytest.mark.slow
def test_a_checkpoint_races_as_what_the_gate_let_through(
    checkpoint: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.export_entrants.CPU_FORMATS", "onnx,openvino")
    entrant = enter_checkpoint("teacher", checkpoint, prepared, 24, 1, tmp_path / "teacher")
    bundle = open_bundle(tmp_path / "teacher" / "bundle")
    assert {item.name for item in bundle.manifest.artefacts} == {"onnx", "openvino"}
    raced = {"onnx", "openvino", f"openvino {FOR_ANY}", "torch"}
    assert set(entrant.contestants) == {f"teacher {name}" for name in raced}
    assert (entrant.rejected, entrant.int8) == ({}, {})
    assert entrant.auc == pytest.approx(bundle.manifest.measured.metrics.overall.frame.auc.value, abs=1e-9)
    assert "real faces" in entrant.faces
    for answer in entrant.contestants.values():
        assert answer().logits.shape == (1, 2)  # type: ignore[attr-defined]


def test_a_race_runs_everyone_equally_often_and_times_each() -> None:
    runs = {"slow": 0, "fast": 0}

    def go(name: str, seconds: float) -> None:
        runs[name] += 1
        time.sleep(seconds)

    raced = race(
        {"slow": lambda: go("slow", 0.02), "fast": lambda: go("fast", 0.002)}, 5, warm_up=1, run_up=2
    )
    assert runs == {"slow": 18, "fast": 18}
    assert raced.wall["slow"].shape == raced.wall["fast"].shape == (5,)
    assert raced.wall["slow"].min() >= 0.02
    assert raced.wall["fast"].min() >= 0.002


def test_a_race_knows_how_busy_others_kept_the_machine() -> None:
    busy = "import time; end = time.time() + 20\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        try:
            time.sleep(0.5)
            raced = race({"idle": lambda: time.sleep(0.1)}, 10)
        finally:
            other.kill()
    assert raced.others > 0.3 / (os.cpu_count() or 1)


def test_a_table_says_so_when_the_machine_was_busy() -> None:
    entrant = {"weights": "random", "seconds": {"onnx": 1.0}, "int8": {}}
    result = {"ratios": [], "entrants": {"student": entrant}, "others": 0.4}
    assert "Other programs took 40% of the machine" in markdown(result)
    assert "Other programs" not in markdown({**result, "others": 0.02})


def test_a_table_says_what_the_weights_were() -> None:
    made = {
        "layers": "40 layers in int8; in float: stem",
        "crops": 158,
        "sqnr_db": 31.25,
        "delta_auc": -0.001,
        "flips": 0.0063,
    }
    trained = {
        "weights": "0123456789abcdef",
        "auc": 0.9876,
        "faces": "79 real faces",
        "seconds": {"all formats, proven": 200.4},
        "int8": {"openvino-int8": made},
        "rejected": {"onnx-int8": "It is not faster than fp32 (0.98x)."},
    }
    random = {"weights": "random", "seconds": {"onnx": 1.0}, "int8": {}}
    shown = markdown({"ratios": [], "entrants": {"student": trained, "teacher": random}, "others": 0.0})
    assert (
        "Student: checkpoint 0123456789ab with an AUC of 0.988 on the gate's faces (79 real faces); "
        "openvino-int8: 40 layers in int8, SQNR 31.2 dB, AUC -0.0010, at most 0.6% of the decisions changed; "
        "onnx-int8 was left out: It is not faster than fp32 (0.98x); its CPU formats, half precision too, were made "
        "and proven in 200 s."
    ) in shown
    assert "Teacher: random weights" in shown


def test_a_ratio_is_the_median_over_rounds() -> None:
    found = ratio(np.array([2.0, 30.0, 4.0]), np.array([1.0, 10.0, 2.0]))
    assert (found.median, found.low, found.high) == (2.0, 2.0, 3.0)


def test_a_checkpoint_needs_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --data"):
        run(tmp_path / "student.pth")
