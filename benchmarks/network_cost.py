"""What a network costs by its structure alone: parameters, multiply-adds, activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from training.networks import Detector

_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one crop.

    Attributes:
        parameters: Number of weights that are learned.
        gmacs: 1e9 multiply-adds in convolutions and matrix products.
        mactivations: 1e6 values that those put out.
    """

    parameters: int
    gmacs: float
    mactivations: float


@torch.no_grad()
def cost_of(detector: Detector) -> Cost:
    """Count while one crop goes through.

    A multiply-add is one, and activations are outputs of convolutions and matrix products, as in timm's tables; those,
    by fvcore's rules, add two per value of a BatchNorm, which a runtime folds away. With our two-class head.
    """
    side = detector.spec.image_size
    crop = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=detector.mean.device)
    detector.eval()
    outputs = _Outputs()
    with FlopCounterMode(display=False) as operations, outputs:
        detector(crop)
    return Cost(
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        gmacs=operations.get_total_flops() / 2e9,
        mactivations=outputs.values / 1e6,
    )


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the values that convolutions and matrix products put out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _PRODUCTS or name.startswith("_scaled_dot_product"):
            first = out[0] if isinstance(out, tuple) else out
            self.values += math.prod(first.shape)
        return out
