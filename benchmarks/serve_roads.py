"""The two roads that are measured, bare and as requests: crops through the network, pictures to verdicts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.http_load import Request
from benchmarks.pictures import jpeg_frames
from pipeline.analysis import Analyser
from pipeline.bundle import Bundle
from pipeline.images import read_image
from pipeline.road import analyse_image
from pipeline.runtime import Crops, Runtime
from serving.artefacts import open_best
from serving.tensors import HEAD_LENGTH

BATCH = 16
_TOLERANCE = 1e-4
_RAW = {"content-type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Road:
    """One way through the detector.

    Attributes:
        name: "tensors", "tensors-by-8" or "images".
        requests: To our server, each with its own right answer.
        rivals: The same to LitServe; empty where it has nothing like it.
        items: Crops or pictures in a request.
        one: Does the work of request number i in this process, with nothing around it.
        at_once: Items a second of this process over so many seconds, with as many at once as serves it best.
    """

    name: str
    requests: Sequence[Request]
    rivals: Sequence[Request]
    items: int
    one: Callable[[int], object]
    at_once: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Bare:
    """A bundle opened in this process, with nothing around it.

    Attributes:
        artefact: Name of the network's form.
        runtime: What runs it.
        threads: Of runtime and OpenCV: all cores.
        roads: All there are, pictures last.
    """

    artefact: str
    runtime: Runtime
    threads: int
    roads: tuple[Road, ...]


def open_bare(bundle: Bundle, artefact: str | None) -> Bare:
    """Open a bundle and prepare both roads on real frames.

    Raises:
        InputError: The artefact does not run here, or the clips cannot be had.
    """
    threads = len(os.sched_getaffinity(0))
    opened = open_best(bundle, artefact, threads=threads)
    cv2.setNumThreads(threads)
    analyser, runtime = Analyser(bundle), opened.runtime
    pictures = jpeg_frames()
    crops = np.concatenate([analyser.look(read_image(data)).crops[:1] for data in pictures])
    size = min(BATCH, opened.artefact.max_batch or BATCH)
    roads = (
        _tensors(crops, runtime, size, 1),
        _tensors(crops, runtime, size, len(crops)),
        _images(analyser, runtime, pictures),
    )
    return Bare(opened.artefact.name, runtime, threads, roads)


def _tensors(crops: Crops, runtime: Runtime, size: int, items: int) -> Road:
    batch = np.concatenate([crops] * -(-size // len(crops)))[:size]
    logits = runtime.run(crops).logits
    parts = [slice(start, start + items) for start in range(0, len(crops), items)]
    rivals = [_rival(crop.tobytes(), expected) for crop, expected in zip(crops, logits, strict=True)]
    return Road(
        "tensors" if items == 1 else f"tensors-by-{items}",
        [_tensor_request(crops[part], logits[part]) for part in parts],
        rivals if items == 1 else [],
        items,
        lambda number: runtime.run(crops[parts[number % len(parts)]]),
        lambda seconds: _rate(lambda _: runtime.run(batch), seconds) * size,
    )


def _images(analyser: Analyser, runtime: Runtime, pictures: Sequence[bytes]) -> Road:
    def one(number: int) -> object:
        return analyse_image(analyser, runtime, pictures[number % len(pictures)])

    rivals = [
        _rival(data, runtime.run(analyser.look(read_image(data)).crops[:1]).logits[0]) for data in pictures
    ]
    return Road(
        "images",
        [_image_request(analyser, runtime, data) for data in pictures],
        rivals,
        1,
        one,
        lambda seconds: _rate(one, seconds),
    )


def _rate(work: Callable[[int], object], seconds: float) -> float:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work(count)
        count += 1
    return count / (time.perf_counter() - started)


def _tensor_request(crops: Crops, expected: NDArray[np.float32]) -> Request:
    tensor = {"name": "crops", "shape": list(crops.shape), "datatype": "UINT8"}
    parameters = {"parameters": {"binary_data_size": crops.nbytes}}
    head = json.dumps({"inputs": [{**tensor, **parameters}], "outputs": [{"name": "logits"}]}).encode()

    logits = expected.ravel().tolist()

    def right(body: bytes) -> bool:
        return _close(json.loads(body)["outputs"][0]["data"], logits)

    headers = {HEAD_LENGTH: str(len(head))}
    return Request.post("/v2/models/stillface/infer", head + crops.tobytes(), headers, right)


def _image_request(analyser: Analyser, runtime: Runtime, data: bytes) -> Request:
    expected = analyse_image(analyser, runtime, data).conclusion.aggregate.score

    def right(body: bytes) -> bool:
        return bool(abs(json.loads(body)["score"] - expected) <= _TOLERANCE)

    return Request.post("/v1/images", data, {"content-type": "image/jpeg"}, right)


def _rival(data: bytes, expected: NDArray[np.float32]) -> Request:
    logits = expected.tolist()

    def right(body: bytes) -> bool:
        return _close(json.loads(body)["logits"], logits)

    return Request.post("/predict", data, _RAW, right)


def _close(given: Sequence[float], expected: Sequence[float]) -> bool:
    """Without NumPy, which takes longer over two numbers than the client over the rest of a request."""
    if len(given) != len(expected):
        return False
    return all(abs(one - other) <= _TOLERANCE for one, other in zip(given, expected, strict=True))
