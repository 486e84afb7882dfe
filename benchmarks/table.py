"""The teacher-versus-student table: every network in every way that this machine can run, by one command.

Each row is a process of its own. The networks of one way are asked in turns, round by round, so that what else the
machine does falls on all alike; between ways an anchor network, which runs in every heat, ties them together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.end_to_end import STAGES
from benchmarks.interleaved import quantile
from benchmarks.machine import environment
from benchmarks.progress import Progress
from benchmarks.table_heat import Made, milliseconds, run_heat
from benchmarks.table_plan import Effort, Entry
from benchmarks.table_ratios import process_spread, ratios_of
from benchmarks.table_result import EndToEnd, Interval, Network, Row, Table, Training
from benchmarks.ways import ANCHOR, ANCHOR_NETWORK, Way
from benchmarks.worker_process import ROOT, Worker, WorkerFailedError

WALKS: Final = (
    ("teacher", "onnx"),
    ("stage2", "onnx"),
    ("stage2", "openvino-int8"),
    ("demo-stage2", "openvino-int8"),
)
"""Networks and ways of the end-to-end rows."""
TRAININGS: Final = (
    ("teacher", "teacher"),
    ("stage1", "stage 1"),
    ("stage2", "stage 2, the teacher's answers included"),
)
TRAIN_BATCH: Final = 4
_TRAIN_BLOCKS: Final = 3
_WALK_ROUNDS: Final = 5


def run(
    entries: Sequence[Entry],
    ways: Sequence[Way],
    effort: Effort,
    progress: Progress,
    *,
    threads: int,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    batch: int = TRAIN_BATCH,
    minutes: float | None = None,
    keep: Callable[[Table], None] = lambda _: None,
) -> Table:
    """Measure the whole table.

    Args:
        entries: Its networks.
        ways: In which they are run.
        effort: How long.
        progress: Told what goes on.
        threads: Of every process; only one works at a time.
        config: Settings whose training steps are measured; None leaves them out.
        overrides: `key=value` for those.
        batch: Images of a training step.
        minutes: After which no other way is begun: on a machine that is paid for, a table that lacks some ways is
            better than none.
        keep: Given the table as far as it is after each way, for a run that is stopped.

    Returns:
        Everything that could be measured, and for the rest why not.
    """
    walks = [
        (key, way) for key, way in WALKS if any(entry.key == key for entry in entries) and _has(ways, way)
    ]
    stages = TRAININGS if config else ()
    heats = [(way, [entry for entry in entries if way in entry.ways(ways)]) for way in ways]
    progress.begin(
        len(entries)
        + sum(len(chosen) + 1 + effort.rounds + effort.offline(way.device)[1] for way, chosen in heats)
        + len(walks)
        + len(stages)
    )
    taken = _Taken(
        environment(),
        {
            **asdict(effort),
            "threads": threads,
            "inside": {way.name: way.inside for way in ways},
            "train_batch": batch,
            "train_config": config.name if config else None,
            "train_overrides": list(overrides),
        },
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = _make_all(entries, ways, Path(scratch), threads, progress)
        taken.networks = [network for entry in entries if (network := _network(made[entry.key])) is not None]
        taken.training = [
            _train(stage, title, config, made, overrides, effort, batch, threads, progress)
            for stage, title in stages
            if config is not None
        ]
        anchor = made.get(ANCHOR_NETWORK)
        anchor = anchor if anchor is not None and ANCHOR.file in anchor.files else None
        for way, chosen in heats:
            if minutes is not None and taken.seconds > 60 * minutes:
                late = f"not begun within {minutes:g} minutes"
                taken.rows += [Row(network=entry.key, way=way.name, reason=late) for entry in chosen]
                continue
            taken.rows += run_heat(
                way, [made[entry.key] for entry in chosen], anchor, effort, threads, progress.step
            )
            keep(taken.table())
        taken.ends = [_walk(made[key], way, threads, progress) for key, way in walks]
        return taken.table()


@dataclass
class _Taken:
    """What has been measured so far."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    networks: list[Network] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    training: list[Training] = field(default_factory=list)
    ends: list[EndToEnd] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    def table(self) -> Table:
        return Table(
            machine=self.machine,
            settings=self.settings,
            seconds=round(self.seconds, 1),
            networks=tuple(self.networks),
            rows=tuple(self.rows),
            training=tuple(self.training),
            end_to_end=tuple(self.ends),
            ratios=ratios_of(self.networks, self.rows, self.training),
            process_spread=process_spread(self.networks, self.rows),
        )


def _has(ways: Sequence[Way], name: str) -> bool:
    return any(way.name == name for way in ways)


def _make_all(
    entries: Sequence[Entry], ways: Sequence[Way], folder: Path, threads: int, progress: Progress
) -> dict[str, Made]:
    """As many at a time as there are threads: nothing is measured yet, and exporting takes one."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = {
            entry.key: pool.submit(_make, entry, entry.ways(ways), folder, progress) for entry in entries
        }
        return {key: made.result() for key, made in waiting.items()}


def _make(entry: Entry, ways: Sequence[Way], folder: Path, progress: Progress) -> Made:
    progress.step(f"making {entry.title} ({entry.name} @{entry.image_size})")
    forms = sorted({way.file for way in (*ways, ANCHOR)} | _sources(ways))
    try:
        found = make_files(entry, folder, forms, threads=1)
    except WorkerFailedError as error:
        return Made(entry, reasons=dict.fromkeys(forms, f"the network cannot be had: {error}"))
    return found


def _sources(ways: Sequence[Way]) -> set[str]:
    return {"onnx"} if any(way.file.startswith("openvino") for way in ways) else set()


def make_files(entry: Entry, folder: Path, forms: Sequence[str], threads: int, tree: Path = ROOT) -> Made:
    """Make a network's files in a process of its own, by the code of a checkout.

    Raises:
        WorkerFailedError: The checkpoint cannot be read, or the network cannot be built.
    """
    with Worker(threads, tree) as worker:
        found = worker.ask(
            "make",
            checkpoint=str(entry.checkpoint) if entry.checkpoint else None,
            name=entry.name,
            image_size=entry.image_size,
            folder=str(folder / entry.key),
            forms=list(forms),
            threads=threads,
        )
    return Made(entry, found["files"], found["reasons"], {**found["network"], "bytes": found["bytes"]}, tree)


def _network(made: Made) -> Network | None:
    if not made.facts:
        return None
    entry = made.entry
    return Network(key=entry.key, title=entry.title, group=entry.group, **made.facts)


def _walk(made: Made, way: str, threads: int, progress: Progress) -> EndToEnd:
    progress.step(f"end to end: {made.entry.title}, {way}")
    identity = {"network": made.entry.key, "way": way}
    try:
        with Worker(threads) as worker:
            found = worker.ask(
                "walk",
                way=way,
                files=made.files,
                image_size=made.entry.image_size,
                rounds=_WALK_ROUNDS,
                threads=threads,
            )
    except WorkerFailedError as error:
        return EndToEnd(**identity, reason=str(error))
    walks = np.array(found["rounds"])  # [round, picture, stage]
    stages = 1000 * walks.mean((0, 1))
    totals: list[list[float]] = walks.sum(2).tolist()
    return EndToEnd(
        **identity,
        picture=found["picture"],
        samples=walks.shape[0] * walks.shape[1],
        total_ms=milliseconds(totals, 0.5),
        stage_ms=dict(zip(STAGES, stages.tolist(), strict=True)),
    )


def _train(
    stage: str,
    title: str,
    config: Path,
    made: Mapping[str, Made],
    overrides: Sequence[str],
    effort: Effort,
    batch: int,
    threads: int,
    progress: Progress,
) -> Training:
    progress.step(f"training step: {title}")
    arguments: dict[str, Any] = {
        "config": str(config.resolve()),
        "stage": stage,
        "teacher": made["teacher"].files.get("torch") if "teacher" in made else None,
        "overrides": list(overrides),
        "batch": batch,
        "steps": effort.train_steps,
        "blocks": _TRAIN_BLOCKS,
        "threads": threads,
    }
    try:
        with Worker(threads) as worker:
            found = worker.ask("train", **arguments)
    except WorkerFailedError as error:
        return Training(stage=stage, title=title, reason=str(error))
    seconds = quantile([[value] for value in found["step_seconds"]], 0.5)
    return Training(
        stage=stage,
        title=title,
        networks=found["networks"],
        way=found["way"],
        batch=batch,
        step_seconds=Interval(value=seconds.median, low=seconds.low, high=seconds.high),
        memory=found["memory"],
    )
