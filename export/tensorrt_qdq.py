"""Puts quantisation into a graph the way TensorRT fuses it: symmetric, on inputs and weights of convolutions.

ONNX Runtime's quantiser is made for its own CPU kernels (zero points, int32 biases, pairs on outputs), none of
which TensorRT takes or wants. Here an activation gets one pair that all its int8 readers share, weights are stored
in int8 with a scale per output channel, and what is added to a convolution's output (a residual) is quantised too,
so that the addition happens inside the convolution's kernel and the residual is read as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.errors import InputError

_LEVELS: Final = 127
"""Symmetric int8: -127..127, so that -x is as good as x."""
_QDQ_OPSET: Final = 21
"""From here on scales may be float16, as the graph around them."""


def tensors_to_range(model: onnx.ModelProto, convolutions: Iterable[str]) -> tuple[str, ...]:
    """Activations that `add_qdq` may need a range of, for these convolutions or any of them.

    Inputs of the convolutions, and what is added to their outputs: of two outputs that are added, each is a residual
    where the other's convolution alone is chosen.
    """
    names = _chosen(model, convolutions)
    inputs = [node.input[0] for node in model.graph.node if node.name in names]
    alone = [_residuals(model.graph, frozenset({name})).values() for name in names]
    return tuple(dict.fromkeys((*inputs, *sorted({tensor for found in alone for tensor in found}))))


def add_qdq(
    model: onnx.ModelProto, convolutions: Iterable[str], limits: Mapping[str, float]
) -> onnx.ModelProto:
    """A copy of a float graph with int8 convolutions, for a strongly typed network.

    Args:
        model: fp32 or fp16 graph of opset 21 or newer.
        convolutions: Names of the Conv nodes to quantise; their weights are constants.
        limits: Largest magnitude to keep of every tensor of `tensors_to_range`; larger values are clipped.

    Raises:
        InputError: An older opset, a name that is no such node, or a tensor without a limit.
    """
    version = next(item.version for item in model.opset_import if item.domain == "")
    if version < _QDQ_OPSET:
        raise InputError(f"The graph is of opset {version}; symmetric int8 needs {_QDQ_OPSET} or newer.")
    names = _chosen(model, convolutions)
    inputs = [node.input[0] for node in model.graph.node if node.name in names]
    missing = [name for name in (*inputs, *_residuals(model.graph, names).values()) if name not in limits]
    if missing:
        raise InputError(f"No range is known of {', '.join(missing[:3])}.")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _Inserter(copy.graph, limits).run(names)
    return copy


@dataclass
class _Inserter:
    """Rewrites one graph in place."""

    graph: onnx.GraphProto
    limits: Mapping[str, float]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    rounded: dict[str, str] = field(default_factory=dict)
    """Activation -> its quantised and dequantised twin."""

    def run(self, names: frozenset[str]) -> None:
        weights = {item.name: item for item in self.graph.initializer}
        residuals = _residuals(self.graph, names)
        types: dict[str, np.dtype[Any]] = {}
        for node in self.graph.node:
            if node.name in names:
                stored = weights[node.input[1]]
                kind = types[node.output[0]] = numpy_helper.to_array(stored).dtype
                node.input[0] = self._activation(node.input[0], kind)
                node.input[1] = self._weights(stored)
            elif node.name in residuals:
                other = residuals[node.name]
                place = list(node.input).index(other)
                node.input[place] = self._activation(other, types[node.input[1 - place]])
            self.nodes.append(node)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        left = [item for item in self.graph.initializer if item.name in used]
        kept_initializers = [onnx.TensorProto.FromString(item.SerializeToString()) for item in left]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept_initializers)

    def _activation(self, tensor: str, kind: np.dtype[Any]) -> str:
        """Round a tensor to int8 and back; all who ask get the same."""
        if tensor not in self.rounded:
            scale = _scale(np.array(self.limits[tensor], np.float32), kind)
            given = [f"{tensor}/scale", f"{tensor}/zero"]
            self._constant(given[0], scale)
            self._constant(given[1], np.zeros((), np.int8))
            whole, back = f"{tensor}/int8", f"{tensor}/rounded"
            self.nodes.append(
                helper.make_node("QuantizeLinear", [tensor, *given], [whole], f"{tensor}/QuantizeLinear")
            )
            self.nodes.append(
                helper.make_node("DequantizeLinear", [whole, *given], [back], f"{tensor}/DequantizeLinear")
            )
            self.rounded[tensor] = back
        return self.rounded[tensor]

    def _weights(self, stored: onnx.TensorProto) -> str:
        """Store weights [out, ...] in int8 with a scale per output channel."""
        name = stored.name
        if name not in self.rounded:
            values = numpy_helper.to_array(stored)
            largest = np.abs(values.astype(np.float32)).reshape(len(values), -1).max(axis=1)
            scale = _scale(largest, values.dtype)
            wide = scale.astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
            whole = np.clip(np.rint(values.astype(np.float32) / wide), -_LEVELS, _LEVELS).astype(np.int8)
            given = [f"{name}/int8", f"{name}/scale", f"{name}/zero"]
            for key, value in zip(given, (whole, scale, np.zeros(len(values), np.int8)), strict=True):
                self._constant(key, value)
            back = f"{name}/rounded"
            self.nodes.append(
                helper.make_node("DequantizeLinear", given, [back], f"{name}/DequantizeLinear", axis=0)
            )
            self.rounded[name] = back
        return self.rounded[name]

    def _constant(self, name: str, value: NDArray[Any]) -> None:
        self.graph.initializer.append(numpy_helper.from_array(value, name))


def _scale(largest: NDArray[np.float32], kind: np.dtype[Any]) -> NDArray[Any]:
    """Step of int8 in the graph's own type, rounded up so that the largest value still fits."""
    smallest = np.finfo(kind).smallest_subnormal if kind == np.float16 else np.finfo(np.float32).tiny
    wanted = np.maximum(largest / _LEVELS, np.float32(smallest))
    stored = wanted.astype(kind)
    return np.where(stored.astype(np.float32) < wanted, np.nextafter(stored, kind.type(np.inf)), stored)


def _chosen(model: onnx.ModelProto, convolutions: Iterable[str]) -> frozenset[str]:
    constants = {item.name for item in model.graph.initializer}
    possible = {n.name for n in model.graph.node if n.op_type == "Conv" and n.input[1] in constants}
    names = frozenset(convolutions)
    if names - possible:
        raise InputError(f"{', '.join(sorted(names - possible)[:3])}: no convolution with constant weights.")
    return names


def _residuals(graph: onnx.GraphProto, names: frozenset[str]) -> dict[str, str]:
    """Additions of an activation to the output of an int8 convolution: node -> the activation."""
    constants = {item.name for item in graph.initializer}
    outputs = {node.output[0] for node in graph.node if node.name in names}
    found = {}
    for node in graph.node:
        if node.op_type != "Add" or len(outputs & set(node.input)) != 1:
            continue
        other = next(name for name in node.input if name not in outputs)
        if other not in constants:
            found[node.name] = other
    return found
