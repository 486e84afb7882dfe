"""Exports a network to every CPU format for the export benchmark: checkpoints by the gate, random weights past it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from benchmarks.making import ANYTHING, noise, random_detector
from export.exporter import ExportSettings, export_bundle
from export.formats import parse_formats
from export.graph import ExportGraph
from export.int8 import Int8Result, quantise_onnx
from export.int8_calibration import calibrate
from export.onnx_graph import CPU_OPSET, GPU_OPSET, build_onnx, seal, trace, write_onnx
from export.openvino_formats import quantise_openvino, write_openvino
from export.parity_report import ArtefactVerdict, ParityReport, read_parity
from export.torch_runtimes import EagerRuntime
from pipeline.bundle import open_bundle
from pipeline.errors import NotProvenError
from pipeline.runtime import Runtime, open_artefact
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.runtime_openvino import OpenVinoRuntime
from training.checkpoint import load_detector
from training.networks import Detector, NetworkSpec

CPU_FORMATS: Final = "onnx,onnx-fp16,onnx-int8,openvino,openvino-int8"
OPENVINO: Final = ("openvino", "openvino-int8")
RACED: Final = ("onnx", "onnx-int8", *OPENVINO)
"""Half precision is for GPUs."""
FLOAT32: Final = "openvino-int8 with floats in float32"
FOR_ANY: Final = "in the program for any batch"
"""OpenVINO has another for a single crop."""
RANDOM: Final = "random"


@dataclass
class Entrant:
    """A network in all its formats.

    Attributes:
        title: "student" or "teacher".
        weights: `RANDOM`, or the checkpoint's hash.
        auc: Of the network on the faces of the gate; None for random weights.
        contestants: Functions that answer one crop, by title and format.
        seconds: What making each format took, or all of them and proving them.
        int8: How each int8 format was made, and what the gate said of it.
        faces: What the gate's faces are, in a sentence.
        rejected: Why a format is not there, by its name.
    """

    title: str
    weights: str
    auc: float | None = None
    contestants: dict[str, Callable[[], object]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    int8: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    faces: str = ""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long making a format takes."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def enter_checkpoint(
    title: str, checkpoint: Path, data: Path, images: int, threads: int, folder: Path
) -> Entrant:
    """Export a checkpoint as `stillface export` does, every CPU format through the parity gate.

    Args:
        title: "student" or "teacher".
        checkpoint: To export.
        data: Prepared folder.
        images: Labelled crops of the gate.
        threads: Of each runtime.
        folder: For the files.
    """
    folder.mkdir()
    detector, info = load_detector(checkpoint)
    entrant = Entrant(title, info.sha256)
    settings = ExportSettings(
        checkpoint, folder / "bundle", parse_formats(CPU_FORMATS), data, images=images, threads=threads
    )
    with entrant.timed("all formats, proven"):
        try:
            bundle = export_bundle(settings, Console(file=StringIO()))
        except NotProvenError:
            bundle = open_bundle(settings.out)
    report = read_parity(bundle.folder)
    entrant.faces = next(iter(report.shown.notes), "")
    for verdict in report.artefacts:
        if verdict.verdict != "passed":
            entrant.rejected[verdict.name] = verdict.reason or verdict.verdict
        if verdict.name.endswith("-int8"):
            entrant.int8[verdict.name] = _proven(report, verdict)
    onnx = report.link("onnx")
    entrant.auc = onnx.deltas.reference_auc if onnx and onnx.deltas else None
    runtimes: dict[str, Runtime] = {
        item.name: open_artefact(bundle.folder, item, threads=threads)
        for item in bundle.manifest.artefacts
        if item.name in RACED
    }
    for name in [name for name in OPENVINO if name in runtimes]:
        path = bundle.path(bundle.artefact(name).files[0])
        runtimes |= _other_programs(name, path, threads)
    return _racing(entrant, detector, runtimes, threads, folder)


def enter_random(title: str, spec: NetworkSpec, images: int, threads: int, folder: Path) -> Entrant:
    """Export a network with random weights; no gate is asked, for noise has no decisions to keep.

    Args:
        title: "student" or "teacher".
        spec: The network.
        images: Crops of noise, for the ranges.
        threads: Of each runtime.
        folder: For the files.
    """
    folder.mkdir()
    detector, entrant = random_detector(spec), Entrant(title, RANDOM)
    onnx, onnx_int8 = folder / "full.onnx", folder / "int8.onnx"
    openvino, openvino_int8 = folder / "full.xml", folder / "int8.xml"
    with entrant.timed("onnx"):
        write_onnx(detector, onnx)
    with entrant.timed("calibration"):
        calibration = calibrate(onnx, noise(images, spec.image_size), np.arange(images) % 2, threads=threads)
    with entrant.timed("onnx-int8"):
        made = quantise_onnx(calibration, onnx_int8, methods=("minmax",), gate=ANYTHING)
        entrant.int8["onnx-int8"] = _described(made)
    with entrant.timed("openvino"):
        write_openvino(onnx, openvino)
    with entrant.timed("openvino-int8"):
        made = quantise_openvino(calibration, openvino_int8, methods=("minmax",), gate=ANYTHING)
        entrant.int8["openvino-int8"] = _described(made)
    runtimes: dict[str, Runtime] = {
        "onnx": OnnxRuntime(onnx, threads=threads),
        "onnx-int8": OnnxRuntime(onnx_int8, threads=threads),
        "openvino": OpenVinoRuntime(openvino, threads=threads),
        "openvino-int8": OpenVinoRuntime(openvino_int8, threads=threads),
    }
    for name, path in zip(OPENVINO, (openvino, openvino_int8), strict=True):
        runtimes |= _other_programs(name, path, threads)
    return _racing(entrant, detector, runtimes, threads, folder)


def _racing(
    entrant: Entrant, detector: Detector, runtimes: dict[str, Any], threads: int, folder: Path
) -> Entrant:
    """The entrant with all its runtimes, PyTorch's and, of the student, its other forms'."""
    if entrant.title == "student":
        runtimes |= _other_forms(detector, threads, folder)
    runtimes["torch"] = EagerRuntime(detector)
    crop = noise(1, detector.spec.image_size)
    entrant.contestants = {
        f"{entrant.title} {name}": partial(runtime.run, crop) for name, runtime in runtimes.items()
    }
    return entrant


def _described(made: Int8Result) -> dict[str, Any]:
    return {
        "layers": made.notes[1],
        "ranges": made.method,
        **asdict(made.agreement),
    }


def _proven(report: ParityReport, verdict: ArtefactVerdict) -> dict[str, Any]:
    """What the gate measured of an int8 format on its own faces, and the exporter's notes."""
    link = report.link(verdict.name)
    faces = link.faces if link else None
    shares = [found.flips / found.compared for found in link.flips if found.on == "faces"] if link else []
    ranges, layers = verdict.notes[:2] if len(verdict.notes) > 1 else ("", "")
    return {
        "layers": layers,
        "ranges": ranges,
        "sqnr_db": faces.sqnr_db if faces else None,
        "delta_auc": link.deltas.auc.value if link and link.deltas else None,
        "flips": max(shares, default=None),
        "crops": faces.count if faces else 0,
        "verdict": verdict.verdict,
    }


def _other_programs(name: str, path: Path, threads: int) -> dict[str, Runtime]:
    """What else OpenVINO could make of an artefact."""
    made: dict[str, Runtime] = {f"{name} {FOR_ANY}": OpenVinoRuntime(path, threads=threads, for_one=False)}
    if name.endswith("-int8"):
        made[FLOAT32] = OpenVinoRuntime(path, threads=threads, precision="f32")
    return made


def _other_forms(detector: Detector, threads: int, folder: Path) -> dict[str, Any]:
    """The fp32 graph without some or all of what `export.mobilevit` does, and for another opset."""
    forms = {"as timm has it": {"simplified": False}, "unmerged": {"merging": False}}
    runtimes: dict[str, Any] = {}
    for name, switches in forms.items():
        model = trace(ExportGraph(detector, **switches), CPU_OPSET)
        seal(model, {})
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        runtimes[f"onnx {name}"] = OnnxRuntime(path, threads=threads)
        runtimes[f"openvino {name}"] = OpenVinoRuntime(path, threads=threads)
    path = folder / "opset 21.onnx"
    path.write_bytes(build_onnx(detector, opset=GPU_OPSET).SerializeToString())
    runtimes["onnx opset 21"] = OnnxRuntime(path, threads=threads)
    return runtimes
