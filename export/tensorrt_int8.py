"""Chooses the int8 ranges of a TensorRT graph by what they do to the logits, measured on crops on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from export.tensorrt_qdq import add_qdq, tensors_to_range
from pipeline.errors import InputError
from pipeline.runtime import Crops

SHARES: Final = (100.0, 99.99, 99.9)
"""Per cent of an activation's values that are kept whole; what is larger is clipped."""
_SAMPLES: Final = 4096
"""Values kept of each tensor and crop, evenly spaced; the maximum is exact."""
_BATCH: Final = 4
_JUDGED: Final = 32


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """A quantised graph and how it was chosen.

    Attributes:
        model: With Q/DQ pairs.
        convolutions: Names of those in int8.
        share: Of `SHARES`, the one whose logits are nearest to the float graph's.
        sqnr: Signal to quantisation noise of the logits in dB, by share.
        crops: Number of crops that ranges were taken from.
    """

    model: onnx.ModelProto
    convolutions: tuple[str, ...]
    share: float
    sqnr: dict[float, float]
    crops: int

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        tried = ", ".join(f"{share:g} %: {found:.1f} dB" for share, found in self.sqnr.items())
        return (
            f"{len(self.convolutions)} convolutions in symmetric int8, residuals too, the rest in float16; first and "
            "last layer in float",
            f"ranges from {self.crops} crops keep {self.share:g} % of the values; SQNR of the logits on the CPU, "
            f"by share kept: {tried}",
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
    tensors = tensors_to_range(model, names)
    limits = observe(model, tensors, crops, threads=threads)
    judged = crops[:: max(1, len(crops) // _JUDGED)][:_JUDGED]
    expected = _run(model, ["logits"], judged, threads)[0]
    candidates = {share: add_qdq(model, names, limits[share]) for share in SHARES}
    sqnr = {
        share: _sqnr(expected, _run(candidate, ["logits"], judged, threads)[0])
        for share, candidate in candidates.items()
    }
    best = max(SHARES, key=lambda share: sqnr[share])
    return Int8Graph(candidates[best], names, best, sqnr, len(crops))


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], crops: Crops, *, threads: int | None = None
) -> Mapping[float, dict[str, float]]:
    """Magnitude that holds each share of each tensor's values, by share."""
    largest = dict.fromkeys(tensors, 0.0)
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
    session = _session(model, tensors, threads)
    for start in range(0, len(crops), _BATCH):
        given = np.ascontiguousarray(crops[start : start + _BATCH])
        for name, value in zip(tensors, session.run(list(tensors), {"crops": given}), strict=True):
            flat = np.abs(value.astype(np.float32)).reshape(len(given), -1)
            largest[name] = max(largest[name], float(flat.max()))
            # An odd step, so that it does not keep to a few channels or columns.
            samples[name].append(flat[:, :: max(1, flat.shape[1] // _SAMPLES) | 1].ravel())
    kept = {name: np.concatenate(values) for name, values in samples.items()}
    return {
        share: {
            name: largest[name] if share == 100 else float(np.percentile(kept[name], share))
            for name in tensors
        }
        for share in SHARES
    }


def _session(
    model: onnx.ModelProto, tensors: Iterable[str], threads: int | None
) -> onnxruntime.InferenceSession:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {output.name for output in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Rewritten for the CPU's own int8 kernels the graph would no longer be the one TensorRT computes.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(shown.SerializeToString(), options, ["CPUExecutionProvider"])


def _run(
    model: onnx.ModelProto, tensors: Sequence[str], crops: Crops, threads: int | None
) -> list[NDArray[np.float32]]:
    session = _session(model, tensors, threads)
    parts = [
        session.run(list(tensors), {"crops": np.ascontiguousarray(crops[start : start + _BATCH])})
        for start in range(0, len(crops), _BATCH)
    ]
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def _sqnr(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    noise = float(((expected - found) ** 2).sum())
    return float(10 * np.log10(float((expected**2).sum()) / max(noise, 1e-30)))
