"""The servers that are measured, each in a process of its own: ours, and LitServe with the same ONNX file."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipeline.errors import InputError

_ROOT = Path(__file__).resolve().parent.parent
_LONGEST_START_S = 120.0
_SETTLED_S, _IDLE = 1.0, 0.05
"""A server that took less than this share of a processor for so many seconds does nothing."""


class Process:
    """A server in a process of its own, started and ready.

    Attributes:
        port: Where it listens on the loopback.
        seconds_to_ready: From the start of the process to the first answer that says so.
    """

    def __init__(self, command: Sequence[str], ready: str, port: int | None = None) -> None:
        started = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if port is None else subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        self.port = self._port_in_log(command) if port is None else port
        while not self._answers(ready):
            if self._process.poll() is not None or time.perf_counter() - started > _LONGEST_START_S:
                self.close()
                raise InputError(f"The server did not start: {' '.join(command)}")
            time.sleep(0.01)
        self.seconds_to_ready = time.perf_counter() - started

    def memory(self) -> int:
        """Resident bytes of the process and of those it started."""
        own = psutil.Process(self._process.pid)
        return sum(int(process.memory_info().rss) for process in [own, *own.children(recursive=True)])

    def memory_of_itself(self) -> int:
        """Resident bytes without the processes it started (of ours: decoders of videos)."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def processor_seconds(self) -> float:
        """Processor time of the process so far, all cores together, without the processes it started."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def settle(self) -> None:
        """Wait until it does nothing any more: after it is ready, ours tries batch sizes."""
        quiet_since, spent = time.perf_counter(), self.processor_seconds()
        while time.perf_counter() - quiet_since < _SETTLED_S:
            time.sleep(0.05)
            now = self.processor_seconds()
            if now - spent > _IDLE * _SETTLED_S:
                quiet_since, spent = time.perf_counter(), now

    def close(self) -> None:
        """Stop it."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()

    def _port_in_log(self, command: Sequence[str]) -> int:
        log = self._process.stderr
        assert log is not None  # noqa: S101 - a pipe was asked for
        for line in log:
            if '"message": "serving"' in line:
                break
        else:
            raise InputError(f"The server did not start: {' '.join(command)}")
        # nobody reads its log: it must not block on a full pipe
        subprocess.Popen([sys.executable, "-c", "import sys\nfor _ in sys.stdin: pass"], stdin=log)
        return int(json.loads(line)["url"].rpartition(":")[2])

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def start_ours(bundle: Path, artefact: str, settings: Sequence[str]) -> Process:
    """`stillface serve` on a free port.

    Raises:
        InputError: It does not start.
    """
    pairs = [word for pair in settings for word in ("--set", pair)]
    command = ["-m", "serving", "serve", str(bundle), "--port", "0", "--artefact", artefact, *pairs]
    return Process(command, "/readyz")


def has_litserve() -> bool:
    """Whether LitServe is installed."""
    return importlib.util.find_spec("litserve") is not None


def start_litserve(bundle: Path, artefact: str, road: str, *, threads: int, batch: int) -> Process:
    """LitServe with `benchmarks.litserve_rival` on a free port.

    Raises:
        InputError: It does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--threads", str(threads), "--batch", str(batch)]
    command = ["-m", "benchmarks.litserve_rival", str(bundle), artefact, road, *options]
    return Process(command, "/health", port)
