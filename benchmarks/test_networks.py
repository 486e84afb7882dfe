"""The pytest-benchmark suite: a small student and a small teacher in every way of this machine, one crop at a time.

`make bench-pytest` runs it; `make test` does not collect it. Reads `BENCH_NETWORKS` ("NAME@SIZE NAME@SIZE").
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.contenders import load_library, open_way
from benchmarks.machine import environment
from benchmarks.making import make, noise
from benchmarks.ways import CPU, GPU, Way
from pipeline.errors import InputError

NETWORKS = os.environ.get("BENCH_NETWORKS", "mobilevitv2_050@128 tf_efficientnet_b0@128").split()
THREADS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every network's files, made when the first test asks for them."""
    forms = sorted({way.file for way in (*CPU, *GPU)})
    found = {}
    for text in NETWORKS:
        name, _, size = text.partition("@")
        found[text] = make(
            checkpoint=None,
            name=name,
            image_size=int(size),
            folder=str(tmp_path_factory.mktemp(name)),
            forms=forms,
            threads=THREADS,
        )
    return found


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """What this runs on."""
    return environment()


@pytest.mark.parametrize("way", [way for way in (*CPU, *GPU) if not way.compiled], ids=lambda way: way.name)
@pytest.mark.parametrize("network", NETWORKS)
def test_one_crop(
    benchmark: Any, made: dict[str, dict[str, Any]], machine: dict[str, Any], network: str, way: Way
) -> None:
    """Time single crops, one after the other."""
    files = made[network]
    if way.file not in files["files"]:
        pytest.skip(files["reasons"][way.file])
    try:
        load_library(way)
        contender = open_way(way, files["files"], THREADS)
    except (InputError, ImportError) as error:
        pytest.skip(str(error))
    size = files["network"]["image_size"]
    timer = contender.timer(noise(1, size))
    benchmark.group = network
    benchmark.extra_info.update(
        network=files["network"],
        way=way.name,
        title=way.title,
        label=contender.label,
        device=way.device,
        precision=way.precision,
        channels_last=way.channels_last,
        threads=THREADS,
        batch=1,
        inside=way.inside,
        bytes_on_disk=files["bytes"][way.file],
        machine=machine,
    )
    benchmark.pedantic(timer, rounds=30, iterations=1, warmup_rounds=5)
