"""Tells whether this checkout is slower than another revision: both are measured in turns in the same minutes.

The harness is this checkout's for both; what is measured (pipeline, training, export) is each revision's own. Only
ratios are judged, and only where their interval leaves no doubt, so that a busy machine does not cry wolf.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from benchmarks.interleaved import Ratio, Seconds, quantile
from benchmarks.progress import Progress
from benchmarks.table import make_files
from benchmarks.table_heat import Lane
from benchmarks.table_markdown import lines_of
from benchmarks.table_plan import Effort, Entry
from benchmarks.ways import Way
from benchmarks.worker_process import ROOT, WorkerFailedError
from pipeline.errors import InputError

Clock = Literal["wall", "processor"]
PAIRS: Final = 4
"""Processes of each checkout per way: two that run the same code differ by some per cent throughout, by where their
memory happens to lie, so one pair alone would tell of differences that are none."""
WAYS: Final = ("torch", "onnx", "onnx-int8", "openvino", "openvino-int8")
EFFORT: Final = Effort(rounds=6, round_seconds=0.1)
NETWORKS: Final = (
    Entry("demo", "demo student", "demo", "mobilevitv2_050", 128),
    Entry("small", "small teacher", "demo", "tf_efficientnet_b0", 128),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A network in one way, this checkout against the base.

    Attributes:
        network: Its title.
        way: Its name.
        wall, processor: This checkout's time over the base's; None where it could not be measured.
        reason: Then, why.
    """

    network: str
    way: str
    wall: Ratio | None = None
    processor: Ratio | None = None
    reason: str | None = None

    def is_slower(self, threshold: float, clock: Clock) -> bool:
        """Whether the whole interval lies beyond the threshold, a share such as 0.05."""
        found = self.wall if clock == "wall" else self.processor
        return found is not None and found.low > 1 + threshold


def compare_trees(
    base: Path,
    ways: Sequence[Way],
    progress: Progress,
    *,
    here: Path = ROOT,
    networks: Sequence[Entry] = NETWORKS,
    effort: Effort = EFFORT,
    pairs: int = PAIRS,
    threads: int = 1,
) -> list[Comparison]:
    """Measure two checkouts in turns.

    Args:
        base: The one compared with; has this checkout's `benchmarks`.
        ways: To run the networks.
        progress: Told what goes on.
        here: The other one.
        networks: Small ones will do: it is code that is compared.
        effort: Rounds of single crops, for each pair of processes.
        pairs: How often both checkouts' processes are started anew.
        threads: One by default, which other programs disturb least.
    """
    progress.begin(len(networks) * (2 + len(ways) * pairs * (2 + effort.rounds)))
    found = []
    forms = sorted({way.file for way in ways} | {"onnx"})
    with tempfile.TemporaryDirectory() as scratch:
        for entry in networks:
            made = {}
            for name, tree in (("base", base), ("here", here)):
                progress.step(f"making {entry.title} by {name}")
                try:
                    made[name] = make_files(entry, Path(scratch) / name, forms, threads, tree)
                except WorkerFailedError as error:
                    raise InputError(f"{entry.name} cannot be made by {tree}: {error}") from error
            for way in ways:
                raced = []
                for _ in range(pairs):
                    lanes = [Lane(made[name], way, entry.key) for name in ("base", "here")]
                    _race(lanes, effort, threads, progress)
                    raced.append(lanes)
                found.append(_comparison(raced))
    return found


def markdown(found: Sequence[Comparison], base: str, threshold: float, clock: Clock) -> str:
    """What was found, as a table."""
    table = lines_of(
        ("network", "way", "wall time", "processor time", ""),
        (
            (
                item.network,
                item.way,
                _said(item.wall),
                _said(item.processor),
                item.reason or ("**slower**" if item.is_slower(threshold, clock) else ""),
            )
            for item in found
        ),
    )
    told = (
        f"This checkout's time over that of {base} (95 % interval); slower: all of it beyond {threshold:.0%}."
    )
    return f"{told}\n\n{table}"


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Another revision in a worktree of its own, with this checkout's benchmarks, for as long as it is needed.

    Raises:
        InputError: There is no such revision, or this is no git checkout.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "base"
        _git("worktree", "add", "--detach", "--force", str(tree), revision)
        try:
            shutil.rmtree(tree / "benchmarks", ignore_errors=True)
            shutil.copytree(ROOT / "benchmarks", tree / "benchmarks")
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607 - our own words
    if done.returncode:
        raise InputError(f"git {' '.join(arguments)}: {done.stderr.strip()}")


def _race(lanes: Sequence[Lane], effort: Effort, threads: int, progress: Progress) -> None:
    title = f"{lanes[0].made.entry.title}, {lanes[0].way.title}"
    rng = np.random.default_rng(0)
    try:
        for lane in lanes:
            lane.start(threads)
        for lane in lanes:
            progress.step(f"{title}: opening")
            lane.open(threads)
        for number in range(effort.rounds):
            progress.step(f"{title}: round {number + 1} of {effort.rounds}")
            for place in rng.permutation(len(lanes)):
                lanes[place].time_singles(effort)
    finally:
        for lane in lanes:
            lane.finish()


def _comparison(raced: Sequence[Sequence[Lane]]) -> Comparison:
    """Of pairs of lanes, base and here."""
    network, way = raced[0][0].made.entry.title, raced[0][0].way.name
    for lanes in raced:
        for name, lane in zip(("base", "here"), lanes, strict=True):
            if lane.reason is not None:
                return Comparison(network, way, reason=f"{name}: {lane.reason}")
    # drawn again are whole pairs: the rounds of one are alike
    return Comparison(
        network,
        way,
        wall=quantile([_medians(here) / _medians(base) for base, here in raced], 0.5),
        processor=quantile([np.array(here.core) / np.array(base.core) for base, here in raced], 0.5),
    )


def _medians(lane: Lane) -> Seconds:
    return np.array([np.median(part) for part in lane.rounds])


def _said(found: Ratio | None) -> str:
    return "" if found is None else f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"
