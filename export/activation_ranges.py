"""Where 8 bits are spent: the range of every activation, from what calibration crops make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.intermediates import session_of
from pipeline.runtime import Crops

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")

SAMPLES_PER_CROP = 1024
"""Values kept of each tensor and crop, evenly spaced; minimum and maximum are exact."""
PERCENTILE = 99.99
_BINS, _LEVELS, _CANDIDATES = 2048, 256, 48
_OWN = "/observed/"
_LOW, _HIGH, _SAMPLES = (f"{_OWN}{kind}" for kind in ("low", "high", "samples"))

SILU_FLOOR = -6.0
"""Where a range ends below in front of a SiLU."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Observed:
    """Values of one activation over all calibration crops.

    Attributes:
        low, high: Smallest and largest value.
        samples: float32 [n], evenly spaced ones.
    """

    low: float
    high: float
    samples: NDArray[np.float32]


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], crops: Crops, *, threads: int | None, batch: int = 1
) -> dict[str, Observed]:
    """Run the calibration crops once and keep what every method needs of each tensor.

    The runtime itself takes extremes and samples: handing out whole maps would cost more than computing them.

    Args:
        model: Float graph.
        tensors: Activations to be quantised.
        crops: uint8 [N, H, W, 3], N >= 1.
        threads: Of the runtime; None for all cores.
        batch: Crops at a time; one is fastest, and memory grows with more.
    """
    session = session_of(_with_summaries(model, tensors), threads=threads)
    wanted = [f"{name}{kind}" for name in tensors for kind in (_LOW, _HIGH, _SAMPLES)]
    parts = [
        session.run(wanted, {"crops": np.ascontiguousarray(crops[start : start + batch])})
        for start in range(0, len(crops), batch)
    ]
    columns = iter(zip(*parts, strict=True))
    return {
        name: Observed(
            float(min(low.min() for low in next(columns))),
            float(max(high.max() for high in next(columns))),
            np.concatenate([samples.ravel() for samples in next(columns)]),
        )
        for name in tensors
    }


def _with_summaries(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """Serialise a copy of the graph that returns each tensor's extremes and samples per crop, in float32."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    graph = opened.graph
    constants = {"first": [0], "second": [1], "beyond": [2**62], "half": [2 * SAMPLES_PER_CROP], "two": [2]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"{_OWN}{name}")
        for name, value in constants.items()
    )
    first, second, beyond, half, two = (f"{_OWN}{name}" for name in constants)
    for name in tensors:
        flat, count, step = (f"{name}{_OWN}{kind}" for kind in ("flat", "count", "step"))
        low, high, samples = (f"{name}{kind}" for kind in (_LOW, _HIGH, _SAMPLES))
        graph.node.extend(
            (
                helper.make_node("Flatten", [name], [f"{flat}/own"], axis=1),
                helper.make_node("Cast", [f"{flat}/own"], [flat], to=onnx.TensorProto.FLOAT),
                helper.make_node("ReduceMin", [flat, second], [low]),
                helper.make_node("ReduceMax", [flat, second], [high]),
                # An odd step, so that it does not keep to a few channels or columns.
                helper.make_node("Shape", [flat], [count], start=1),
                helper.make_node("Div", [count, half], [f"{step}/pairs"]),
                helper.make_node("Mul", [f"{step}/pairs", two], [f"{step}/even"]),
                helper.make_node("Add", [f"{step}/even", second], [step]),
                helper.make_node("Slice", [flat, first, beyond, second, step], [samples]),
            )
        )
        graph.output.extend(onnx.ValueInfoProto(name=each) for each in (low, high, samples))
    content: bytes = opened.SerializeToString()
    return content


def choose_ranges(
    observed: Mapping[str, Observed], method: Method, before_silu: Collection[str] = ()
) -> dict[str, Range]:
    """Range of every tensor by one method.

    Of a tensor that only a SiLU reads, all below -6 is nearly nothing (silu(-6) = -0.015): its lower end is cut
    there, so that the 256 levels fall where they count.

    `minmax` keeps every value. `percentile` leaves 0.01 % of the values outside. `entropy` takes the clipping that
    keeps the distribution of the values (KL divergence; Migacz 2017, "8-bit inference with TensorRT"). `mse`
    takes the clipping with the least squared error.
    """
    rule = _RULES[method]
    return cut_before_silu({name: rule(values) for name, values in observed.items()}, before_silu)


def cut_before_silu(ranges: Mapping[str, Range], before_silu: Collection[str]) -> dict[str, Range]:
    """The same ranges, no lower than -6 where only a SiLU reads the tensor."""
    return {
        name: (max(low, SILU_FLOOR), high) if name in before_silu else (low, high)
        for name, (low, high) in ranges.items()
    }


def _minmax(values: Observed) -> Range:
    return values.low, values.high


def _percentile(values: Observed) -> Range:
    tail = (100 - PERCENTILE) / 2
    low, high = np.percentile(values.samples, (tail, 100 - tail))
    return float(low), float(high)


def _entropy(values: Observed) -> Range:
    return _best_clip(values, _divergence)


def _mse(values: Observed) -> Range:
    return _best_clip(values, _squared_error)


_RULES: dict[Method, Callable[[Observed], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


def _best_clip(values: Observed, cost: Callable[[NDArray[np.int64], Range, Range], float]) -> Range:
    """The range among shrunken ones, upper and lower end each on its own, that costs least."""
    whole = (values.low, values.high)
    if values.low >= values.high:
        return whole
    counts, _ = np.histogram(values.samples, bins=_BINS, range=whole)
    shares = np.linspace(1.0, 0.1, _CANDIDATES)
    highs = [float(share) * max(values.high, 0.0) for share in shares]
    high = min(highs, key=lambda end: cost(counts, whole, (values.low, end)))
    lows = [float(share) * min(values.low, 0.0) for share in shares]
    low = min(lows, key=lambda end: cost(counts, whole, (end, high)))
    return (low, high) if low < high else whole


def _centres(whole: Range) -> NDArray[np.float64]:
    edges = np.linspace(*whole, _BINS + 1)
    return (edges[1:] + edges[:-1]) / 2


def _rounded(centres: NDArray[np.float64], clip: Range) -> NDArray[np.float64]:
    low, high = min(clip[0], 0.0), max(clip[1], 0.0)
    step = max((high - low) / (_LEVELS - 1), 1e-30)
    return np.clip(np.round((centres - low) / step), 0, _LEVELS - 1) * step + low


def _squared_error(counts: NDArray[np.int64], whole: Range, clip: Range) -> float:
    centres = _centres(whole)
    low, high = min(clip[0], 0.0), max(clip[1], 0.0)
    step = (high - low) / (_LEVELS - 1)
    outside = centres - np.clip(centres, low, high)
    return float((counts * (outside**2 + step**2 / 12)).sum())


def _divergence(counts: NDArray[np.int64], whole: Range, clip: Range) -> float:
    """KL divergence of the clipped distribution from what 256 levels keep of it; infinite where nothing is left."""
    inside = (_centres(whole) >= clip[0]) & (_centres(whole) <= clip[1])
    if not inside.any():
        return math.inf
    levels = _rounded(_centres(whole), clip)
    _, group = np.unique(levels, return_inverse=True)
    total = np.bincount(group, weights=counts)
    filled = np.bincount(group, weights=counts > 0)
    spread = np.where(counts > 0, total[group] / np.maximum(filled[group], 1), 0.0)
    clipped = np.where(inside, counts, 0).astype(np.float64)
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped[first] += counts[:first].sum()
    clipped[last] += counts[last + 1 :].sum()
    spread = np.where(inside, spread, 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-30)
    use = p > 0
    return float((p[use] * np.log(p[use] / np.maximum(q[use], 1e-12))).sum())
