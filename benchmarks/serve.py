"""What is left of the bare network's speed behind the API, beside LitServe, and at three times what it can do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.http_load import Connection, Load, Request, closed_loop, open_loop, run_loop
from benchmarks.machine import environment
from benchmarks.serve_processes import Process, has_litserve, start_litserve, start_ours
from benchmarks.serve_roads import BATCH, Bare, Road, open_bare
from pipeline.bundle import open_bundle
from training.run_folder import version_of

AT_ONCE = 16
ROADS = ("tensors", "tensors-by-8", "images")
_RESAMPLES = 2000
_AT_CAPACITY = 1 / 3
"""Length of the run at capacity, as a share of the overload's."""


def run(
    bundle: Path,
    *,
    artefact: str | None,
    seconds: float,
    rounds: int,
    alone: int,
    overload_seconds: float,
    requests: int,
    rival: bool,
    settings: Sequence[str],
) -> dict[str, Any]:
    """Measure a bundle's server against its bare network and LitServe, in turns, on this machine.

    Args:
        bundle: The bundle.
        artefact: Its form; None: the fastest that runs here.
        seconds: Length of one measurement with 16 requests at once.
        rounds: How often bare, served and rival are measured in turn.
        alone: Requests sent one at a time, each beside the same work done bare.
        overload_seconds: Length of the overload at three times the capacity; 0 leaves it out.
        requests: Requests sent to see whether memory grows; 0 leaves it out.
        rival: Measure LitServe too, where it is installed.
        settings: key=value of the server.

    Raises:
        InputError: The bundle, an asset or a server cannot be had.
    """
    opened = open_bundle(bundle)
    bare = open_bare(opened, artefact)
    server = start_ours(bundle, bare.artefact, settings)
    try:
        server.settle()
        result: dict[str, Any] = {
            **environment(),
            "bundle": opened.manifest.id,
            "network": opened.manifest.network.name,
            "image_size": opened.manifest.network.image_size,
            "artefact": bare.artefact,
            "runtime": bare.runtime.label,
            "threads": bare.threads,
            "settings": list(settings),
            "litserve": version_of("litserve") if rival and has_litserve() else None,
            "seconds_to_ready": round(server.seconds_to_ready, 2),
            "memory_mib_at_start": _mib(server.memory_of_itself()),
        }
        for road in bare.roads:
            with _rival(bundle, bare, road, rival) as other:
                result[road.name] = {
                    **_at_once(server, other, road, seconds, rounds),
                    "alone": run_loop(_alone(server.port, road, alone)),
                }
        pictures = bare.roads[-1].requests
        if overload_seconds:
            result["overload"] = _overload(server, pictures, overload_seconds)
        if requests:
            result["growth"] = _growth(server, pictures, requests)
        result["memory_mib_at_end"] = _mib(server.memory_of_itself())
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
    for name in ROADS:
        part, alone = result[name], result[name]["alone"]
        lines.append(
            f"{name}: {_percent(part['share_of_bare'])} of the bare road's {part['bare_per_second']:.1f} a second at "
            f"{AT_ONCE} at once; alone {_spread(alone['added_ms'], '+.1f')} ms over the bare {alone['bare_ms']:.1f} ms"
        )
        if "litserve" in part:
            lines.append(
                f"{name}: {_spread(part['over_litserve'], '.2f')} times LitServe's "
                f"{part['litserve']['per_second']:.1f} a second; p99 {part['busy']['ms']['p99']:.0f} ms, "
                f"LitServe's {part['litserve']['ms']['p99']:.0f} ms"
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


@contextlib.contextmanager
def _rival(bundle: Path, bare: Bare, road: Road, wanted: bool) -> Iterator[Process | None]:
    if not wanted or not road.rivals or not has_litserve():
        yield None
        return
    other = start_litserve(bundle, bare.artefact, road.name, threads=bare.threads, batch=BATCH)
    try:
        yield other
    finally:
        other.close()


def _at_once(
    server: Process, other: Process | None, road: Road, seconds: float, rounds: int
) -> dict[str, Any]:
    """Bare, served and rival in turns, so that what else the machine does falls on all alike."""
    bare_rates: list[float] = []
    ours: list[Load] = []
    theirs: list[Load] = []
    road.at_once(0.5)
    costs: dict[str, list[float]] = {"bare": [], "server": [], "client": []}

    def bare() -> float:
        started, used = time.perf_counter(), time.process_time()
        rate = road.at_once(seconds / 2)
        costs["bare"].append((time.process_time() - used) / (rate * (time.perf_counter() - started)))
        return rate

    for _ in range(rounds):
        before = bare()
        used, served = time.process_time(), server.processor_seconds()
        ours.append(run_loop(closed_loop(server.port, road.requests, AT_ONCE, seconds)))
        items = max(1, len(ours[-1].accepted) * road.items)
        costs["client"].append((time.process_time() - used) / items)
        costs["server"].append((server.processor_seconds() - served) / items)
        bare_rates.append((before + bare()) / 2)
        if other is not None:
            theirs.append(run_loop(closed_loop(other.port, road.rivals, AT_ONCE, seconds)))
    rates = np.array([load.throughput * road.items for load in ours])
    result = {
        "share_of_bare": _interval(rates / bare_rates),
        "bare_per_second": float(np.median(bare_rates)),
        "processor_ms": {name: float(np.median(values) * 1000) for name, values in costs.items()},
        "busy": Load.of(ours).summary(),
    }
    if theirs:
        result["over_litserve"] = _interval(rates / [load.throughput for load in theirs])
        result["litserve"] = Load.of(theirs).summary()
        result["litserve_mib"] = _mib(other.memory()) if other is not None else None
    return result


async def _alone(port: int, road: Road, count: int) -> dict[str, Any]:
    """One request at a time, each beside the same work done here, so that both meet the same machine."""
    connection, load = Connection(port), Load()
    bare, served = np.zeros((2, count))

    async def ask(place: int) -> None:
        started = time.perf_counter()
        await connection.ask(road.requests[place % len(road.requests)], load)
        served[place] = time.perf_counter() - started

    def work(place: int) -> None:
        started = time.perf_counter()
        road.one(place)
        bare[place] = time.perf_counter() - started

    for place in range(count):
        if place % 2:
            await ask(place)
            work(place)
        else:
            work(place)
            await ask(place)
    connection.close()
    load.seconds = float(served.sum())
    return {
        "requests": count,
        "statuses": load.summary()["statuses"],
        "wrong": load.wrong,
        "bare_ms": float(np.median(bare) * 1000),
        "served_ms": float(np.median(served) * 1000),
        "added_ms": _interval((served - bare) * 1000),
    }


def _overload(server: Process, road: Sequence[Request], seconds: float) -> dict[str, Any]:
    """Three times what it can do, against what it does when just busy."""
    at_capacity = run_loop(closed_loop(server.port, road, AT_ONCE, seconds * _AT_CAPACITY))
    offered = 3 * at_capacity.throughput
    load = run_loop(open_loop(server.port, road, offered, seconds))
    own, usual = load.percentile(0.99), at_capacity.percentile(0.99)
    return {
        **load.summary(),
        "offered_per_second": offered,
        "at_capacity": at_capacity.summary(),
        "p99_over_capacity": (own or float("nan")) / (usual or float("nan")),
    }


def _growth(server: Process, road: Sequence[Request], requests: int) -> dict[str, Any]:
    """Resident memory after a warm-up of a tenth of the requests, and after all of them."""

    async def send(count: int) -> Load:
        parts = [Load()]
        while sum(len(part.accepted) for part in parts) < count:
            parts.append(await closed_loop(server.port, road, AT_ONCE, 2.0))
        return Load.of(parts)

    run_loop(send(requests // 10))
    before = server.memory_of_itself()
    load = run_loop(send(requests - requests // 10))
    return {
        "requests": requests,
        "before_mib": _mib(before),
        "grown_mib": round(_mib(server.memory_of_itself()) - _mib(before), 1),
        "statuses": load.summary()["statuses"],
    }


def _interval(values: ArrayLike) -> dict[str, float]:
    """A median and its 95 % bootstrap interval over repetitions."""
    numbers = np.asarray(values, np.float64)
    drawn = numbers[np.random.default_rng(0).integers(0, len(numbers), (_RESAMPLES, len(numbers)))]
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {"median": float(np.median(numbers)), "low": float(low), "high": float(high)}


def _spread(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _percent(value: dict[str, float]) -> str:
    return f"{value['median']:.0%} ({value['low']:.0%} to {value['high']:.0%})"


def _mib(size: int) -> float:
    return round(size / (1 << 20), 1)
