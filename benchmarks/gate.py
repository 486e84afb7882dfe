"""Sends networks of any size through all of `stillface export` and keeps what the parity gate said of each format.

Trained weights are what the gate is for; random ones ask whether the chain carries a network as it is built.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.machine import environment
from benchmarks.making import RANDOM, write_random
from benchmarks.resident import of_usage
from benchmarks.table_plan import Entry, named
from export.bundle_writer import REPORT
from export.formats import REFERENCE
from export.labelled_crops import gather
from export.parity_inputs import drawn_crops
from export.parity_page import verdict_table
from export.parity_report import ParityReport, read_parity
from pipeline.errors import InputError

_NOT_PROVEN: Final = 3
"""Exit code of an export that left a format out."""
_STATISTICS: Final = 32
"""Faces that statistics of random weights are taken from."""


def run(
    networks: Sequence[str],
    data: Path,
    *,
    formats: str = "",
    images: int = 300,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Export each network in a process of its own.

    Args:
        networks: Checkpoints, or NAME@SIZE of timm for random weights.
        data: Prepared folder that scores are calibrated and formats proven on.
        formats: As `stillface export --formats`; by default all that can be made here.
        images: Labelled crops of the gate.
        threads: Of every runtime; None for all cores.
        tell: Told of each network before it is exported.
        keep: Given the result as far as it is after each network, for one that fails later.

    Returns:
        For each network what its weights are, the gate's whole report, and the most memory that exporting it took. A
        network whose fp32 ONNX file breaks has no bundle; its report ends there.

    Raises:
        InputError: An export failed.
    """
    found: list[dict[str, Any]] = []
    result = {
        "benchmark": "gate",
        **environment(),
        "data": data.name,
        "images": images,
        "threads": threads,
        "networks": found,
    }
    for entry in [named(text) for text in networks]:
        tell(f"{entry.title}: exporting")
        with tempfile.TemporaryDirectory() as scratch:
            found.append(_export(entry, data, Path(scratch), formats, images, threads))
        keep(result)
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """For each network a line, a table of its formats, and why those that did not pass did not."""
    return "\n\n".join(_shown(item) for item in result["networks"])


def _export(
    entry: Entry, data: Path, scratch: Path, formats: str, images: int, threads: int | None
) -> dict[str, Any]:
    checkpoint = entry.checkpoint or _random(entry, data, scratch / "random.pth")
    out = scratch / "bundle"
    options = {
        "--calibration": data,
        "--out": out,
        "--images": images,
        "--formats": formats,
        "--threads": threads,
    }
    given = [str(word) for pair in options.items() if pair[1] for word in pair]
    code, peak, said = _run_and_watch(["export", "export", str(checkpoint), *given])
    refused = out.with_name(f"{out.name}.rejected") / REFERENCE / REPORT
    if out.is_dir() and code in (0, _NOT_PROVEN):
        report = read_parity(out)
    elif refused.is_file() and code == _NOT_PROVEN:
        report = ParityReport.model_validate_json(refused.read_bytes())
    else:
        raise InputError(f"{entry.title} could not be exported (exit code {code}): {said[-2000:]}")
    return {
        "title": f"{entry.name} @{entry.image_size}",
        "weights": RANDOM if entry.checkpoint is None else "trained",
        "exit_code": code,
        "peak_bytes": peak,
        "report": report.model_dump(mode="json"),
    }


def _random(entry: Entry, data: Path, path: Path) -> Path:
    """Random weights, with the statistics of what the gate shows, faces and drawn images."""
    faces = gather(data, entry.image_size, images=_STATISTICS, seed=0).crops
    shown = np.concatenate([faces, drawn_crops(entry.image_size)[0]])
    return write_random(entry.name, entry.image_size, path, crops=shown)


def _run_and_watch(words: Sequence[str]) -> tuple[int, int, str]:
    """Run one of our modules; its exit code, the most bytes resident in it, and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", *words], stdout=said, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return process.returncode, of_usage(usage), said.read()


def _shown(item: Mapping[str, Any]) -> str:
    report = ParityReport.model_validate(item["report"])
    link = report.link("onnx")
    auc = f", AUC {link.deltas.reference_auc:.3f}" if link and link.deltas else ""
    weights = (
        "random weights" if item["weights"] == RANDOM else f"checkpoint {report.checkpoint_sha256[:12]}{auc}"
    )
    reasons = [f"- {made.name}, {made.verdict}: {made.reason}" for made in report.artefacts if made.reason]
    return "\n\n".join(
        (
            f"**{item['title']}**, {weights}: made and proven in {report.seconds:.0f} s with at most "
            f"{item['peak_bytes'] / (1 << 30):.1f} GiB.",
            verdict_table(report),
            *(["\n".join(reasons)] if reasons else []),
        )
    )
