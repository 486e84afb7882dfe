"""PyTorch as a runtime: the network as it was trained, and the program that exporters start from."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch

from export.graph import ExportGraph
from export.parity_chain import joined
from pipeline.runtime import Answer, Crops, check_crops
from training.networks import Detector

_BATCH: Final = 4
"""Crops at a time on one core."""


class EagerRuntime:
    """A detector as it was trained, in fp32 on the CPU: what everything else is measured against."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector.eval()
        self.label = f"torch {torch.__version__} CPU, eager"

    @torch.no_grad()
    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, self._detector.spec.image_size)
        batch = torch.from_numpy(crops)
        if not self._detector.has_evidence:
            return Answer(self._detector(batch).numpy(), None)
        logits, evidence = self._detector.forward_with_evidence(batch)
        return Answer(logits.numpy(), evidence.numpy())


def answer_all(runtime: EagerRuntime, crops: Crops) -> Answer:
    """Answer for many crops uint8 [N, H, W, 3]: one batch per core at a time, each on one thread.

    Quicker than one batch on all cores: no core waits for another at the end of every operator, which on a busy machine
    takes many times as long as the operator itself.
    """
    threads = torch.get_num_threads()
    parts = [crops[start : start + _BATCH] for start in range(0, len(crops), _BATCH)]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            answers = list(pool.map(runtime.run, parts))
    finally:
        torch.set_num_threads(threads)
    return joined(answers)


class ProgramRuntime:
    """The `torch.export` program of a detector in its export form."""

    def __init__(self, detector: Detector) -> None:
        graph = ExportGraph(detector)
        self._size = graph.image_size
        # a batch of 2: sizes 0 and 1 would be burnt into the program
        example = torch.zeros(2, self._size, self._size, 3, dtype=torch.uint8)
        shapes = {"crops": {0: torch.export.Dim("batch", min=1, max=4096)}}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            self._module = torch.export.export(graph, (example,), dynamic_shapes=shapes).module()
        self.label = f"torch {torch.__version__} CPU, torch.export"

    @torch.no_grad()
    def run(self, crops: Crops) -> Answer:
        """Answer for crops uint8 [N, H, W, 3]; see `pipeline.runtime.Runtime`."""
        check_crops(crops, self._size)
        logits, *rest = self._module(torch.from_numpy(crops))
        return Answer(logits.numpy(), rest[0].numpy() if rest else None)
