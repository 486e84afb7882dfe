"""Chooses the int8 ranges of a TensorRT graph by what they do to the logits, measured on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx

from export.activation_ranges import METHODS, Method, choose_ranges, observe
from export.drift import sqnr_db
from export.intermediates import logits_of
from export.tensorrt_qdq import add_qdq, tensors_to_range
from pipeline.errors import InputError
from pipeline.runtime import Crops

_JUDGED: Final = 64
"""Crops that methods are compared on."""


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """A quantised graph and how it was chosen.

    Attributes:
        model: With Q/DQ pairs.
        convolutions: Names of those in int8.
        method: The one of `activation_ranges.METHODS` whose logits are nearest to the float graph's.
        sqnr: Signal to quantisation noise of the logits in dB, by method.
        crops: Number of crops that ranges were taken from.
    """

    model: onnx.ModelProto
    convolutions: tuple[str, ...]
    method: Method
    sqnr: dict[Method, float]
    crops: int

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        tried = ", ".join(f"{name} {found:.1f} dB" for name, found in self.sqnr.items())
        return (
            f"{len(self.convolutions)} convolutions in symmetric int8, residuals too, first and last layer in float",
            f"ranges from {self.crops} crops by {self.method}; SQNR of the logits on the CPU: {tried}",
        )


def quantise(model: onnx.ModelProto, crops: Crops, *, threads: int | None = None) -> Int8Graph:
    """Put the convolutions of a graph into int8, but the first, which reads the pixels, and the head.

    Args:
        model: fp16 or fp32 graph of opset 21 or newer.
        crops: uint8 [N, H, W, 3], N >= 1, to take ranges from; 300 or more, real and fake, are advised.
        threads: CPU threads; None for all cores.

    Raises:
        InputError: No crops, or no convolution but the first and the last.
    """
    names = tuple(node.name for node in model.graph.node if node.op_type == "Conv")[1:-1]
    if not len(crops) or not names:
        raise InputError("int8 ranges need crops, and a network with more than two convolutions.")
    observed = observe(model, tensors_to_range(model, names), crops, threads=threads)
    judged = crops[:: max(1, len(crops) // _JUDGED)][:_JUDGED]
    expected = logits_of(model, judged, threads=threads)
    candidates: dict[Method, onnx.ModelProto] = {}
    sqnr: dict[Method, float] = {}
    for method in METHODS:
        ranges = choose_ranges(observed, method)
        limits = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
        candidates[method] = add_qdq(model, names, limits)
        sqnr[method] = sqnr_db(expected, logits_of(candidates[method], judged, threads=threads))
    best = max(METHODS, key=lambda method: sqnr[method])
    return Int8Graph(candidates[best], names, best, sqnr, len(crops))
