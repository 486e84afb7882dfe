"""A process that measures one thing and nothing else: takes orders as JSON lines, gives answers as JSON lines.

It imports nothing heavy by itself, so that what it is asked to open is measured from a clean start.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks import resident

_WARM_UP_SECONDS: Final = 0.5
_LEAST_WARM_UP, _MOST_WARM_UP = 2, 30


class Held:
    """What is open between orders."""

    def __init__(self) -> None:
        self.contender: Any = None
        self.way: Any = None
        self.side = 0
        self.base = 0
        self.timers: dict[int, Callable[[], float]] = {}

    def timer(self, batch: int) -> Callable[[], float]:
        """For crops of noise, the same ones every time."""
        if batch not in self.timers:
            rng = np.random.default_rng(batch)
            crops = rng.integers(0, 256, (batch, self.side, self.side, 3), dtype=np.uint8)
            self.timers[batch] = self.contender.timer(crops)
        return self.timers[batch]


def open_network(
    held: Held, way: str, files: dict[str, str], image_size: int, threads: int
) -> dict[str, Any]:
    """Open a network, warm it up with single crops, and say what memory that took and how long one crop takes."""
    from benchmarks.contenders import load_library, open_way
    from benchmarks.ways import WAYS

    held.way, held.side = WAYS[way], image_size
    load_library(held.way)
    held.base = resident.now()
    can_reset = resident.reset_peak()
    begun = time.perf_counter()
    held.contender = open_way(held.way, files, threads)
    memory = {"opening": resident.peak() - held.base}
    resident.reset_peak()
    timer = held.timer(1)
    spent = 0.0
    times: list[float] = []
    while len(times) < _LEAST_WARM_UP or (spent < _WARM_UP_SECONDS and len(times) < _MOST_WARM_UP):
        times.append(timer())
        spent += times[-1]
        if len(times) == 1:
            ready = time.perf_counter() - begun
    if can_reset:
        memory["running_1"] = resident.peak() - held.base
    return {
        "label": held.contender.label,
        "seconds": min(times),
        "ready_seconds": ready,
        "memory": memory | _on_device(held),
    }


def time_calls(held: Held, batch: int, calls: int) -> dict[str, Any]:
    """Seconds of each call, and processor seconds of all cores over all of them."""
    timer = held.timer(batch)
    used = time.process_time()
    wall = [timer() for _ in range(calls)]
    return {"wall": wall, "processor": time.process_time() - used}


def memory(held: Held) -> dict[str, int]:
    """Bytes at most since the network was opened, over what the process had before."""
    found = {"running": resident.peak() - held.base}
    if device := _on_device(held):
        found["torch_peak_batches"] = device["torch_peak"]
    return found


def energy(held: Held, batch: int, seconds: float) -> dict[str, Any]:
    """Joules of the whole GPU per crop, by the counter in it, while full batches follow each other so long."""
    import pynvml

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    timer = held.timer(batch)
    crops = 0
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        timer()
        crops += batch
    used = pynvml.nvmlDeviceGetTotalEnergyConsumption(device) - before
    pynvml.nvmlShutdown()
    return {"joules": used / 1000 / crops}


def _on_device(held: Held) -> dict[str, int]:
    if held.way.device != "cuda" or held.way.file != "torch":
        return {}
    from benchmarks.torch_ways import device_memory

    return device_memory(held.contender.weights)


def make(held: Held, **arguments: Any) -> dict[str, Any]:  # noqa: ARG001 - every order has the same form
    """See `benchmarks.making.make`."""
    from benchmarks import making

    return making.make(**arguments)


def train(held: Held, **arguments: Any) -> dict[str, Any]:  # noqa: ARG001
    """See `benchmarks.training_cost.measure`."""
    from benchmarks import training_cost

    return training_cost.measure(**arguments)


def walk(held: Held, **arguments: Any) -> dict[str, Any]:  # noqa: ARG001
    """See `benchmarks.end_to_end.measure`."""
    from benchmarks import end_to_end

    return end_to_end.measure(**arguments)


ORDERS: Final[dict[str, Callable[..., Any]]] = {
    "open": open_network,
    "time": time_calls,
    "memory": memory,
    "energy": energy,
    "make": make,
    "train": train,
    "walk": walk,
}


def _load_ahead(way: str) -> None:
    """Load a way's libraries before the first order; what is missing is told when the network is opened."""
    from benchmarks.contenders import load_library
    from benchmarks.ways import WAYS

    with contextlib.suppress(Exception):
        load_library(WAYS[way])


def main() -> None:
    """Answer orders until the input ends."""
    # libraries print: what they say goes where errors go
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    held = Held()
    if len(sys.argv) > 1:
        _load_ahead(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"done": ORDERS[order.pop("do")](held, **order)}
        except Exception as error:  # noqa: BLE001 - what cannot be measured says why, and the others go on
            first = str(error).strip().partition("\n")[0]
            answer = {"failed": first if type(error).__name__.endswith("Error") and first else repr(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
