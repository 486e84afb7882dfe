"""How sure PyTorch is of its own answers: how far they move when every weight is rounded the other way.

A network's answers to pictures unlike any it was trained on can hang on the last bit of every weight. A briefly trained
EfficientNet-B4 gives noise a logit of 1,877, and moves it by 33 when its weights move to neighbouring float32 numbers.
No conversion can repeat such an answer to 1e-4: folding BatchNorm into a convolution rounds every weight anew. It is
right if it answers as a network next to the trained one would (backward stability: Wilkinson, Rounding Errors in
Algebraic Processes, 1963). One comparison of float32 with float64 does not tell as much: it is a single draw of the
rounding, and happened to be 0.53 for that image, where PyTorch is 10 off once the crops lie in another order in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.differences import Unsure, crop_gaps
from export.parity_chain import pick
from export.parity_inputs import ParityInputs
from export.torch_runtimes import EagerRuntime, answer_all
from pipeline.runtime import Answer, Crops
from training.networks import Detector

_DRAWS: Final = 16
"""Moves differ a hundredfold from draw to draw (0.01 to 3.5 for a checkerboard), and the largest is asked for."""
FACTOR: Final = 4.0
"""An honest form may be off by so many times the largest move of all draws. With two EfficientNet-B4 at 380 px, the
traced program, ONNX Runtime with and without its optimiser and OpenVINO were off by at most twice as much; the rest is
for processors that were not at hand."""


def unsure_of(detector: Detector, crops: Crops, reference: Answer) -> Unsure:
    """What any faithful form of a network may be off by, for each of some crops.

    Args:
        detector: In evaluation mode; it is left alone.
        crops: uint8 RGB [N, image_size, image_size, 3].
        reference: Its answers to them.
    """
    moves = [
        crop_gaps(reference, answer_all(EagerRuntime(_moved(detector, seed)), crops))
        for seed in range(_DRAWS)
    ]
    logits, evidence = (
        FACTOR * np.max(gaps, axis=0)
        for gaps in ([move.logits for move in moves], [move.evidence for move in moves])
    )
    return Unsure(logits, evidence)


def doubt_of(
    detector: Detector, inputs: ParityInputs, reference: Answer
) -> Callable[[NDArray[np.int64]], Unsure]:
    """`unsure_of` for the gate's crops at given places; `reference` answers for all of them."""
    return lambda places: unsure_of(detector, inputs.crops[places], pick(reference, places))


@torch.no_grad()
def _moved(detector: Detector, seed: int) -> Detector:
    """A copy with each weight and statistic one float32 number up or down."""
    moved, drawn = copy.deepcopy(detector), torch.Generator().manual_seed(seed)
    for values in (*moved.parameters(), *moved.buffers()):
        if values.is_floating_point():
            values.copy_(torch.nextafter(values, _either_way(values, drawn)))
    return moved


def _either_way(values: Tensor, drawn: torch.Generator) -> Tensor:
    up = torch.rand(values.shape, generator=drawn) < 0.5
    return torch.where(up, torch.inf, -torch.inf)
