"""How much of the bare network's speed is left behind the API, and what it does under three times its capacity."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks.http_load import Load, Request, closed_loop, open_loop
from benchmarks.machine import environment
from pipeline import assets
from pipeline.analysis import Analyser
from pipeline.bundle import open_bundle
from pipeline.errors import InputError
from pipeline.road import analyse_image
from pipeline.runtime import Crops, Runtime
from pipeline.video import sample_frames
from serving.artefacts import Opened, open_best
from serving.tensors import HEAD_LENGTH

AT_ONCE = 16
BATCH = 16
_ROOT = Path(__file__).resolve().parent.parent
_TOLERANCE = 1e-4
_CLIPS = ("clip_01", "clip_02", "clip_03", "clip_04")


class Server:
    """`stillface serve` in a process of its own."""

    def __init__(self, bundle: Path, artefact: str, settings: Sequence[str]) -> None:
        command = [
            sys.executable,
            "-m",
            "serving",
            "serve",
            str(bundle),
            "--port",
            "0",
            "--artefact",
            artefact,
        ]
        for pair in settings:
            command += ["--set", pair]
        started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(_ROOT)}
        )
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        for line in self._process.stderr:
            if '"message": "serving"' in line:
                self.port = int(json.loads(line)["url"].rpartition(":")[2])
                break
        else:
            raise InputError(f"The server did not start: {' '.join(command)}")
        while not self._answers("/readyz"):
            time.sleep(0.01)
        self.seconds_to_ready = time.perf_counter() - started
        # nobody reads its log: it must not block on a full pipe
        self._reader = subprocess.Popen(
            [sys.executable, "-c", "import sys\nfor _ in sys.stdin: pass"], stdin=self._process.stderr
        )

    def memory(self) -> int:
        """Resident bytes of the server's own process."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(60)
        self._reader.wait(10)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def run(
    bundle: Path,
    *,
    artefact: str | None,
    seconds: float,
    rounds: int,
    overload_seconds: float,
    requests: int,
    settings: Sequence[str],
) -> dict[str, Any]:
    """Measure a bundle's server against its bare network, in turns, on this machine.

    Args:
        bundle: The bundle.
        artefact: Its form; None: the fastest that runs here.
        seconds: Length of one measurement.
        rounds: How often bare and served are measured in turn.
        overload_seconds: Length of the overload at three times the capacity; 0 leaves it out.
        requests: Requests sent to see whether memory grows; 0 leaves it out.
        settings: key=value of the server.

    Raises:
        InputError: The bundle, an asset or the server cannot be had.
    """
    opened_bundle = open_bundle(bundle)
    threads = len(os.sched_getaffinity(0))
    opened = open_best(opened_bundle, artefact, threads=threads)
    cv2.setNumThreads(threads)
    analyser = Analyser(opened_bundle)
    pictures = _pictures()
    crops = np.concatenate([analyser.look(_decoded(data)).crops[:1] for data in pictures])
    roads = {
        "tensors": _tensor_requests(crops, opened.runtime),
        "images": _image_requests(analyser, opened.runtime, pictures),
    }
    bare: dict[str, Callable[[float], float]] = {
        "tensors": lambda span: _bare_batches(opened, crops, span),
        "images": lambda span: _bare_images(analyser, opened.runtime, pictures, span),
    }
    server = Server(bundle, opened.artefact.name, settings)
    try:
        result: dict[str, Any] = {
            **environment(),
            "bundle": opened_bundle.manifest.id,
            "network": opened_bundle.manifest.network.name,
            "image_size": opened_bundle.manifest.network.image_size,
            "artefact": opened.artefact.name,
            "runtime": opened.runtime.label,
            "threads": threads,
            "settings": list(settings),
            "seconds_to_ready": round(server.seconds_to_ready, 2),
            "memory_mib_at_start": _mib(server.memory()),
        }
        for name, road in roads.items():
            result[name] = _compare(server, road, bare[name], seconds, rounds)
        if overload_seconds:
            result["overload"] = _overload(server, roads["images"], overload_seconds)
        if requests:
            result["growth"] = _growth(server, roads["images"], requests)
        result["memory_mib_at_end"] = _mib(server.memory())
    finally:
        server.close()
    return result


def markdown(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [
        f"{result['network']} at {result['image_size']} px, {result['artefact']} in {result['runtime']}, "
        f"{result['threads']} threads, load average {result['load_average']}:",
        f"ready after {result['seconds_to_ready']} s, {result['memory_mib_at_start']} MiB resident, "
        f"{result['memory_mib_at_end']} MiB at the end",
    ]
    for name in ("tensors", "images"):
        part = result[name]
        lines.append(
            f"{name}: {part['share_of_bare']:.0%} of the bare road's {part['bare_per_second']:.1f} a second at "
            f"{AT_ONCE} at once; alone {part['added_ms_alone']:+.1f} ms over the bare {part['bare_ms_alone']:.1f} ms"
        )
    if "overload" in result:
        part = result["overload"]
        lines.append(
            f"overload at {part['offered_per_second']:.0f} a second: {part['statuses']}, {part['wrong']} wrong, "
            f"p99 of accepted {part['p99_over_capacity']:.2f} times that at capacity"
        )
    if "growth" in result:
        lines.append(
            f"memory over {result['growth']['requests']} requests: {result['growth']['grown_mib']:+} MiB"
        )
    return "\n".join(lines)


def _compare(
    server: Server, road: Sequence[Request], bare: Callable[[float], float], seconds: float, rounds: int
) -> dict[str, Any]:
    """Bare and served in turns, so that what else the machine does falls on both alike."""
    shares, added, bare_rates, alone_ms = [], [], [], []
    busy: Load | None = None
    bare(0.5)
    for _ in range(rounds):
        bare_rate = bare(seconds)
        busy = asyncio.run(closed_loop(server.port, road, AT_ONCE, seconds))
        shares.append(busy.throughput / bare_rate)
        bare_rates.append(bare_rate)
        single = asyncio.run(closed_loop(server.port, road, 1, seconds))
        again = bare(seconds)
        bare_ms = 1000 / ((bare_rate + again) / 2)
        alone_ms.append(bare_ms)
        added.append((single.percentile(0.5) or float("nan")) - bare_ms)
    if busy is None:
        raise InputError("at least one round is needed")
    return {
        "share_of_bare": median(shares),
        "shares": shares,
        "bare_per_second": median(bare_rates),
        "bare_ms_alone": median(alone_ms),
        "added_ms_alone": median(added),
        "busy": busy.summary(),
    }


def _overload(server: Server, road: Sequence[Request], seconds: float) -> dict[str, Any]:
    """Three times what it can do, against what it does when just busy."""
    at_capacity = asyncio.run(closed_loop(server.port, road, AT_ONCE, max(5.0, seconds / 6)))
    offered = 3 * at_capacity.throughput
    load = asyncio.run(open_loop(server.port, road, offered, seconds))
    own, usual = load.percentile(0.99), at_capacity.percentile(0.99)
    return {
        **load.summary(),
        "offered_per_second": offered,
        "at_capacity": at_capacity.summary(),
        "p99_over_capacity": (own or float("nan")) / (usual or float("nan")),
    }


def _growth(server: Server, road: Sequence[Request], requests: int) -> dict[str, Any]:
    """Resident memory after a warm-up of a tenth of the requests, and after all of them."""

    async def send(count: int) -> Load:
        total = Load()
        while len(total.accepted) < count:
            part = await closed_loop(server.port, road, AT_ONCE, 2.0)
            total.accepted += part.accepted
            total.statuses += part.statuses
        return total

    asyncio.run(send(requests // 10))
    before = server.memory()
    load = asyncio.run(send(requests - requests // 10))
    statuses = {str(status): count for status, count in load.statuses.items()}
    grown = _mib(server.memory()) - _mib(before)
    return {
        "requests": requests,
        "before_mib": _mib(before),
        "grown_mib": round(grown, 1),
        "statuses": statuses,
    }


def _bare_batches(opened: Opened, crops: Crops, seconds: float) -> float:
    """Crops a second of the runtime alone, in full batches."""
    size = min(BATCH, opened.artefact.max_batch or BATCH)
    batch = np.concatenate([crops] * -(-size // len(crops)))[:size]
    return _rate(lambda: opened.runtime.run(batch), seconds) * size


def _bare_images(analyser: Analyser, runtime: Runtime, pictures: Sequence[bytes], seconds: float) -> float:
    """Pictures a second through decode, find, crop and infer, one after the other, all cores for each stage."""
    turn = iter(range(1 << 60))
    return _rate(lambda: analyse_image(analyser, runtime, pictures[next(turn) % len(pictures)]), seconds)


def _rate(work: Callable[[], object], seconds: float) -> float:
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - started)


def _tensor_requests(crops: Crops, runtime: Runtime) -> list[Request]:
    logits = runtime.run(crops).logits
    requests = []
    for crop, expected in zip(crops, logits, strict=True):
        tensor = {"name": "crops", "shape": [1, *crop.shape], "datatype": "UINT8"}
        parameters = {"parameters": {"binary_data_size": crop.nbytes}}
        head = json.dumps({"inputs": [{**tensor, **parameters}], "outputs": [{"name": "logits"}]}).encode()

        def right(body: bytes, expected: Any = expected) -> bool:
            return bool(np.allclose(json.loads(body)["outputs"][0]["data"], expected, atol=_TOLERANCE))

        headers = {HEAD_LENGTH: str(len(head))}
        requests.append(Request.post("/v2/models/stillface/infer", head + crop.tobytes(), headers, right))
    return requests


def _image_requests(analyser: Analyser, runtime: Runtime, pictures: Sequence[bytes]) -> list[Request]:
    requests = []
    for data in pictures:
        expected = analyse_image(analyser, runtime, data).conclusion.aggregate.score

        def right(body: bytes, expected: Any = expected) -> bool:
            return bool(abs(json.loads(body)["score"] - expected) <= _TOLERANCE)

        requests.append(Request.post("/v1/images", data, {"content-type": "image/jpeg"}, right))
    return requests


def _pictures() -> list[bytes]:
    """Real frames as JPEG, 1280x720."""
    pictures = []
    for name in _CLIPS:
        for frame in sample_frames(assets.fetch(name), 2, threads=1):
            _, data = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            pictures.append(data.tobytes())
    return pictures


def _decoded(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _mib(size: int) -> float:
    return round(size / (1 << 20), 1)
