"""Decodes one video in a process of its own, which may be killed, run out of memory or crash without harm.

Started as `python -m serving.video_child FD`. Over the Unix socket FD it gets one order (`Order` as JSON) with the
video as an open file, and sends back messages: a length, that many bytes of JSON, and for a frame its pixels.
"""

from __future__ import annotations

import itertools
import json
import resource
import socket
import sys
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.video import VideoInfo, probe, sample_frames
from serving.video_wire import LENGTH

_CPU_SLACK_S = 5


def main() -> None:
    """Serve one order and end."""
    with socket.socket(fileno=int(sys.argv[1])) as link:
        message, descriptors, _, _ = socket.recv_fds(link, 65536, 1)
        if not descriptors:
            return
        order = json.loads(message)
        _limit(order["memory"], order["cpu_s"])
        path = Path(f"/proc/self/fd/{descriptors[0]}")
        try:
            _decode(link, path, order)
        except InputError as error:
            _send(link, {"error": str(error).replace(str(path), "the video")})
        except MemoryError:
            _send(link, {"error": "the video needs more memory to decode than is allowed. Scale it down."})
        except BrokenPipeError:
            return


def _decode(link: socket.socket, path: Path, order: dict[str, Any]) -> None:
    info = probe(path)
    frames = sample_frames(
        path,
        order["count"],
        max_pixels=order["max_pixels"],
        max_duration_s=order["max_duration_s"],
        threads=order["threads"],
    )
    # a video over a limit, or of which nothing can be decoded, is refused before anything is said of it
    first = next(frames)
    _send(link, {"info": _facts(info)})
    for frame in itertools.chain([first], frames):
        height, width = frame.image.shape[:2]
        _send(link, {"index": frame.index, "time_s": frame.time_s, "height": height, "width": width})
        link.sendall(frame.image.data)
    _send(link, {"end": True})


def _facts(info: VideoInfo) -> dict[str, float]:
    return {"width": info.width, "height": info.height, "duration_s": info.duration_s}


def _send(link: socket.socket, message: dict[str, Any]) -> None:
    text = json.dumps(message).encode()
    link.sendall(LENGTH.pack(len(text)) + text)


def _limit(memory: int, cpu_s: float) -> None:
    """Bounds that the kernel keeps: memory, processor time, no file written, no core dumped."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    seconds = int(cpu_s) + _CPU_SLACK_S
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
