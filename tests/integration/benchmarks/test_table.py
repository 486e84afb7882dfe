"""The table on small networks, run for real: what it says is what the checkpoint and the networks say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.progress import Progress
from benchmarks.table import run
from benchmarks.table_check import differences
from benchmarks.table_markdown import full, summary
from benchmarks.table_plan import QUICK, choose_ways, quick_entries
from benchmarks.table_result import Table, read_table
from pipeline.errors import InputError
from training.checkpoint import CheckpointInfo, load_detector, save_checkpoint
from training.networks import build_student

ROOT = Path(__file__).resolve().parents[3]
AUC = 0.8125
MEASURED = ("torch", "onnx", "openvino")
ELSEWHERE = ("onnx-cuda", "tensorrt-fp16")
"""Ways that a machine without a GPU cannot go."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "7_0.8125_val.pth"
    detector, _ = build_student("mobilevitv2_050", image_size=64, pretrained="none")
    info = CheckpointInfo(
        stage="stage2", epoch=7, val_auc=AUC, threshold=0.4, network=detector.spec, config={}, provenance={}
    )
    save_checkpoint(path, detector.state_dict(), info)
    return path


@pytest.fixture(scope="module")
def result(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run through the plain door, with ways that this machine has and ways that it lacks."""
    out = tmp_path_factory.mktemp("table") / "table.json"
    ways = (*MEASURED, *ELSEWHERE)
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--threads", "1", "--out", str(out)]
    command += ["--stage2", str(checkpoint), *(word for way in ways for word in ("--way", way))]
    command += ["--set", "device=cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "**Ratios**" in done.stdout
    return out


@pytest.fixture(scope="module")
def table(result: Path) -> Table:
    return read_table(result)


def test_a_run_that_is_stopped_keeps_the_ways_it_has_measured(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--threads", "1", "--out", str(out)]
    command += ["--way", "onnx", "--way", "torch", "--way", "openvino", "--set", "device=cpu"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not out.is_file() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    measured = {row.way for row in read_table(out).rows}
    assert "onnx" in measured
    assert "openvino" not in measured


def test_no_way_is_begun_after_the_time_is_up() -> None:
    ways = choose_ways(["onnx", "torch"], gpu=False)
    with Progress() as progress:
        table = run(quick_entries({})[:1], ways, QUICK, progress, threads=1, minutes=0)
    assert [row.reason for row in table.rows] == ["not begun within 0 minutes"] * 2


def test_every_row_is_measured_or_says_why(table: Table) -> None:
    rows = {(row.network, row.way): row for row in table.rows}
    assert len(rows) == 3 * len(MEASURED) + 2 * len(ELSEWHERE)
    for network in ("teacher", "stage1", "stage2"):
        for way in MEASURED:
            row = rows[network, way]
            assert row.reason is None, row.reason
            assert row.p50 is not None
            assert row.p50.low <= row.p50.value <= row.p50.high
            assert row.memory["running_1"] > 0
            assert set(row.by_batch) == ({1} if network == "stage1" else {1, 2})
            assert len(row.round_ms) == len(row.anchor_ms) == table.settings["rounds"]
    for network in ("teacher", "stage2"):
        for way in ELSEWHERE:
            row = rows[network, way]
            assert row.reason or row.p50


def test_training_and_the_whole_road_are_measured(table: Table) -> None:
    stages = {item.stage: item for item in table.training}
    assert set(stages) == {"teacher", "stage1", "stage2"}
    for item in stages.values():
        assert item.reason is None, item.reason
        assert item.step_seconds is not None
        assert item.memory["running"] > 0
    assert "under test_efficientnet @64" in stages["stage2"].networks
    walk = next(item for item in table.end_to_end if item.network == "stage2")
    assert walk.reason is None, walk.reason
    assert all(ms > 0 for ms in walk.stage_ms.values())


def test_ratios_are_those_of_the_rows(table: Table) -> None:
    found = {(item.what, item.title, item.way): item for item in table.ratios}
    speed = found["speed", "teacher / student", "onnx"]
    teacher, student = (table.row(key, "onnx") for key in ("teacher", "stage2"))
    assert teacher is not None
    assert student is not None
    ratios = [one / other for one, other in zip(teacher.round_ms, student.round_ms, strict=True)]
    assert speed.value == pytest.approx(np.median(ratios))
    assert (
        table.process_spread is not None
    )  # stage 1 and stage 2 are one network, and no two processes are alike
    assert speed.low <= speed.value * math.exp(-2 * table.process_spread)
    assert speed.high >= speed.value * math.exp(2 * table.process_spread)
    assert speed.published is None  # that was said of another teacher


def test_the_auc_is_the_checkpoint_s(table: Table, checkpoint: Path) -> None:
    student = table.network("stage2")
    assert student.val_auc == AUC
    assert student.weights == load_detector(checkpoint)[1].sha256
    assert table.network("teacher").val_auc is None
    page = summary(table)
    assert "0.8125" in page
    assert "random weights" in page
    assert differences(table, {"stage2": checkpoint}) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("val_auc", 0.94, "AUC 0.94, the checkpoint says 0.8125"),
        ("parameters", 1_000_000, "parameters 1e"),
        ("gmacs", 7.0, "GMACs 7"),
        ("weights", "random", "for random weights"),
    ],
)
def test_a_planted_figure_is_found(
    result: Path, checkpoint: Path, key: str, value: object, told: str
) -> None:
    content = json.loads(result.read_text())
    next(network for network in content["networks"] if network["key"] == "stage2")[key] = value
    lines = differences(Table.model_validate(content), {"stage2": checkpoint})
    assert any(told in line for line in lines), lines


def test_pages_and_pictures_lie_beside_the_result(result: Path, table: Table) -> None:
    assert result.with_suffix(".md").read_text() == full(table)
    for name in ("ratios", "frontier", "throughput", "memory"):
        assert result.with_name(f"table-{name}.png").stat().st_size > 5000


def test_another_version_s_result_is_refused(result: Path, tmp_path: Path) -> None:
    other = tmp_path / "table.json"
    other.write_text(result.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(InputError, match="schema 1"):
        read_table(other)
