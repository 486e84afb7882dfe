"""An artefact is measured as it is served: in its own runtime, with the bundle's temperature, thresholds and rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bundle import open_bundle
from pipeline.errors import InputError
from training.evaluate import evaluate
from training.evaluated import open_checkpoint, open_in_bundle
from training.evaluation_report import compare, read_report
from training.face_scores import LoaderSettings, score_records
from training.index import read_index

Run = Callable[..., tuple[int, str, str]]
HOW: dict[str, Any] = {"split": "val", "self_blended": True, "resamples": 0}


def test_scores_are_the_checkpoints_at_the_bundles_temperature(
    exported_bundle: Path, checkpoint: Path, prepared: Path
) -> None:
    import torch

    settings = LoaderSettings(batch_size=3, workers=0, device=torch.device("cpu"))
    records = read_index(prepared)
    found = score_records(open_in_bundle(exported_bundle, "onnx", threads=1).network, records, settings)
    trained = score_records(open_checkpoint(checkpoint, torch.device("cpu")).network, records, settings)
    temperature = open_bundle(exported_bundle).manifest.calibration.temperature
    assert temperature != 1
    expected = 1 / (1 + (1 / trained.scores - 1) ** (1 / temperature))
    np.testing.assert_allclose(found.scores, expected, atol=1e-5, rtol=0)
    assert not np.allclose(found.scores, trained.scores, atol=1e-3)


def test_frames_and_videos_are_cut_at_their_own_thresholds(
    exported_bundle: Path, prepared: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(exported_bundle)
    report = evaluate(exported_bundle, prepared, artefact="onnx", out=tmp_path, threads=1, **HOW)
    overall = report.metrics.overall
    for level in (overall.frame, overall.video):
        assert level.at_threshold is not None
        assert level.at_threshold.threshold == bundle.operating_point(level.level).threshold
    assert report.artefact is not None
    assert (report.artefact.bundle, report.artefact.name) == (bundle.manifest.id, "onnx")
    assert report.artefact.operating_point == bundle.manifest.calibration.default_point
    assert report.checkpoint.sha256 == bundle.manifest.training.checkpoint_sha256
    assert report.circumstances.device.startswith("onnxruntime")
    assert read_report(tmp_path) == report
    page = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    for told in (
        bundle.manifest.id,
        report.artefact.sha256,
        "operating point eer of the bundle",
        "temperature",
    ):
        assert told in page
    assert "applied as it stands" not in page
    cuts = [f"{bundle.operating_point(level).threshold:.6g}" for level in ("frame", "video")]
    assert f"| threshold | {cuts[0]} | {cuts[1]} |" in page


def test_another_operating_point_or_a_threshold_of_ones_own(exported_bundle: Path, prepared: Path) -> None:
    bundle = open_bundle(exported_bundle)
    strict = evaluate(exported_bundle, prepared, artefact="onnx", operating_point="fpr-1%", threads=1, **HOW)
    assert strict.metrics.threshold == bundle.operating_point("frame", "fpr-1%").threshold
    own = evaluate(exported_bundle, prepared, artefact="onnx", threshold=0.25, threads=1, **HOW)
    at = own.metrics.overall.video.at_threshold
    assert at is not None
    assert at.threshold == 0.25
    assert own.artefact is not None
    assert own.artefact.operating_point is None


def test_it_stands_in_a_table_beside_the_checkpoint(
    exported_bundle: Path, checkpoint: Path, prepared: Path
) -> None:
    served = evaluate(exported_bundle, prepared, artefact="onnx", threads=1, **HOW)
    table = compare({"trained": evaluate(checkpoint, prepared, **HOW), "served": served})
    trained_row, served_row = (line.split("|") for line in table.splitlines()[2:4])
    assert trained_row[3:7] == served_row[3:7]  # AUC, EER and AP do not change with a temperature


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({}, "say which of its artefacts to measure, --artefact onnx"),
        ({"artefact": "openvino"}, "has no artefact 'openvino'; it has onnx"),
        ({"artefact": "onnx", "device": "cuda"}, "Leave --device out"),
        ({"artefact": "onnx", "operating_point": "fpr-2%"}, "no operating point 'fpr-2%'"),
        ({"artefact": "onnx", "operating_point": "eer", "threshold": 0.5}, "leave one out"),
        ({"artefact": "onnx", "rule": "median"}, "'median' is unknown"),
    ],
)
def test_unusable_settings_are_refused(
    exported_bundle: Path, prepared: Path, setting: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(exported_bundle, prepared, **HOW, **setting)


@pytest.mark.parametrize("setting", [{"artefact": "onnx"}, {"operating_point": "eer"}, {"threads": 1}])
def test_what_only_bundles_have_is_refused_for_a_checkpoint(
    checkpoint: Path, prepared: Path, setting: dict[str, Any]
) -> None:
    (name,) = setting
    with pytest.raises(InputError, match=f"is no bundle; --{name.replace('_', '-')} is for bundles only"):
        evaluate(checkpoint, prepared, **HOW, **setting)


def test_the_command_writes_beside_the_bundle(exported_bundle: Path, prepared: Path, run_script: Run) -> None:
    code, said, _ = run_script(
        "stillface.py", "evaluate", exported_bundle, prepared, "--artefact", "onnx", "--split", "val",
        "--self-blended", "--threads", 1,
    )  # fmt: skip
    assert code == 0
    assert "onnx of" in said
    assert (exported_bundle.parent / "evaluation_bundle_onnx_val_self_blended" / "roc.png").is_file()
    open_bundle(exported_bundle)
