"""Detectors with random weights that behave like trained ones, for the tests of export."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training.networks import Detector, NetworkSpec


def random_detector(name: str, size: int, seed: int = 0, **spec: object) -> Detector:
    """A detector with random weights whose statistics are those of its activations, as after training."""
    torch.manual_seed(seed)
    detector = Detector(NetworkSpec(name=name, image_size=size, **spec))  # type: ignore[arg-type]
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        detector(torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8))
    return detector.eval()


def random_crops(count: int, size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
