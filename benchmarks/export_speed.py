"""Measures what each exported CPU format is worth against the others and PyTorch, and what exporting costs.

Student and teacher, each in every format, answer one crop in turns; the figures to read are the ratios. The student is
raced in timm's own form too, and with the steps of `export.mobilevit` left out, so that each is known by its worth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.export_entrants import FLOAT32, FOR_ANY, RANDOM, Entrant, enter_checkpoint, enter_random
from benchmarks.interleaved import Race, race, ratio
from benchmarks.machine import environment
from pipeline.errors import InputError
from training.networks import NetworkSpec
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
    (f"student {FLOAT32}", "student openvino-int8", None),
    (f"student openvino-int8 {FOR_ANY}", "student openvino-int8", None),
    (f"student openvino {FOR_ANY}", "student openvino", None),
    (f"teacher openvino-int8 {FOR_ANY}", "teacher openvino-int8", None),
    (f"teacher openvino {FOR_ANY}", "teacher openvino", None),
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
        data: Prepared folder for the int8 ranges and the gate; needed with a checkpoint.
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
            entrants = []
            for title, checkpoint, spec in zip(
                ("student", "teacher"), (student, teacher), specs, strict=True
            ):
                folder = Path(scratch) / title
                if checkpoint is not None and data is not None:
                    entrants.append(enter_checkpoint(title, checkpoint, data, images, threads, folder))
                else:
                    entrants.append(enter_random(title, spec, images, threads, folder))
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
    if entrant["weights"] == RANDOM:
        weights = "random weights, every layer but the head in int8, which no gate was asked about"
        made = "its CPU formats were made"
    else:
        rejected = entrant["rejected"]
        found = [_about_int8(name, int8) for name, int8 in entrant["int8"].items() if name not in rejected]
        found += [f"{name} was left out: {why.rstrip('.')}" for name, why in rejected.items()]
        weights = (
            f"checkpoint {entrant['weights'][:12]} with an AUC of {entrant['auc']:.3f} on the gate's faces "
            f"({entrant['faces']}); {'; '.join(found)}"
        )
        made = "its CPU formats, half precision too, were made and proven"
    return f"{title.capitalize()}: {weights}; {made} in {sum(entrant['seconds'].values()):.0f} s."


def _about_int8(name: str, made: Mapping[str, Any]) -> str:
    return (
        f"{name}: {made['layers'].partition(';')[0]}, SQNR {made['sqnr_db']:.1f} dB, AUC {made['delta_auc']:+.4f}, "
        f"at most {made['flips']:.1%} of the decisions changed"
    )


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
                "auc": entrant.auc,
                "seconds": entrant.seconds,
                "int8": entrant.int8,
                "rejected": entrant.rejected,
                "faces": entrant.faces,
            }
            for entrant in entrants
        },
        "ms": {name: _milliseconds(raced, name) for name in raced.wall},
        "ratios": [_ratio(raced, *row) for row in RATIOS if set(row[:2]) <= set(raced.wall)],
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
