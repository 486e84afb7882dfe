"""Exact algebra on convolutions: what follows or precedes one linearly becomes part of its weights.

Everything is computed in float64 and rounded once, so the result differs from the original by rounding only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def fold_batchnorm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the convolution that does `norm(conv(x))` in evaluation mode."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    return _like(conv, weight, norm.bias.double() + (_bias(conv) - mean.double()) * scale)


def absorb_affine(norm: nn.GroupNorm, conv: nn.Conv2d) -> nn.Conv2d:
    """Return a 1x1 convolution that does `conv(norm(x))` on the output of the norm without its scale and shift."""
    matrix = _matrix(conv)
    scaled = matrix * norm.weight.double()
    return _like(conv, scaled[:, :, None, None], _bias(conv) + matrix @ norm.bias.double())


def merge(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Return the 1x1 convolution that does `second(first(x))` for two of them."""
    outer = _matrix(second)
    weight = (outer @ _matrix(first))[:, :, None, None]
    return _like(second, weight, _bias(second) + outer @ _bias(first))


def cheaper_merged(first: nn.Conv2d, second: nn.Conv2d) -> bool:
    """Whether one 1x1 convolution costs fewer products than the two: not where they narrow in between."""
    narrow, middle, wide = first.in_channels, first.out_channels, second.out_channels
    return narrow * wide < narrow * middle + middle * wide


def is_pointwise(module: object) -> bool:
    """Whether a module is a plain 1x1 convolution, which is a matrix product in every cell."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), 0, "valid", "same")
    )


def select_rows(conv: nn.Conv2d, start: int, stop: int | None = None) -> nn.Conv2d:
    """Return the convolution that gives only the output channels [start, stop)."""
    return _like(conv, conv.weight.double()[start:stop], _bias(conv)[start:stop])


def _matrix(conv: nn.Conv2d) -> Tensor:
    return conv.weight.double()[:, :, 0, 0]


def _bias(conv: nn.Conv2d) -> Tensor:
    return torch.zeros(conv.out_channels).double() if conv.bias is None else conv.bias.double()


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with a bias and these weights, of the same class (TF's "same" padding is a class) and strides."""
    shape: dict[str, Any] = {
        name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")
    }
    new = type(conv)(weight.shape[1] * conv.groups, weight.shape[0], **shape)
    new.weight = nn.Parameter(weight.float(), requires_grad=False)
    new.bias = nn.Parameter(bias.float(), requires_grad=False)
    return new.eval()
