"""The gate's benchmark exports by the real command and tells the truth of every network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gate import markdown, run
from export.parity_report import ParityReport
from pipeline.errors import InputError
from training.checkpoint import load_detector


@pytest.mark.slow
def test_a_checkpoint_and_random_weights_go_through_the_gate(checkpoint: Path, prepared: Path) -> None:
    told: list[str] = []
    result = run(
        [str(checkpoint), "test_efficientnet@48"],
        prepared,
        formats="onnx,openvino",
        images=24,
        threads=1,
        tell=told.append,
    )
    assert json.loads(json.dumps(result)) == result
    trained, random = result["networks"]
    reports = [ParityReport.model_validate(item["report"]) for item in (trained, random)]
    assert reports[0].checkpoint_sha256 == load_detector(checkpoint)[1].sha256
    assert [item["weights"] for item in (trained, random)] == ["trained", "random"]
    for report in reports:
        assert [(item.name, item.verdict) for item in report.artefacts] == [
            ("onnx", "passed"),
            ("openvino", "passed"),
        ]
    assert min(item["peak_bytes"] for item in (trained, random)) > 100 << 20
    shown = markdown(result)
    assert f"checkpoint {reports[0].checkpoint_sha256[:12]}, AUC" in shown
    assert "**test_efficientnet @48**, random weights: made and proven in" in shown
    assert len(told) == 2


def test_an_export_that_fails_says_why(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)could not be exported \(exit code 2\).*nothing"):
        run([str(checkpoint)], tmp_path / "nothing", formats="onnx")
