"""Writes the README's tables out of the committed result files, so that no number in it is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import export_speed, gate, train_step
from benchmarks.serve_table import serve_table
from benchmarks.table_markdown import full, summary
from benchmarks.table_ratios import agreement
from benchmarks.table_result import read_table
from export.parity_page import verdict_table
from export.parity_report import ParityReport
from pipeline.errors import InputError
from pipeline.storage import write_whole
from training.demo import CAVEAT
from training.evaluation_report import EvaluationReport, compare

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TABLE, AGAIN = "table.json", "table-again.json"
SERVED = ("serve-demo.json", "serve-student.json")
EXPORTED = ("export.json", "export-epyc.json", "export-random.json")
PROVEN = ("gate-student.json", "gate-teacher.json", "gate-random.json")
ON_GPU = "parity-h100.json"


def update(readme: Path = ROOT / "README.md", results: Path = RESULTS, *, check: bool = False) -> bool:
    """Put the tables between their markers; return whether the file already held them.

    Args:
        readme: File with `<!-- NAME:begin -->` and `<!-- NAME:end -->` lines.
        results: Folder of the result files.
        check: Only look.

    Raises:
        InputError: a result file or a marker is missing, or another version wrote it.
    """
    old = new = readme.read_text(encoding="utf-8")
    tables = (
        ("demo", demo_table),
        ("table", teacher_table),
        ("speed", speed_table),
        ("serve", served_table),
        ("export", export_table),
        ("gate", gate_table),
    )
    for name, text_of in tables:
        new = _between(new, name, text_of(results))
    pages = {readme: (old, new), **_page(results)}
    stale = {path: text for path, (before, text) in pages.items() if before != text}
    if not check:
        for path, text in stale.items():
            write_whole(path, text.encode())
    return not stale


def demo_table(results: Path) -> str:
    """The demo's three rows and their caveat."""
    result = _read(results / "demo.json")
    reports = {name: EvaluationReport.model_validate(report) for name, report in result["reports"].items()}
    return (
        f"{compare(reports)}\n\n{CAVEAT} (`{result['command']}`, {result['seconds'] / 60:.0f} minutes on "
        f"{result['platform']}; [result file](benchmarks/results/demo.json))"
    )


def teacher_table(results: Path) -> str:
    """Teacher against student in every runtime: the table of `make bench`, and its pictures."""
    table, again = read_table(results / TABLE), read_table(results / AGAIN)
    pictures = "\n\n".join(
        f"![{text}](benchmarks/results/table-{name}.png)" for name, text in _PICTURES.items()
    )
    return (
        f"{summary(table)}\n\nMeasured a second time ([result file](benchmarks/results/{AGAIN})): "
        f"{agreement(table.ratios, again.ratios)}\n\nIntervals, memory, throughput, end to end, training and what "
        f"could not be measured: [benchmarks/results/table.md](benchmarks/results/table.md).\n\n{pictures}"
    )


def speed_table(results: Path) -> str:
    """One line per measurement, with the command that gave it."""
    blend, step = _read(results / "selfblend.json"), _read(results / "train-step.json")
    ms = blend["ms"]["total"]
    return "\n".join(
        (
            "| what | result | command |",
            "| --- | --- | --- |",
            f"| one self-blended pair, {blend['sizes'][0]} px, from a 720x621 crop of a 1280x720 frame, reading "
            f"included, one core ({blend['processor']}) | {ms['p50']:.1f} ms (p90 {ms['p90']:.1f}) | "
            f"`python -m benchmarks selfblend` |",
            f"| a training step of our loop against bare forward, backward and step "
            f"({step['settings']['student']} at {step['settings']['image_size']} px, batch "
            f"{step['settings']['batch_size']}, SAM rho {step['settings']['sam_rho']}) | "
            f"{train_step.ratio_text(step)} times the time; {step['loader_wait_share']:.1%} of the time is spent "
            f"waiting for {step['settings']['workers']} loader process(es) | `python -m benchmarks train-step` |",
        )
    )


def _page(results: Path) -> dict[Path, tuple[str, str]]:
    """The page of the whole table as it stands and as it should be."""
    page = (results / TABLE).with_suffix(".md")
    return {
        page: (page.read_text(encoding="utf-8") if page.is_file() else "", full(read_table(results / TABLE)))
    }


_PICTURES = {
    "ratios": "How many times faster the student is than the teacher, by runtime and precision",
    "frontier": "Time per crop against arithmetic and AUC, with rivals",
    "throughput": "Crops per second by batch size",
    "memory": "Memory while single crops are answered",
    "stages": "Where the time goes between a picture's bytes and the verdict",
}


def served_table(results: Path) -> str:
    """The server's figures, a column for each network."""
    return serve_table([_read(results / name) for name in SERVED])


def export_table(results: Path) -> str:
    """What the int8 formats are worth on a CPU: with trained weights by the gate, and with every layer in int8."""
    return "\n\n".join(_exported(name, _read(results / name)) for name in EXPORTED)


def gate_table(results: Path) -> str:
    """What the gate said of every format of the full-size networks, trained and random, and of one on a GPU."""
    return "\n\n".join((*(_proven(name, _read(results / name)) for name in PROVEN), _on_gpu(results)))


def _proven(name: str, result: dict[str, Any]) -> str:
    return (
        f"{gate.markdown(result)}\n\n(`{result['command']}`, {result['processor']}; "
        f"[whole reports](benchmarks/results/{name}))"
    )


def _on_gpu(results: Path) -> str:
    report = ParityReport.model_validate(_read(results / ON_GPU))
    packages = ", ".join(f"{name} {report.packages[name]}" for name in ("torch", "onnxruntime-gpu"))
    return (
        f"**{report.network} @{report.image_size}**, the demo's student, on an NVIDIA H100 ({packages}):\n\n"
        f"{verdict_table(report)}\n\n([whole report](benchmarks/results/{ON_GPU}))"
    )


def _exported(name: str, result: dict[str, Any]) -> str:
    return (
        f"{export_speed.markdown(result, wanted_only=True)}\n\n(`{result['command']}`, batch 1, in turns, "
        f"each call timed after {result['run_up']} that are not, "
        f"{result['threads']} threads, {result['processor']}; [all forms](benchmarks/results/{name}))"
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such result file; the README's tables are made from it")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _between(text: str, name: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"the README has no <!-- {name}:begin --> and <!-- {name}:end --> markers")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)
