"""The README's tables: made from result files, and a stale one is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.machine import environment
from benchmarks.readme import RESULTS, ROOT, update
from benchmarks.serve_table import serve_table
from benchmarks.table_markdown import summary
from benchmarks.table_result import Interval, Network, Row, Table
from pipeline.errors import InputError


def test_readme_shows_the_committed_results() -> None:
    assert update(check=True)


def test_a_changed_result_is_noticed_and_written(tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    shutil.copytree(RESULTS, results)
    shutil.copy(ROOT / "README.md", readme)
    blend = json.loads((results / "selfblend.json").read_text())
    blend["ms"]["total"]["p50"] = 77.7
    (results / "selfblend.json").write_text(json.dumps(blend))
    assert not update(readme, results, check=True)
    assert "77.7 ms" not in readme.read_text()
    assert not update(readme, results)
    assert "77.7 ms" in readme.read_text()
    assert update(readme, results, check=True)


def test_a_missing_result_or_marker_is_named(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    with pytest.raises(InputError, match="markers"):
        update(readme)
    with pytest.raises(InputError, match=r"demo\.json"):
        update(ROOT / "README.md", tmp_path, check=True)


def test_a_part_that_was_left_out_of_a_run_has_no_figure() -> None:
    result = json.loads((RESULTS / "serve-demo.json").read_text())
    result = {name: part for name, part in result.items() if name not in ("growth", "overload")}
    rows = [line for line in serve_table([result]).splitlines() if line.endswith("| - |")]
    assert len(rows) == 3


def test_a_stale_page_of_the_whole_table_is_noticed(tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    shutil.copytree(RESULTS, results)
    shutil.copy(ROOT / "README.md", readme)
    (results / "table.json").write_text(small_table().model_dump_json())
    assert not update(readme, results)
    assert "0.8125" in readme.read_text()
    assert update(readme, results, check=True)
    page = results / "table.md"
    page.write_text(page.read_text().replace("0.8125", "0.9125"))
    assert not update(readme, results, check=True)


def test_a_disturbed_way_is_named_beneath_the_milliseconds() -> None:
    table = small_table()
    network = table.networks[0].model_copy(update={"key": "stage2", "title": "student"})
    rows = tuple(
        Row(network="stage2", way=way, round_ms=(9.0,), anchor_ms=(taken,))
        for way, taken in (("onnx", 64.0), ("openvino", 80.0))
    )
    told = summary(table.model_copy(update={"networks": (*table.networks, network), "rows": rows}))
    assert "student in ONNX Runtime fp32 is asked in turns" in told
    assert "1.25 times in OpenVINO fp32" in told
    assert "is asked in turns" not in summary(table)


def small_table() -> Table:
    """A table with one network and one row."""
    row = Row(
        network="teacher", way="onnx", label="onnxruntime", samples=3, p50=Interval(value=2, low=1, high=3)
    )
    network = Network(
        key="teacher", title="teacher", group="full", name="test_efficientnet", image_size=64, parameters=1,
        gmacs=1, mactivations=1, weights="0" * 64, stage="teacher", val_auc=0.8125, bytes={},
    )  # fmt: skip
    settings = {"threads": 1, "rounds": 2, "least_calls": 2, "inside": {}}
    return Table(machine=environment(), settings=settings, seconds=60, networks=(network,), rows=(row,))
