"""Engines on the GPU that they are built on: equal to ONNX Runtime on the CPU, in every batch, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.onnx_graph import GPU_OPSET, build_onnx
from export.tensorrt_engine import BuiltEngine, build_engine
from export.tensorrt_formats import half_onnx
from export.tensorrt_int8 import quantise
from pipeline.cuda_device import CudaDevice
from pipeline.engine_check import check_engine
from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import Precision
from pipeline.runtime import Answer, Crops
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.runtime_tensorrt import TensorRtRuntime
from pipeline.tensorrt_library import RTX_TARGETS, LibraryName, open_library
from tests.gpu.shown import BATCHES, crops, p_fake
from tests.unit.export.drawn_graph import draw_graph, drawn_crops
from training.networks import Detector


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt-rtx"])
def library(request: pytest.FixtureRequest, device: CudaDevice) -> LibraryName:
    """Each library that is installed here and knows this GPU."""
    name: LibraryName = request.param
    try:
        open_library(name)
    except CannotRunHereError as error:
        pytest.skip(str(error))
    if name == "tensorrt-rtx" and device.compute_capability not in RTX_TARGETS:
        pytest.skip(f"TensorRT for RTX does not run on {device.name}")
    return name


@pytest.fixture(scope="session")
def graphs(student: Detector) -> dict[Precision, bytes]:
    """The student's graph in every precision."""
    half = half_onnx(student)
    return {
        "fp32": build_onnx(student, opset=GPU_OPSET).SerializeToString(),
        "fp16": half.SerializeToString(),
        "int8": quantise(half, crops(16)).model.SerializeToString(),
    }


@pytest.fixture(scope="session")
def engines(
    graphs: dict[Precision, bytes], library: LibraryName, tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, BuiltEngine]:
    folder = tmp_path_factory.mktemp(library)
    return {
        precision: build_engine(graph, folder / f"{precision}.engine", library=library, precision=precision)
        for precision, graph in graphs.items()
    }


def on_cpu(graph: bytes, given: Crops, folder: Path) -> Answer:
    path = folder / "graph.onnx"
    path.write_bytes(graph)
    return OnnxRuntime(path).run(given)


def opened(built: BuiltEngine, library: LibraryName, *, cuda_graphs: bool = False) -> TensorRtRuntime:
    return TensorRtRuntime(built.path, built.facts, library=library, cuda_graphs=cuda_graphs)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_an_engine_answers_as_onnx_runtime_does(
    engines: dict[Precision, BuiltEngine],
    graphs: dict[Precision, bytes],
    library: LibraryName,
    precision: Precision,
    bound: float,
    tmp_path: Path,
) -> None:
    runtime = opened(engines[precision], library)
    for count in BATCHES:
        given = crops(count)
        answer, expected = runtime.run(given), on_cpu(graphs["fp32"], given, tmp_path)
        assert answer.logits.shape == (count, 2)
        assert answer.logits.dtype == np.float32
        assert np.abs(p_fake(answer) - p_fake(expected)).max() <= bound
        assert answer.evidence is not None
        assert expected.evidence is not None
        assert answer.evidence.shape == expected.evidence.shape
        if precision == "fp32":
            assert np.abs(answer.logits - expected.logits).max() <= 1e-4
    runtime.close()


def test_an_int8_engine_answers_as_its_own_graph_on_the_cpu(library: LibraryName, tmp_path: Path) -> None:
    # Three convolutions: in a deep network of random weights one value rounded the other way becomes many.
    graph = quantise(draw_graph(half=True), drawn_crops(16)).model.SerializeToString()
    built = build_engine(graph, tmp_path / "int8.engine", library=library, precision="int8")
    runtime = opened(built, library)
    for count in BATCHES:
        given = drawn_crops(count, seed=count)
        answer, expected = runtime.run(given), on_cpu(graph, given, tmp_path)
        noise = ((answer.logits - expected.logits) ** 2).sum()
        assert 10 * np.log10((expected.logits**2).sum() / max(noise, 1e-30)) >= 30
    runtime.close()


def test_an_int8_engine_of_a_student_answers_every_batch(
    engines: dict[Precision, BuiltEngine],
    graphs: dict[Precision, bytes],
    library: LibraryName,
    tmp_path: Path,
) -> None:
    runtime = opened(engines["int8"], library)
    for count in BATCHES:
        given = crops(count)
        answer, expected = runtime.run(given), on_cpu(graphs["int8"], given, tmp_path)
        # On the CPU two ways to run this very graph, of random weights, lie 0.03 apart.
        assert np.abs(p_fake(answer) - p_fake(expected)).max() <= 0.1
    runtime.close()


def test_the_inspector_counts_the_precision_asked_for(
    engines: dict[Precision, BuiltEngine], device: CudaDevice, library: LibraryName
) -> None:
    assert engines["fp16"].facts.weight_layer_types.get("Half", 0) > 10
    assert engines["int8"].facts.weight_layer_types.get("Int8", 0) > 10
    assert set(engines["fp32"].facts.weight_layer_types) <= {"Float"}
    if library == "tensorrt":
        assert engines["fp16"].facts.device == device.name
        assert engines["fp16"].facts.compute_capabilities == (device.compute_capability,)


def test_the_same_crops_give_the_same_bits_again_and_in_any_place(
    engines: dict[Precision, BuiltEngine], library: LibraryName
) -> None:
    runtime = opened(engines["fp16"], library)
    given = crops(7)
    first, again = runtime.run(given), runtime.run(given)
    assert np.array_equal(first.logits, again.logits)
    turned = runtime.run(np.ascontiguousarray(given[::-1]))
    assert np.abs(turned.logits[::-1] - first.logits).max() < 1e-3
    runtime.close()


def test_recorded_launches_answer_as_queued_ones(
    engines: dict[Precision, BuiltEngine], library: LibraryName
) -> None:
    plain, recorded = opened(engines["fp16"], library), opened(engines["fp16"], library, cuda_graphs=True)
    for count in (1, 4, 1, 7, 4):
        given = crops(count)
        assert np.abs(plain.run(given).logits - recorded.run(given).logits).max() < 1e-3
    plain.close()
    recorded.close()


def test_other_batches_sizes_and_types_are_refused(
    engines: dict[Precision, BuiltEngine], library: LibraryName
) -> None:
    runtime = opened(engines["fp16"], library)
    with pytest.raises(InputError, match="33 crops"):
        runtime.run(crops(33))
    with pytest.raises(InputError, match="expected uint8"):
        runtime.run(crops(1)[:, :64])
    assert runtime.run(crops(1)).logits.shape == (1, 2)
    runtime.close()


def test_a_foreign_or_damaged_engine_is_refused(
    engines: dict[Precision, BuiltEngine], library: LibraryName, device: CudaDevice, tmp_path: Path
) -> None:
    built = engines["fp16"]
    for change in (
        {"runtime_version": "1.2.3.4"},
        {"compute_capabilities": ("5.0",)},
        {"device": "another GPU"},
        {"platform": "plan9-mips"},
        {"driver": "99.9"},
    ):
        facts = built.facts.model_copy(update=change)
        with pytest.raises(CannotRunHereError, match="was not built for this machine"):
            TensorRtRuntime(built.path, facts, library=library)
    with pytest.raises(CannotRunHereError, match="compute capability"):
        check_engine(
            built.path,
            built.facts,
            name=library,
            version=built.facts.runtime_version,
            device=replace(device, compute_capability="5.0"),
        )
    damaged = tmp_path / "damaged.engine"
    damaged.write_bytes(built.path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        TensorRtRuntime(damaged, built.facts, library=library)


def test_a_second_build_uses_the_kernels_measured_in_the_first(
    graphs: dict[Precision, bytes], library: LibraryName, tmp_path: Path
) -> None:
    if library != "tensorrt":
        pytest.skip("TensorRT for RTX measures nothing at build time")
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"damaged")
    seconds = [
        build_engine(
            graphs["fp16"], tmp_path / "x.engine", library=library, precision="fp16", timing_cache=cache
        ).seconds
        for _ in range(2)
    ]
    assert cache.stat().st_size > 1000
    assert seconds[1] < seconds[0]


def test_closing_gives_the_memory_back(engines: dict[Precision, BuiltEngine], library: LibraryName) -> None:
    opened(engines["fp16"], library).close()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(3):
        runtime = opened(engines["fp16"], library)
        runtime.run(crops(4))
        runtime.close()
        del runtime
    assert before - torch.cuda.mem_get_info()[0] < 64 << 20
