"""Where a run computes: devices and precisions that are not there are refused, streams are seeded and kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from pipeline.errors import BAD_INPUT, InputError
from training.config import Settings
from training.runtime import Runtime, gather_rng, read_rng, restore_rng, start_runtime

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def drawn(settings: Settings) -> tuple[float, float, float]:
    with start_runtime(settings):
        return float(torch.rand(())), random.random(), float(np.random.random())


def test_equal_seeds_give_equal_streams_and_others_others() -> None:
    first = drawn(Settings(device="cpu", seed=3))
    assert drawn(Settings(device="cpu", seed=3)) == first
    other = drawn(Settings(device="cpu", seed=4))
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_every_rank_draws_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(Settings(device="cpu"))
    monkeypatch.setenv("RANK", "1")
    assert drawn(Settings(device="cpu"))[0] != first[0]


def test_threads_are_those_asked_for_or_a_fair_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with start_runtime(Settings(device="cpu", threads=3)):
        assert torch.get_num_threads() == 3
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with start_runtime(Settings(device="cpu", workers=4)):
        assert torch.get_num_threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with start_runtime(Settings(device="cpu")):
        assert torch.get_num_threads() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    with start_runtime(Settings(device="cpu")):
        assert torch.get_num_threads() == 1


def test_deterministic_kernels_are_a_setting() -> None:
    torch.use_deterministic_algorithms(False)
    with start_runtime(Settings(device="cpu", deterministic=False)):
        assert not torch.are_deterministic_algorithms_enabled()
    with start_runtime(Settings(device="cpu")):
        assert torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_auto_means_float32_and_bf16_is_on_request() -> None:
    matrix = torch.ones(2, 2)
    with start_runtime(Settings(device="cpu")) as runtime:
        assert runtime == Runtime(CPU, None, 0, 1)
        with runtime.autocast():
            assert (matrix @ matrix).dtype == torch.float32
    with start_runtime(Settings(device="cpu", precision="bf16")) as runtime, runtime.autocast():
        assert (matrix @ matrix).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "mps"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": ""}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda"}, "PyTorch sees no CUDA device here; use --set device=cpu"),
        ({"device": "cpu", "precision": "fp16"}, "'fp16' needs a CUDA device"),
    ],
)
def test_what_is_not_there_is_refused(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=message), start_runtime(Settings(**settings)):
        pass


@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        ("cuda:3", {}, r"number 3 asked for, but PyTorch sees 2 CUDA device\(s\)"),
        ("auto", {"LOCAL_RANK": "2"}, r"number 2 asked for, but PyTorch sees 2"),
        ("cuda:1", {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "every process needs its own"),
    ],
)
def test_devices_that_are_not_enough_are_told_before_cuda_fails(
    device: str, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message), start_runtime(Settings(device=device)):
        pass


def test_streams_go_on_where_they_were_read() -> None:
    streams = read_rng(CPU)
    assert gather_rng(Runtime(CPU, None))[0].keys() == streams.keys()
    first = torch.rand(5)
    torch.rand(3)
    restore_rng(streams, CPU)
    assert torch.equal(torch.rand(5), first)


def test_alone_the_main_process_does_its_work_directly() -> None:
    runtime = Runtime(CPU, None)
    result = object()  # not even picklable by value: it is handed on as it is
    assert runtime.on_main(lambda: result) is result
    assert runtime.largest(7) == 7

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        runtime.on_main(refuse)


def every_rank_hears_of_the_main_ones_work(rank: int, folder: str) -> None:
    with start_runtime(Settings(device="cpu", threads=1)) as runtime:
        done: list[int] = []
        told = runtime.on_main(lambda: done.append(rank) or {"folder": "x"})  # type: ignore[func-returns-value]
        assert told == {"folder": "x"}
        assert done == ([0] if rank == 0 else [])
        assert runtime.largest(15 * rank) == 15
        assert len(gather_rng(runtime)) == 2

        def refuse() -> None:
            raise InputError("the disk is full")

        try:
            runtime.on_main(refuse)
        except InputError as error:
            Path(folder, f"{rank}").write_text(str(error))
        except SystemExit as leave:
            Path(folder, f"{rank}").write_text(str(leave.code))


def in_a_group(rank: int, work: Callable[[int, str], None], folder: str, port: int) -> None:
    import os

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    work(rank, folder)


@pytest.mark.slow
def test_in_two_processes_one_works_and_both_know(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(in_a_group, (every_rank_hears_of_the_main_ones_work, str(tmp_path), port), nprocs=2)
    assert (tmp_path / "0").read_text() == "the disk is full"
    assert (tmp_path / "1").read_text() == str(BAD_INPUT)
