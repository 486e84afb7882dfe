"""One heat of the table: every network in one way, each in a process of its own, asked in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.interleaved import quantile
from benchmarks.table_plan import Effort, Entry
from benchmarks.table_result import Interval, Row
from benchmarks.ways import ANCHOR, Way
from benchmarks.worker_process import ROOT, Worker, WorkerFailedError
from export.machine import nvidia_smi

_BEYOND: Final = 3
"""Samples that must lie beyond a quantile for it to be shown."""
_MOST_CALLS: Final = 50
ANCHOR_KEY: Final = "anchor"


@dataclass(frozen=True, slots=True)
class Made:
    """A network whose files lie ready; or not, and why."""

    entry: Entry
    files: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tree: Path = ROOT


@dataclass
class Lane:
    """A row while it is measured."""

    made: Made
    way: Way
    key: str
    worker: Worker | None = None
    reason: str | None = None
    opened: dict[str, Any] = field(default_factory=dict)
    rounds: list[list[float]] = field(default_factory=list)
    core: list[float] = field(default_factory=list)
    batches: dict[int, list[float]] = field(default_factory=dict)
    batch_core: dict[int, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    joules: float | None = None

    def start(self, threads: int) -> None:
        """Start the process, which begins to load its libraries; or note that the network's file was not made."""
        self.reason = self.made.reasons.get(self.way.file)
        if self.reason is None:
            self.worker = Worker(threads, self.made.tree, self.way.name)

    def open(self, threads: int) -> None:
        """Open the network, or note why that failed."""
        if self.worker is None:
            return
        used = device_used() if self.way.device == "cuda" else None
        found = self.ask(
            "open",
            way=self.way.name,
            files=self.made.files,
            image_size=self.made.entry.image_size,
            threads=threads,
        )
        self.opened = found or {}
        now = device_used() if used is not None else None
        if used is not None and now is not None:
            self.memory["device"] = now - used

    def ask(self, do: str, **arguments: Any) -> dict[str, Any] | None:
        """An order's answer; None, and the reason noted, where it failed or an earlier one did."""
        if self.worker is None or self.reason is not None:
            return None
        try:
            return self.worker.ask(do, **arguments)
        except WorkerFailedError as error:
            self.reason = str(error)
            return None

    def time_singles(self, effort: Effort) -> None:
        """One round of single crops."""
        if self.reason is not None:
            return
        wanted = math.ceil(effort.round_seconds / self.opened["seconds"])
        calls = min(_MOST_CALLS, max(effort.least_calls, wanted))
        if found := self.ask("time", batch=1, calls=calls):
            self.rounds.append(found["wall"])
            self.core.append(found["processor"] / calls)

    def time_batches(self, sizes: Sequence[int], *, first: bool) -> None:
        """One round of batches."""
        for size in sizes:
            if first:
                self.time_batch(size, counts=False)  # the first of a size allocates
            self.time_batch(size, counts=True)

    def time_batch(self, size: int, *, counts: bool) -> None:
        """One call with so many crops; a size that the runtime refuses is left out."""
        if self.worker is None or self.reason is not None:
            return
        try:
            found = self.worker.ask("time", batch=size, calls=1)
        except WorkerFailedError:
            return
        if counts:
            self.batches.setdefault(size, []).append(found["wall"][0] / size)
            self.batch_core.setdefault(size, []).append(found["processor"] / size)

    def count_energy(self, seconds: float) -> None:
        """What a crop takes at the batch with the most crops per second; not told where nothing counts it."""
        if self.worker is None or self.reason is not None:
            return
        best = min(self.batches, key=lambda size: float(np.median(self.batches[size])), default=1)
        try:
            self.joules = self.worker.ask("energy", batch=best, seconds=seconds)["joules"]
        except WorkerFailedError:
            self.joules = None

    def finish(self) -> None:
        """Ask for the memory and end the process."""
        self.memory = {**self.opened.get("memory", {}), **self.memory, **(self.ask("memory") or {})}
        if self.worker is not None:
            self.worker.close()

    def row(self, anchor: Lane | None) -> Row:
        """What was found."""
        identity = {"network": self.key, "way": self.way.name}
        if self.reason is not None:
            return Row(**identity, reason=self.reason)
        samples = sum(map(len, self.rounds))
        medians = tuple(1000 * float(np.median(part)) for part in self.rounds)
        rates = {1: 1000 / float(np.median(medians))}
        rates |= {size: 1 / float(np.median(parts)) for size, parts in self.batches.items()}
        best = max(rates, key=lambda size: rates[size])
        of_best = self.batch_core.get(best, self.core)
        in_turn = anchor is not None and anchor.reason is None
        return Row(
            **identity,
            label=self.opened["label"],
            samples=samples,
            p50=milliseconds(self.rounds, 0.5),
            p90=milliseconds(self.rounds, 0.9),
            p99=milliseconds(self.rounds, 0.99),
            core_ms=1000 * float(np.median(self.core)),
            round_ms=medians,
            anchor_ms=tuple(1000 * float(np.median(part)) for part in anchor.rounds)
            if anchor is not None and in_turn
            else (),
            by_batch=rates,
            batch_core_ms=1000 * float(np.median(of_best)),
            memory=self.memory,
            joules=self.joules,
            ready_seconds=self.opened["ready_seconds"],
        )


def milliseconds(rounds: Sequence[Sequence[float]], share: float) -> Interval | None:
    """A quantile in milliseconds with its interval; None where too few samples lie beyond it."""
    samples = sum(map(len, rounds))
    if share > 0.5 and round(samples * (1 - share), 6) < _BEYOND:
        return None
    found = quantile(rounds, share)
    return Interval(value=1000 * found.median, low=1000 * found.low, high=1000 * found.high)


def run_heat(
    way: Way,
    networks: Sequence[Made],
    anchor: Made | None,
    effort: Effort,
    threads: int,
    step: Callable[[str], None],
) -> list[Row]:
    """Measure networks in one way, and the anchor beside them.

    Args:
        way: How they are run.
        networks: With their files.
        anchor: The network that runs as `ways.ANCHOR` in every heat.
        effort: Rounds and batch sizes.
        threads: Of each process; only one of them works at a time.
        step: Told of each network opened and each round done.

    Returns:
        A row for each network.
    """
    lanes = [Lane(made, way, made.entry.key) for made in networks]
    aside = Lane(anchor, ANCHOR, ANCHOR_KEY) if anchor else None
    everyone = [*lanes, aside] if aside else lanes
    rng = np.random.default_rng(0)
    try:
        for lane in everyone:
            lane.start(threads)
        for lane in everyone:
            step(f"{way.title}: opening {lane.made.entry.title}")
            lane.open(threads)
        for number in range(effort.rounds):
            step(f"{way.title}: single crops, round {number + 1} of {effort.rounds}")
            for place in rng.permutation(len(everyone)):
                everyone[place].time_singles(effort)
        crowd = [lane for lane in lanes if not lane.made.entry.is_side and way.every_batch]
        batches, rounds = effort.offline(way.device)
        for number in range(rounds):
            step(f"{way.title}: batches, round {number + 1} of {rounds}")
            for place in rng.permutation(len(crowd)):
                crowd[place].time_batches(batches, first=number == 0)
        for lane in crowd if way.device == "cuda" else ():
            lane.count_energy(effort.energy_seconds)
    finally:
        for lane in everyone:
            lane.finish()
    return [lane.row(aside) for lane in lanes]


def device_used() -> int | None:
    """Bytes in use on the first GPU, by everybody; None where nvidia-smi cannot tell."""
    told = nvidia_smi("memory.used")
    amount = told[0].partition(" ")[0] if told else ""
    return int(amount) << 20 if amount.isdigit() else None  # in MiB
