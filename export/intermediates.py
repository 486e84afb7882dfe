"""Looks inside an ONNX graph: the values of inner tensors on given crops, for calibration and drift reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.runtime import Crops, check_crops

Values = dict[str, NDArray[np.float32]]
"""Float tensors, also of graphs in float16, by name; the first axis is the batch wherever the tensor has one."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        InputError: It is missing or no ONNX file.
    """
    try:
        return onnx.load(str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected an ONNX file.") from error
    except Exception as error:  # protobuf has no public name for its parse error
        raise InputError(f"{path} is no ONNX file: {error}") from error


def square_of(model: onnx.ModelProto, path: Path) -> int:
    """Side of the square crops that a graph takes.

    Raises:
        InputError: The graph is none of ours.
    """
    inputs = model.graph.input
    dims = inputs[0].type.tensor_type.shape.dim if inputs else []
    if [i.name for i in inputs] != ["crops"] or len(dims) != 4 or not dims[1].dim_value:
        raise InputError(f"{path} is not a graph of ours: expected one input `crops`, uint8 [N, H, W, 3].")
    return int(dims[1].dim_value)


def expose(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """Serialise a copy of the graph that also returns `tensors`; their types are left to the runtime."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    present = {output.name for output in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present)
    content: bytes = opened.SerializeToString()
    return content


def session_of(
    model: onnx.ModelProto | bytes, *, threads: int | None, optimise: bool = True, arena: bool = True
) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU without spinning threads, silently.

    Args:
        model: The graph.
        threads: Of the runtime; None for all cores.
        optimise: Whether nodes are fused.
        arena: Whether memory is kept for the next run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def tensor_values(
    model: onnx.ModelProto, tensors: Sequence[str], crops: Crops, *, batch: int, threads: int | None
) -> Iterator[Values]:
    """Run a graph batch by batch and yield the values of inner tensors.

    Args:
        model: The graph.
        tensors: Names of tensors that nodes compute.
        crops: uint8 [N, H, W, 3].
        batch: Crops at a time; memory grows with it.
        threads: Of the runtime; None for all cores.
    """
    # an arena would keep all that a run gives out a second time
    session = session_of(expose(model, tensors), threads=threads, arena=False)
    for start in range(0, len(crops), batch):
        found = session.run(list(tensors), {"crops": np.ascontiguousarray(crops[start : start + batch])})
        yield {n: value.astype(np.float32, copy=False) for n, value in zip(tensors, found, strict=True)}


def logits_of(
    model: onnx.ModelProto, crops: Crops, *, threads: int | None, batch: int = 8
) -> NDArray[np.float32]:
    """Logits float32 [N, 2] of a graph in memory, for crops uint8 [N, H, W, 3]."""
    session = session_of(model, threads=threads)
    parts = [
        session.run(["logits"], {"crops": np.ascontiguousarray(crops[start : start + batch])})[0]
        for start in range(0, len(crops), batch)
    ]
    return np.concatenate(parts)


def check_calibration(crops: Crops, labels: NDArray[np.int64], size: int) -> None:
    """Refuse a set from which no ranges or no AUC can be had.

    Raises:
        InputError: No crops, another dtype or size, another number of labels, or only one class.
    """
    if len(crops) == 0:
        raise InputError(
            "the calibration set is empty; int8 needs real and self-blended crops (300 or more are advised)."
        )
    check_crops(crops, size)
    if labels.shape != (len(crops),) or not np.isin(labels, (0, 1)).all():
        raise InputError(f"{len(crops)} calibration crops need as many labels of 0 (real) or 1 (fake).")
    if len(np.unique(labels)) < 2:
        raise InputError(
            "the calibration set holds only one class; int8 needs real and fake crops, both of which set the ranges."
        )
