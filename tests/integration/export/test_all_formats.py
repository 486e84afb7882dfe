"""Every float format that a machine without a GPU can build goes through the gate, or is put away with its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from export.exporter import ExportSettings, export_bundle
from export.formats import parse_formats
from export.parity_report import ParityReport, read_parity
from export.reprove import ProofSettings, prove_bundle
from pipeline.bundle import Bundle, open_bundle
from pipeline.runtime import open_artefact

pytestmark = pytest.mark.slow
FORMATS = "onnx,onnx-fp16,onnx-cuda,openvino,tensorrt-rtx"


@pytest.fixture(scope="module")
def everything(checkpoint: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("everything") / "bundle"
    settings = ExportSettings(checkpoint, out, parse_formats(FORMATS), prepared, images=60, threads=1)
    export_bundle(settings, Console(quiet=True))
    return out


def opened(folder: Path) -> tuple[Bundle, ParityReport]:
    return open_bundle(folder), read_parity(folder)


def test_every_format_has_a_verdict_and_lies_where_it_belongs(everything: Path) -> None:
    bundle, report = opened(everything)
    places = {
        "artefacts": {item.name for item in bundle.manifest.artefacts},
        "rejected": {item.name for item in bundle.manifest.rejected},
        "unproven": {item.name for item in bundle.manifest.unproven},
    }
    assert sorted(name for names in places.values() for name in names) == sorted(FORMATS.split(","))
    for place, names in places.items():
        found = (
            {path.name for path in (everything / place).iterdir()} if (everything / place).exists() else set()
        )
        assert found == names
    verdicts = {item.name: item.verdict for item in report.artefacts}
    assert {name for name, verdict in verdicts.items() if verdict == "passed"} == places["artefacts"]
    assert {"onnx", "onnx-fp16", "openvino"} <= places["artefacts"]


def test_an_engine_that_cannot_run_here_is_no_artefact(everything: Path) -> None:
    bundle, report = opened(everything)
    engine = next((item for item in bundle.manifest.unproven if item.name == "tensorrt-rtx"), None)
    if engine is None:
        pytest.skip("this machine has a GPU that runs it")
    assert engine.engine is not None
    assert engine.files[0].path.startswith("unproven/tensorrt-rtx/")
    assert engine.engine.weight_layer_types
    assert report.link("tensorrt-rtx") is None
    assert "| tensorrt-rtx | **not proven** |" in (everything / "model_card.md").read_text(encoding="utf-8")


def test_onnx_on_a_gpu_is_the_file_that_was_proven_on_a_cpu(everything: Path) -> None:
    bundle, report = opened(everything)
    (half,) = bundle.artefact("onnx-fp16").files
    items = (*bundle.manifest.artefacts, *bundle.manifest.unproven)
    item = next(item for item in items if item.name == "onnx-cuda")
    assert item.files[0].sha256 == half.sha256
    if item in bundle.manifest.unproven:
        verdict = report.artefact("onnx-cuda")
        assert verdict is not None
        assert "onnxruntime-gpu" in str(verdict.reason)


def test_what_is_proven_agrees_within_its_precision(everything: Path) -> None:
    bundle, _ = opened(everything)
    crops = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    expected = open_artefact(everything, bundle.artefact("onnx"), threads=1).run(crops).logits
    for artefact in bundle.manifest.artefacts:
        found = open_artefact(everything, artefact, threads=1).run(crops).logits
        bound = {"fp32": 2e-4, "fp16": 2e-2}.get(artefact.precision, 1.0)
        assert np.abs(found - expected).max() <= bound, artefact.name
        assert artefact.parity.measured_with


def test_it_can_be_measured_again(everything: Path, prepared: Path) -> None:
    report = prove_bundle(
        ProofSettings(everything, data=prepared, images=60, threads=1, write=False), Console(quiet=True)
    )
    before = read_parity(everything)
    for item in report.artefacts:
        if item.verdict in ("passed", "broken"):
            earlier = before.artefact(item.name)
            assert earlier is not None
            assert item.verdict == earlier.verdict
