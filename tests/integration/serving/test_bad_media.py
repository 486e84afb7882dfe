"""Pictures and videos that are broken, strange or hostile: a clear answer each, and the server goes on."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image

from tests.integration.serving.conftest import encoded
from tests.servers import ServerThread, post_image, until

TIMEOUT = 60
Picture = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def still_well(server: ServerThread) -> Iterator[None]:
    """After whatever was sent, the server answers."""
    yield
    assert requests.get(f"{server.url}/readyz", timeout=TIMEOUT).status_code == 200


@pytest.fixture(scope="module")
def face(portraits: list[Picture]) -> Picture:
    return np.asarray(cv2.resize(portraits[0], (640, 360), interpolation=cv2.INTER_AREA), np.uint8)


def pillow(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def refused(answer: requests.Response, status: int, problem: str, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert told["type"] == f"/problems/{problem}"
    assert told["status"] == status
    assert told["request_id"] == answer.headers["x-request-id"]
    for word in words:
        assert word in told["detail"], told["detail"]
    return told


def png_bomb(width: int, height: int) -> bytes:
    """A PNG that claims so many pixels and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack("!I", len(data))
            + name
            + data
            + struct.pack("!I", zlib.crc32(name + data) & 0xFFFFFFFF)
        )

    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# --- pictures that cannot be used


def test_the_wrong_type_of_body(server: ServerThread, face_png: bytes) -> None:
    refused(post_image(server.url, face_png, "text/html"), 415, "unsupported-type", "text/html", "image/jpeg")
    refused(post_image(server.url, face_png, ""), 415, "unsupported-type", "no stated type")
    refused(post_image(server.url, face_png, "application/json"), 415, "unsupported-type")
    batch = requests.post(
        f"{server.url}/v1/batch", data=face_png, headers={"content-type": "image/png"}, timeout=TIMEOUT
    )
    refused(batch, 415, "unsupported-type", "multipart/form-data")


def test_nothing_at_all(server: ServerThread) -> None:
    refused(post_image(server.url, b""), 422, "invalid", "empty")
    empty = requests.post(f"{server.url}/v1/images", files={"file": ("a.png", b"")}, timeout=TIMEOUT)
    refused(empty, 422, "invalid", "a.png is empty")
    text = requests.post(f"{server.url}/v1/images", files={"note": (None, "hello")}, timeout=TIMEOUT)
    refused(text, 422, "invalid", "no file")


def test_a_form_that_is_none(server: ServerThread, face_png: bytes) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = post_image(server.url, face_png, kind)
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"
    two = [("file", ("a.png", face_png)), ("file", ("b.png", face_png))]
    refused(requests.post(f"{server.url}/v1/images", files=two, timeout=TIMEOUT), 400, "bad-request")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_off_pictures(server: ServerThread, face: Picture, kind: str) -> None:
    whole = pillow(face, kind)
    for share in (0.02, 0.5, 0.98):
        answer = post_image(server.url, whole[: int(share * len(whole))], f"image/{kind.lower()}")
        refused(answer, 422, "bad-image", "cannot be read as a picture")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_pictures(server: ServerThread, face: Picture, kind: str) -> None:
    whole = bytearray(pillow(face, kind))
    damage = np.random.default_rng(0)
    for place in damage.integers(len(whole) // 4, len(whole), 200):
        whole[place] ^= int(damage.integers(1, 256))
    answer = post_image(server.url, bytes(whole), f"image/{kind.lower()}")
    # JPEG has no checksum: damage may decode to something
    assert answer.status_code == 422 or (kind == "JPEG" and answer.status_code == 200)


def test_bombs_are_refused_by_their_header(server: ServerThread) -> None:
    started = time.perf_counter()
    for size in ((100_000, 100_000), (2**31 - 1, 2), (6400, 6400)):
        refused(post_image(server.url, png_bomb(*size)), 422, "bad-image")
    refused(post_image(server.url, png_bomb(6400, 6400)), 422, "bad-image", "40,960,000 pixels", "40,000,000")
    assert time.perf_counter() - started < 5


def test_a_picture_of_another_format(server: ServerThread) -> None:
    for data in (
        b"%PDF-1.4 nothing",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a",
        b"\x80\x04\x95pickle.",
        b"\0" * 1000,
    ):
        refused(post_image(server.url, data, "application/octet-stream"), 422, "bad-image")


def test_an_oversized_body(start: Callable[..., ServerThread], face_png: bytes) -> None:
    small = start(max_image_bytes=100_000)
    data = face_png + b"\0" * 200_000
    declared = post_image(small.url, data)
    refused(declared, 413, "too-large", "the limit here is 100,000")
    assert declared.headers["connection"] == "close"

    def trickle() -> Iterator[bytes]:
        for place in range(0, len(data), 10_000):
            yield data[place : place + 10_000]

    undeclared = requests.post(
        f"{small.url}/v1/images", data=trickle(), headers={"content-type": "image/png"}, timeout=TIMEOUT
    )
    refused(undeclared, 413, "too-large")
    form = requests.post(f"{small.url}/v1/images", files={"file": ("a.png", data)}, timeout=TIMEOUT)
    refused(form, 413, "too-large")
    assert small.service.road.images.inside == 0


# --- pictures that are strange and fine


def test_a_dot_and_a_strip(server: ServerThread) -> None:
    for shape in ((1, 1, 3), (10, 20_000, 3), (20_000, 10, 3)):
        answer = post_image(server.url, encoded(np.full(shape, 90, np.uint8)))
        assert answer.status_code == 200, answer.text
        assert answer.json()["verdict"] == "no_face"
        assert (answer.json()["height"], answer.json()["width"]) == shape[:2]


def test_the_same_face_in_every_form(server: ServerThread, face: Picture) -> None:
    expected = post_image(server.url, encoded(face)).json()["score"]
    deep = face.astype(np.uint16) * 257
    alpha = np.dstack([face, np.full(face.shape[:2], 255, np.uint8)])
    _, sixteen = cv2.imencode(".png", deep[..., ::-1])
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(face)))
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = {
        "16-bit": sixteen.tobytes(),
        "alpha": pillow(alpha, "PNG"),
        "EXIF rotation": pillow(turned, "PNG", exif=exif),
        "BMP": pillow(face, "BMP"),
        "TIFF": pillow(face, "TIFF"),
        "lossless WebP": pillow(face, "WEBP", lossless=True),
    }
    for name, data in forms.items():
        answer = post_image(server.url, data, "application/octet-stream")
        assert answer.json()["score"] == pytest.approx(expected, abs=1e-6), name


def test_forms_that_lose_something_still_show_the_face(server: ServerThread, face: Picture) -> None:
    picture = Image.fromarray(face)
    frames = [picture.convert("P", palette=Image.Palette.ADAPTIVE), Image.new("P", picture.size)]
    forms = {
        "CMYK": pillow(picture.convert("CMYK"), "JPEG", quality=98),
        "grey": pillow(picture.convert("L"), "JPEG", quality=98),
        "animated GIF": pillow(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }
    for name, data in forms.items():
        answer = post_image(server.url, data, "application/octet-stream")
        assert answer.status_code == 200, (name, answer.text)
        assert len(answer.json()["faces"]) == 1, name


def test_half_a_face_at_the_edge(server: ServerThread, face: Picture) -> None:
    box = post_image(server.url, encoded(face)).json()["faces"][0]["box"]
    middle = int((box[0] + box[2]) / 2) - 25
    result = post_image(server.url, encoded(np.ascontiguousarray(face[:, middle:]))).json()
    assert len(result["faces"]) == 1
    assert "cut off" in result["faces"][0]["quality"]["notes"]


# --- videos


def post_video(server: ServerThread, data: bytes, query: str = "", **headers: str) -> requests.Response:
    return requests.post(
        f"{server.url}/v1/videos{query}",
        data=data,
        headers={"content-type": "video/mp4", **headers},
        timeout=TIMEOUT,
    )


def video_of(
    frames: int, *, size: tuple[int, int] = (64, 48), apart_s: float = 0.04, kind: str = "mp4"
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("mpeg4" if kind == "mp4" else "libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 90, np.uint8), format="rgb24")
            frame.pts = round(number * apart_s * 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_a_video_that_is_none(server: ServerThread, face_png: bytes) -> None:
    refused(post_video(server, b"nothing at all"), 422, "bad-video", "not a video")
    refused(post_video(server, b""), 422, "invalid", "empty")
    refused(post_video(server, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), 422, "bad-video")
    refused(post_video(server, b"ffconcat version 1.0\nfile /etc/passwd\n"), 422, "bad-video")
    refused(post_video(server, face_png), 422, "bad-video")
    wrong = requests.post(
        f"{server.url}/v1/videos", data=b"x", headers={"content-type": "image/png"}, timeout=TIMEOUT
    )
    refused(wrong, 415, "unsupported-type")


def test_paths_stay_inside(server: ServerThread) -> None:
    told = refused(post_video(server, b"nothing at all"), 422, "bad-video")
    assert "/" not in told["detail"]
    named = requests.post(
        f"{server.url}/v1/images", files={"file": ("../../etc/passwd", b"no picture")}, timeout=TIMEOUT
    )
    assert "etc" not in refused(named, 422, "bad-image")["detail"]


def test_cut_off_and_damaged_videos(server: ServerThread, small_clip: Path) -> None:
    whole = small_clip.read_bytes()
    refused(post_video(server, whole[: len(whole) // 2]), 422, "bad-video")
    damaged = bytearray(whole)
    damage = np.random.default_rng(1)
    for place in damage.integers(len(whole) // 3, len(whole) * 2 // 3, 100):
        damaged[place] ^= int(damage.integers(1, 256))
    # what can be decoded is used
    assert post_video(server, bytes(damaged)).status_code in (200, 422)
    # a stream without an index can be cut off anywhere
    stream = video_of(50, kind="webm")
    half = post_video(server, stream[: len(stream) * 2 // 3])
    assert half.status_code == 200, half.text
    assert half.json()["verdict"] == "no_face"


def test_a_video_without_frames(server: ServerThread) -> None:
    whole = video_of(1, kind="webm")
    header_only = whole[: whole.index(b"\x1f\x43\xb6\x75")]
    refused(post_video(server, header_only), 422, "bad-video")


def test_a_video_of_sound_only(server: ServerThread) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refused(post_video(server, buffer.getvalue()), 422, "bad-video", "no video stream")


def test_a_video_of_ten_hours(server: ServerThread) -> None:
    refused(post_video(server, video_of(20, apart_s=1800)), 422, "bad-video", "lasts", "7,200 s")


def test_a_video_with_huge_frames(start: Callable[..., ServerThread]) -> None:
    small = start(max_video_pixels=100_000)
    refused(post_video(small, video_of(3, size=(640, 360))), 422, "bad-video", "230,400 pixels")


def test_too_many_frames_asked_for(server: ServerThread, small_clip: Path) -> None:
    data = small_clip.read_bytes()
    refused(post_video(server, data, "?frames=257"), 422, "invalid", "256 at most")
    refused(post_video(server, data, "?frames=0"), 422, "invalid")
    refused(post_video(server, data, "?operating_point=strict"), 422, "invalid", "there is: eer")


def test_a_video_that_takes_too_long_is_given_up(start: Callable[..., ServerThread], clip: Path) -> None:
    hasty = start(video_timeout_s=0.3)
    started = time.perf_counter()
    refused(post_video(hasty, clip.read_bytes(), "?frames=100"), 422, "bad-video", "took longer")
    assert time.perf_counter() - started < 10
    streamed = post_video(hasty, clip.read_bytes(), "?frames=100", accept="application/x-ndjson")
    last = json.loads(streamed.text.splitlines()[-1])
    assert last["event"] == "error"
    assert last["problem"]["type"] == "/problems/bad-video"
    until(lambda: hasty.service.road.videos.inside == 0)


def test_a_video_that_needs_too_much_memory(start: Callable[..., ServerThread]) -> None:
    tight = start(video_memory=256 << 20, max_video_pixels=40_000_000)
    data = video_of(2, size=(7680, 4320))
    refused(post_video(tight, data), 422, "bad-video")
    roomy = start(max_video_pixels=40_000_000)
    assert post_video(roomy, data).status_code == 200
