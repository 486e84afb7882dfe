"""Walks the road of `pipeline.analysis` in one thread: a picture or a video in, its analysis out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis import Analyser, Analysis, ScoredFrame, total_timings
from pipeline.images import read_image
from pipeline.runtime import Answer, Crops, Runtime
from pipeline.video import Frame, sample_frames

BATCH = 16
"""Crops given to a runtime at once, unless its artefact takes fewer."""

_T = TypeVar("_T")


def run_in_batches(runtime: Runtime, crops: Crops, max_batch: int | None = None) -> Answer | None:
    """Answer for any number of crops, a few at a time; None for none."""
    step = min(BATCH, max_batch or BATCH)
    parts = [runtime.run(crops[start : start + step]) for start in range(0, len(crops), step)]
    if not parts:
        return None
    maps = [part.evidence for part in parts if part.evidence is not None]
    return Answer(np.concatenate([part.logits for part in parts]), np.concatenate(maps) if maps else None)


def analyse_image(
    analyser: Analyser,
    runtime: Runtime,
    source: Path | bytes | NDArray[np.uint8],
    *,
    max_batch: int | None = None,
    operating_point: str | None = None,
    rule: str | None = None,
) -> Analysis:
    """Analyse one picture: a file, a file's bytes, or RGB uint8 [H, W, 3].

    Raises:
        InputError: It cannot be read, or there is no such operating point or rule.
    """
    started = time.perf_counter()
    image, decode = _timed(lambda: source if isinstance(source, np.ndarray) else read_image(source))
    frame = _score(analyser, runtime, image, max_batch, timings={"decode": decode})
    conclusion = analyser.conclude([frame], "frame", operating_point=operating_point, rule=rule)
    return Analysis((frame,), conclusion, total_timings([frame], started))


def analyse_video(
    analyser: Analyser,
    runtime: Runtime,
    path: Path,
    *,
    frames: int | None = None,
    max_batch: int | None = None,
    operating_point: str | None = None,
    rule: str | None = None,
    decoder_threads: int = 0,
) -> Analysis:
    """Analyse a video.

    Args:
        analyser: The bundle's.
        runtime: The bundle's.
        path: The video file.
        frames: How many, evenly over its length; None: the bundle's number.
        max_batch: Of the artefact.
        operating_point: None: the bundle's default.
        rule: None: the bundle's.
        decoder_threads: 0 leaves it to the decoder.

    Raises:
        InputError: It cannot be read, or there is no such operating point or rule.
    """
    # asked before the work, so that a typo does not cost a video's worth of it
    analyser.check(operating_point, rule)
    started = time.perf_counter()
    count = frames or analyser.bundle.manifest.aggregation.frames
    scored = list(
        _scored_frames(analyser, runtime, sample_frames(path, count, threads=decoder_threads), max_batch)
    )
    conclusion = analyser.conclude(scored, "video", operating_point=operating_point, rule=rule)
    return Analysis(tuple(scored), conclusion, total_timings(scored, started))


def _scored_frames(
    analyser: Analyser, runtime: Runtime, frames: Iterator[Frame], max_batch: int | None
) -> Iterator[ScoredFrame]:
    while True:
        frame, decode = _timed(lambda: next(frames, None))
        if frame is None:
            return
        yield _score(
            analyser,
            runtime,
            frame.image,
            max_batch,
            index=frame.index,
            time_s=frame.time_s,
            timings={"decode": decode},
        )


def _score(
    analyser: Analyser,
    runtime: Runtime,
    image: NDArray[np.uint8],
    max_batch: int | None,
    *,
    timings: dict[str, float],
    index: int = 0,
    time_s: float | None = None,
) -> ScoredFrame:
    look = analyser.look(image)
    answer, infer = _timed(lambda: run_in_batches(runtime, look.crops, max_batch))
    return analyser.weigh(look, answer, index=index, time_s=time_s, timings={**timings, "infer": infer})


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
