"""Prepares a data set for training: every video to face crops, in parallel, restartable, with one index."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import assets
from pipeline.errors import InputError
from pipeline.faces import FaceFinder
from pipeline.images import MAX_PIXELS
from pipeline.video import MAX_DURATION_S
from training.index import INDEX_NAME, write_index_table
from training.layouts import Layout, find_media
from training.media import MediaItem, assign_splits, check_share
from training.prepare_parts import Part, merge, read_part, write_part
from training.prepare_report import PrepareReport, summarize
from training.prepare_video import VideoOutcome, VideoSettings, prepare_video
from training.worker_pool import run_all

_FORMAT = 1
"""Raised when prepared crops change in a way that makes older ones unusable beside new ones."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One video's work, as it is sent to a worker process."""

    item: MediaItem
    settings: VideoSettings
    out: Path
    fingerprint: str


def run(
    source: Path,
    layout: Layout,
    out: Path,
    *,
    frames_per_video: int = 32,
    compression: str = "c23",
    methods: Collection[str] | None = None,
    store: Literal["jpeg", "png"] = "jpeg",
    quality: int = 98,
    workers: int | None = None,
    val_share: float = 0.2,
    max_side: int = 640,
    min_score: float = 0.7,
    max_pixels: int = MAX_PIXELS,
    max_duration_s: float = MAX_DURATION_S,
    console: Console | None = None,
) -> PrepareReport:
    """Prepare a data set.

    Stopped and started again, it goes on where it was; a video is done anew when it or a setting that
    changes its crops has changed. `out` then holds crops/, index.parquet and report.json.

    Args:
        source: The data set's folder.
        layout: How it lies on disk; see `layouts.find_media`.
        out: The prepared folder.
        frames_per_video: Frames taken of each video, evenly in time.
        compression: FF++'s compression: "raw", "c23" or "c40".
        methods: Only these methods ("real", "Deepfakes", ...); None for all.
        store: File format of the crops.
        quality: JPEG quality 1..100, colour at full resolution.
        workers: Processes; None for one per CPU core this process may use.
        val_share: Share of the people without an official split that goes to "val".
        max_side: Face finder: longer images are scaled down to this side for the search.
        min_score: Face finder: least confidence 0..1.
        max_pixels: Largest frame or picture; larger ones are skipped.
        max_duration_s: Longest video in seconds; longer ones are skipped.
        console: Where progress is shown; None for standard error.

    Returns:
        What was stored and what was not, and why.

    Raises:
        InputError: A setting is out of range, the data set cannot be listed, `out` cannot be written, a
            model cannot be fetched, or not one face could be stored (with the reasons' counts).
        KeyboardInterrupt: Stopped by the user; videos finished so far are kept.
    """
    started = time.monotonic()
    check_share(val_share)
    settings = VideoSettings(
        frames=frames_per_video,
        store=store,
        quality=quality,
        max_side=max_side,
        min_score=min_score,
        max_pixels=max_pixels,
        max_duration_s=max_duration_s,
    )
    _check_settings(settings, source, out, workers)
    items = find_media(source, layout, compression=compression, methods=methods, exclude=out)
    jobs = [_Job(item, settings, out.absolute(), _fingerprint(item, settings)) for item in items]
    parts = {job.item.video: read_part(out, job.item.video, job.fingerprint) for job in jobs}
    todo = [job for job in jobs if parts[job.item.video] is None]
    crashed = _process(todo, workers or _cores(), out, console or Console(stderr=True))
    parts |= {job.item.video: read_part(out, job.item.video, job.fingerprint) for job in todo}
    items = _with_splits(items, parts, val_share)
    report = summarize(
        [(item, parts[item.video]) for item in items],
        wanted_frames=frames_per_video,
        crashed=crashed,
        worked_on={job.item.video for job in todo},
        seconds=time.monotonic() - started,
    )
    return _finish(out, items, parts, report)


def _finish(
    out: Path, items: list[MediaItem], parts: dict[str, Part | None], report: PrepareReport
) -> PrepareReport:
    """Write the report and, if there is a face in it, the index."""
    report.write(out)
    if report.faces == 0:
        (out / INDEX_NAME).unlink(missing_ok=True)
        raise InputError(
            f"Not one face could be stored from {len(items)} videos or pictures: {report.reasons()}."
        )
    write_index_table(out, merge([(item, parts[item.video]) for item in items]))
    return report


def _with_splits(items: list[MediaItem], parts: dict[str, Part | None], val_share: float) -> list[MediaItem]:
    """Assign missing splits among the videos that have faces, so that "val" is not left with a broken one."""
    usable = [item for item in items if (part := parts[item.video]) is not None and part.table.num_rows]
    assigned = {item.video: item for item in assign_splits(usable, val_share)}
    return [assigned.get(item.video, item) for item in items]


def _check_settings(settings: VideoSettings, source: Path, out: Path, workers: int | None) -> None:
    """Refuse what would otherwise come up in a worker process, after minutes."""
    FaceFinder(max_side=settings.max_side, min_score=settings.min_score)
    if settings.frames < 1:
        raise InputError(f"Frames per video must be at least 1, not {settings.frames}.")
    if not 1 <= settings.quality <= 100:
        raise InputError(f"JPEG quality must lie between 1 and 100, not {settings.quality}.")
    if workers is not None and workers < 1:
        raise InputError(f"At least one worker is needed, not {workers}.")
    if out.resolve() == source.resolve():
        raise InputError(f"The prepared folder must not be the data set's own folder {source}: name another.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder for the prepared data.")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _process(todo: list[_Job], workers: int, out: Path, console: Console) -> set[str]:
    """Do the outstanding videos; returns those whose processes died."""
    if not todo:
        return set()
    if any(job.item.stored is None for job in todo):
        # Once here, so that the workers find them in the cache.
        assets.fetch("yunet")
        assets.fetch("face_landmarker")
    # Crops are replaced from here on; an index of the old ones must not outlive them.
    (out / INDEX_NAME).unlink(missing_ok=True)
    crashed = set()
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[faces]} faces"), console=console) as progress:
        bar = progress.add_task("preparing", total=len(todo), faces=0)
        faces = 0
        for job, stored in run_all(_work, todo, min(workers, len(todo))):
            if stored is None:
                crashed.add(job.item.video)
            faces += stored or 0
            progress.update(bar, advance=1, faces=faces)
    return crashed


def _work(job: _Job) -> int:
    """In a worker process: one video to crops and a part file; gives the number of faces."""
    crops = job.out / "crops" / job.item.video
    try:
        outcome = prepare_video(job.item, job.settings, crops)
    except InputError:
        raise  # the output folder or a model: the same for every video
    except Exception as error:  # noqa: BLE001 - process border: one video's trouble must not end the others
        outcome = VideoOutcome(skipped=Counter(), unreadable=f"{type(error).__name__}: {error}")
    write_part(job.out, job.item.video, job.fingerprint, outcome)
    return len(outcome.records)


def _fingerprint(item: MediaItem, settings: VideoSettings) -> str:
    """Hash of everything that decides about a video's crops: the settings, the models, the source's state."""
    overrides = [os.environ.get(assets.ASSETS[name].variable) for name in ("yunet", "face_landmarker")]
    paths = [item.path, *(item.stored or ()), *(Path(override) for override in overrides if override)]
    content = [_FORMAT, asdict(settings), overrides, item.kind, [_state(path) for path in paths]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and modification times of a file, or of a folder's files; empty where it is gone."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        return []
