"""Makes the TensorRT formats of a network: the typed graph that an engine is built from, and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import onnx

from export.graph import ExportGraph
from export.half_graph import HalfGraph
from export.onnx_graph import GPU_OPSET, seal, trace
from export.tensorrt_engine import BuiltEngine, build_engine, check_builder
from export.tensorrt_int8 import Int8Graph, quantise
from pipeline.runtime import Crops
from pipeline.tensorrt_library import LibraryName
from training.networks import Detector


def half_onnx(
    detector: Detector, metadata: Mapping[str, str] | None = None, *, opset: int = GPU_OPSET
) -> onnx.ModelProto:
    """The network as a strongly typed ONNX graph in float16, with norms, softmax and head in float32.

    Raises:
        InputError: NaN or infinite weights.
    """
    model = trace(cast(ExportGraph, HalfGraph(detector)), opset)  # it has all that tracing asks of one
    seal(model, {"precision": "fp16", **(metadata or {})})
    return model


def half_engine(
    detector: Detector,
    target: Path,
    *,
    library: LibraryName,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> BuiltEngine:
    """Build an engine in float16.

    Raises:
        CannotRunHereError: The library is not installed, or there is no GPU and it needs one.
        InputError: The network cannot be exported or built.
    """
    check_builder(library)
    graph = half_onnx(detector, metadata).SerializeToString(deterministic=True)
    return build_engine(graph, target, library=library, precision="fp16", threads=threads)


def int8_engine(
    detector: Detector,
    target: Path,
    crops: Crops,
    *,
    library: LibraryName,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> tuple[BuiltEngine, Int8Graph]:
    """Build an engine with int8 convolutions, the rest in float16; ranges are taken from crops.

    Raises:
        CannotRunHereError: The library is not installed, or there is no GPU and it needs one.
        InputError: The network cannot be exported, quantised or built.
    """
    check_builder(library)
    chosen = quantise(half_onnx(detector, metadata), crops, threads=threads)
    graph = chosen.model.SerializeToString(deterministic=True)
    return build_engine(graph, target, library=library, precision="int8", threads=threads), chosen


def notes_of(built: BuiltEngine) -> tuple[str, ...]:
    """For the manifest: what the engine's own layers compute in, and how long building took."""
    told = ", ".join(f"{count} {name}" for name, count in built.facts.weight_layer_types.items())
    where = built.facts.device or f"compute capability {', '.join(built.facts.compute_capabilities)}"
    return (f"built for {where}; layers with weights: {told}",)
