"""Measures how long one self-blended pair takes on one core, stage by stage: reading, blending, resizing.

The data loader must not starve the training step; what a core makes per second times the number of workers is
what training can eat. Faces come from a prepared folder or, without one, from a textured frame drawn in code.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import environment
from pipeline.crop import crop_face
from pipeline.errors import InputError
from pipeline.images import save_image
from training.dataset import choose_frames, load_crop, sample_generator
from training.index import FaceRecord, read_index
from training.selfblend import Pair, make_pair

STAGES = ("read", "blend", "resize")

_WARM_UP = 10


def run(
    data: Path | None = None,
    *,
    pairs: int = 300,
    sizes: tuple[int, ...] = (380,),
    threads: int = 1,
    seed: int = 0,
    reference_quirks: bool = False,
) -> dict[str, Any]:
    """Time training pairs.

    Args:
        data: A prepared folder with real training faces; None for a drawn frame of 1280x720 pixels.
        pairs: Pairs timed, after 10 to warm up.
        sizes: Sides of the squares made of each pair.
        threads: OpenCV's threads.
        seed: Seed of the pairs.
        reference_quirks: As for `make_pair`.

    Returns:
        Machine, its load, versions, command, input and, for each stage, in all ("total") and in processor
        time ("cpu"), milliseconds per pair (p50, p90, mean), and pairs per second.

    Raises:
        InputError: A number is not positive, or the folder has no real training face.
    """
    if pairs < 1 or threads < 1 or not sizes or min(sizes) < 1:
        raise InputError(f"Pairs {pairs}, threads {threads} and sizes {sizes} must all be 1 or more.")
    with tempfile.TemporaryDirectory() as scratch, _opencv_threads(threads):
        faces = drawn_faces(Path(scratch)) if data is None else _stored_faces(data)
        times = np.array(
            [_timed(faces, index, sizes, seed, reference_quirks) for index in range(_WARM_UP + pairs)]
        )[_WARM_UP:]
    columns = [*times.T[:3], times[:, :3].sum(axis=1), times[:, 3]]
    return {
        "benchmark": "selfblend",
        **environment(),
        "data": "a drawn frame of 1280x720 pixels" if data is None else str(data),
        "faces": len(faces),
        "crop_px": _medians([(face.width, face.height) for face in faces]),
        "face_px": _medians([(f.box[2] - f.box[0], f.box[3] - f.box[1]) for f in faces]),
        "sizes": list(sizes),
        "threads": threads,
        "pairs": pairs,
        "reference_quirks": reference_quirks,
        "ms": {
            name: _spread(column) for name, column in zip((*STAGES, "total", "cpu"), columns, strict=True)
        },
        "pairs_per_second": round(1000 / float(columns[3].mean()), 1),
    }


def markdown(result: dict[str, Any]) -> str:
    """One line for the README: what was measured, on what, and the milliseconds."""
    ms = result["ms"]
    stages = ", ".join(f"{name} {ms[name]['p50']:.1f}" for name in STAGES)
    width, height = result["crop_px"]
    sizes = "+".join(str(size) for size in result["sizes"])
    return (
        f"| self-blended pair @{sizes} from {width}x{height} crops ({result['data']}) | "
        f"{result['threads']} thread(s), {result['processor']} | "
        f"p50 {ms['total']['p50']:.1f} ms, p90 {ms['total']['p90']:.1f} ms ({stages}) | "
        f"{result['pairs_per_second']:.0f} pairs/s |"
    )


def _timed(
    faces: Sequence[FaceRecord], index: int, sizes: tuple[int, ...], seed: int, quirks: bool
) -> tuple[float, float, float, float]:
    """Milliseconds of one pair: read, blend, resize; and processor time of all three."""
    face = faces[index % len(faces)]
    cpu = time.thread_time()
    start = time.perf_counter()
    image = load_crop(face)
    read = time.perf_counter()
    rng = sample_generator(seed, 0, index)
    pair = make_pair(image, face.landmarks, face.box, rng, phase="train", reference_quirks=quirks)
    blended = time.perf_counter()
    _squares(pair, sizes)
    done = time.perf_counter()
    return (
        1000 * (read - start),
        1000 * (blended - read),
        1000 * (done - blended),
        1000 * (time.thread_time() - cpu),
    )


def _squares(pair: Pair, sizes: tuple[int, ...]) -> list[NDArray[np.uint8]]:
    height, width = pair.real.shape[:2]
    window = (0, 0, width, height)
    return [crop_face(image, window, size) for size in sizes for image in (pair.real, pair.fake)]


def _stored_faces(folder: Path) -> list[FaceRecord]:
    faces = choose_frames([r for r in read_index(folder) if r.label == 0 and r.split == "train"], None)
    if not faces:
        raise InputError(f"{folder} has no real face in its train split: prepare one with real videos.")
    return faces


@contextmanager
def _opencv_threads(threads: int) -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _medians(pairs: Sequence[tuple[float, float]]) -> list[int]:
    return [int(value) for value in np.median(np.array(pairs), axis=0)]


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    p50, p90 = np.percentile(values, (50, 90))
    return {"p50": round(float(p50), 3), "p90": round(float(p90), 3), "mean": round(float(values.mean()), 3)}


def drawn_faces(folder: Path) -> list[FaceRecord]:
    """Store one drawn face as preparation would, and return its record: crop 720x621, face box 300x400."""
    image, landmarks, box = drawn_face(width=720, height=621, face=(210, 110, 510, 510))
    path = folder / "drawn.jpg"
    save_image(path, image)
    record = FaceRecord(
        path=path,
        video="drawn",
        identity=None,
        split="train",
        label=0,
        method="real",
        frame=0,
        time_s=0.0,
        face=0,
        box=box,
        landmarks=landmarks,
        origin=(280, 0),
        width=720,
        height=621,
    )
    return [record]


def drawn_face(
    *, width: int, height: int, face: tuple[int, int, int, int], seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32], tuple[float, float, float, float]]:
    """Draw a picture with the detail of a photograph and 81 landmarks where a face would have them.

    Args:
        width: Of the picture in pixels.
        height: Of the picture in pixels.
        face: x0, y0, x1, y1 of the face box.
        seed: Seed of the texture.

    Returns:
        RGB uint8 [height, width, 3]; landmarks float32 [81, 2] in the canonical order; the box.
    """
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), (178.0, 140.0, 120.0), np.float32)
    # Noise at octaves, fainter as it gets finer and mostly grey: about half a byte per pixel as JPEG, like
    # photographs of faces of this size.
    for step, strength in ((64, 25), (16, 10), (4, 4), (1, 1.2)):
        shape = (height // step + 2, width // step + 2)
        noise = rng.standard_normal((*shape, 1)) + 0.3 * rng.standard_normal((*shape, 3))
        picture += strength * cv2.resize(
            noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    x0, y0, x1, y1 = face
    landmarks = upright_landmarks() * np.array([x1 - x0, y1 - y0], np.float32)
    landmarks += np.array([x0, y0], np.float32)
    for eye in (landmarks[36:42], landmarks[42:48], landmarks[48:60]):
        cv2.fillConvexPoly(picture, np.round(eye).astype(np.int32), (70, 40, 40))
    box = (float(x0), float(y0), float(x1), float(y1))
    return np.clip(picture, 0, 255).astype(np.uint8), landmarks.astype(np.float32), box


def upright_landmarks() -> NDArray[np.float32]:
    """81 landmarks of a plain upright face, float32 [81, 2] in shares of its box; left and right mirror."""
    jaw = np.linspace(np.pi, 0, 17)
    brow = np.column_stack([np.linspace(0.12, 0.42, 5), 0.36 - np.array([0, 0.035, 0.045, 0.035, 0.01])])
    eye = np.array([[0.20, 0.43], [0.25, 0.41], [0.32, 0.41], [0.38, 0.435], [0.32, 0.45], [0.25, 0.45]])
    lips = np.linspace(np.pi, -np.pi, 13)[:12]
    inner = np.linspace(np.pi, -np.pi, 9)[:8]
    parts = [
        np.column_stack([0.5 + 0.49 * np.cos(jaw), 0.42 + 0.57 * np.sin(jaw)]),
        brow,
        _mirrored(brow[::-1]),
        np.column_stack([np.full(4, 0.5), np.linspace(0.42, 0.60, 4)]),
        np.column_stack([np.linspace(0.40, 0.60, 5), [0.645, 0.66, 0.67, 0.66, 0.645]]),
        eye,
        _mirrored(eye[[3, 2, 1, 0, 5, 4]]),
        np.column_stack([0.5 + 0.17 * np.cos(lips), 0.785 - 0.06 * np.sin(lips)]),
        np.column_stack([0.5 + 0.13 * np.cos(inner), 0.785 - 0.02 * np.sin(inner)]),
        np.column_stack([0.5 + 0.47 * np.cos(jaw[2:15]), 0.40 - 0.36 * np.sin(jaw[2:15])]),
    ]
    return np.concatenate(parts).astype(np.float32)


def _mirrored(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([1 - points[:, 0], points[:, 1]])
