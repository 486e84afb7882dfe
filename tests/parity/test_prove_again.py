"""A bundle is measured again from its own files: what could not run is proven, what is broken is put away."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

from export.bundle_writer import write_manifest
from export.parity_report import read_parity
from export.reprove import ProofSettings, prove_bundle
from pipeline.bundle import describe_file, open_bundle, read_manifest
from pipeline.errors import InputError, NotProvenError
from pipeline.manifest import Unproven
from pipeline.runtime import open_artefact
from pipeline.runtime_openvino import openvino_core
from training.checkpoint import load_detector

Run = Callable[..., tuple[int, str, str]]
SILENT = Console(quiet=True)


@pytest.fixture
def bundle(exported_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(exported_bundle, tmp_path / "bundle"))


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def damage(path: Path) -> None:
    """Swap the order of the colours in the first layer."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Conv":
            tensor = next(item for item in model.graph.initializer if item.name in node.input[1:])
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, ::-1]), tensor.name))
            break
    onnx.save(model, path)


def add_unproven(bundle: Path, graph: Path, *, float16: bool = False) -> None:
    """Put an OpenVINO model into the bundle as if it had been built where OpenVINO does not run."""
    target = bundle / "unproven" / "openvino" / "model.xml"
    target.parent.mkdir(parents=True)
    openvino.save_model(openvino_core().read_model(graph), target, compress_to_fp16=float16)
    files = tuple(describe_file(bundle, path) for path in (target, target.with_suffix(".bin")))
    manifest = read_manifest(bundle)
    item = Unproven(
        name="openvino", runtime="openvino", precision="fp32", files=files, reason="no OpenVINO there"
    )
    write_manifest(bundle, manifest.model_copy(update={"unproven": (item,)}))


def reseal(bundle: Path) -> None:
    """Write the hashes of changed files into the manifest, as one would who knows how."""
    manifest = read_manifest(bundle)
    artefacts = []
    for artefact in manifest.artefacts:
        files = tuple(describe_file(bundle, bundle / file.path) for file in artefact.files)
        report = describe_file(bundle, bundle / artefact.parity.report.path)
        parity = artefact.parity.model_copy(update={"artefact_sha256": files[0].sha256, "report": report})
        artefacts.append(artefact.model_copy(update={"files": files, "parity": parity}))
    write_manifest(bundle, manifest.model_copy(update={"artefacts": tuple(artefacts)}))


def test_a_sound_bundle_passes_and_is_left_as_it_is(bundle: Path) -> None:
    before = content(bundle)
    report = prove_bundle(ProofSettings(bundle, threads=1), SILENT)
    assert [(item.name, item.verdict) for item in report.artefacts] == [("onnx", "passed")]
    assert [link.name for link in report.links] == ["onnx, optimiser off", "onnx"]
    assert report.shown.counts == {"noise": 8, "clouds": 24, "black": 1, "white": 1, "checkerboard": 1}
    assert content(bundle) == before


def test_the_stored_answers_are_pytorchs(bundle: Path, checkpoint: Path) -> None:
    from export.parity_inputs import drawn_crops

    detector, _ = load_detector(checkpoint)
    with torch.no_grad():
        logits = detector(torch.from_numpy(drawn_crops(64)[0])).numpy()
    np.testing.assert_allclose(read_parity(bundle).shown.drawn_logits, logits, atol=1e-5)


def test_faces_and_the_checkpoint_can_be_shown_too(bundle: Path, checkpoint: Path, prepared: Path) -> None:
    faces = ProofSettings(bundle, data=prepared, images=12, threads=1)
    report = prove_bundle(faces, SILENT)
    assert report.reference.startswith("the fp32 ONNX file for faces")
    assert report.shown.counts["fake"] == 8
    report = prove_bundle(ProofSettings(bundle, checkpoint, prepared, images=12, threads=1), SILENT)
    assert report.reference.endswith("CPU, eager")
    found = report.link("onnx")
    assert found is not None
    assert found.overall.evidence_share is not None


def test_what_could_not_run_there_is_proven_here(bundle: Path) -> None:
    add_unproven(bundle, bundle / "artefacts/onnx/model.onnx")
    with pytest.raises(InputError, match="built but not proven"):
        open_bundle(bundle).artefact("openvino")
    before = read_manifest(bundle)
    prove_bundle(ProofSettings(bundle, threads=1, write=False), SILENT)
    assert read_manifest(bundle) == before
    prove_bundle(ProofSettings(bundle, threads=1), SILENT)
    opened = open_bundle(bundle)
    artefact = opened.artefact("openvino")
    assert artefact.parity.passed
    assert (artefact.parity.measured_with or "").startswith("openvino ")
    assert artefact.files[0].path == "artefacts/openvino/model.xml"
    assert not (bundle / "unproven" / "openvino").exists()
    assert opened.manifest.unproven == ()
    assert opened.manifest.id != before.id
    crops = np.zeros((2, 64, 64, 3), np.uint8)
    assert open_artefact(bundle, artefact, threads=1).run(crops).logits.shape == (2, 2)
    assert "| openvino | proven |" in (bundle / "model_card.md").read_text(encoding="utf-8")
    assert json.loads((bundle / "measured_again.json").read_text())["artefacts"][1]["verdict"] == "passed"


def test_what_is_broken_is_put_away_and_named(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "artefacts/onnx/model.onnx", tmp_path / "damaged.onnx")
    damage(tmp_path / "damaged.onnx")
    add_unproven(bundle, tmp_path / "damaged.onnx")
    with pytest.raises(NotProvenError, match=r"openvino \(onnx -> openvino\); moved to .*rejected"):
        prove_bundle(ProofSettings(bundle, threads=1), SILENT)
    opened = open_bundle(bundle)
    assert [item.name for item in opened.manifest.artefacts] == ["onnx"]
    (rejected,) = opened.manifest.rejected
    assert rejected.name == "openvino"
    assert "onnx -> openvino: max |Δlogit|" in rejected.reason
    assert (bundle / "rejected/openvino/model.xml").is_file()
    page = (bundle / "rejected/openvino/report.md").read_text(encoding="utf-8")
    assert "First broken link: onnx -> openvino" in page


def test_a_graph_exchanged_with_its_hashes_is_found_by_its_answers(bundle: Path) -> None:
    damage(bundle / "artefacts/onnx/model.onnx")
    reseal(bundle)
    open_bundle(bundle)  # nothing but running it can tell
    before = content(bundle)
    with pytest.raises(
        NotProvenError, match=r"torch fp32 -> onnx, optimiser off: .*Nothing of this bundle may be served"
    ):
        prove_bundle(ProofSettings(bundle, threads=1), SILENT)
    assert content(bundle) == before


def test_what_pytorch_was_unsure_of_is_known_without_the_checkpoint(bundle: Path, checkpoint: Path) -> None:
    stored = read_parity(bundle)
    (real, fake), *others = stored.shown.drawn_logits
    nothing = ((0.0, 0.0),) * len(others)

    def keep(**changes: object) -> None:
        shown = stored.shown.model_copy(update=changes)
        changed = stored.model_copy(update={"shown": shown})
        (bundle / "parity.json").write_text(changed.model_dump_json())
        reseal(bundle)

    elsewhere = ((real, fake + 0.02), *others)  # PyTorch's answer on a processor that rounds otherwise
    keep(drawn_logits=elsewhere)
    with pytest.raises(NotProvenError, match=r"max \|Δlogit\| 0\.02"):
        prove_bundle(ProofSettings(bundle, threads=1, write=False), SILENT)
    keep(drawn_logits=elsewhere, drawn_unsure=((0.03, 0.0), *nothing))
    report = prove_bundle(ProofSettings(bundle, threads=1, write=False), SILENT)
    found = report.link("onnx")
    assert found is not None
    assert found.allowed is not None
    assert (found.allowed.crops, found.allowed.most) == (1, 0.03)
    assert report.shown.drawn_unsure == ((0.03, 0.0), *nothing)
    assert prove_bundle(ProofSettings(bundle, checkpoint, threads=1, write=False), SILENT).link("onnx")


def test_int8_is_not_proven_without_faces_but_may_not_get_worse(bundle: Path) -> None:
    """The fp32 model stands in for an int8 one: what counts is what the manifest and the stored report say."""
    add_unproven(bundle, bundle / "artefacts/onnx/model.onnx")
    manifest = read_manifest(bundle)
    (item,) = manifest.unproven
    renamed = item.model_copy(update={"name": "openvino-int8", "precision": "int8"})
    write_manifest(bundle, manifest.model_copy(update={"unproven": (renamed,)}))
    report = prove_bundle(ProofSettings(bundle, threads=1), SILENT)
    verdict = report.artefact("openvino-int8")
    assert verdict is not None
    assert (verdict.verdict, "give --calibration DATA" in (verdict.reason or "")) == ("unproven", True)
    assert [item.name for item in read_manifest(bundle).unproven] == ["openvino-int8"]
    found = report.link("openvino-int8")
    assert found is not None
    noiseless = {kind: value.model_copy(update={"sqnr_db": 300.0}) for kind, value in found.kinds.items()}
    stored = read_parity(bundle)
    better = found.model_copy(update={"kinds": noiseless})
    (bundle / "parity.json").write_text(
        stored.model_copy(update={"links": (*stored.links, better)}).model_dump_json()
    )
    reseal(bundle)
    with pytest.raises(NotProvenError, match=r"openvino-int8 \(onnx -> openvino-int8\)"):
        prove_bundle(ProofSettings(bundle, threads=1), SILENT)
    assert "it was 300.0 dB where it was exported" in read_manifest(bundle).rejected[0].reason


def test_what_does_not_belong_to_the_bundle_is_refused(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = torch.load(checkpoint, weights_only=True)
    other["model"]["head.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is not the checkpoint of this bundle"):
        prove_bundle(ProofSettings(bundle, tmp_path / "other.pth", threads=1), SILENT)
    report = json.loads((bundle / "parity.json").read_text())
    report["shown"]["drawn_sha256"] = "0" * 64
    (bundle / "parity.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"parity\.json is not the file that was exported"):
        prove_bundle(ProofSettings(bundle, threads=1), SILENT)


def test_the_command_line(run_script: Run, bundle: Path) -> None:
    code, shown, _ = run_script("stillface.py", "parity", bundle, "--threads", 1, "--dry-run")
    assert (code, "| onnx | passed |" in shown) == (0, True)
    damage(bundle / "artefacts/onnx/model.onnx")
    code, _, said = run_script("stillface.py", "parity", bundle)
    assert (code, "is not the file that was exported" in said) == (2, True)
    reseal(bundle)
    code, _, said = run_script("stillface.py", "parity", bundle, "--threads", 1)
    assert (code, said.startswith("not proven: ")) == (3, True)
