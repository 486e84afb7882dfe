"""The network as it is exported: one module from uint8 crops to logits and evidence, in inference form.

Everything here is exact algebra on the trained weights; `export.onnx_graph` writes the result as ONNX.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from export.mobilevit import simplify
from pipeline.errors import InputError
from training.networks import Detector


class ExportGraph(nn.Module):
    """A copy of a detector in float32 and evaluation mode, to be traced with batches of 2 or more.

    Args:
        detector: The trained network; it is left alone.
        native_group_norm: Write GroupNorm as one operator, for a runtime that has it.
        simplified: Rewrite a MobileViTv2 into the cheaper form of `export.mobilevit`.
        merging: As part of that, merge neighbouring 1x1 convolutions.

    Attributes:
        outputs: Names of what `forward` returns: "logits" and, where the network has it, "evidence".
        image_size: Side of the crops in pixels.

    Raises:
        InputError: A weight or statistic is NaN or infinite.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        native_group_norm: bool = False,
        simplified: bool = True,
        merging: bool = True,
    ) -> None:
        super().__init__()
        copied = copy_to_export(detector)
        self.image_size = copied.spec.image_size
        self.outputs = ("logits", "evidence") if copied.has_evidence else ("logits",)
        self.backbone: Any = copied.backbone
        # A linear head commutes with average pooling: classify every cell, then average, and evidence comes free.
        self.cells: nn.Conv2d | None = _as_convolution(copied.head) if copied.has_evidence else None
        self.head: Any = None if copied.has_evidence else copied.head
        if simplified:
            self.cells = simplify(
                self.backbone, self.cells, native_group_norm=native_group_norm, merging=merging
            )
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
        if self.cells is not None:
            cells = self.cells(features)
            return cells.mean((2, 3)), cells[:, 1] - cells[:, 0]
        return (self.head(self.backbone.forward_head(features, pre_logits=True)),)


def _as_convolution(head: nn.Linear) -> nn.Conv2d:
    cells = nn.Conv2d(head.in_features, head.out_features, 1)
    cells.weight = nn.Parameter(head.weight[:, :, None, None], requires_grad=False)
    cells.bias = nn.Parameter(head.bias, requires_grad=False)
    return cells


def copy_to_export(detector: Detector) -> Detector:
    """A copy in float32 on the CPU, in evaluation mode, that may be rebuilt; the detector is left alone.

    Raises:
        InputError: A weight or statistic is NaN or infinite.
    """
    refuse_non_finite(detector)
    return copy.deepcopy(detector).cpu().float().eval().requires_grad_(False)


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
