"""Measures what each exported CPU format is worth against the others and PyTorch, and what exporting costs.

Student and teacher, each in every format, answer one crop in turns; the figures to read are the ratios. The student is
raced in timm's own form too, and with the steps of `export.mobilevit` left out, so that each is known by its worth.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.interleaved import Race, race, ratio
from benchmarks.machine import environment
from benchmarks.making import ANYTHING, noise, random_detector
from export.agreement import Labels
from export.graph import ExportGraph
from export.int8 import Calibration, Int8Result, calibrate, quantise_onnx
from export.labelled_crops import gather
from export.onnx_graph import CPU_OPSET, GPU_OPSET, build_onnx, seal, trace, write_onnx
from export.openvino_formats import quantise_openvino, write_openvino
from export.torch_runtimes import EagerRuntime
from pipeline.errors import InputError
from pipeline.runtime import Crops
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.runtime_openvino import OpenVinoRuntime
from training.checkpoint import load_detector
from training.networks import Detector, NetworkSpec
from training.run_folder import version_of

STUDENT: Final = NetworkSpec(name="mobilevitv2_200", image_size=256)
TEACHER: Final = NetworkSpec(name="tf_efficientnet_b4", image_size=380)

_WARM_UP: Final = 5
"""OpenVINO takes a few calls until all its threads take part."""
_RUN_UP: Final = 2
"""So each finds the caches as a served network does."""
QUIET: Final = 0.05
"""Share of the machine that other programs may take before a table says so."""

RATIOS: Final = (
    ("student onnx", "student openvino-int8", 2.5),
    ("teacher torch", "student openvino-int8", 4.0),
    ("student onnx", "student onnx-int8", 1.5),
    ("student openvino", "student openvino-int8", None),
    ("teacher onnx", "teacher onnx-int8", None),
    ("teacher openvino", "teacher openvino-int8", None),
    ("teacher torch", "student torch", None),
    ("teacher openvino-int8", "student openvino-int8", None),
    ("student onnx as timm has it", "student onnx", None),
    ("student onnx unmerged", "student onnx", None),
    ("student onnx opset 21", "student onnx", None),
    ("student openvino as timm has it", "student openvino", None),
    ("student openvino unmerged", "student openvino", None),
    ("student onnx as timm has it", "student openvino-int8", None),
)
"""Slower, faster, and how many times at least the project wants."""


@dataclass
class Entrant:
    """A network in all its formats.

    Attributes:
        title: "student" or "teacher".
        weights: "random", or the checkpoint's hash.
        contestants: Functions that answer one crop, by title and format.
        seconds: What making each format took.
        int8: How each int8 format was made.
    """

    title: str
    weights: str
    contestants: dict[str, Callable[[], object]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    int8: dict[str, Int8Result] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long making a format takes."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def run(
    student: Path | None = None,
    teacher: Path | None = None,
    data: Path | None = None,
    *,
    images: int = 300,
    rounds: int = 40,
    threads: int = 2,
    specs: tuple[NetworkSpec, NetworkSpec] = (STUDENT, TEACHER),
) -> dict[str, Any]:
    """Export both networks to every CPU format and race them at batch 1.

    Args:
        student: A checkpoint; None takes random weights.
        teacher: Likewise.
        data: Prepared folder for the int8 ranges and their gate; needed with a checkpoint.
        images: Crops for them.
        rounds: Of the race.
        threads: Of each runtime.
        specs: Networks where there is no checkpoint.

    Returns:
        Milliseconds per crop, ratios with 95 % intervals, seconds of exporting, and how int8 was made.

    Raises:
        InputError: A checkpoint without data, or one that cannot be used.
    """
    if (student or teacher) and data is None:
        raise InputError(
            "A checkpoint's int8 formats need crops: give --data, a folder of `stillface prepare`."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            entrants = [
                _enter(title, checkpoint, spec, data, images, threads, Path(scratch) / title)
                for title, checkpoint, spec in zip(
                    ("student", "teacher"), (student, teacher), specs, strict=True
                )
            ]
            contestants = {name: go for entrant in entrants for name, go in entrant.contestants.items()}
            raced = race(contestants, rounds, warm_up=_WARM_UP, run_up=_RUN_UP)
    finally:
        torch.set_num_threads(before)
    return _result(entrants, raced, threads, rounds, images, data)


def markdown(result: Mapping[str, Any], *, wanted_only: bool = False) -> str:
    """The table of ratios, of all or of those the project wants something of, and what to know of them."""
    lines = [
        "| slower | faster | times the time (95 % interval) | processor time | wanted |",
        "|---|---|---|---|---|",
    ]
    for row in result["ratios"]:
        if wanted_only and not row["wanted"]:
            continue
        wanted = f"{row['wanted']:g}" if row["wanted"] else ""
        lines.append(
            f"| {row['slower']} ({result['ms'][row['slower']]['p50']:.0f} ms) | {row['faster']} "
            f"({result['ms'][row['faster']]['p50']:.0f} ms) | {row['median']:.2f} ({row['low']:.2f} to "
            f"{row['high']:.2f}) | {row['processor']:.2f} | {wanted} |"
        )
    lines += ["", *(_about(title, entrant) for title, entrant in result["entrants"].items())]
    if result["others"] > QUIET:
        lines.append(
            f"Other programs took {result['others']:.0%} of the machine meanwhile: read processor time, and measure "
            "again on a quiet machine; PyTorch suffers most."
        )
    return "\n".join(lines)


def _about(title: str, entrant: Mapping[str, Any]) -> str:
    """A sentence on a network's weights, how much of it is in int8, and what making its formats took."""
    if entrant["weights"] == "random":
        weights = "random weights, every layer but the head in int8, which no gate was asked about"
    else:
        found = "; ".join(
            f"{name}: {made['quantised']} layers in int8, SQNR {made['agreement']['sqnr_db']:.1f} dB"
            for name, made in entrant["int8"].items()
        )
        weights = f"checkpoint {entrant['weights'][:12]} ({found})"
    seconds = sum(entrant["seconds"].values())
    return f"{title.capitalize()}: {weights}; its CPU formats were made in {seconds:.0f} s."


def _enter(
    title: str,
    checkpoint: Path | None,
    spec: NetworkSpec,
    data: Path | None,
    images: int,
    threads: int,
    folder: Path,
) -> Entrant:
    folder.mkdir()
    if checkpoint is None:
        detector, weights = random_detector(spec), "random"
    else:
        detector, info = load_detector(checkpoint)
        weights = info.sha256
    size = detector.spec.image_size
    crops, labels = _crops(data, size, images)
    entrant = Entrant(title, weights)
    formats = _formats(entrant, detector, crops, labels, threads, folder)
    if title == "student":
        formats.update(_other_forms(detector, threads, folder))
    formats["torch"] = EagerRuntime(detector)
    crop = crops[:1]
    entrant.contestants = {f"{title} {name}": _answering(runtime, crop) for name, runtime in formats.items()}
    return entrant


def _answering(runtime: Any, crop: Crops) -> Callable[[], object]:
    return lambda: runtime.run(crop)


def _formats(
    entrant: Entrant, detector: Detector, crops: Crops, labels: Labels, threads: int, folder: Path
) -> dict[str, Any]:
    onnx, onnx_int8 = folder / "full.onnx", folder / "int8.onnx"
    openvino, openvino_int8 = folder / "full.xml", folder / "int8.xml"
    random = entrant.weights == "random"
    with entrant.timed("onnx"):
        write_onnx(detector, onnx)
    with entrant.timed("calibration"):
        calibration = calibrate(onnx, crops, labels, threads=threads)
    with entrant.timed("onnx-int8"):
        entrant.int8["onnx-int8"] = _quantise(quantise_onnx, calibration, onnx_int8, random)
    with entrant.timed("openvino"):
        write_openvino(onnx, openvino)
    with entrant.timed("openvino-int8"):
        entrant.int8["openvino-int8"] = _quantise(quantise_openvino, calibration, openvino_int8, random)
    return {
        "onnx": OnnxRuntime(onnx, threads=threads),
        "onnx-int8": OnnxRuntime(onnx_int8, threads=threads),
        "openvino": OpenVinoRuntime(openvino, threads=threads),
        "openvino-int8": OpenVinoRuntime(openvino_int8, threads=threads),
    }


def _quantise(by: Any, calibration: Calibration, out: Path, random: bool) -> Int8Result:
    made: Int8Result = (
        by(calibration, out, methods=("minmax",), gate=ANYTHING) if random else by(calibration, out)
    )
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


def _crops(data: Path | None, size: int, images: int) -> tuple[Crops, Labels]:
    if data is None:
        return noise(images, size), np.arange(images) % 2
    found = gather(data, size, images=images)
    return found.crops, found.labels


def _result(
    entrants: list[Entrant], raced: Race, threads: int, rounds: int, images: int, data: Path | None
) -> dict[str, Any]:
    found = environment()
    found["versions"] |= {name: version_of(name) for name in ("onnx", "onnxruntime", "openvino", "nncf")}
    return {
        "benchmark": "export",
        **found,
        "threads": threads,
        "batch": 1,
        "rounds": rounds,
        "run_up": _RUN_UP,
        "images": images,
        "data": data.name if data else "noise",
        "others": round(raced.others, 3),
        "entrants": {
            entrant.title: {
                "weights": entrant.weights,
                "seconds": entrant.seconds,
                "int8": {name: _described(made) for name, made in entrant.int8.items()},
            }
            for entrant in entrants
        },
        "ms": {name: _milliseconds(raced, name) for name in raced.wall},
        "ratios": [_ratio(raced, *row) for row in RATIOS],
    }


def _described(made: Int8Result) -> dict[str, Any]:
    return {
        "method": made.method,
        "quantised": made.quantised,
        "in_float": list(made.kept_float),
        "agreement": asdict(made.agreement),
    }


def _milliseconds(raced: Race, name: str) -> dict[str, float]:
    p50, p90 = (round(1000 * float(np.quantile(raced.wall[name], q)), 2) for q in (0.5, 0.9))
    return {"p50": p50, "p90": p90, "processor": round(1000 * float(np.median(raced.processor[name])), 2)}


def _ratio(raced: Race, slower: str, faster: str, wanted: float | None) -> dict[str, Any]:
    wall = ratio(raced.wall[slower], raced.wall[faster])
    processor = ratio(raced.processor[slower], raced.processor[faster])
    rounded = {name: round(value, 3) for name, value in asdict(wall).items()}
    return {
        "slower": slower,
        "faster": faster,
        **rounded,
        "processor": round(processor.median, 3),
        "wanted": wanted,
    }
