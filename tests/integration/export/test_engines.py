"""Engines of real networks, built by TensorRT for RTX without a GPU, and a bundle that carries one unproven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console

from export.exporter import ExportSettings, export_bundle
from export.formats import parse_formats
from export.onnx_graph import GPU_OPSET, build_onnx
from export.tensorrt_engine import build_engine
from export.tensorrt_formats import half_engine, half_onnx, notes_of
from export.tensorrt_qdq import add_qdq, tensors_to_range
from pipeline.bundle import open_bundle
from pipeline.cuda_device import CudaDevice, find_device
from pipeline.engine_check import check_engine, read_facts
from pipeline.errors import CannotRunHereError, InputError
from pipeline.runtime import open_artefact
from pipeline.tensorrt_library import RTX_TARGETS
from training.networks import Detector, build_student, build_teacher

pytestmark = pytest.mark.slow


def has_gpu() -> bool:
    try:
        find_device()
    except CannotRunHereError:
        return False
    return True


def convolutions(model: onnx.ModelProto) -> list[str]:
    """All but the first, which reads the pixels, and the last, which is the head."""
    return [node.name for node in model.graph.node if node.op_type == "Conv"][1:-1]


def ranges(model: onnx.ModelProto, size: int) -> dict[str, float]:
    """Largest magnitude of every activation to quantise, on two crops."""
    names = tensors_to_range(model, convolutions(model))
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, ["CPUExecutionProvider"])
    crops = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    values = session.run(list(names), {"crops": crops})
    return {name: float(np.abs(value).max()) for name, value in zip(names, values, strict=True)}


@pytest.fixture(scope="module")
def exported(checkpoint: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "bundle"
    settings = ExportSettings(
        checkpoint, out, parse_formats("onnx,tensorrt-rtx"), prepared, images=24, threads=1
    )
    export_bundle(settings, Console(quiet=True))
    return out


@pytest.mark.skipif(has_gpu(), reason="with a GPU the engine is proven or rejected at once")
def test_an_engine_built_without_a_gpu_goes_into_the_bundle_unproven(exported: Path) -> None:
    bundle = open_bundle(exported)
    assert [item.name for item in bundle.manifest.artefacts] == ["onnx"]
    (engine,) = bundle.manifest.unproven
    assert engine.name == "tensorrt-rtx"
    assert "no CUDA device" in engine.reason
    assert engine.max_batch == 32
    assert engine.engine is not None
    assert engine.engine == read_facts(exported / engine.files[0].path)
    assert engine.engine.compute_capabilities == RTX_TARGETS
    assert engine.engine.weight_layer_types["Half"] > 10
    assert any("layers with weights" in note for note in engine.notes)
    with pytest.raises(InputError, match="tensorrt-rtx"):
        bundle.artefact("tensorrt-rtx")


def test_a_bundles_engine_is_refused_by_a_foreign_gpu_before_it_is_read(exported: Path) -> None:
    (engine,) = open_bundle(exported).manifest.unproven
    assert engine.engine is not None
    hopper = CudaDevice("NVIDIA H100", "9.0", "13.0", 80 << 30)
    version = engine.engine.runtime_version
    with pytest.raises(CannotRunHereError, match=r"NVIDIA H100 has 9\.0.*--formats tensorrt-rtx"):
        check_engine(
            exported / "nowhere.engine", engine.engine, name=engine.name, version=version, device=hopper
        )
    ada = CudaDevice("NVIDIA L4", "8.9", "13.0", 24 << 30)
    check_engine(exported / "nowhere.engine", engine.engine, name=engine.name, version=version, device=ada)
    with pytest.raises(CannotRunHereError, match=rf"built with version {version} of its library, 9\.9"):
        check_engine(exported / "nowhere.engine", engine.engine, name=engine.name, version="9.9", device=ada)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU; tests/gpu runs engines on it")
def test_a_bundles_engine_is_refused_without_a_gpu(exported: Path) -> None:
    (engine,) = open_bundle(exported).manifest.unproven
    with pytest.raises(CannotRunHereError, match=r"no CUDA device .*openvino"):
        open_artefact(exported, engine)


def small_student() -> Detector:
    torch.manual_seed(0)
    return build_student("mobilevitv2_050", image_size=128, pretrained="none")[0].eval()


def full_student() -> Detector:
    torch.manual_seed(0)
    return build_student("mobilevitv2_200", image_size=256, pretrained="none")[0].eval()


def full_teacher() -> Detector:
    torch.manual_seed(0)
    return build_teacher(None)[0].eval()


@pytest.mark.parametrize("make", [small_student, full_student, full_teacher])
def test_networks_are_built_in_float16_and_int8(make: Callable[[], Detector], tmp_path: Path) -> None:
    detector = make()
    half = half_onnx(detector)
    names = convolutions(half)
    target = tmp_path / "network.engine"
    fp16 = build_engine(half.SerializeToString(), target, library="tensorrt-rtx", precision="fp16", threads=1)
    assert fp16.facts.weight_layer_types["Half"] > 0.9 * len(names)
    assert fp16.facts.layer_types.keys() <= {"Half", "Float"}
    assert fp16.path.stat().st_size > 2 * sum(p.numel() for p in detector.parameters())
    assert notes_of(fp16)
    int8 = add_qdq(half, names, ranges(half, detector.spec.image_size))
    built = build_engine(
        int8.SerializeToString(), target, library="tensorrt-rtx", precision="int8", threads=1
    )
    assert built.facts.weight_layer_types["Int8"] > 0.9 * len(names)


@pytest.mark.parametrize("make", [small_student, full_teacher])
def test_networks_are_built_in_float32(make: Callable[[], Detector], tmp_path: Path) -> None:
    model = build_onnx(make(), opset=GPU_OPSET)
    target = tmp_path / "network.engine"
    graph = model.SerializeToString()
    fp32 = build_engine(graph, target, library="tensorrt-rtx", precision="fp32", threads=1)
    assert set(fp32.facts.weight_layer_types) == {"Float"}
    assert fp32.facts.weight_layer_types["Float"] >= len(convolutions(model))


def test_half_engines_refuse_what_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install -e '\.\[tensorrt\]'|no CUDA device"):
        half_engine(small_student(), tmp_path / "x.engine", library="tensorrt")
