"""Everything that int8 graphs of one network for CPUs are made from, measured once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from export.activation_ranges import Method, Observed, Range, observe
from export.agreement import Decisions, Labels, Logits
from export.intermediates import check_calibration, logits_of, read_graph, square_of
from export.qdq import Form, Quantisable, examine, has_byte_dot_products, prepare
from pipeline.errors import InputError
from pipeline.runtime import Crops

_HELD_OUT_EVERY: Final = 3


@dataclass(frozen=True)
class Calibration:
    """Everything that int8 graphs of one network are made from; taken once, used for every runtime.

    Attributes:
        source: The fp32 file.
        full: Its graph.
        prepared: The same, in the form that is quantised.
        parts: What of it can be quantised.
        observed: Values of its activations.
        ranging: Crops they were seen on.
        held, labels: Other crops, to compare on.
        logits: The fp32 graph's on those.
        threads: Of the runtimes.
        reduce_range: 7-bit weights.
        decisions: What errors may change; None for the fp32 graph's own on the held-out crops.
        noise: By runtime and method, what each layer alone does to the logits, as far as it was asked for.
        ranges: By method, the range of every activation, as far as it was asked for.
        best: Of several methods for a runtime, the best one.
        answers: Logits of a candidate, by its runtime, method, layers in int8 and number of crops.
    """

    source: Path
    full: onnx.ModelProto
    prepared: onnx.ModelProto
    parts: Quantisable
    observed: Mapping[str, Observed]
    ranging: Crops
    held: Crops
    labels: Labels
    logits: Logits
    threads: int | None
    reduce_range: bool
    decisions: Decisions | None = None
    noise: dict[tuple[Form, Method], dict[str, float]] = field(default_factory=dict)
    ranges: dict[Method, dict[str, Range]] = field(default_factory=dict)
    best: dict[tuple[Form, tuple[Method, ...]], Method] = field(default_factory=dict)
    answers: dict[tuple[str, Method, frozenset[str], int], Logits] = field(default_factory=dict)

    @property
    def faces(self) -> int:
        """Decisions that a gate counts on."""
        return len(self.labels) if self.decisions is None else len(self.decisions.margins)


def calibrate(
    source: Path,
    crops: Crops,
    labels: Labels,
    *,
    held_out: tuple[Crops, Labels] | None = None,
    decisions: Decisions | None = None,
    threads: int | None = None,
    reduce_range: bool | None = None,
) -> Calibration:
    """Run an fp32 graph of ours on calibration crops and keep what quantising needs.

    Args:
        source: ONNX file, opset 18 to 20, `crops` -> `logits` [, `evidence`].
        crops: uint8 [N, H, W, 3], real and fake; 300 or more are advised.
        labels: int [N], 0 real, 1 fake.
        held_out: Crops and labels to compare candidates on; None takes a third of `crops`.
        decisions: What errors may change; None for what the fp32 graph decides on held-out crops.
        threads: Of the runtime; None for all cores.
        reduce_range: 7-bit weights; None decides by this processor.

    Raises:
        InputError: No graph of ours, nothing to quantise, an empty or one-class set, or crops of another size.
    """
    full = read_graph(source)
    ranging, held, truth = _split(crops, labels, held_out, square_of(full, source))
    prepared = prepare(source)
    parts = examine(prepared.graph)
    if not parts.products:
        raise InputError(f"{source} has no convolution or matrix product that could be quantised.")
    return Calibration(
        source=source,
        full=full,
        prepared=prepared,
        parts=parts,
        observed=observe(prepared, parts.tensors, ranging, threads=threads),
        ranging=ranging,
        held=held,
        labels=truth,
        logits=logits_of(full, held, threads=threads),
        threads=threads,
        reduce_range=not has_byte_dot_products() if reduce_range is None else reduce_range,
        decisions=decisions,
    )


def _split(
    crops: Crops, labels: Labels, held_out: tuple[Crops, Labels] | None, side: int
) -> tuple[Crops, Crops, Labels]:
    """Crops for ranges, and crops with labels to compare on."""
    truth = np.asarray(labels)
    check_calibration(crops, truth, side)
    if held_out is not None:
        check_calibration(held_out[0], np.asarray(held_out[1]), side)
        return crops, held_out[0], np.asarray(held_out[1])
    held = np.zeros(len(crops), bool)
    for label in (0, 1):
        held[np.flatnonzero(truth == label)[::_HELD_OUT_EVERY]] = True
    if held.all():
        raise InputError(f"{len(crops)} calibration crops are too few to hold any out; give 300 or more.")
    return crops[~held], crops[held], truth[held]
