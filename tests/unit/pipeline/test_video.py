from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.video import probe, sample_frames

WIDTH, HEIGHT = 96, 64


def numbered_picture(number: int) -> NDArray[np.uint8]:
    """A flat picture whose brightness tells its number, with a bright top-left quarter to tell its turn."""
    picture = np.full((HEIGHT, WIDTH, 3), 20 + 2 * (number % 80), np.uint8)
    picture[: HEIGHT // 2, : WIDTH // 2] = 230
    return picture


def write_video(
    path: Path,
    stamps: Sequence[int],
    *,
    time_base: Fraction = Fraction(1, 30),
    codec: str = "libx264",
    gop: int = 12,
    rotation: int | None = None,
    mirrored: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=round(1 / time_base))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirrored)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def corner_brightness(image: NDArray[np.uint8]) -> list[bool]:
    """Which of the corners top-left, top-right, bottom-left, bottom-right is the bright one."""
    return [bool(image[y, x].mean() > 200) for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5))]


def shown_number(image: NDArray[np.uint8]) -> int:
    return round((float(image[-8:, -8:].mean()) - 20) / 2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".webm", ".ts", ".h264"])
def test_constant_rate_gives_linspace_frames_in_every_container(tmp_path: Path, suffix: str) -> None:
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(suffix, "libx264")
    path = write_video(tmp_path / f"clip{suffix}", range(61), codec=codec)
    frames = list(sample_frames(path, 7))
    assert [frame.index for frame in frames] == [0, 10, 20, 30, 40, 50, 60]
    rate = 25 if suffix == ".h264" else 30  # a bare stream has no clock; 25 is the reader's assumption
    assert [frame.time_s for frame in frames] == pytest.approx([n / rate for n in range(0, 61, 10)], abs=2e-3)
    assert [shown_number(frame.image) for frame in frames] == pytest.approx(
        [0, 10, 20, 30, 40, 50, 60], abs=1
    )


def test_variable_rate_is_sampled_evenly_in_time(tmp_path: Path) -> None:
    stamps = [*range(0, 100, 10), 1000, 2000, 3000, 4000]
    path = write_video(tmp_path / "vfr.mp4", stamps, time_base=Fraction(1, 1000))
    frames = list(sample_frames(path, 5))
    assert [frame.index for frame in frames] == [0, 10, 11, 12, 13]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 1, 2, 3, 4], abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("gop", [15, 250])
def test_jumping_over_frames_changes_no_pixel(tmp_path: Path, gop: int, threads: int, suffix: str) -> None:
    path = write_video(tmp_path / f"long{suffix}", range(600), gop=gop)
    with av.open(str(path)) as container:
        all_frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = list(sample_frames(path, 6, threads=threads))
    assert [frame.index for frame in frames] == np.linspace(0, 599, 6).astype(int).tolist()
    for frame in frames:
        np.testing.assert_array_equal(frame.image, all_frames[frame.index])


@pytest.mark.parametrize(
    ("rotation", "mirrored", "bright_corner", "shape"),
    [
        (0, False, 0, (HEIGHT, WIDTH)),
        (90, False, 2, (WIDTH, HEIGHT)),  # counter-clockwise: top-left goes to bottom-left
        (180, False, 3, (HEIGHT, WIDTH)),
        (270, False, 1, (WIDTH, HEIGHT)),
        (0, True, 1, (HEIGHT, WIDTH)),
        (180, True, 2, (HEIGHT, WIDTH)),
    ],
)
def test_rotation_metadata_is_applied(
    tmp_path: Path, rotation: int, mirrored: bool, bright_corner: int, shape: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "turned.mp4", range(5), rotation=rotation, mirrored=mirrored)
    frame = next(iter(sample_frames(path, 1)))
    assert frame.image.shape == (*shape, 3)
    assert frame.image.flags.c_contiguous
    assert corner_brightness(frame.image) == [corner == bright_corner for corner in range(4)]


def test_a_phone_video_upright_by_its_tkhd_matrix(tmp_path: Path) -> None:
    """The matrix that phones write for a clockwise quarter turn, put into the file by hand."""
    path = write_video(tmp_path / "phone.mp4", range(5))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    clockwise = [0, 0x10000, 0, -0x10000, 0, 0, HEIGHT << 16, 0, 0x40000000]
    data[matrix : matrix + 36] = struct.pack(">9i", *clockwise)
    path.write_bytes(data)
    frame = next(iter(sample_frames(path, 1)))
    assert frame.image.shape == (WIDTH, HEIGHT, 3)
    assert corner_brightness(frame.image) == [False, True, False, False]


@pytest.mark.parametrize(("written", "count", "expected"), [(1, 32, [0]), (3, 32, [0, 1, 2]), (3, 1, [0])])
def test_short_videos_give_each_frame_once(
    tmp_path: Path, written: int, count: int, expected: list[int]
) -> None:
    path = write_video(tmp_path / "short.mp4", range(written))
    assert [frame.index for frame in sample_frames(path, count)] == expected


def test_a_truncated_video_gives_what_decodes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mp4", range(100), options={"movflags": "faststart"})
    data = path.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 2 // 3])
    frames = list(sample_frames(cut, 10))
    assert 2 <= len(frames) <= 10
    assert frames[0].index == 0
    assert 20 < frames[-1].index < 99
    assert all(shown_number(frame.image) == pytest.approx(frame.index % 80, abs=2) for frame in frames)


def test_a_video_cut_off_before_its_index_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", range(100))  # an ordinary MP4 has its index at the end
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.mp4 cannot be opened as a video .*damaged or not a video"):
        list(sample_frames(path))


def test_a_damaged_middle_does_not_stop_the_run(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mp4", range(120), options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    middle = start + (len(data) - start) // 3
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    indices = [frame.index for frame in sample_frames(path, 12)]
    assert indices == sorted(set(indices))
    assert len(indices) >= 6
    assert indices[-1] > 100


def test_not_a_video_at_all(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("this is no video")
    with pytest.raises(InputError, match=r"notes\.mp4 cannot be opened as a video"):
        list(sample_frames(text))


def test_empty_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(InputError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        probe(empty)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mp4 is not a file"):
        list(sample_frames(tmp_path / "gone.mp4"))


def test_header_without_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mp4", range(30), options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    with pytest.raises(InputError, match=r"whole\.mp4"):
        list(sample_frames(path))


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        list(sample_frames(path))


def test_a_playlist_named_mp4_is_refused(tmp_path: Path) -> None:
    """Otherwise an uploaded text file makes the server open addresses and files of the sender's choice."""
    segment = write_video(tmp_path / "segment.ts", range(10))
    playlist = tmp_path / "upload.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{segment}\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match=r"upload\.mp4 cannot be opened"):
        list(sample_frames(playlist))
    listing = tmp_path / "listing.mp4"
    listing.write_text(f"ffconcat version 1.0\nfile {segment.name}\n")
    with pytest.raises(InputError, match=r"listing\.mp4 cannot be opened"):
        list(sample_frames(listing))


def test_limits_are_checked_before_decoding(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", range(61))
    with pytest.raises(InputError, match=r"96x64 = 6,144 pixels a frame; the limit is 6,000"):
        list(sample_frames(path, max_pixels=6000))
    with pytest.raises(InputError, match=r"lasts 2 s; the limit is 1 s"):
        list(sample_frames(path, max_duration_s=1.0))


def test_no_frames_asked_for(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", range(3))
    with pytest.raises(InputError, match="At least one frame"):
        list(sample_frames(path, 0))


def test_probe(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "clip.mp4", range(61)))
    assert (info.width, info.height, info.frames_estimate, info.codec) == (WIDTH, HEIGHT, 61, "h264")
    assert info.duration_s == pytest.approx(61 / 30, abs=1e-3)
    assert info.frame_rate == pytest.approx(30)
