"""Runs the table as it was asked for and writes it: JSON, Markdown, plots. Typer's door and the plain one end here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from benchmarks.compare import EFFORT as COMPARED_EFFORT
from benchmarks.compare import WAYS as COMPARED_WAYS
from benchmarks.compare import Clock, checked_out, compare_trees, markdown
from benchmarks.progress import Progress
from benchmarks.table import TRAIN_BATCH, run
from benchmarks.table_markdown import full, memory_text, missing_text, rows_text, summary
from benchmarks.table_plan import FULL, QUICK, RIVALS, choose_ways, entries, named, quick_entries
from benchmarks.table_ratios import disagreements
from benchmarks.table_result import Table, read_table
from pipeline.storage import write_whole
from serving.settings import cores
from training.checkpoint import resolve_weights

GPU_TRAIN_BATCH: Final = 16
QUICK_TRAINING: Final = (
    "student=mobilevitv2_050",
    "image_size=64",
    "teacher=test_efficientnet",
    "teacher_image_size=64",
)


@dataclass(frozen=True)
class Choice:
    """What the table shall hold; see `python -m benchmarks table --help`."""

    out: Path
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    rivals: Sequence[str] | None = None
    ways: Sequence[str] | None = None
    gpu: bool = False
    quick: bool = False
    threads: int | None = None
    config: Path = Path("configs/config_SBI.json")
    overrides: Sequence[str] = ()
    against: Path | None = None
    minutes: float | None = None


def run_table(choice: Choice) -> bool:
    """Measure, write and print; returns whether every ratio agrees with the other run's, if there is one.

    Raises:
        InputError: Anything of the choice that cannot be used.
    """
    other = read_table(choice.against) if choice.against else None
    ways = choose_ways(choice.ways, gpu=choice.gpu)
    checkpoints = {role: resolve_weights(str(path)) for role, path in choice.checkpoints.items()}
    chosen = (
        quick_entries(checkpoints)
        if choice.quick
        else entries(checkpoints, RIVALS if choice.rivals is None else choice.rivals)
    )
    with Progress() as progress:
        table = run(
            chosen,
            ways,
            QUICK if choice.quick else FULL,
            progress,
            threads=choice.threads or cores(),
            batch=GPU_TRAIN_BATCH if choice.gpu else TRAIN_BATCH,
            config=choice.config,
            overrides=(*(QUICK_TRAINING if choice.quick else ()), *choice.overrides),
            minutes=choice.minutes,
            keep=lambda part: _write_result(part, choice.out),
        )
    write(table, choice.out)
    sys.stdout.write(f"{summary(table)}\n\n{choice.out}, {choice.out.with_suffix('.md')}\n")
    lines = disagreements(table.ratios, other.ratios) if other else []
    sys.stdout.writelines(f"does not agree: {line}\n" for line in lines)
    return not lines


def write(table: Table, out: Path) -> None:
    """Write the result, its Markdown and, where matplotlib is installed, its pictures."""
    _write_result(table, out)
    write_whole(out.with_suffix(".md"), full(table).encode())
    try:
        from benchmarks.table_plots import plot_all
    except ImportError as error:
        sys.stderr.write(f"no pictures: {error}\n")
    else:
        plot_all(table, out)


def _write_result(table: Table, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, (table.model_dump_json(indent=1) + "\n").encode())


def run_networks(
    networks: Sequence[str],
    ways: Sequence[str] | None,
    rounds: int,
    threads: int | None,
    *,
    show: Literal["rows", "memory"],
) -> str:
    """Measure any networks, given as NAME@SIZE or as checkpoints, and return the rows or their memory.

    Raises:
        InputError: A network or a way that is none.
    """
    effort = replace(FULL, rounds=rounds)
    with Progress() as progress:
        table = run(
            [named(text) for text in networks],
            choose_ways(ways, gpu=False),
            effort,
            progress,
            threads=threads or cores(),
        )
    parts = [rows_text(table) if show == "rows" else memory_text(table), missing_text(table)]
    return "\n\n".join(parts)


def run_compare(
    base: str, ways: Sequence[str] | None, pairs: int, rounds: int, threshold: float, clock: Clock
) -> bool:
    """Compare this checkout with a revision and print what was found; returns whether nothing is slower.

    Raises:
        InputError: No such revision or way.
    """
    chosen = choose_ways(ways or COMPARED_WAYS, gpu=False)
    effort = replace(COMPARED_EFFORT, rounds=rounds)
    with checked_out(base) as tree, Progress() as progress:
        found = compare_trees(tree, chosen, progress, effort=effort, pairs=pairs)
    sys.stdout.write(f"{markdown(found, base, threshold, clock)}\n")
    return not any(item.is_slower(threshold, clock) for item in found)
