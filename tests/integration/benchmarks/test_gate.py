"""The gate's benchmark exports by the real command and tells the truth of every network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gate import markdown, run
from export.parity_report import ParityReport
from pipeline.errors import InputError
from training.checkpoint import load_detector, save_checkpoint


@pytest.mark.slow
def test_a_checkpoint_and_random_weights_go_through_the_gate(checkpoint: Path, prepared: Path) -> None:
    told: list[str] = []
    kept: list[int] = []
    result = run(
        [str(checkpoint), "test_efficientnet@48"],
        prepared,
        formats="onnx,openvino",
        images=24,
        threads=1,
        tell=told.append,
        keep=lambda part: kept.append(len(part["networks"])),
    )
    assert kept == [1, 2]
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


@pytest.mark.slow
def test_a_network_that_its_onnx_file_does_not_repeat_is_a_row_of_its_own(
    checkpoint: Path, prepared: Path, tmp_path: Path
) -> None:
    detector, info = load_detector(checkpoint)
    with torch.no_grad():  # logits of a million, of which float32 keeps no fourth decimal
        detector.head.weight.mul_(1e6)
    save_checkpoint(tmp_path / "loud.pth", detector.state_dict(), info)
    (item,) = run([str(tmp_path / "loud.pth")], prepared, formats="onnx", images=24, threads=1)["networks"]
    report = ParityReport.model_validate(item["report"])
    assert (item["exit_code"], report.artefacts[0].verdict) == (3, "broken")
    assert "- onnx, broken: " in markdown({"networks": [item]})


def test_an_export_that_fails_says_why(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)could not be exported \(exit code 2\).*nothing"):
        run([str(checkpoint)], tmp_path / "nothing", formats="onnx")
