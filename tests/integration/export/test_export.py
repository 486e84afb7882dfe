"""A checkpoint becomes a bundle that a server opens; what cannot become one is refused, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

import export.onnx_graph
from export.exporter import ExportSettings, export_bundle
from export.formats import parse_formats
from export.parity_report import read_parity
from export.reprove import ProofSettings, prove_bundle
from pipeline.bundle import open_bundle
from pipeline.errors import InputError, NotProvenError
from pipeline.runtime import open_artefact
from training.checkpoint import load_detector, save_checkpoint
from training.index import read_index, write_index
from training.networks import Detector

Run = Callable[..., tuple[int, str, str]]


def settings(checkpoint: Path, data: Path, out: Path, **changes: Any) -> ExportSettings:
    given = ExportSettings(checkpoint, out, parse_formats("onnx"), data, images=24, threads=1)
    return replace(given, **changes)


def test_the_bundle_answers_as_the_checkpoint_does(exported_bundle: Path, checkpoint: Path) -> None:
    bundle = open_bundle(exported_bundle)
    detector, info = load_detector(checkpoint)
    crops = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    answer = open_artefact(bundle.folder, bundle.artefact("onnx"), threads=1).run(crops)
    with torch.no_grad():
        logits, evidence = detector.forward_with_evidence(torch.from_numpy(crops))
    np.testing.assert_allclose(answer.logits, logits, atol=1e-4)
    np.testing.assert_allclose(answer.evidence, evidence, atol=1e-3)
    assert bundle.manifest.training.checkpoint_sha256 == info.sha256


def test_the_manifest_says_where_its_figures_come_from(exported_bundle: Path, prepared: Path) -> None:
    manifest = open_bundle(exported_bundle).manifest
    assert manifest.measured.data == prepared.name
    assert (manifest.measured.split, manifest.measured.fakes) == ("val", "self-blended")
    assert {(point.level, point.name) for point in manifest.calibration.operating_points} == {
        (level, name) for level in ("frame", "video") for name in ("eer", "fpr-1%", "fpr-5%")
    }
    parity = manifest.artefacts[0].parity
    assert parity.passed
    assert parity.max_abs_logit <= 1e-4
    assert set(parity.flips.values()) == {0}
    card = (exported_bundle / "model_card.md").read_text(encoding="utf-8")
    assert "no figure here says how well deepfakes are found" in card
    assert "None" not in card


def test_the_report_tells_of_every_link(exported_bundle: Path) -> None:
    report = read_parity(exported_bundle)
    assert [link.name for link in report.links] == ["torch.export program", "onnx, optimiser off", "onnx"]
    assert [link.before for link in report.links] == [
        "torch fp32",
        "torch.export program",
        "onnx, optimiser off",
    ]
    for link in report.links:
        assert not link.broken
        assert link.repeat.batches == (32, 1, 2, 7, 7, 5)
        assert set(link.kinds) == {"real", "fake", "noise", "clouds", "black", "white", "checkerboard"}
    page = (exported_bundle / "parity.md").read_text(encoding="utf-8")
    assert "| onnx | passed |" in page
    assert "No decision changes in any link." in page


def test_nothing_else_lies_in_the_bundle(exported_bundle: Path) -> None:
    assert {
        path.relative_to(exported_bundle).as_posix() for path in exported_bundle.rglob("*") if path.is_file()
    } == {
        "artefacts/onnx/model.onnx",
        "face_finder/yunet.onnx",
        "manifest.json",
        "model_card.md",
        "parity.json",
        "parity.md",
        "parity_differences.png",
        "parity_scores.png",
    }


@pytest.fixture
def beyond_half(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose activations reach a million inside one block and are sane again behind it."""
    detector, info = load_detector(checkpoint)
    block = detector.backbone.stages[1][0]
    with torch.no_grad():
        block.conv1_1x1.bn.weight.mul_(1e6)
        block.conv2_kxk.conv.weight.mul_(1e-6)
    save_checkpoint(tmp_path / "beyond.pth", detector.state_dict(), info)
    return tmp_path / "beyond.pth"


def test_a_network_beyond_float16_costs_only_the_formats_in_float16(
    beyond_half: Path, prepared: Path, tmp_path: Path
) -> None:
    formats = parse_formats("onnx,onnx-fp16,openvino,tensorrt-rtx")
    chosen = settings(beyond_half, prepared, tmp_path / "bundle", formats=formats)
    with pytest.raises(NotProvenError, match=r"onnx-fp16 \(checkpoint -> onnx-fp16\)"):
        export_bundle(chosen, Console(quiet=True))
    bundle = open_bundle(chosen.out)
    assert [item.name for item in bundle.manifest.artefacts] == ["onnx", "openvino"]
    assert [item.name for item in bundle.manifest.rejected] == ["onnx-fp16", "tensorrt-rtx"]
    for item in bundle.manifest.rejected:
        assert "conv1_1x1" in item.reason
        assert "float16 ends at 65504" in item.reason
        assert sorted(path.name for path in (chosen.out / "rejected" / item.name).iterdir()) == [
            "report.json",
            "report.md",
        ]
    assert "float16 ends at 65504" in (chosen.out / "model_card.md").read_text(encoding="utf-8")
    assert "| onnx-fp16 | broken |" in (chosen.out / "parity.md").read_text(encoding="utf-8")
    assert verdicts_again(chosen.out) == {"onnx": "passed", "openvino": "passed"}


def verdicts_again(bundle: Path) -> dict[str, str]:
    """What `stillface parity` says of a bundle, without faces."""
    proof = ProofSettings(bundle, checkpoint=None, data=None, threads=1, write=False)
    report = prove_bundle(proof, Console(quiet=True))
    return {item.name: item.verdict for item in report.artefacts}


def test_the_same_settings_give_the_same_graph_and_replace_the_bundle(
    exported_bundle: Path, checkpoint: Path, prepared: Path, tmp_path: Path
) -> None:
    first = open_bundle(exported_bundle).manifest.artefacts[0].files[0].sha256
    out = tmp_path / "again"
    shutil.copytree(exported_bundle, out)
    (out / "left.txt").write_text("of an older bundle")
    bundle = export_bundle(settings(checkpoint, prepared, out), Console(quiet=True))
    assert bundle.manifest.artefacts[0].files[0].sha256 == first
    assert not (out / "left.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_folder_with_something_else_is_not_replaced(
    checkpoint: Path, prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no bundle, so it is not replaced"):
        export_bundle(settings(checkpoint, prepared, tmp_path / "out"), Console(quiet=True))
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_no_bundle_stands_on_a_broken_onnx_file(
    exported_bundle: Path, checkpoint: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = export.onnx_graph.write_onnx

    def swapping_colours(detector: Detector, path: Path, **options: Any) -> Path:
        """An exporter that thinks in OpenCV's order of colours."""
        sound(detector, path, **options)
        model = onnx.load(path)
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        tensor = next(item for item in model.graph.initializer if item.name in node.input[1:])
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, ::-1]), tensor.name))
        onnx.save(model, path)
        return path

    monkeypatch.setattr(export.onnx_graph, "write_onnx", swapping_colours)
    out = tmp_path / "bundle"
    shutil.copytree(exported_bundle, out)
    with pytest.raises(
        NotProvenError, match=r"there is no bundle\. torch\.export program -> onnx, optimiser off: max"
    ):
        export_bundle(settings(checkpoint, prepared, out), Console(quiet=True))
    open_bundle(out)  # the older one is still there
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.rejected"}
    page = (tmp_path / "bundle.rejected" / "onnx" / "report.md").read_text(encoding="utf-8")
    assert "First broken link: torch.export program -> onnx, optimiser off" in page


def _poison(content: dict[str, Any]) -> None:
    content["model"]["head.weight"][0, 0] = float("nan")


def _overflow(content: dict[str, Any]) -> None:
    content["model"]["head.weight"].fill_(3e38)


def _forget(content: dict[str, Any]) -> None:
    del content["model"]["head.bias"]


def _rename(content: dict[str, Any]) -> None:
    info = json.loads(content["info"])
    info["network"]["name"] = "mobilevitv2_075"
    content["info"] = json.dumps(info)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_poison, r"holds NaN or Inf in head\.weight"),
        (_overflow, r"with NaN or infinite logits\. The training run diverged"),
        (_forget, r"head\.bias"),
        (_rename, r"tensors match\..*of another shape"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(
    checkpoint: Path, prepared: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], None], said: str
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "damaged.pth")
    with pytest.raises(InputError, match=said):
        export_bundle(settings(tmp_path / "damaged.pth", prepared, tmp_path / "out"), Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.pth"]


def test_without_real_faces_nothing_can_be_calibrated(
    checkpoint: Path, prepared: Path, tmp_path: Path
) -> None:
    records = [replace(record, label=1, method="Swap") for record in read_index(prepared)]
    folder = tmp_path / "fakes"
    folder.mkdir()
    moved = []
    for record in records:
        path = folder / record.path.name
        path.write_bytes(record.path.read_bytes())
        moved.append(replace(record, path=path))
    write_index(folder, moved)
    with pytest.raises(InputError, match=r"no real faces in split 'val' \(it has train: 0 real and 6 fake"):
        export_bundle(settings(checkpoint, folder, tmp_path / "out"), Console(quiet=True))
    with pytest.raises(InputError, match="no real faces in split 'test'"):
        export_bundle(settings(checkpoint, prepared, tmp_path / "out", split="test"), Console(quiet=True))


def test_the_command_line(run_script: Run, checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    given = (
        "export",
        checkpoint,
        "--calibration",
        prepared,
        "--out",
        "bundle",
        "--images",
        24,
        "--threads",
        1,
    )
    code, shown, _ = run_script("stillface.py", *given, "--formats", "onnx")
    assert code == 0
    assert "| onnx | passed |" in shown
    open_bundle(tmp_path / "bundle")
    code, _, said = run_script("stillface.py", *given, "--formats", "onnx,caffe")
    assert (code, "caffe is no format" in said) == (2, True)
    code, _, said = run_script("stillface.py", *given, "--formats", "tensorrt")
    assert (code, "tensorrt" in said) == (2, True)  # not installed, or no GPU
    code, _, said = run_script("stillface.py", "export", "none.pth", "--calibration", prepared)
    assert (code, "no such weights file" in said) == (2, True)
    code, _, said = run_script(
        "stillface.py", "export", checkpoint, "--calibration", tmp_path, "--formats", "onnx"
    )
    assert (code, "is not a prepared folder" in said) == (2, True)
