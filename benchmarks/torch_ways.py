"""PyTorch in the forms that are compared, on the CPU and on a GPU, each with the clock that is right for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ways import Way
from pipeline.errors import CannotRunHereError
from pipeline.runtime import Crops
from training.checkpoint import load_detector

_TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchNetwork:
    """A checkpoint in PyTorch.

    Args:
        checkpoint: Of ours.
        way: Which form.
        threads: Of the CPU.

    Raises:
        CannotRunHereError: There is no CUDA device.
    """

    def __init__(self, checkpoint: Path, way: Way, threads: int) -> None:
        if way.device == "cuda" and not torch.cuda.is_available():
            raise CannotRunHereError(f"PyTorch {torch.__version__} here finds no CUDA device")
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = way.precision == "tf32"
        self._way, self._device = way, torch.device(way.device)
        detector = load_detector(checkpoint, self._device)[0].requires_grad_(False)
        if way.channels_last:
            detector = detector.to(memory_format=torch.channels_last)
        run: Callable[[Tensor], Any] = (
            detector.forward_with_evidence if detector.has_evidence else detector.forward
        )
        # each batch size compiled for itself: a program for any size is another, slower one
        self._run = torch.compile(run, dynamic=False) if way.compiled else run
        self.label = f"torch {torch.__version__} {way.detail}"
        self.weights = sum(t.numel() * t.element_size() for t in detector.state_dict().values())

    def timer(self, crops: Crops) -> Callable[[], float]:
        """A function that answers for these crops once and gives the seconds it took."""
        batch = torch.from_numpy(crops).to(self._device)
        answer = self._recorded(batch) if self._way.graphs else lambda: self._answer(batch)
        return self._by_events(answer) if self._device.type == "cuda" else self._by_clock(answer)

    @torch.no_grad()
    def _answer(self, batch: Tensor) -> Any:
        kind = _TYPES[self._way.precision]
        with torch.autocast(self._device.type, kind, enabled=kind is not torch.float32):
            return self._run(batch)

    def _recorded(self, batch: Tensor) -> Callable[[], Any]:
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._answer(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # autocast's cache of cast weights would live in the first graph and be used by the next
        with torch.autocast("cuda", enabled=False, cache_enabled=False), torch.cuda.graph(graph):
            held = self._answer(batch)

        def replay() -> Any:
            graph.replay()
            return held

        return replay

    @staticmethod
    def _by_clock(answer: Callable[[], Any]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            answer()
            return time.perf_counter() - start

        return once

    @staticmethod
    def _by_events(answer: Callable[[], Any]) -> Callable[[], float]:
        begin: Any
        end: Any
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def once() -> float:
            torch.cuda.synchronize()
            begin.record()
            answer()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

        return once


def device_memory(weights: int) -> dict[str, int]:
    """Bytes that PyTorch's allocator on the GPU had at most, by kind."""
    peak = torch.cuda.max_memory_allocated()
    return {
        "torch_peak": peak,
        "torch_peak_minus_weights": peak - weights,
        "torch_reserved": torch.cuda.max_memory_reserved(),
    }
