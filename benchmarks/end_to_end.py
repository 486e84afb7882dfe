"""From a picture's bytes to a verdict, by stage, on the road that server and command line walk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from benchmarks.contenders import HostContender, open_way
from benchmarks.pictures import jpeg_frames
from benchmarks.ways import WAYS
from pipeline import assets
from pipeline.analysis import Analyser
from pipeline.bundle import Bundle, describe_file
from pipeline.errors import InputError
from pipeline.manifest import Aggregation, CropRule, FaceFinderRule, Manifest, NetworkFacts, ScoreCalibration
from pipeline.road import analyse_image
from pipeline.scoring import OperatingPoint

STAGES = ("decode", "find", "crop", "infer", "verdict")


def measure(way: str, files: Mapping[str, str], image_size: int, rounds: int, threads: int) -> dict[str, Any]:
    """Analyse real frames.

    Args:
        way: How the network is run.
        files: As `benchmarks.making.make` gave them.
        image_size: The network's.
        rounds: Times that every picture is analysed, after one time that does not count.
        threads: Of the CPU, for each stage.

    Returns:
        What the pictures are, and by round each picture's seconds by stage.

    Raises:
        InputError: The pictures, the face finder or the runtime cannot be had.
    """
    cv2.setNumThreads(threads)
    contender = open_way(WAYS[way], files, threads)
    if not isinstance(contender, HostContender):
        raise InputError(f"{way} is no runtime that serves.")
    analyser = Analyser(_stand_in(image_size))
    pictures = jpeg_frames()
    found = []
    for number in range(rounds + 1):
        walks = [analyse_image(analyser, contender.runtime, data).timings for data in pictures]
        if number:
            found.append([_by_stage(timings) for timings in walks])
    size = sum(map(len, pictures)) / len(pictures) / 1024
    return {
        "picture": f"{len(pictures)} JPEG frames of 1280x720, {size:.0f} KiB each, one face",
        "rounds": found,
    }


def _by_stage(timings: Mapping[str, float]) -> list[float]:
    known = [timings[stage] for stage in STAGES[:-1]]
    return [*known, timings["total"] - sum(known)]


def _stand_in(image_size: int) -> Bundle:
    """What `Analyser` reads of a bundle; thresholds are made up, which changes no time."""
    finder = assets.fetch("yunet")
    point = OperatingPoint(name="eer", level="frame", threshold=0.5, fpr=0.1, tpr=0.9)
    manifest = Manifest.model_construct(  # type: ignore[call-arg]  # the rest is not read
        network=NetworkFacts.model_construct(image_size=image_size),  # type: ignore[call-arg]
        crop=CropRule(),
        face_finder=FaceFinderRule(file=describe_file(finder.parent, finder)),
        aggregation=Aggregation(),
        calibration=ScoreCalibration(temperature=1.0, operating_points=(point,), default_point="eer"),
    )
    return Bundle(Path(finder.parent), manifest)
