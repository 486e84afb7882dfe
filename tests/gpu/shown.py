"""What networks are shown on a GPU, and in which batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.runtime import Answer

SIZE = 128
BATCHES = (1, 2, 7, 32, 5, 1)
"""Odd after even, small after large."""


def crops(count: int) -> NDArray[np.uint8]:
    """Smooth pictures: noise alone would leave a network nothing to tell apart."""
    generator = np.random.default_rng(count)
    coarse = generator.integers(0, 256, (count, 8, 8, 3)).astype(np.float32)
    fine = np.repeat(np.repeat(coarse, SIZE // 8, axis=1), SIZE // 8, axis=2)
    noisy = fine + generator.normal(0, 8, fine.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def p_fake(answer: Answer) -> NDArray[np.float32]:
    fake: NDArray[np.float32] = 1 / (1 + np.exp(answer.logits[:, 0] - answer.logits[:, 1]))
    return fake
