"""The newcomer's first run: real clips to a teacher / stage 1 / stage 2 table by the very commands of a real one."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from pathlib import Path

from rich.console import Console

from pipeline.assets import fetch
from pipeline.storage import write_whole
from training.config import Settings, Stage, load_settings
from training.evaluate import evaluate
from training.evaluation_report import EvaluationReport, compare
from training.prepare import run as prepare
from training.run_folder import provenance_of
from training.stages import train

# Two actors, two clips each: one actor is learned from, the other is validated (first clip) and tested on (second).
CLIPS = (
    ("clip_01", "train", "actor_a"),
    ("clip_02", "train", "actor_a"),
    ("clip_03", "val", "actor_b"),
    ("clip_04", "test", "actor_b"),
)
CAVEAT = (
    "Two actors prove that the road works, not that the detector is good: it learned from one face and was measured "
    "on self-blended frames of one other. The video AUC compares one real video with one self-blended one, so it can "
    "only be 0 or 1. No figure here says anything about deepfakes."
)
STAGES: tuple[tuple[Stage, str], ...] = (("teacher", "teacher"), ("stage1", "stage 1"), ("stage2", "stage 2"))


def run_demo(config: Path, out: Path, overrides: list[str], console: Console) -> str:
    """Fetch the clips, prepare them, train the three stages, evaluate each and return the Markdown table.

    Args:
        config: Settings of the demo; `data` and `output` are set to folders below `out`.
        out: Everything is written below it.
        overrides: `key=value` settings for all three stages.
        console: Where to show progress.

    Raises:
        InputError: the clips cannot be fetched, or whatever a stage refuses.
    """
    start = time.perf_counter()
    source, data, runs = out / "clips", out / "data", out / "runs"
    write_clips(source)
    prepare(source, "folder", data, frames_per_video=32, console=console)
    reports: dict[str, EvaluationReport] = {}
    for stage, label in STAGES:
        console.rule(label)
        settings = demo_settings(config, stage, data, runs, overrides)
        best = train(stage, settings, stage, console=console)
        reports[label] = evaluate(
            best,
            data,
            split="test",
            self_blended=True,
            blend_draws=8,
            out=out / f"{stage}_report",
            seed=settings.seed,
        )
    table = compare(reports)
    write_whole(out / "table.md", f"{table}\n\n{CAVEAT}\n".encode())
    write_whole(out / "result.json", result_json(reports, data, time.perf_counter() - start))
    console.rule("result")
    console.print(table, markup=False, highlight=False)
    console.print(f"\n{CAVEAT}", highlight=False)
    for stage, _ in STAGES:
        console.print(f"{stage}: {out / f'{stage}_report' / 'roc.png'}, {newest(runs, stage) / 'curves.png'}")
    return table


def demo_settings(config: Path, stage: Stage, data: Path, runs: Path, overrides: list[str]) -> Settings:
    """Settings of one stage of the demo; its teacher and stage-1 weights are the demo's own."""
    own = [
        f"data={data}",
        f"output={runs}",
        f"teacher_weights={runs}/teacher_*/weights/BEST.pth",
        f"pretrained_student_weights={runs}/stage1_*/weights/BEST.pth",
    ]
    return load_settings(config, stage, [*own, *overrides])


def write_clips(folder: Path) -> None:
    """Lay the clips out as a folder with a labels.csv, split by identity."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "label", "split", "identity", "method"))
    for name, split, identity in CLIPS:
        clip = folder / f"{name}.mp4"
        if not clip.is_file():
            write_whole(clip, fetch(name).read_bytes())
        rows.writerow((clip.name, "real", split, identity, "real"))
    write_whole(folder / "labels.csv", table.getvalue().encode())
    shutil.copyfile(fetch("ravdess_licence"), folder / "LICENSE-RAVDESS.txt")


def newest(runs: Path, stage: str) -> Path:
    """The newest run folder of a stage."""
    return sorted(runs.glob(f"{stage}_*"))[-1]


def result_json(reports: dict[str, EvaluationReport], data: Path, seconds: float) -> bytes:
    """The demo's figures with where they come from, as committed under benchmarks/results."""
    from training.index import index_hash

    content = {
        **provenance_of(index_hash(data)),
        "caveat": CAVEAT,
        "seconds": round(seconds, 1),
        "reports": {name: json.loads(report.model_dump_json()) for name, report in reports.items()},
    }
    return (json.dumps(content, indent=2) + "\n").encode()
