"""Opens a network in one of the ways, importing nothing but what that way needs, so that its memory is its own."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from benchmarks.ways import Way
from pipeline.runtime import Crops, Runtime

_MODULES = {
    "torch": "benchmarks.torch_ways",
    "onnx": "pipeline.runtime_onnx",
    "onnx-int8": "pipeline.runtime_onnx",
    "openvino": "pipeline.runtime_openvino",
    "openvino-int8": "pipeline.runtime_openvino",
    "tensorrt": "pipeline.runtime_tensorrt",
    "tensorrt-int8": "pipeline.runtime_tensorrt",
    "torch-tensorrt": "export.torch_tensorrt_program",
}


class Contender(Protocol):
    """A network that is open and can be timed."""

    label: str

    def timer(self, crops: Crops) -> Callable[[], float]:
        """A function that answers for these crops once and gives the seconds it took, the answer being there."""


class HostContender:
    """A runtime whose answer lies in the process's memory when it returns."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.label = runtime.label

    def timer(self, crops: Crops) -> Callable[[], float]:
        """As `Contender.timer`."""

        def once() -> float:
            start = time.perf_counter()
            self.runtime.run(crops)
            return time.perf_counter() - start

        return once


def load_library(way: Way) -> None:
    """Import what a way needs; what it weighs is not the network's.

    Raises:
        ImportError: It is not installed.
    """
    importlib.import_module(_MODULES[way.file])
    if way.file.startswith("openvino"):
        importlib.import_module("openvino")


def open_way(way: Way, files: Mapping[str, str], threads: int) -> Contender:
    """Open a network.

    Args:
        way: How.
        files: Its files by form, as `benchmarks.making.make` gave them.
        threads: Of the CPU.

    Raises:
        InputError: This machine lacks the runtime or the device, or the file cannot be opened.
    """
    path = Path(files[way.file])
    if way.file == "torch":
        from benchmarks.torch_ways import TorchNetwork

        return TorchNetwork(path, way, threads)
    if way.file.startswith("onnx"):
        from pipeline import runtime_onnx

        if way.device == "cuda":
            on_gpu = runtime_onnx.OnnxRuntime(path, threads=threads, provider=runtime_onnx.CUDA)
            return HostContender(on_gpu)
        # without a provider, for `compare` measures revisions with this code that know none
        return HostContender(runtime_onnx.OnnxRuntime(path, threads=threads))
    if way.file.startswith("openvino"):
        from pipeline.runtime_openvino import FloatPrecision, OpenVinoRuntime

        # int8 models say themselves in what arithmetic their float layers were proven
        floats: dict[str, FloatPrecision] = {"fp32": "f32", "bf16": "bf16"}
        return HostContender(OpenVinoRuntime(path, threads=threads, precision=floats.get(way.precision)))
    return HostContender(_engine(way, path))


def _engine(way: Way, path: Path) -> Runtime:
    from pipeline.engine_check import facts_path
    from pipeline.manifest import EngineFacts

    facts = EngineFacts.model_validate_json(facts_path(path).read_bytes())
    if way.file == "torch-tensorrt":
        from export.torch_tensorrt_program import TorchTensorRtRuntime

        return TorchTensorRtRuntime(path, facts)
    from pipeline.runtime_tensorrt import TensorRtRuntime

    return TensorRtRuntime(path, facts, library="tensorrt", cuda_graphs=way.graphs)
