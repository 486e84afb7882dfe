"""Finds the 81 face landmarks that self-blending draws its masks from, with MediaPipe's 478-point face mesh.

Preparation only: nothing that is served needs landmarks. The canonical order is iBUG's 68 points (0 is the
jaw at image-left ear height, 8 the chin, 16 the jaw at image-right), then 13 forehead points from the
image-left ear side over the hairline to the image-right ear side. "Image-left" is meant for an upright face.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import assets
from pipeline.errors import InputError
from pipeline.faces import Face

CANONICAL_POINTS = 81

_MESH_POINTS = 478
_INPUT_SIDE = 256
_REGION = 1.4
"""Side of the square shown to the mesh, as a multiple of the face box's longer side.

Against the mesh's own fixed point (its region drawn from its own landmarks, three passes) the mean landmark
shift of one pass, over the distance of the outer eye corners, has these medians on 40 portraits: 1.0: 2.7 %,
1.25: 1.0 %, 1.4: 0.9 %, 1.5: 1.4 %, 1.75: 3.4 %.
"""
_LEAST_PRESENCE = 0.5

# Mesh vertices along the face's outline from ear height to the chin; iBUG spaces its jaw points evenly there.
_JAW_LEFT = (127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152)
_JAW_RIGHT = (152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)
_JAW_STEPS = 9
# Mesh vertices of iBUG 17..67, chosen by their place on the mesh and checked by drawing them on faces.
_INNER = (
    *(70, 63, 105, 66, 107),  # 17-21 brow at image-left, outer end first
    *(336, 296, 334, 293, 300),  # 22-26 brow at image-right, inner end first
    *(168, 197, 195, 4),  # 27-30 nose bridge, down to the tip
    *(98, 97, 2, 326, 327),  # 31-35 under the nose
    *(33, 160, 158, 133, 153, 144),  # 36-41 eye at image-left
    *(362, 385, 387, 263, 373, 380),  # 42-47 eye at image-right
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # 48-59 outer lips
    *(78, 82, 13, 312, 308, 317, 14, 87),  # 60-67 inner lips
)
_FOREHEAD = (162, 21, 54, 103, 67, 109, 10, 338, 297, 332, 284, 251, 389)


class Landmarker:
    """The face mesh on one thread, loaded on first use; each worker process needs its own.

    Args:
        model: The mesh's .tflite file; by default the asset "face_landmarker".
    """

    def __init__(self, model: Path | None = None) -> None:
        self._model = model
        self._interpreter: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_interpreter": None}

    def find(self, image: NDArray[np.uint8], face: Face) -> NDArray[np.float32] | None:
        """Find the landmarks of one face.

        Args:
            image: RGB uint8 [H, W, 3].
            face: A face found in that image.

        Returns:
            float32 [81, 2], x and y in image pixels, canonical order; parts beyond the image's edge are
            guessed and may lie outside. None when the mesh sees no face there (presence below 0.5).

        Raises:
            InputError: The model file is missing or not the face mesh.
        """
        to_input = _to_input(face)
        region = cv2.warpAffine(image, to_input, (_INPUT_SIDE, _INPUT_SIDE), flags=cv2.INTER_LINEAR)
        mesh, presence = self._run(region.astype(np.float32) / 255.0)
        if not presence >= _LEAST_PRESENCE or not np.isfinite(mesh).all():
            return None
        back = cv2.invertAffineTransform(to_input)
        return canonical_from_mesh((mesh @ back[:, :2].T + back[:, 2]).astype(np.float32))

    def _run(self, region: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Mesh points [478, 2] in input pixels and the presence (0..1)."""
        if self._interpreter is None:
            self._interpreter = _load(self._model or assets.fetch("face_landmarker"))
        interpreter = self._interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], region[None])
        interpreter.invoke()
        points, presence, *_ = (interpreter.get_tensor(item["index"]) for item in _outputs(interpreter))
        logit = float(presence.reshape(()))
        mesh = points.reshape(_MESH_POINTS, 3)[:, :2]
        return mesh, 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, logit))))


def canonical_from_mesh(mesh: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn the mesh's points into the canonical 81.

    Args:
        mesh: float32 [478, 2] (or the 468 without irises).

    Returns:
        float32 [81, 2] in the same coordinates.
    """
    left = _evenly_along(mesh[list(_JAW_LEFT)], _JAW_STEPS)
    right = _evenly_along(mesh[list(_JAW_RIGHT)], _JAW_STEPS)[1:]
    return np.concatenate([left, right, mesh[list(_INNER)], mesh[list(_FOREHEAD)]]).astype(np.float32)


def _evenly_along(line: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """`count` points at equal distances along a line of points, both ends included."""
    lengths = np.linalg.norm(np.diff(line, axis=0), axis=1)
    walked = np.concatenate([[0.0], np.cumsum(lengths)])
    stops = np.linspace(0.0, walked[-1], count)
    axes = [np.interp(stops, walked, line[:, axis]) for axis in (0, 1)]
    return np.stack(axes, axis=1).astype(np.float32)


def _to_input(face: Face) -> NDArray[np.float64]:
    """Affine [2, 3] from image pixels to the mesh's input: the face centred, its eyes on a level line."""
    x0, y0, x1, y1 = face.box
    across = (face.points[1] - face.points[0]).astype(np.float64)
    angle = math.atan2(across[1], across[0])
    scale = _INPUT_SIDE / (_REGION * max(x1 - x0, y1 - y0))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    return np.column_stack([turn, _INPUT_SIDE / 2 - turn @ centre])


def _load(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    if not path.is_file():
        raise InputError(f"Landmark model {path} is not a file; expected MediaPipe's face mesh (.tflite).")
    try:
        with _native_log_silenced():
            interpreter = Interpreter(model_path=str(path), num_threads=1)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be loaded as a face mesh (.tflite): {error}.") from error
    shapes = [tuple(item["shape"]) for item in _outputs(interpreter)]
    if len(shapes) < 2 or shapes[0] != (1, 1, 1, 3 * _MESH_POINTS) or math.prod(shapes[1]) != 1:
        raise InputError(f"{path} is not MediaPipe's 478-point face mesh: its outputs are {shapes}.")
    return interpreter


def _outputs(interpreter: Any) -> list[dict[str, Any]]:
    """Outputs in the graph's order: points, presence, and one that is not used."""
    return sorted(interpreter.get_output_details(), key=lambda item: str(item["name"]))


@contextmanager
def _native_log_silenced() -> Iterator[None]:
    """Keep the runtime's greeting, which it writes past Python, from tearing the progress display apart."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
