"""`stillface predict`: pictures, videos and folders through the very road that the server walks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from pipeline.analysis import Analyser
from pipeline.bundle import Bundle, open_bundle
from pipeline.errors import InputError
from pipeline.media_files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, walk_files
from pipeline.road import analyse_image, analyse_video
from serving.artefacts import Opened, open_best
from serving.evidence import EvidenceForm
from serving.present import Circumstances, frame_result, image_result, video_result
from serving.schemas import BundleUsed, ImageResult, VideoResult


class Prediction(BaseModel):
    """One file: its result, or why there is none. A line of `stillface predict --json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    result: ImageResult | VideoResult | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen per call; None takes the bundle's own."""

    operating_point: str | None = None
    aggregation: str | None = None
    frames: int | None = None
    evidence: EvidenceForm = "none"


class Predictor:
    """A bundle, ready to analyse files.

    Args:
        folder: The bundle.
        artefact: Which form of the network; None: the fastest that this machine can run.
        threads: CPU threads of runtime and decoder; None: all cores.

    Raises:
        InputError: The bundle or the artefact cannot be used.
    """

    def __init__(self, folder: Path, *, artefact: str | None = None, threads: int | None = None) -> None:
        self.bundle: Bundle = open_bundle(folder)
        self.opened: Opened = open_best(self.bundle, artefact, threads=threads)
        self._analyser = Analyser(self.bundle)
        self._threads = threads
        if threads is not None:
            cv2.setNumThreads(threads)

    def check(self, options: Options) -> None:
        """Refuse options that the bundle does not know, before any file is read.

        Raises:
            InputError: No such operating point or rule.
        """
        self._analyser.check(options.operating_point, options.aggregation)

    def predict(self, path: Path, options: Options) -> ImageResult | VideoResult:
        """Analyse a picture or a video.

        Raises:
            InputError: It cannot be read.
        """
        around = Circumstances(self._used(), uuid.uuid4().hex, options.evidence)
        batch = self.opened.artefact.max_batch
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found = analyse_image(
                self._analyser,
                self.opened.runtime,
                path,
                max_batch=batch,
                operating_point=options.operating_point,
                rule=options.aggregation,
            )
            return image_result(found.frames[0], found.conclusion, found.timings, around)
        found = analyse_video(
            self._analyser,
            self.opened.runtime,
            path,
            frames=options.frames,
            max_batch=batch,
            operating_point=options.operating_point,
            rule=options.aggregation,
            decoder_threads=self._threads or 0,
        )
        shown = [frame_result(frame, options.evidence) for frame in found.frames]
        size = (found.frames[0].width, found.frames[0].height)
        return video_result(shown, size, found.conclusion, found.timings, around)

    def predict_all(self, paths: Sequence[Path], options: Options) -> Iterator[Prediction]:
        """Analyse files one after the other; one that cannot be read does not stop the others."""
        for path in paths:
            try:
                yield Prediction(path=str(path), result=self.predict(path, options))
            except InputError as error:
                yield Prediction(path=str(path), error=str(error))

    def _used(self) -> BundleUsed:
        return BundleUsed(
            id=self.bundle.manifest.id,
            artefact=self.opened.artefact.name,
            runtime=self.opened.runtime.label,
        )


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The pictures and videos meant: files as given, folders with all they hold.

    Raises:
        InputError: A path that does not exist, a file that is neither, a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = list(walk_files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            if not inside:
                raise InputError(f"{path} holds no picture and no video.")
            found += inside
        elif not path.is_file():
            raise InputError(f"{path} does not exist: expected a picture, a video or a folder.")
        elif path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise InputError(f"{path} is neither a picture nor a video by its suffix; known are {known}.")
        else:
            found.append(path)
    return found


def table_of(predictions: Sequence[Prediction], seconds: float) -> Table:
    """Predictions for a person to read."""
    files = "1 file" if len(predictions) == 1 else f"{len(predictions)} files"
    table = Table(caption=f"{files} in {seconds:.1f} s", caption_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("verdict")
    for name in ("score", "threshold", "faces", "frames"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in predictions:
        result = item.result
        if result is None:
            table.add_row(f"{item.path}\n{item.error}", "error")
            continue
        point, used = result.operating_point, result.aggregation
        table.add_row(
            item.path,
            result.verdict.value,
            "" if result.score is None else f"{result.score:.4f}",
            f"{point.threshold:.4f} ({point.name})",
            str(used.faces),
            f"{used.frames_used}/{used.frames}",
        )
    return table
