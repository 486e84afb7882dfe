"""The exported ONNX file says what the network says, is one reproducible file, and refuses what it cannot carry."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from export.onnx_graph import CPU_OPSET, GPU_OPSET, build_onnx, write_onnx
from pipeline.errors import InputError
from pipeline.runtime_onnx import OnnxRuntime
from tests.unit.export.detectors import random_crops, random_detector
from training.checkpoint import CheckpointInfo, load_detector, save_checkpoint
from training.networks import Detector, NetworkSpec

ROOT = Path(__file__).resolve().parents[3]


def largest_difference(detector: Detector, path: Path, given: NDArray[np.uint8], *, optimise: bool) -> float:
    """Between the file's answer and the network's; of values beyond 1 as a share of the largest."""
    answer = OnnxRuntime(path, threads=1, optimise=optimise).run(given)
    assert (answer.evidence is not None) == detector.has_evidence
    with torch.no_grad():
        crops = torch.from_numpy(given)
        expected = detector.forward_with_evidence(crops) if detector.has_evidence else (detector(crops),)
    found = [answer.logits] if answer.evidence is None else [answer.logits, answer.evidence]
    worst = 0.0
    for ours, theirs in zip(found, (tensor.numpy() for tensor in expected), strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())))
    return worst


@pytest.fixture(scope="session")
def student() -> Detector:
    return random_detector("mobilevitv2_050", 64)


@pytest.fixture(scope="session")
def student_file(student: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(
        student, tmp_path_factory.mktemp("onnx") / "student.onnx", metadata={"checkpoint": "ab"}
    )


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_answers_as_the_network_for_every_batch(
    student: Detector, student_file: Path, count: int, optimise: bool
) -> None:
    assert largest_difference(student, student_file, random_crops(count, 64), optimise=optimise) < 2e-5


@pytest.mark.parametrize("value", [0, 255])
def test_answers_as_the_network_at_the_ends_of_the_range(
    student: Detector, student_file: Path, value: int
) -> None:
    given = np.full((2, 64, 64, 3), value, np.uint8)
    assert largest_difference(student, student_file, given, optimise=True) < 2e-5


def test_the_score_depends_on_the_crop(student: Detector, student_file: Path) -> None:
    logits = OnnxRuntime(student_file, threads=1).run(random_crops(7, 64)).logits
    assert logits.std(axis=0).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "size", "opset", "spec"),
    [
        ("mobilevitv2_050", 128, GPU_OPSET, {}),
        ("tf_efficientnet_b0", 95, CPU_OPSET, {}),
        ("test_efficientnet", 48, GPU_OPSET, {"mean": (0.485, 0.456, 0.406), "std": (0.2, 0.3, 0.4)}),
        ("test_vit", 160, CPU_OPSET, {}),
    ],
)
def test_other_networks_sizes_and_opsets(
    tmp_path: Path, name: str, size: int, opset: int, spec: dict[str, object]
) -> None:
    detector = random_detector(name, size, **spec)
    path = write_onnx(detector, tmp_path / "graph.onnx", opset=opset)
    assert onnx.load(path).opset_import[0].version == opset
    assert largest_difference(detector, path, random_crops(3, size), optimise=True) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("mobilevitv2_200", 256), ("tf_efficientnet_b4", 380)])
def test_full_size_networks(tmp_path: Path, name: str, size: int) -> None:
    detector = random_detector(name, size)
    path = write_onnx(detector, tmp_path / "graph.onnx")
    assert largest_difference(detector, path, random_crops(2, size), optimise=True) < 1e-4


def test_one_file_with_the_facts_inside(student_file: Path) -> None:
    model = onnx.load(student_file, load_external_data=False)
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["checkpoint"] == "ab"
    assert facts["stillface_version"]
    assert NetworkSpec.model_validate_json(facts["network"]).name == "mobilevitv2_050"
    assert [item.name for item in student_file.parent.iterdir()] == ["student.onnx"]
    assert all(item.data_location != onnx.TensorProto.EXTERNAL for item in model.graph.initializer)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 64, 64, 3]


def test_nothing_of_the_machine_is_inside(student_file: Path) -> None:
    content = student_file.read_bytes()
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content


def test_nodes_are_called_by_their_module(student_file: Path) -> None:
    names = [node.name for node in onnx.load(student_file).graph.node]
    assert len(set(names)) == len(names)
    assert "backbone.stem.conv/Conv" in names


EXPORT = """
import sys
from pathlib import Path
from export.onnx_graph import write_onnx
from tests.unit.export.detectors import random_crops, random_detector
from training.checkpoint import load_detector
detector, info = load_detector(Path(sys.argv[1]))
write_onnx(detector, Path(sys.argv[2]), metadata={"checkpoint_sha256": info.sha256})
"""


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "1_0.9000_val.pth"
    detector = random_detector("mobilevitv2_050", 64)
    info = CheckpointInfo(
        stage="stage1",
        epoch=1,
        val_auc=0.9,
        threshold=0.5,
        network=detector.spec,
        config={},
        provenance={},
    )
    save_checkpoint(checkpoint, detector.state_dict(), info)
    loaded, info = load_detector(checkpoint)
    here = write_onnx(loaded, tmp_path / "here.onnx", metadata={"checkpoint_sha256": info.sha256})
    there = tmp_path / "there.onnx"
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(there)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert hashlib.sha256(here.read_bytes()).digest() == hashlib.sha256(there.read_bytes()).digest()


def test_the_detector_is_left_alone(student: Detector) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    build_onnx(student)
    assert student.backbone.stem.bn.running_mean is not None
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    detector = random_detector("test_efficientnet", 32)
    with torch.no_grad():
        detector.head.bias[1] = value
    with pytest.raises(InputError, match=r"test_efficientnet: NaN or infinite weights in head\.bias"):
        write_onnx(detector, tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_a_size_with_a_resize_never_gets_here() -> None:
    with pytest.raises(InputError, match="resize its own feature maps"):
        random_detector("mobilevitv2_050", 224)


def test_metadata_is_json_that_sorts(student_file: Path) -> None:
    facts = {item.key: item.value for item in onnx.load(student_file).metadata_props}
    assert list(json.loads(facts["network"])) == sorted(json.loads(facts["network"]))
