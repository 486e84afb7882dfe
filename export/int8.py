"""Makes the int8 ONNX graph for CPUs: ranges by the method that measures best, sensitive layers left in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from export.activation_ranges import (
    METHODS,
    Method,
    Range,
    choose_ranges,
    cut_before_silu,
)
from export.agreement import Agreement, Gate, Labels, Logits, compare
from export.int8_calibration import Calibration
from export.intermediates import logits_of
from export.qdq import Form, quantise
from export.sensitivity import NOISE_CROPS, choose_tellers, in_company, leave_in_float, noise_of_each
from export.speed_gate import WORTH, speedup
from pipeline.runtime import Crops
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.storage import write_whole

Places = NDArray[np.int64]

GATE: Final = Gate()
METHOD_CROPS: Final = 32
"""Held-out crops that ways to find ranges are compared on, by SQNR, which takes few to tell apart."""
SEARCH_CROPS: Final = 160
"""Held-out crops that candidates are compared on; the result is measured on all of them."""
_MARGIN_DB = 1.0
_LEAST_STEP_DB, _LARGEST_STEP_DB = 1.5, 8.0
"""By which the noise allowed falls from one attempt to the next; the least doubles each time."""
_RETURNS: Final = 3
"""Attempts to bring layers back to int8 once the gate holds."""
_WORTH_RETURNING: Final = 0.02
"""Share of the work that has to come back with them; less is not felt."""


@dataclass(frozen=True, slots=True)
class Int8Result:
    """An int8 artefact and how it was chosen.

    Attributes:
        path: The file written.
        method: How its ranges were found, and by which quantiser.
        kept_float: Convolutions and products left in float; the head is always among them.
        quantised: Number of those in int8.
        work: Their share of what all of them cost in float; see `qdq.Quantisable.costs`.
        agreement: With the fp32 graph, on held-out crops.
        tried: Agreement of every candidate, by what it was.
        speedup: Time of fp32 over int8 at batch 1, in the same runtime.
        reduced_range: Whether weights have 7 bits because this processor has no byte dot products.
        reasons: Why it is not worth shipping; empty where it is.
    """

    path: Path
    method: str
    kept_float: tuple[str, ...]
    quantised: int
    work: float
    agreement: Agreement
    tried: dict[str, Agreement]
    speedup: float
    reduced_range: bool
    reasons: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """For the manifest."""
        bits = "7-bit weights, for this processor has no VNNI" if self.reduced_range else "8-bit weights"
        return (
            f"uint8 activations, {bits}, per output channel; ranges by {self.method}",
            f"{self.quantised} layers in int8, {self.work:.0%} of the work; "
            f"in float: {', '.join(self.kept_float) or 'none'}",
            f"against fp32 on held-out crops: {self.agreement}; {self.speedup:.2f}x its speed at batch 1",
            *(f"tried {name}: {found}" for name, found in self.tried.items()),
        )


def quantise_onnx(
    calibration: Calibration, out: Path, *, methods: Sequence[Method] = METHODS, gate: Gate = GATE
) -> Int8Result:
    """Quantise for ONNX Runtime on the CPU and write the graph, worth it or not; the caller decides.

    Args:
        calibration: From `calibrate`.
        out: The file to write, replaced in one step.
        methods: Ways to find ranges, of which the best is kept.
        gate: While it does not hold, the layers that disturb the logits most go back to float.

    Returns:
        What was written and every figure it was chosen by.
    """
    search = Search(calibration, "onnxruntime", partial(logits_of, threads=calibration.threads))
    method = search.best_method(methods)
    best, agreement = search.fit_gate(method, gate.with_margin(calibration.faces))
    write_whole(out, best.model.SerializeToString(deterministic=True))
    full, reduced = (OnnxRuntime(path, threads=calibration.threads) for path in (calibration.source, out))
    ratio = speedup(full, reduced, calibration.held)
    return search.result(out, method, best, agreement, ratio, gate)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A quantised graph in memory, how its ranges were found, and the names of its layers in int8."""

    model: onnx.ModelProto
    method: Method
    products: tuple[str, ...]


class Search:
    """Builds candidates for one runtime and compares them with the float graph, in that runtime.

    Args:
        calibration: From `calibrate`.
        form: For which runtime.
        answer: Gives a graph's logits for crops, in that runtime.
        arithmetic: Of what stays in float, where the runtime has several.
        tried: Of a search before, to be added to.

    Attributes:
        tried: Agreement of every candidate so far.
    """

    def __init__(
        self,
        calibration: Calibration,
        form: Form,
        answer: Callable[[onnx.ModelProto, Crops], Logits],
        arithmetic: str = "",
        tried: dict[str, Agreement] | None = None,
    ) -> None:
        self.calibration, self.form, self._answer = calibration, form, answer
        self._arithmetic = f", {arithmetic}" if arithmetic else ""
        self.tried = {} if tried is None else tried
        self._everywhere = np.arange(len(calibration.labels))
        few = len(self._everywhere) <= SEARCH_CROPS
        self._places = self._everywhere if few else _thin(calibration.labels, SEARCH_CROPS)

    def best_method(self, methods: Sequence[Method]) -> Method:
        """The method with the highest SQNR of the logits with every layer in int8."""
        if len(methods) == 1:
            return methods[0]
        known, rivals = self.calibration.best, (self.form, tuple(methods))
        if rivals in known:
            return known[rivals]
        places = _thin(self.calibration.labels, METHOD_CROPS)
        for method in methods:
            candidate = self.build(method, self.calibration.parts.products)
            self.tried[method] = self.judge(candidate, places)
        known[rivals] = max(methods, key=lambda method: self.tried[method].sqnr_db)
        return known[rivals]

    def fit_gate(self, method: Method, gate: Gate) -> tuple[Candidate, Agreement]:
        """Leave as few layers in float as the gate demands, allowing less noise each time it fails.

        Errors of layers may add up to far more together than without a few of them, so that the first attempt that
        holds the gate leaves more in float than it must (16 of 69 on a mobilevitv2_200 that lacked 2 dB): some of
        them come back then.

        Returns:
            The candidate, and its agreement on all held-out crops.
        """
        parts = self.calibration.parts
        candidate, found = self._try(method, (), gate)
        if gate.failures(found) and len(candidate.products) > 1:
            noise, target, least = self.noise(method), found.sqnr_db, _LEAST_STEP_DB
            while len(candidate.products) > 1 and gate.failures(found):
                failed = len(parts.products) - len(candidate.products)
                target = max(gate.min_sqnr_db + _MARGIN_DB, target + max(least, _next_step(found, gate)))
                least *= 2  # a network that needs most of its layers in float is found out in a few attempts
                together = in_company(noise, candidate.products, found.sqnr_db)
                kept = leave_in_float(noise, parts.costs, 10 ** (-target / 10) / together)
                candidate, found = self._try(method, kept, gate)
            if not gate.failures(found):
                candidate, found = self._bring_back(candidate, found, failed, gate)
        if found.crops < len(self._everywhere):
            found = self.judge(candidate, self._everywhere)
        return candidate, found

    def _bring_back(
        self, candidate: Candidate, found: Agreement, failed: int, gate: Gate
    ) -> tuple[Candidate, Agreement]:
        """Quantise more while the gate holds: halve what lies between the layers in float that hold it and too few.

        Args:
            candidate: Holds the gate.
            found: Its agreement.
            failed: How many layers in float were too few.
            gate: That is to hold.
        """
        noise, parts = self.noise(candidate.method), self.calibration.parts
        kept = [name for name in parts.products if name not in candidate.products]
        kept.sort(key=lambda name: -noise[name] / parts.costs[name])
        for _ in range(_RETURNS):
            half = (failed + len(kept)) // 2
            if half <= failed or parts.share(kept[half:]) < _WORTH_RETURNING:
                break
            bolder, reached = self._try(candidate.method, kept[:half], gate)
            if gate.failures(reached):
                failed = half
            else:
                candidate, found, kept = bolder, reached, kept[:half]
        return candidate, found

    def _try(self, method: Method, kept: Collection[str], gate: Gate) -> tuple[Candidate, Agreement]:
        """Build with some layers in float, look, and look at all held-out crops where some of them hold the gate."""
        products = self.calibration.parts.products
        candidate = self.build(method, [name for name in products if name not in kept])
        found = self.judge(candidate, self._places)
        if not gate.failures(found) and found.crops < len(self._everywhere):
            found = self.judge(candidate, self._everywhere)
        self.tried[f"{method}, {len(kept)} of {len(products)} in float{self._arithmetic}"] = found
        return candidate, found

    def noise(self, method: Method) -> dict[str, float]:
        """What each layer alone does to the logits, on the crops that tell how the graph with all in int8 errs.

        Measured once for a runtime's form, for it takes half a minute.
        """
        calibration, known = self.calibration, self.calibration.noise
        if (self.form, method) not in known:
            logits = self._ask(self.build(method, calibration.parts.products), self._places)
            errors = ((logits - calibration.logits[self._places]) ** 2).sum(axis=1)
            tellers = choose_tellers(errors, NOISE_CROPS)
            known[self.form, method] = noise_of_each(
                calibration.prepared,
                calibration.parts.products,
                self.ranges(method, calibration.parts.before_silu),
                calibration.held[self._places[tellers.places]],
                tellers.weights,
                outputs=self.form == "onnxruntime",
                weight_levels=63 if calibration.reduce_range else 127,
                threads=calibration.threads,
            )
        return known[self.form, method]

    def ranges(self, method: Method, before_silu: Collection[str]) -> dict[str, Range]:
        """Range of every activation; found once per method, for every candidate needs them."""
        known = self.calibration.ranges
        if method not in known:
            known[method] = choose_ranges(self.calibration.observed, method)
        return cut_before_silu(known[method], before_silu)

    def build(self, method: Method, products: Sequence[str]) -> Candidate:
        """Quantise these products."""
        calibration = self.calibration
        silus = calibration.parts.before_silu if self.form == "onnxruntime" else ()
        model = quantise(
            calibration.prepared,
            calibration.parts,
            products,
            self.ranges(method, silus),
            form=self.form,
            reduce_range=calibration.reduce_range,
        )
        _seal(model, calibration.full)
        return Candidate(model, method, tuple(products))

    def judge(self, candidate: Candidate, places: Places) -> Agreement:
        """Compare on the held-out crops at these places."""
        calibration, logits = self.calibration, self._ask(candidate, places)
        return compare(calibration.logits[places], logits, calibration.labels[places], calibration.decisions)

    def _ask(self, candidate: Candidate, places: Places) -> Logits:
        """Its logits; a search that is made anew for less noise asks for the same ones."""
        known = self.calibration.answers
        key = self.form + self._arithmetic, candidate.method, frozenset(candidate.products), len(places)
        if key not in known:
            known[key] = self._answer(candidate.model, self.calibration.held[places])
        return known[key]

    def result(
        self, path: Path, method: str, chosen: Candidate, agreement: Agreement, ratio: float, gate: Gate
    ) -> Int8Result:
        """Put together what was found."""
        parts = self.calibration.parts
        kept = [name for name in parts.products if name not in chosen.products]
        slow = [f"it is hardly faster than fp32, or slower ({ratio:.2f}x)"] if ratio < WORTH else []
        return Int8Result(
            path=path,
            method=method,
            kept_float=(*kept, *parts.head),
            quantised=len(chosen.products),
            work=parts.share(chosen.products),
            agreement=agreement,
            tried=self.tried,
            speedup=ratio,
            reduced_range=self.calibration.reduce_range,
            reasons=(*gate.failures(agreement), *slow),
        )


def _thin(labels: Labels, most: int) -> Places:
    """Places of at most so many crops, half of each class where there are enough, evenly over the set."""
    places = []
    for label in (0, 1):
        of_class = np.flatnonzero(labels == label)
        count = min(len(of_class), most // 2)
        places.append(of_class[np.linspace(0, len(of_class) - 1, count).round().astype(int)])
    return np.sort(np.concatenate(places))


def _next_step(found: Agreement, gate: Gate) -> float:
    """Decibels to go: decisions flip, and AUC moves, in proportion to the noise's amplitude."""
    times = max(found.flips / gate.max_flips, abs(found.delta_auc) / gate.max_delta_auc)
    return min(_LARGEST_STEP_DB, 20 * math.log10(max(times, 1)))


def _seal(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """The float graph's facts, and nothing of the quantiser's own."""
    model.ClearField("metadata_props")
    model.metadata_props.extend(source.metadata_props)
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
