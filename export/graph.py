"""The network as it is exported: one module from uint8 crops to logits and evidence, in inference form.

Everything here is exact algebra on the trained weights; `export.onnx_graph` writes the result as ONNX.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from training.networks import Detector


class ExportGraph(nn.Module):
    """A copy of a detector in float32 and evaluation mode, to be traced with batches of 2 or more.

    Args:
        detector: The trained network; it is left alone.

    Attributes:
        outputs: Names of what `forward` returns: "logits" and, where the network has it, "evidence".
        image_size: Side of the crops in pixels.

    Raises:
        InputError: A weight or statistic is NaN or infinite.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        refuse_non_finite(detector)
        copied = copy.deepcopy(detector).cpu().float().eval().requires_grad_(False)
        self.image_size = copied.spec.image_size
        self.outputs = ("logits", "evidence") if copied.has_evidence else ("logits",)
        self.backbone: Any = copied.backbone
        self.head = copied.head
        self._normalises = bool((copied.mean != 0).any() or (copied.std != 1).any())
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", copied.mean)
        self.register_buffer("std", copied.std)

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Return logits float32 [N, 2] and, where there is one, evidence float32 [N, h, w].

        Args:
            crops: uint8 RGB [N, image_size, image_size, 3].
        """
        # Float first: exporters stumble over integer arithmetic with a Python number.
        scaled = crops.permute(0, 3, 1, 2).float() / 255
        if self._normalises:
            scaled = (scaled - self.mean) / self.std
        features = self.backbone.forward_features(scaled)
        if len(self.outputs) == 1:
            return (self.head(self.backbone.forward_head(features, pre_logits=True)),)
        return self._pooled_head(features)

    def _pooled_head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Classify every cell, then average: a linear head commutes with the mean, and evidence comes free."""
        weight = self.head.weight[:, :, None, None]
        cells = nn.functional.conv2d(features, weight, self.head.bias)
        return cells.mean((2, 3)), cells[:, 1] - cells[:, 0]


def refuse_non_finite(detector: Detector) -> None:
    """Refuse a network that has learned NaN or infinity, before it costs anybody an export.

    Raises:
        InputError: Naming the first such tensors.
    """
    state = detector.state_dict()
    broken = [
        name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(
            f"{detector.spec.name}: NaN or infinite weights in {', '.join(broken[:3])}{more}. The training run "
            "diverged; export an earlier checkpoint, or train again with a lower lr or in bf16."
        )
