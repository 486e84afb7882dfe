"""MobileViTv2 in the form that costs least: the same function of the crops, with a sixth fewer products.

Four exact steps, none of which training could use (they mix weights that are trained apart):

- BatchNorm becomes part of its convolution, and the scale and shift of a GroupNorm part of the one that follows.
- The attention's context is a weighted sum of keys, and a key is linear in its token: summing the tokens first and
  projecting the sum costs a vector's projection in place of a map's. The query's bias falls out of the softmax.
- Every layer of the transformer but its softmax treats cells alike, so the map is never cut into patches: four masked
  softmaxes over the map are the softmax over each of the four positions in a 2x2 patch.
- A block that ends in a 1x1 convolution without an activation, before one that begins with another, or before the
  classifier: the two become one.

At 256 px mobilevitv2_200 goes from 7.2 to 5.9 billion products. `python -m benchmarks export` measures what that is
worth; `ARCHITECTURE.md` says what was tried and not kept.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from timm.layers.conv_bn_act import ConvNormAct
from timm.models.byobnet import BottleneckBlock
from timm.models.mobilevit import MobileVitV2Block
from torch import Tensor, nn
from torch.nn import functional

from export.convolutions import (
    absorb_affine,
    cheaper_merged,
    fold_batchnorm,
    is_pointwise,
    merge,
    select_rows,
)

_HIDDEN = -1e4
"""Added to the logits of cells that a softmax must not see; far below any, and finite in float16."""


def simplify(backbone: nn.Module, cells: nn.Conv2d | None, *, native_group_norm: bool, merging: bool) -> Any:
    """Rewrite a backbone in place where it is a MobileViTv2; leave others alone.

    Args:
        backbone: timm's network in evaluation mode, without its classifier.
        cells: The classifier as a 1x1 convolution on the last feature map, if it is one.
        native_group_norm: Keep GroupNorm one operator, for runtimes that have it.
        merging: Do the last step too.

    Returns:
        What has become of `cells`.
    """
    if not any(isinstance(module, MobileVitV2Block) for module in backbone.modules()):
        return cells
    for layer in [module for module in backbone.modules() if isinstance(module, ConvNormAct)]:
        _fold(layer)
    for stage in backbone.stages:  # type: ignore[union-attr]
        for index, block in enumerate(stage):
            if isinstance(block, MobileVitV2Block):
                stage[index] = LeanBlock(block, native_group_norm)
    return _merge_neighbours(backbone, cells) if merging else cells


class LeanBlock(nn.Module):
    """timm's MobileVitV2Block, leaving its map whole."""

    def __init__(self, block: Any, native_group_norm: bool) -> None:
        super().__init__()
        patch = block.patch_size
        self.conv_kxk = block.conv_kxk
        self.conv_1x1 = block.conv_1x1
        layers = [LeanTransformer(layer, patch, native_group_norm) for layer in block.transformer]
        self.transformer = nn.Sequential(*layers)
        self.norm = PlainNorm(block.norm, native_group_norm)
        self.conv_proj = block.conv_proj
        self.conv_proj.conv = absorb_affine(block.norm, block.conv_proj.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, C, H, W] to float32 [N, C', H, W]; H and W divide by the patch."""
        x = self.conv_1x1(self.conv_kxk(x))
        out: Tensor = self.conv_proj(self.norm(self.transformer(x)))
        return out


class LeanTransformer(nn.Module):
    """timm's LinearTransformerBlock on a whole map."""

    def __init__(self, layer: Any, patch: tuple[int, int], native_group_norm: bool) -> None:
        super().__init__()
        self.norm1 = PlainNorm(layer.norm1, native_group_norm)
        self.attn = LeanAttention(layer.attn, layer.norm1, patch)
        self.norm2 = PlainNorm(layer.norm2, native_group_norm)
        self.mlp = layer.mlp
        self.mlp.fc1 = absorb_affine(layer.norm2, layer.mlp.fc1)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, C, H, W] to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class LeanAttention(nn.Module):
    """Separable self-attention (Mehta and Rastegari 2022, arXiv 2206.02680, equation 4) with the key projected last.

    With scores s over the cells of one position in the patch, the context is sum(s * (K x + b)) = K sum(s * x) + b,
    because the scores sum to 1.
    """

    def __init__(self, attention: Any, norm: nn.GroupNorm, patch: tuple[int, int]) -> None:
        super().__init__()
        width = attention.embed_dim
        joint = absorb_affine(norm, attention.qkv_proj)
        self.patch = patch
        self.query = nn.Parameter(joint.weight[:1, :, 0, 0], requires_grad=False)
        self.key = select_rows(joint, 1, width + 1)
        self.value = select_rows(joint, width + 1)
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, C, H, W], normalised but not scaled or shifted, to the same shape."""
        _, channels, height, width = x.shape
        own = self._positions(height, width)
        tokens = x.reshape(-1, channels, height * width)
        scores = torch.softmax(self.query @ tokens + (1 - own) * _HIDDEN, dim=-1)
        # As a map of one patch it can be projected by a convolution, which is what int8 is made of, and laid out.
        summed = (tokens @ scores.transpose(1, 2)).reshape(-1, channels, *self.patch)
        context = self.key(summed).repeat(1, 1, height // self.patch[0], width // self.patch[1])
        out: Tensor = self.out_proj(functional.relu(self.value(x)) * context)
        return out

    def _positions(self, height: int, width: int) -> Tensor:
        """1 where a cell [H * W] has a position [P] in its patch, else 0."""
        rows = torch.arange(height) % self.patch[0]
        columns = torch.arange(width) % self.patch[1]
        position = (rows[:, None] * self.patch[1] + columns[None, :]).flatten()
        return (position[None, :] == torch.arange(math.prod(self.patch))[:, None]).float()


class PlainNorm(nn.Module):
    """A GroupNorm of one group without scale and shift, which the next convolution has taken over."""

    def __init__(self, norm: nn.GroupNorm, native: bool) -> None:
        super().__init__()
        self.eps = norm.eps
        self.native = native
        # The operator insists on a scale and a shift, and TensorRT on their being constants.
        self.ones: Tensor
        self.zeros: Tensor
        self.register_buffer("ones", torch.ones(norm.num_channels))
        self.register_buffer("zeros", torch.zeros(norm.num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, C, H, W] to mean 0 and variance 1 over [C, H, W].

        Sums go over each channel's map and then over the channels: as one InstanceNormalization ONNX Runtime adds up
        262,144 values in a row, is off by 1e-5 to 1e-4 of its output where a few of them are large, and a trained
        mobilevitv2_200 was off by 1.1e-4 of a logit where it is off by 4e-6 so.
        """
        if self.native:
            return functional.group_norm(x, 1, self.ones, self.zeros, self.eps)
        centred = x - x.mean((2, 3), keepdim=True).mean(1, keepdim=True)
        lengths = torch.linalg.vector_norm(centred, dim=(2, 3), keepdim=True)
        variance = lengths.square().mean(1, keepdim=True) / math.prod(x.shape[2:])
        out: Tensor = centred / torch.sqrt(variance + self.eps)
        return out


def _fold(layer: Any) -> None:
    if isinstance(layer.bn, nn.BatchNorm2d):
        layer.conv, layer.bn = fold_batchnorm(layer.conv, layer.bn), layer.bn.act


def _merge_neighbours(backbone: Any, cells: nn.Conv2d | None) -> nn.Conv2d | None:
    blocks = [block for stage in backbone.stages for block in stage]
    for block, after in itertools.pairwise(blocks):
        tail, head = _tail(block), _head(after)
        if tail is not None and head is not None and cheaper_merged(tail.conv, head.conv):
            head.conv, tail.conv = merge(tail.conv, head.conv), nn.Identity()
    tail = _tail(blocks[-1])
    if cells is not None and tail is not None and isinstance(backbone.final_conv, nn.Identity):
        cells, tail.conv = merge(tail.conv, cells), nn.Identity()
    return cells


def _tail(block: Any) -> Any:
    """The layer whose linear 1x1 convolution is the last thing a block does."""
    if isinstance(block, LeanBlock):
        layer = block.conv_proj
    elif isinstance(block, BottleneckBlock) and block.shortcut is None:
        if not all(isinstance(last, nn.Identity) for last in (block.attn_last, block.act)):
            return None
        layer = block.conv3_1x1
    else:
        return None
    return layer if is_pointwise(layer.conv) and isinstance(layer.bn, nn.Identity) else None


def _head(block: Any) -> Any:
    """The layer whose 1x1 convolution is all that a block does with its input."""
    if isinstance(block, BottleneckBlock) and block.shortcut is None and is_pointwise(block.conv1_1x1.conv):
        return block.conv1_1x1
    return None
