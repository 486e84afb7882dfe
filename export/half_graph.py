"""The network in float16 as PyTorch has it, for compilers that take every type from the program.

What float16 cannot carry stays in float32: statistics of norms (squares of 262,144 values at 256 px), the attention's
softmax and weighted sum, normalisation of the pixels, and the head.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.mobilevit import LinearSelfAttention
from torch import Tensor, nn

from export.batch_norms import fold_batch_norms
from export.graph import copy_to_export
from training.networks import Detector


class HalfGraph(nn.Module):
    """A copy of a detector with the backbone in float16; the program's own casts say where float32 begins.

    It answers as `export.graph.ExportGraph` does, and is timm's network layer by layer, with BatchNorm folded: a
    compiler for GPUs fuses by itself, and a sum of products in another order would need its own proof in float16.

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
        copied = copy_to_export(detector)
        self.image_size = copied.spec.image_size
        self.outputs = ("logits", "evidence") if copied.has_evidence else ("logits",)
        self.backbone: Any = copied.backbone
        self.head = copied.head
        self._normalises = bool((copied.mean != 0).any() or (copied.std != 1).any())
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", copied.mean)
        self.register_buffer("std", copied.std)
        fold_batch_norms(self.backbone, self.image_size)
        _halve(self.backbone)

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Return logits float32 [N, 2] and, where there is one, evidence float32 [N, h, w].

        Args:
            crops: uint8 RGB [N, image_size, image_size, 3].
        """
        # Cast before the axes move: TensorRT moves no bytes.
        scaled = crops.float().permute(0, 3, 1, 2) / 255
        if self._normalises:
            scaled = (scaled - self.mean) / self.std
        features = self.backbone.forward_features(scaled.half())
        if len(self.outputs) == 1:
            return (self.head(self.backbone.forward_head(features, pre_logits=True).float()),)
        # A linear head commutes with average pooling: classify every cell, then average.
        weight = self.head.weight[:, :, None, None]
        cells = nn.functional.conv2d(features.float(), weight, self.head.bias)
        return cells.mean((2, 3)), cells[:, 1] - cells[:, 0]


class _FloatNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, values: Tensor) -> Tensor:
        normed: Tensor = self.norm(values.float())
        return normed.to(values.dtype)


class _FloatAttention(nn.Module):
    """MobileViTv2's linear attention (Mehta & Rastegari 2022) with its softmax and sum in float32."""

    def __init__(self, attention: LinearSelfAttention) -> None:
        super().__init__()
        self.qkv_proj: Any = attention.qkv_proj
        self.out_proj: Any = attention.out_proj
        self.width = int(attention.embed_dim)

    def forward(self, values: Tensor) -> Tensor:
        query, key, value = self.qkv_proj(values).split([1, self.width, self.width], dim=1)
        scores = torch.softmax(query.float(), dim=-1)
        context = (key.float() * scores).sum(dim=-1, keepdim=True).to(value.dtype)
        answer: Tensor = self.out_proj(torch.relu(value) * context.expand_as(value))
        return answer


def _halve(module: nn.Module) -> None:
    """Put products into float16 and wrap what must not be."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm | nn.LayerNorm):
            setattr(module, name, _FloatNorm(child))
        elif isinstance(child, LinearSelfAttention):
            attention = _FloatAttention(child)
            _halve(attention)
            setattr(module, name, attention)
        elif isinstance(child, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            child.half()
        else:
            _halve(child)
