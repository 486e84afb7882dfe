"""Says where two graphs of one network part: every tensor they share, in the order of the graph, on the same crops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from export.intermediates import read_graph, square_of, tensor_values
from pipeline.errors import InputError
from pipeline.runtime import Crops, check_crops

EQUAL_DB = 200.0
"""SQNR given to tensors that are equal; float32 itself ends near 150 dB."""
BROKEN_DB = 20.0
"""Below this signal-to-noise ratio a tensor counts as drifted."""


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """How far one tensor moved.

    Attributes:
        tensor: Its name, the same in both graphs.
        node, op: What computes it in the reference graph.
        max_abs, mean_abs: Absolute difference over all elements and crops; infinite where one side is not finite.
        sqnr_db: 10 log10 of the reference's energy over the difference's; at most 200 (equal), -200 where a
            value is not finite or the shapes differ.
    """

    tensor: str
    node: str
    op: str
    max_abs: float
    mean_abs: float
    sqnr_db: float


@dataclass(slots=True)
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    total: float = 0.0
    largest: float = 0.0
    count: int = 0

    def add(self, reference: NDArray[np.float64], changed: NDArray[np.float64]) -> None:
        if reference.shape != changed.shape:
            self.noise = self.largest = self.total = math.inf
            self.count += 1
            return
        difference = np.abs(reference - changed)
        self.signal += float((reference**2).sum())
        self.noise += float((difference**2).sum())
        self.total += float(difference.sum())
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.count += difference.size


def sqnr_db(reference: ArrayLike, changed: ArrayLike) -> float:
    """Signal to quantisation noise: 10 log10(sum reference² / sum (reference - changed)²), within ±200 dB."""
    sums = _Sums()
    sums.add(np.asarray(reference, np.float64), np.asarray(changed, np.float64))
    return _decibels(sums)


def drift(
    reference: Path,
    changed: Path,
    crops: Crops,
    *,
    top: int | None = None,
    batch: int = 1,
    threads: int | None = None,
) -> list[LayerDrift]:
    """Run two ONNX graphs with their inner tensors exposed and compare those that bear the same name.

    An exposed tensor keeps the runtime from fusing across it, so the figures are those of the single nodes.

    Args:
        reference: The graph that is right.
        changed: The same network in another precision, or damaged.
        crops: uint8 [N, H, W, 3]; a few are enough.
        top: Keep only the tensors with the lowest SQNR, so many; None keeps all.
        batch: Crops at a time; with 4 an EfficientNet-B4 at 380 px takes 16 GiB, with 1 it takes 4.
        threads: Of the runtime; None for all cores.

    Returns:
        In the reference graph's order.

    Raises:
        InputError: A file is no graph of ours, the crops do not fit, or the graphs share no tensor.
    """
    right, other = read_graph(reference), read_graph(changed)
    side = square_of(right, reference)
    if square_of(other, changed) != side:
        raise InputError(f"{changed} takes crops of another size than {reference} ({side} px).")
    check_crops(crops, side)
    names = shared_tensors(right, other)
    if not names:
        raise InputError(f"{reference} and {changed} share no tensor names: they are not from one export.")
    found = drift_of(right, other, names, crops, batch=batch, threads=threads)
    if top is None or top >= len(found):
        return found
    worst = set(sorted(range(len(found)), key=lambda place: found[place].sqnr_db)[:top])
    return [layer for place, layer in enumerate(found) if place in worst]


def drift_of(
    reference: onnx.ModelProto,
    changed: onnx.ModelProto,
    names: Sequence[str],
    crops: Crops,
    *,
    batch: int = 1,
    threads: int | None = None,
) -> list[LayerDrift]:
    """As `drift`, for graphs in memory and the given tensors of both."""
    sums = {name: _Sums() for name in names}
    pairs = zip(
        tensor_values(reference, names, crops, batch=batch, threads=threads),
        tensor_values(changed, names, crops, batch=batch, threads=threads),
        strict=True,
    )
    for right, other in pairs:
        for name in names:
            sums[name].add(right[name].astype(np.float64), other[name].astype(np.float64))
    makers = {output: node for node in reference.graph.node for output in node.output}
    return [_layer(name, makers[name], sums[name]) for name in names]


def first_drifted(layers: Iterable[LayerDrift], below_db: float = BROKEN_DB) -> LayerDrift | None:
    """The first tensor in graph order whose SQNR is below `below_db`: where the drift starts."""
    return next((layer for layer in layers if layer.sqnr_db < below_db), None)


def shared_tensors(reference: onnx.ModelProto, changed: onnx.ModelProto) -> list[str]:
    """Float tensors that a node of either graph computes under the same name, in the reference's order.

    Of another form of the network, such as timm's own beside that of `export.mobilevit`, tensors of the same name may
    hold the same cells in another order: those whose shapes are known to differ are left out (of a map of four by four
    cells they do not).
    """
    there = {output for node in changed.graph.node for output in node.output}
    models = [onnx.shape_inference.infer_shapes(model) for model in (reference, changed)]
    floats = _float_tensors(models[0]) & _float_tensors(models[1], strict=False)
    shapes, others = (_shapes(model) for model in models)
    ordered = [output for node in reference.graph.node for output in node.output]
    return [
        name
        for name in ordered
        if name in there and name in floats and shapes.get(name) == others.get(name, shapes.get(name))
    ]


def _shapes(inferred: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Of the values whose shapes are known but for the batch, which counts as 0."""
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and all(dim.HasField("dim_value") for dim in dims[1:]):
            found[value.name] = (0, *(dim.dim_value for dim in dims[1:]))
    return found


def _float_tensors(inferred: onnx.ModelProto, *, strict: bool = True) -> set[str]:
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    if strict:
        return {name for name, kind in known.items() if kind in kinds}
    computed = {output for node in inferred.graph.node for output in node.output}
    return {name for name in computed if known.get(name, onnx.TensorProto.FLOAT) in kinds}


def _layer(name: str, node: onnx.NodeProto, sums: _Sums) -> LayerDrift:
    finite = math.isfinite(sums.noise)
    return LayerDrift(
        tensor=name,
        node=node.name,
        op=node.op_type,
        max_abs=sums.largest if finite else math.inf,
        mean_abs=sums.total / max(sums.count, 1) if finite else math.inf,
        sqnr_db=_decibels(sums),
    )


def _decibels(sums: _Sums) -> float:
    if not math.isfinite(sums.noise) or not math.isfinite(sums.signal):
        return -EQUAL_DB
    if sums.noise == 0:
        return EQUAL_DB
    if sums.signal == 0:
        return -EQUAL_DB
    return float(np.clip(10 * math.log10(sums.signal / sums.noise), -EQUAL_DB, EQUAL_DB))
