"""Takes frames out of a video evenly in time, whatever its frame rate, rotation or damage.

A first pass reads only the packets' timestamps, which gives the exact presentation times without decoding;
a second decodes, jumping to the nearest key frame where that skips frames nobody asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.timeline import Stamp, Timeline

MAX_PIXELS = 40_000_000
MAX_DURATION_S = 7200.0

_CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,ivf,nut,mxf,wtv,rm"
"""Formats opened. Playlists (HLS, concat) are not: they make the reader open other files and addresses."""
_INDEXED = {"mov", "matroska"}
"""Formats (by the reader's name) whose index leads exactly to a key frame; others are read through."""
_WORTH_A_JUMP = 8
"""Frames a jump must save before it pays."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video's header says.

    Attributes:
        width: Width in pixels as stored, before any rotation.
        height: Height in pixels as stored.
        duration_s: Length in seconds; 0 where the header does not say.
        frames_estimate: Number of frames by the header, or length times rate; 0 where unknown.
        frame_rate: Average frames per second; 0 where unknown.
        codec: Name of the codec, such as "h264".
    """

    width: int
    height: int
    duration_s: float
    frames_estimate: int
    frame_rate: float
    codec: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        index: Its number in presentation order, from 0.
        time_s: Its presentation time in seconds after the first frame.
        image: RGB uint8 [H, W, 3], upright.
    """

    index: int
    time_s: float
    image: NDArray[np.uint8]


def probe(path: Path) -> VideoInfo:
    """Read a video's header; decodes nothing.

    Raises:
        InputError: No such file, empty, not a video, or without a picture stream.
    """
    with _opened(path) as (container, stream):
        return _info(container, stream)


def sample_frames(
    path: Path,
    count: int = 32,
    *,
    max_pixels: int = MAX_PIXELS,
    max_duration_s: float = MAX_DURATION_S,
    threads: int = 0,
) -> Iterator[Frame]:
    """Take frames at `count` moments evenly spaced from the first frame's time to the last one's.

    At each moment the frame on show then is taken, so that a constant rate gives the frame numbers
    floor(linspace(0, N - 1, count)) and a variable one still covers the time evenly. No frame is given twice:
    a video with fewer frames gives all it has. Of a damaged video comes what can be decoded; where a wanted
    frame cannot, the next one that can stands in.

    Args:
        path: The video file.
        count: Moments, at least 1; one moment means the first frame.
        max_pixels: Largest width times height of a frame, checked before decoding.
        max_duration_s: Longest video in seconds, checked before decoding.
        threads: Decoder threads; 0 leaves it to the decoder, processes working side by side want 1.

    Yields:
        Frames in time order.

    Raises:
        InputError: The file cannot be opened, is over a limit, or no wanted frame can be decoded.
    """
    if count < 1:
        raise InputError(f"At least one frame must be asked for, not {count}.")
    with _opened(path) as (container, stream):
        _check_limits(path, _info(container, stream), max_pixels, max_duration_s)
        timeline = _read_timeline(path, container, stream, max_duration_s)
    with _opened(path) as (container, stream):
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO" if threads != 1 else "SLICE"
        wanted = timeline.evenly(count)
        found = False
        for stamp, frame in _pick(_decoded(container, stream, timeline, wanted), wanted):
            found = True
            yield Frame(
                index=timeline.index(stamp),
                time_s=timeline.seconds(stamp),
                image=_upright(path, frame, max_pixels),
            )
    if not found:
        raise InputError(f"{path}: no frame could be decoded; the video is damaged or its codec is unknown.")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its picture stream (cover pictures of audio files do not count)."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: expected a video.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): expected a video.")
    try:
        container = av.open(str(path.absolute()), options={"format_whitelist": _CONTAINERS})
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be opened as a video ({reason}): it is damaged or not a video."
        ) from error
    with container:
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            raise InputError(f"{path} has no video stream: expected a file with pictures, not only sound.")
        yield container, streams[0]


def _info(container: InputContainer, stream: VideoStream) -> VideoInfo:
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    duration = 0.0
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / av.time_base
    context = stream.codec_context
    return VideoInfo(
        width=context.width,
        height=context.height,
        duration_s=max(0.0, duration),
        frames_estimate=stream.frames or max(0, round(duration * rate)),
        frame_rate=rate,
        codec=context.name,
    )


def _check_limits(path: Path, info: VideoInfo, max_pixels: int, max_duration_s: float) -> None:
    if info.width * info.height > max_pixels:
        raise InputError(
            f"{path} is {info.width}x{info.height} = {info.width * info.height:,} pixels a frame; "
            f"the limit is {max_pixels:,}. Scale it down."
        )
    if info.duration_s > max_duration_s:
        raise InputError(
            f"{path} lasts {info.duration_s:,.0f} s; the limit is {max_duration_s:,.0f} s. Cut it into parts."
        )


def _read_timeline(
    path: Path, container: InputContainer, stream: VideoStream, max_duration_s: float
) -> Timeline:
    """Read every packet's stamp without decoding; a cut-off file gives what is there."""
    unit = float(stream.time_base or Fraction(1, 1000))
    times: list[int | None] = []
    keys: list[bool] = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            times.append(packet.pts)
            keys.append(packet.is_keyframe)
            first = times[0]
            if packet.pts is not None and first is not None and (packet.pts - first) * unit > max_duration_s:
                raise InputError(
                    f"{path} lasts longer than the limit of {max_duration_s:,.0f} s. Cut it into parts."
                )
    except (av.FFmpegError, OSError):
        # The end of a damaged file: what came before it is used.
        pass
    if not times:
        raise InputError(f"{path} holds no frame: the video is damaged or was cut off.")
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return Timeline(list(range(len(times))), [], has_timestamps=False, unit_s=1.0 / rate)
    key_times = [time for time, is_key in zip(known, keys, strict=True) if is_key]
    return Timeline(sorted(set(known)), sorted(key_times), has_timestamps=True, unit_s=unit)


def _decoded(
    container: InputContainer, stream: VideoStream, timeline: Timeline, wanted: list[Stamp]
) -> Iterator[tuple[Stamp, VideoFrame]]:
    """Decode in presentation order up to the last wanted stamp, jumping over stretches nobody wants."""
    can_jump = any(name in _INDEXED for name in container.format.name.split(","))
    remaining = deque(wanted)
    position = timeline.stamps[0]
    jumped_for: Stamp | None = None
    while True:
        if can_jump and jumped_for != remaining[0]:
            jumped_for = remaining[0]
            _jump(container, stream, timeline, position, remaining[0])
        for number, frame in enumerate(_frames(container, stream)):
            stamp = frame.pts if timeline.has_timestamps else number
            if stamp is None:
                continue
            yield stamp, frame
            position = stamp
            while remaining and remaining[0] <= position:
                remaining.popleft()
            if not remaining:
                return
            if can_jump and jumped_for != remaining[0] and _pays(timeline, position, remaining[0]):
                break
        else:
            return


def _pays(timeline: Timeline, position: Stamp, target: Stamp) -> bool:
    """Whether a key frame lies far enough beyond `position` on the way to `target`."""
    key = timeline.key_before(target)
    return key is not None and timeline.index(key) - timeline.index(position) > _WORTH_A_JUMP


def _jump(
    container: InputContainer, stream: VideoStream, timeline: Timeline, position: Stamp, target: Stamp
) -> None:
    key = timeline.key_before(target)
    if key is not None and _pays(timeline, position, target):
        container.seek(key, stream=stream, backward=True)


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Decoded frames; a packet that cannot be decoded is passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            packet = None
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _pick(
    decoded: Iterator[tuple[Stamp, VideoFrame]], wanted: list[Stamp]
) -> Iterator[tuple[Stamp, VideoFrame]]:
    """Each wanted frame once; the first one decoded after it where it is missing itself."""
    place = 0
    for stamp, frame in decoded:
        if place < len(wanted) and stamp >= wanted[place]:
            yield stamp, frame
            while place < len(wanted) and wanted[place] <= stamp:
                place += 1


def _upright(path: Path, frame: VideoFrame, max_pixels: int) -> NDArray[np.uint8]:
    """The frame as RGB with the container's display matrix (rotations by 90 degrees, mirroring) applied."""
    if frame.width * frame.height > max_pixels:
        raise InputError(
            f"{path} changes to {frame.width}x{frame.height} pixels on the way; the limit is {max_pixels:,}."
        )
    image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(cast("bytes", matrix), dtype="=i4", count=5).tolist()
    # The matrix sends a stored pixel (x, y) to (a x + c y, b x + d y) on the screen.
    if abs(b) > abs(a):
        image, across, down = image.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    image = image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
    return np.ascontiguousarray(image)
