"""Which layers to leave in float: what each alone does to the logits, against what it costs to compute in float.

Rounding errors of different layers add up like independent noise (measured on mobilevitv2: the sum over single
layers is within 1 dB of all at once), so one layer at a time tells what a set of layers will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.activation_ranges import Range
from export.intermediates import session_of
from pipeline.runtime import Crops

NOISE_CROPS: Final = 8
"""Crops on which every layer is tried by itself."""

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tellers:
    """Crops that stand for many: their places, int64 [M] rising, and for how many each stands, float64 [M]."""

    places: NDArray[np.int64]
    weights: NDArray[np.float64]


def choose_tellers(errors: NDArray[np.floating], count: int) -> Tellers:
    """The crops on which a graph in int8 errs most, and of the others as many, evenly over their errors.

    A few crops whose activations leave the ranges can hold most of the noise (measured on mobilevitv2_200: 4 of 150
    held nine tenths), while the decisions of all depend on the others, so a few crops at random tell neither.

    Args:
        errors: Squared error of each crop's logits, [N].
        count: Crops wanted; all of them where there are no more.
    """
    if len(errors) <= count:
        return Tellers(np.arange(len(errors)), np.ones(len(errors)))
    falling = np.argsort(-errors, kind="stable")
    worst, others = falling[: count // 2], falling[count // 2 :]
    even = others[np.linspace(0, len(others) - 1, count - len(worst)).round().astype(int)]
    places = np.concatenate([worst, even])
    weights = np.concatenate([np.ones(len(worst)), np.full(len(even), len(others) / len(even))])
    order = np.argsort(places)
    return Tellers(places[order], weights[order])


def noise_of_each(
    graph: onnx.ModelProto,
    products: Sequence[str],
    ranges: Mapping[str, Range],
    crops: Crops,
    weights: NDArray[np.float64],
    *,
    outputs: bool,
    weight_levels: int,
    threads: int | None,
) -> dict[str, float]:
    """Energy of the logits' error over their own with one layer rounded: its input, weights and, if wanted, output.

    Whatever else reads the input reads it rounded, too, as in the int8 graph. What comes before a layer is computed
    once for all.

    Args:
        graph: Prepared float graph.
        products: Names of the layers.
        ranges: Of their inputs and outputs.
        crops: uint8 [N, H, W, 3]; a few tell layers apart.
        weights: For how many crops each stands, [N].
        outputs: Whether the int8 graph rounds what a layer gives, or only what it takes.
        weight_levels: Largest integer of a weight.
        threads: Of the runtime.
    """
    cuts = {name: _first_reader(graph.graph, name) for name in products}
    signal: NDArray[np.float64] | None = None
    values: Values = {"crops": np.ascontiguousarray(crops)}
    noise, at = {}, 0
    for name in sorted(products, key=lambda item: cuts[item]):
        values = _advance(graph, at, cuts[name], values, threads)
        at = cuts[name]
        if signal is None:
            signal = _logits(_part(graph, at, None, values), values, threads)
        rounded = _one_rounded(_part(graph, at, None, values), name, ranges, weight_levels, outputs=outputs)
        error = ((_logits(rounded, values, threads) - signal) ** 2).sum(axis=1)
        noise[name] = float((weights * error).sum() / (weights * (signal**2).sum(axis=1)).sum())
    return noise


def leave_in_float(noise: Mapping[str, float], costs: Mapping[str, float], allowed: float) -> set[str]:
    """The layers to put back to float so that the noise of the rest is at most `allowed`, cheaply.

    Layers with the most noise per cost go first; then those that turn out not to be needed come back, the dearest
    first.
    """
    kept: set[str] = set()
    total = sum(noise.values())
    for name in sorted(noise, key=lambda item: -noise[item] / costs[item]):
        if total <= allowed:
            break
        kept.add(name)
        total -= noise[name]
    for name in sorted(kept, key=lambda item: -costs[item]):
        if total + noise[name] <= allowed:
            kept.remove(name)
            total += noise[name]
    return kept


def in_company(noise: Mapping[str, float], rounded: Iterable[str], sqnr_db: float) -> float:
    """How much noise layers make together, as a share of the sum of what each makes by itself.

    It differs from set to set: errors of early layers may outweigh or swallow those of later ones. So it is asked of
    each set that was tried; with the share of the first one alone, a search may keep the noisiest layer to the last.

    Args:
        noise: Of each layer by itself.
        rounded: The layers of the set.
        sqnr_db: What the set reaches.
    """
    alone = sum(noise[name] for name in rounded)
    return float(10 ** (-sqnr_db / 10) / max(alone, np.finfo(np.float64).tiny))


def _first_reader(graph: onnx.GraphProto, product: str) -> int:
    """Place of the first node that reads what a layer takes."""
    source = next(node.input[0] for node in graph.node if node.name == product)
    return next(place for place, node in enumerate(graph.node) if source in node.input)


def _advance(graph: onnx.ModelProto, at: int, to: int, values: Values, threads: int | None) -> Values:
    """From the tensors that nodes from place `at` on read of those before, to the same for place `to`."""
    if at == to:
        return values
    part = _part(graph, at, to, values)
    made = [name for name in _read_after(graph.graph, to) if name not in values]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    found = dict(zip(made, _run(part, made, values, threads), strict=True))
    return {name: (found | values)[name] for name in _read_after(graph.graph, to)}


def _read_after(graph: onnx.GraphProto, place: int) -> list[str]:
    """Tensors that nodes from a place on read and do not make."""
    constants = {item.name for item in graph.initializer}
    made = {name for node in graph.node[place:] for name in node.output}
    read = {name: None for node in graph.node[place:] for name in node.input if name}
    return [name for name in read if name not in made and name not in constants]


def _part(graph: onnx.ModelProto, start: int, end: int | None, values: Values) -> onnx.ModelProto:
    """Some nodes of a graph, with the constants they read; it takes `values`, and to the end it gives the logits."""
    nodes = list(graph.graph.node)[start:end]
    read = {name for node in nodes for name in node.input}
    part = helper.make_graph(
        nodes,
        "part",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in values.items()
            if name in read
        ],
        [item for item in graph.graph.output if end is None and item.name == "logits"],
        [item for item in graph.graph.initializer if item.name in read],
    )
    return helper.make_model(part, opset_imports=graph.opset_import, ir_version=graph.ir_version)


def _logits(part: onnx.ModelProto, values: Values, threads: int | None) -> NDArray[np.float64]:
    return _run(part, ["logits"], values, threads)[0].astype(np.float64)


def _run(
    part: onnx.ModelProto, names: Sequence[str], values: Values, threads: int | None
) -> list[NDArray[Any]]:
    taken = {item.name: values[item.name] for item in part.graph.input}
    found: list[NDArray[Any]] = session_of(part, threads=threads).run(list(names), taken)
    return found


def _one_rounded(
    graph: onnx.ModelProto, name: str, ranges: Mapping[str, Range], weight_levels: int, *, outputs: bool
) -> onnx.ModelProto:
    """The graph, changed so that one layer computes on rounded numbers; quicker to make than the real int8 graph."""
    node = next(node for node in graph.graph.node if node.name == name)
    stored = next(item for item in graph.graph.initializer if item.name == node.input[1])
    weights = numpy_helper.to_array(stored)
    axis = 0 if node.op_type == "Conv" else weights.ndim - 1
    rounded = rounded_weights(weights, weight_levels, axis)
    graph.graph.initializer.append(numpy_helper.from_array(rounded, f"{name}/rounded"))
    source, target = node.input[0], node.output[0]
    before = _rounding(graph.graph, source, f"{name}/input", ranges[source])
    after = _rounding(graph.graph, f"{name}/output", target, ranges[target]) if outputs else []
    nodes = list(graph.graph.node)
    for other in nodes:  # a pair stands on the tensor: a sum that reads it too gets the rounded one
        other.input[:] = [before[-1].output[0] if given == source else given for given in other.input]
    node.input[1] = f"{name}/rounded"
    if after:
        node.output[0] = f"{name}/output"
    place = next(i for i, other in enumerate(nodes) if other.name == name)
    ordered = [*before, *nodes[: place + 1], *after, *nodes[place + 1 :]]
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in ordered]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    return graph


def _rounding(graph: onnx.GraphProto, source: str, target: str, values: Range) -> list[onnx.NodeProto]:
    """A pair that rounds a tensor to 256 levels of a range widened to hold zero, as the quantiser does."""
    low, high = min(values[0], 0.0), max(values[1], 0.0)
    scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
    zero = int(np.clip(round(-low / scale), 0, 255))
    parameters = [f"{target}/scale", f"{target}/zero"]
    constants: tuple[NDArray[Any], ...] = (np.array(scale, np.float32), np.array(zero, np.uint8))
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for value, name in zip(constants, parameters, strict=True)
    )
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{target}/bytes"]),
        helper.make_node("DequantizeLinear", [f"{target}/bytes", *parameters], [target]),
    ]


def rounded_weights(weights: NDArray[np.float32], levels: int, axis: int) -> NDArray[np.float32]:
    """Weights rounded to -levels..levels, symmetric, with a scale per place on `axis`."""
    others = tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others, keepdims=True)
    scale = np.maximum(largest / levels, np.finfo(np.float32).tiny)
    return np.asarray(np.clip(np.round(weights / scale), -levels, levels) * scale, np.float32)
