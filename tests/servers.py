"""Runs real servers for tests: one in a thread of the test process, or the command line in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import requests

from serving.run import DrainingServer
from serving.service import Service
from serving.settings import Settings
from tests.conftest import ROOT

T = TypeVar("T")


class ServerThread:
    """A server on a free port of the loopback."""

    def __init__(self, settings: Settings) -> None:
        self._started = threading.Event()
        self._error: BaseException | None = None
        self.settings = settings
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._started.wait(120)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - told to the test
            self._error = error
            self._started.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.service = await Service.open(self.settings)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            self.server = DrainingServer(self.service)
            self.loop.call_later(0.05, self._started.set)
            try:
                await self.server.serve(sockets=[listener])
            finally:
                await self.service.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)
        self.thread.join(30)
        assert not self.thread.is_alive()

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


class ServerProcess:
    """`stillface serve` as a person starts it."""

    def __init__(self, bundle: Path, *arguments: object) -> None:
        command = [sys.executable, str(ROOT / "stillface.py"), "serve", str(bundle), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.log: list[dict[str, Any]] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith("{"):
                raise AssertionError(line + self.process.stderr.read())
            self.log.append(json.loads(line))
            if self.log[-1]["message"] == "serving":
                break
        self.url = self.log[-1]["url"]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.log.append(json.loads(line))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def read_all(link: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    parts = []
    while part := link.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)


def post_image(url: str, data: bytes, kind: str = "image/png", **options: Any) -> requests.Response:
    headers = {"content-type": kind, **options.pop("headers", {})}
    return requests.post(f"{url}/v1/images", data=data, headers=headers, timeout=60, **options)
