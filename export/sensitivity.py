"""Which layers to leave in float: what each alone does to the logits, against what it costs to compute in float.

Rounding errors of different layers add up like independent noise (measured on mobilevitv2: the sum over single
layers is within 1 dB of all at once), so one layer at a time tells what a set of layers will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.activation_ranges import Range
from export.agreement import Logits
from export.drift import sqnr_db
from export.intermediates import logits_of
from pipeline.runtime import Crops

NOISE_CROPS: Final = 10
"""Crops on which every layer is tried by itself."""


def noise_of_each(
    graph: onnx.ModelProto,
    products: Sequence[str],
    ranges: Mapping[str, Range],
    full: Logits,
    crops: Crops,
    *,
    weight_levels: int,
    threads: int | None,
) -> dict[str, float]:
    """Energy of the logits' error over their own with one layer rounded: its input, weights and output.

    Whatever else reads the input reads it rounded, too, as in the int8 graph.

    Args:
        graph: Prepared float graph.
        products: Names of the layers.
        ranges: Of their inputs and outputs.
        full: The float graph's logits on the crops.
        crops: uint8 [N, H, W, 3]; a few tell layers apart.
        weight_levels: Largest integer of a weight.
        threads: Of the runtime.
    """
    noise = {}
    for name in products:
        logits = logits_of(_one_rounded(graph, name, ranges, weight_levels), crops, threads=threads)
        noise[name] = float(10 ** (-sqnr_db(full, logits) / 10))
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


def _one_rounded(
    graph: onnx.ModelProto, name: str, ranges: Mapping[str, Range], weight_levels: int
) -> onnx.ModelProto:
    """The graph with one layer that computes on rounded numbers; quicker to make than the real int8 graph."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    place, node = next((i, n) for i, n in enumerate(changed.graph.node) if n.name == name)
    stored = next(item for item in changed.graph.initializer if item.name == node.input[1])
    axis = 0 if node.op_type == "Conv" else numpy_helper.to_array(stored).ndim - 1
    rounded = rounded_weights(numpy_helper.to_array(stored), weight_levels, axis)
    changed.graph.initializer.append(numpy_helper.from_array(rounded, f"{name}/rounded"))
    source = node.input[0]
    before = _rounding(changed.graph, source, f"{name}/input", ranges[source])
    after = _rounding(changed.graph, f"{name}/output", node.output[0], ranges[node.output[0]])
    nodes = list(changed.graph.node)
    readers = [i for i, other in enumerate(nodes) if source in other.input]
    for reader in readers:  # a pair stands on the tensor: a sum that reads it too gets the rounded one
        inputs = nodes[reader].input
        inputs[:] = [before[-1].output[0] if given == source else given for given in inputs]
    node.input[1] = f"{name}/rounded"
    node.output[0] = f"{name}/output"
    first = min(readers)
    ordered = [*nodes[:first], *before, *nodes[first : place + 1], *after, *nodes[place + 1 :]]
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in ordered]
    del changed.graph.node[:]
    changed.graph.node.extend(copies)
    return changed


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
