"""Writes the README's tables out of the committed result files, so that no number in it is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import train_step
from pipeline.errors import InputError
from pipeline.storage import write_whole
from training.demo import CAVEAT
from training.evaluation_report import EvaluationReport, compare

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def update(readme: Path = ROOT / "README.md", results: Path = RESULTS, *, check: bool = False) -> bool:
    """Put the tables between their markers; return whether the file already held them.

    Args:
        readme: File with `<!-- NAME:begin -->` and `<!-- NAME:end -->` lines.
        results: Folder of the result files.
        check: Only look.

    Raises:
        InputError: a result file or a marker is missing.
    """
    old = new = readme.read_text(encoding="utf-8")
    for name, text in (("demo", demo_table(results)), ("speed", speed_table(results))):
        new = _between(new, name, text)
    if new != old and not check:
        write_whole(readme, new.encode())
    return new == old


def demo_table(results: Path) -> str:
    """The demo's three rows and their caveat."""
    result = _read(results / "demo.json")
    reports = {name: EvaluationReport.model_validate(report) for name, report in result["reports"].items()}
    return (
        f"{compare(reports)}\n\n{CAVEAT} (`{result['command']}`, {result['seconds'] / 60:.0f} minutes on "
        f"{result['platform']}; [result file](benchmarks/results/demo.json))"
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
