"""Chooses the int8 ranges of a TensorRT graph by what they do to the logits, measured on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx

from export.activation_ranges import METHODS, Method, choose_ranges, observe
from export.agreement import Gate
from export.drift import sqnr_db
from export.intermediates import logits_of
from export.qdq import costs_of
from export.sensitivity import NOISE_CROPS, in_company, leave_in_float
from export.tensorrt_qdq import add_qdq, tensors_to_range
from pipeline.errors import InputError
from pipeline.runtime import Crops

_JUDGED: Final = 64
"""Crops that methods are compared on."""
_AIM: Final = Gate().with_margin(faces=_JUDGED)
_STEP_DB: Final = 2.0
"""By which the noise allowed falls from one attempt to the next."""


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """A quantised graph and how it was chosen.

    Attributes:
        model: With Q/DQ pairs.
        convolutions: Names of those in int8.
        method: The one of `activation_ranges.METHODS` whose logits are nearest to the float graph's.
        sqnr: Signal to quantisation noise of the logits in dB, by method.
        crops: Number of crops that ranges were taken from.
        kept_float: Names of those that had to stay in float.
        sqnr_db: What the graph reaches.
    """

    model: onnx.ModelProto
    convolutions: tuple[str, ...]
    method: Method
    sqnr: dict[Method, float]
    crops: int
    kept_float: tuple[str, ...] = ()
    sqnr_db: float = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        tried = ", ".join(f"{name} {found:.1f} dB" for name, found in self.sqnr.items())
        return (
            f"{len(self.convolutions)} convolutions in symmetric int8, residuals too, first and last layer in float",
            f"ranges from {self.crops} crops by {self.method}; SQNR of the logits on the CPU: {tried}",
            f"{len(self.kept_float)} more had to stay in float: {', '.join(self.kept_float) or 'none'}; "
            f"the graph's SQNR is {self.sqnr_db:.1f} dB",
        )


def quantise(
    model: onnx.ModelProto,
    crops: Crops,
    *,
    threads: int | None = None,
    min_sqnr_db: float = _AIM.min_sqnr_db,
) -> Int8Graph:
    """Put the convolutions of a graph into int8, but the first, which reads the pixels, and the head.

    Where the logits lose too much, the convolutions that disturb them most for what they cost stay in float.

    Args:
        model: fp16 or fp32 graph of opset 21 or newer.
        crops: uint8 [N, H, W, 3], N >= 1, to take ranges from; 300 or more, real and fake, are advised.
        threads: CPU threads; None for all cores.
        min_sqnr_db: Signal to noise of the logits to reach.

    Raises:
        InputError: No crops, or no convolution but the first and the last.
    """
    names = tuple(node.name for node in model.graph.node if node.op_type == "Conv")[1:-1]
    if not len(crops) or not names:
        raise InputError("int8 ranges need crops, and a network with more than two convolutions.")
    judge = _Judge(model, crops, threads)
    observed = observe(model, tensors_to_range(model, names), crops, threads=threads)
    limits: dict[Method, dict[str, float]] = {}
    sqnr: dict[Method, float] = {}
    for method in METHODS:
        ranges = choose_ranges(observed, method)
        limits[method] = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
        sqnr[method] = judge.sqnr(add_qdq(model, names, limits[method]), judge.crops)
    best = max(METHODS, key=lambda method: sqnr[method])
    chosen, found = names, sqnr[best]
    if found < min_sqnr_db and len(names) > 1:
        chosen, found = _leave_some(model, names, limits[best], judge, found, min_sqnr_db)
    graph = add_qdq(model, chosen, limits[best])
    kept = tuple(name for name in names if name not in chosen)
    return Int8Graph(graph, chosen, best, sqnr, len(crops), kept, found)


class _Judge:
    """Compares graphs on the CPU with the float one."""

    def __init__(self, model: onnx.ModelProto, crops: Crops, threads: int | None) -> None:
        self.crops = crops[:: max(1, len(crops) // _JUDGED)][:_JUDGED]
        self._threads = threads
        self._expected = logits_of(model, self.crops, threads=threads)

    def sqnr(self, changed: onnx.ModelProto, crops: Crops) -> float:
        """Signal to noise of the logits, in dB, on the first of the crops."""
        found = logits_of(changed, crops, threads=self._threads)
        return sqnr_db(self._expected[: len(crops)], found)


def _leave_some(
    model: onnx.ModelProto,
    names: tuple[str, ...],
    limits: Mapping[str, float],
    judge: _Judge,
    found: float,
    wanted: float,
) -> tuple[tuple[str, ...], float]:
    """The convolutions that stay in int8 so that the logits keep what is wanted of them, and what they keep."""
    few = judge.crops[:NOISE_CROPS]
    noise = {name: 10 ** (-judge.sqnr(add_qdq(model, [name], limits), few) / 10) for name in names}
    costs = costs_of(model.graph)
    target, chosen = found, names
    while found < wanted and len(chosen) > 1:
        target = max(wanted, target + _STEP_DB)
        kept = leave_in_float(noise, costs, 10 ** (-target / 10) / in_company(noise, chosen, found))
        # one at least, or it would be no int8
        chosen = tuple(name for name in names if name not in kept) or (
            min(noise, key=lambda name: noise[name]),
        )
        found = judge.sqnr(add_qdq(model, chosen, limits), judge.crops)
    return chosen, found
