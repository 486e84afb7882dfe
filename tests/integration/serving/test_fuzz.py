"""Mutated media: whatever comes, the answer is a result or a problem, and the server goes on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from tests.servers import ServerThread, post_image

pytestmark = pytest.mark.slow
PICTURES, VIDEOS = 40, 25
"""Mutants of each seed."""


def mutant(seed: bytes, chance: np.random.Generator) -> bytes:
    """A file with some of: bytes changed, a stretch cut out, repeated, zeroed or moved, the end lost."""
    data = bytearray(seed)
    for _ in range(int(chance.integers(1, 4))):
        start = int(chance.integers(0, max(1, len(data))))
        length = int(chance.integers(1, max(2, len(data) // 8)))
        kind = int(chance.integers(0, 6))
        # headers are where parsers live: half of all changes go there
        if chance.random() < 0.5:
            start, length = int(chance.integers(0, min(512, max(1, len(data))))), int(chance.integers(1, 16))
        piece = data[start : start + length]
        if kind == 0:
            data[start : start + length] = chance.bytes(len(piece))
        elif kind == 1:
            del data[start : start + length]
        elif kind == 2:
            data[start:start] = piece * int(chance.integers(1, 4))
        elif kind == 3:
            data[start : start + length] = bytes(len(piece))
        elif kind == 4:
            data[start : start + length] = b"\xff" * len(piece)
        else:
            del data[start:]
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_mutated_pictures(server: ServerThread, face_png: bytes, kind: str) -> None:
    picture = Image.open(io.BytesIO(face_png)).resize((160, 90))
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    chance = np.random.default_rng(list(kind.encode()))
    for number in range(PICTURES):
        data = mutant(buffer.getvalue(), chance)
        answer = post_image(server.url, data, "application/octet-stream")
        assert answer.status_code in (200, 422), (number, answer.text)
    assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 200


def test_mutated_videos(server: ServerThread, small_clip: Path) -> None:
    seed = small_clip.read_bytes()
    chance = np.random.default_rng(7)
    for number in range(VIDEOS):
        answer = requests.post(
            f"{server.url}/v1/videos?frames=3",
            data=mutant(seed, chance),
            headers={"content-type": "video/mp4"},
            timeout=60,
        )
        assert answer.status_code in (200, 202, 422), (number, answer.text)
    assert server.service.road.videos.inside == 0
    assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 200
