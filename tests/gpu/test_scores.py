"""A checkpoint scores faces on a GPU as it does on the CPU: float32 is float32 there, and not TF32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.bundles import write_checkpoint
from tests.gpu.shown import BATCHES, SIZE, crops
from training.evaluated import open_checkpoint


def test_a_checkpoint_scores_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "weights.pth", size=SIZE)
    on_cpu, on_gpu = (open_checkpoint(checkpoint, torch.device(name)).network for name in ("cpu", "cuda"))
    for count in BATCHES:
        given = torch.from_numpy(crops(count))
        assert np.abs(on_gpu.answer(given) - on_cpu.answer(given)).max() <= 1e-4
