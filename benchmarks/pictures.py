"""Real frames with faces, as people upload them."""

from __future__ import annotations

import cv2

from pipeline import assets
from pipeline.video import sample_frames

_CLIPS = ("clip_01", "clip_02", "clip_03", "clip_04")


def jpeg_frames() -> list[bytes]:
    """Two frames of each of the demo's clips, 1280x720, as JPEG.

    Raises:
        InputError: The clips are not in the cache and cannot be fetched.
    """
    pictures = []
    for name in _CLIPS:
        for frame in sample_frames(assets.fetch(name), 2, threads=1):
            _, data = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            pictures.append(data.tobytes())
    return pictures
