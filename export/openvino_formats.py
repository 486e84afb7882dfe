"""Makes OpenVINO models from the fp32 ONNX file: in fp32, and in int8 by whichever quantiser measures better."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import onnx

from export.activation_ranges import METHODS, Method
from export.agreement import Agreement, Gate, Logits, compare
from export.int8 import GATE, Candidate, Int8Result, Search
from export.int8_calibration import Calibration
from export.intermediates import read_graph, square_of
from export.openvino_norms import fuse_norms
from export.speed_gate import speedup
from pipeline.errors import InputError
from pipeline.runtime import Answer, Crops
from pipeline.runtime_openvino import (
    FLOAT_PRECISION_KEY,
    FloatPrecision,
    OpenVinoRuntime,
    has_bfloat16,
    openvino_core,
)
from pipeline.storage import write_whole

Preset = Literal["mixed", "performance"]
NNCF_CROPS: Final = 64
"""Crops NNCF sees; its ranges are means over crops and settle early."""
FLOATS: Final[tuple[FloatPrecision, ...]] = ("bf16", "f32")
"""Arithmetic of float layers, in the order it is tried."""
_IN_FLOAT: Final[dict[FloatPrecision, str]] = {"bf16": "the rest in bfloat16", "f32": "the rest in float32"}
_FASTER: Final = 1.05
"""A candidate must be this much faster to win over one that agrees better."""
_RIVAL_WORK: Final = 0.5
"""Share of the work in int8 from which NNCF is asked for a rival."""


def write_openvino(source: Path, out: Path) -> tuple[Path, Path]:
    """Convert an fp32 graph of ours and write it.

    Args:
        source: ONNX file, `crops` -> `logits` [, `evidence`].
        out: The .xml to write; the .bin lies beside it under the same name.

    Returns:
        The .xml and the .bin.

    Raises:
        InputError: No graph of ours, or one that OpenVINO cannot read.
    """
    square_of(read_graph(source), source)
    return _save(_read(source), out)


def quantise_openvino(
    calibration: Calibration,
    out: Path,
    *,
    methods: Sequence[Method] = METHODS,
    presets: Sequence[Preset] = ("mixed",),
    gate: Gate = GATE,
) -> Int8Result:
    """Quantise for OpenVINO and write the model; worth it or not.

    What stays in float is computed in bfloat16 on processors that have it (1.73 times as fast on a mobilevitv2_200 with
    next to nothing in int8, see benchmarks/results/export-unsure.json), and in float32 where bfloat16 does not hold the
    gate, or where all layers are in int8: it has nothing to win then, and float32 is the same on every processor.

    Our QDQ graph comes first. Where it had to leave some layers in float, NNCF gets its chance, with those left in
    float too; where it had not, NNCF has nothing to win (measured: equally fast, and 3 to 6 dB noisier). What does not
    hold the gate loses; then what is more than 5 % faster wins; then what agrees better.

    Args:
        calibration: From `export.int8_calibration.calibrate`.
        out: The .xml to write; the .bin lies beside it under the same name.
        methods: Ways to find ranges for the QDQ graph.
        presets: NNCF's: "mixed" has asymmetric activations, "performance" symmetric ones. None leaves NNCF out.
        gate: As in `quantise_onnx`.

    Returns:
        As `quantise_onnx`; agreement with the fp32 ONNX graph and speed against fp32 are OpenVINO's own.

    Raises:
        InputError: NNCF or OpenVINO is not installed.
    """
    search, floats, method, chosen, agreement = _choose_arithmetic(calibration, methods, gate)
    kept = set(calibration.parts.products) - set(chosen.products)
    work = calibration.parts.share(chosen.products)
    models = {f"{method}, QDQ": _read_for_int8(chosen.model.SerializeToString(deterministic=True))}
    # With little in int8 there is little to do better.
    for preset in presets if kept and work > _RIVAL_WORK else ():
        models[f"NNCF {preset}"] = _nncf(calibration, preset, kept | set(calibration.parts.head))
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write_openvino(calibration.source, Path(folder) / "full.xml")
        full = OpenVinoRuntime(path, threads=calibration.threads)
        rivals = []
        for index, (name, model) in enumerate(models.items()):
            saved, _ = _save(model, Path(folder) / f"{index}.xml", floats)
            known = agreement if index == 0 else None
            rivals.append(_measure(calibration, full, f"{name}, {_IN_FLOAT[floats]}", saved, known))
    for rival in rivals:
        search.tried[f"{rival.name} in OpenVINO"] = rival.agreement
    best = rivals.index(choose(rivals, gate))
    _save(list(models.values())[best], out, floats)
    winner = rivals[best]
    return search.result(out, winner.name, chosen, winner.agreement, winner.ratio, gate)


class _Found(NamedTuple):
    """What a search came to."""

    search: Search
    floats: FloatPrecision
    method: Method
    chosen: Candidate
    agreement: Agreement


def _choose_arithmetic(calibration: Calibration, methods: Sequence[Method], gate: Gate) -> _Found:
    """Search with the layers in float in bfloat16, and in float32 where that does not hold or has nothing to win."""
    tried: dict[str, Agreement] = {}
    plain: FloatPrecision = FLOATS[-1]
    if not has_bfloat16():
        return _search(calibration, methods, gate, plain, tried)
    found = _search(calibration, methods, gate, FLOATS[0], tried)
    everything = calibration.parts.products
    if not gate.failures(found.agreement) and found.chosen.products != everything:
        return found
    exact = _search(calibration, methods, gate, plain, tried)
    worse = gate.failures(exact.agreement) or len(exact.chosen.products) < len(found.chosen.products)
    return found if worse and not gate.failures(found.agreement) else exact


def _search(
    calibration: Calibration,
    methods: Sequence[Method],
    gate: Gate,
    floats: FloatPrecision,
    tried: dict[str, Agreement],
) -> _Found:
    answer = partial(_answer, threads=calibration.threads, floats=floats)
    search = Search(calibration, "openvino", answer, floats, tried)
    method = search.best_method(methods)
    return _Found(search, floats, method, *search.fit_gate(method, gate.with_margin(calibration.faces)))


@dataclass(frozen=True, slots=True)
class Rival:
    """A quantised model, measured in OpenVINO."""

    name: str
    agreement: Agreement
    ratio: float
    """Time of OpenVINO's fp32 over this one's."""


def choose(rivals: Sequence[Rival], gate: Gate) -> Rival:
    """See `quantise_openvino`."""
    passing = [rival for rival in rivals if not gate.failures(rival.agreement)] or list(rivals)
    fastest = max(rival.ratio for rival in passing)
    near = [rival for rival in passing if rival.ratio * _FASTER >= fastest]
    return max(near, key=lambda rival: rival.agreement.sqnr_db)


def _measure(
    calibration: Calibration, full: OpenVinoRuntime, name: str, path: Path, agreement: Agreement | None
) -> Rival:
    """Its speed, and its agreement where that is not known."""
    runtime = OpenVinoRuntime(path, threads=calibration.threads)
    if agreement is None:
        logits = _logits(runtime, calibration.held)
        agreement = compare(calibration.logits, logits, calibration.labels, calibration.decisions)
    return Rival(name, agreement, speedup(full, runtime, calibration.held))


def _answer(model: onnx.ModelProto, crops: Crops, *, threads: int | None, floats: FloatPrecision) -> Logits:
    """Logits of an ONNX graph in OpenVINO, whose arithmetic is not ONNX Runtime's."""
    with tempfile.TemporaryDirectory() as folder:
        path, _ = _save(_read_for_int8(model.SerializeToString()), Path(folder) / "candidate.xml", floats)
        return _logits(OpenVinoRuntime(path, threads=threads, for_one=False), crops)


def _logits(runtime: OpenVinoRuntime, crops: Crops, batch: int = 8) -> Logits:
    answers: list[Answer] = [
        runtime.run(crops[start : start + batch]) for start in range(0, len(crops), batch)
    ]
    return np.concatenate([answer.logits for answer in answers])


def _read(graph: Path | bytes) -> Any:
    """Read ONNX without the converter's command.

    Always from a file: from memory OpenVINO gives every reader of a convolution a copy of its bias's addition.
    """
    _openvino()
    with tempfile.TemporaryDirectory() as folder:
        path = graph if isinstance(graph, Path) else Path(folder) / "int8.onnx"
        if isinstance(graph, bytes):
            path.write_bytes(graph)
        try:
            return openvino_core().read_model(str(path))
        except RuntimeError as error:
            name = graph if isinstance(graph, Path) else "the int8 graph"
            raise InputError(f"OpenVINO cannot read {name}: {error}") from error


def _read_for_int8(graph: Path | bytes) -> Any:
    """With norms as OpenVINO's own: what they lose is far below a byte's rounding, but not below fp32's bound."""
    model = _read(graph)
    fuse_norms(model)
    return model


def _save(model: Any, out: Path, floats: FloatPrecision = "f32") -> tuple[Path, Path]:
    """Write .xml and .bin, each in one step, in fp32: halving the weights would not pass for fp32.

    Args:
        model: What is written.
        out: The .xml.
        floats: Arithmetic of its float layers, kept in the model for whoever opens it.
    """
    openvino = _openvino()
    if floats != "f32":
        model.set_rt_info(floats, FLOAT_PRECISION_KEY)
    for index, node in enumerate(model.get_ordered_ops()):
        # Names with a number that counts the nodes of the whole process.
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}/{index}")
    with tempfile.TemporaryDirectory() as folder:
        # Always the same name inside, so that the same model gives the same bytes.
        made = Path(folder) / "model.xml"
        openvino.save_model(model, str(made), compress_to_fp16=False)
        weights = out.with_suffix(".bin")
        write_whole(weights, made.with_suffix(".bin").read_bytes())
        write_whole(out, made.read_bytes())
    return out, weights


def _nncf(calibration: Calibration, preset: Preset, in_float: set[str]) -> Any:
    model = _read_for_int8(calibration.source)
    with _silent():
        try:
            import nncf
        except ImportError as error:
            raise InputError(
                "openvino-int8 needs NNCF, which is not installed: `pip install -e '.[export]'`."
            ) from error
        nncf.set_log_level(logging.ERROR)
        # OpenVINO reads a product with a bias as two nodes and gives its name to the sum.
        ignored = in_float | {f"{name}/WithoutBiases" for name in in_float}
        ignored &= {node.get_friendly_name() for node in model.get_ops()}
        step = max(1, len(calibration.ranging) // NNCF_CROPS)
        crops = calibration.ranging[::step]

        def quantise(model: Any, *, correct_bias: bool) -> Any:
            return nncf.quantize(
                model,
                nncf.Dataset([crop[None] for crop in crops]),
                subset_size=len(crops),
                preset=nncf.QuantizationPreset(preset),
                ignored_scope=nncf.IgnoredScope(names=sorted(ignored)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=not correct_bias
                ),
            )

        try:
            return quantise(model, correct_bias=True)
        except ValueError:
            # Its correction takes [channels, 1] for a bias behind a 3-D product, which the attention's are.
            return quantise(_read_for_int8(calibration.source), correct_bias=False)


@contextmanager
def _silent() -> Iterator[None]:
    """NNCF draws progress bars on the standard output, and importing it warns of packages it would like."""
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "openvino models need OpenVINO, which is not installed: `pip install -e '.[openvino]'`."
        ) from error
    return openvino
