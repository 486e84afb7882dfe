"""Teaches a learner where and how a fake differs from its real twin: richer than one bit per picture.

A batch holds every fake together with the very picture it was made from, so the change is known cell by cell.
One linear layer per feature map reads it off the features while the detector is trained; the layers are
thrown away afterwards. Localising the blend beside classifying it follows Face X-ray (Li et al., CVPR 2020);
colour and sharpness as further targets are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.networks import Detector

STRIDES: Final = (8, 16, 32)
"""Feature maps that are read: the last ones at these shares of the input's side."""

CHANNELS: Final = 5
"""Blended or not; change of red, green, blue; change of fine detail."""

VISIBLE_LEVELS: Final = 4.0
"""Mean change of a cell's pixels, in 8-bit levels, from which the cell counts as blended in full."""
COLOUR_UNIT_LEVELS: Final = 16.0
"""A colour change of so many 8-bit levels is 1 in the targets."""
DETAIL_LIMIT: Final = 3.0
"""The change of log detail is clipped to plus and minus this; about a factor of 20 in energy."""
_DETAIL_FLOOR = 1e-5
# About a fifth of all cells are blended; a start at one half would spend the first hundreds of steps on that alone.
_FIRST_GUESS = -1.5


class TracingLearner(nn.Module):
    """A detector that answers with logits, and beside them with what its feature maps tell of the blend.

    Args:
        detector: What is trained; it stays the only thing that is validated and saved as a checkpoint.

    Attributes:
        detector: As given.
        heads: One 1x1 convolution per feature map; it starts with the answer that fits no picture in particular.

    Raises:
        InputError: The backbone shows no feature maps.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self._places, channels = detector.feature_maps(STRIDES)
        self.heads = nn.ModuleList(nn.Conv2d(width, CHANNELS, kernel_size=1) for width in channels)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            for head in self.heads:
                head.get_parameter("bias")[0] = _FIRST_GUESS

    def forward(self, crops: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits float32 [N, 2] and, per feature map, float32 [N, 5, h, w] (logit and four changes).

        Args:
            crops: uint8 RGB [N, size, size, 3].
        """
        logits, maps = self.detector.forward_with_maps(crops, self._places)
        return logits, [head(found).float() for head, found in zip(self.heads, maps, strict=True)]


def trace_loss(maps: Sequence[Tensor], crops: Tensor) -> Tensor:
    """Return the mean over the maps of binary cross-entropy (blended) plus smooth L1 (the four changes).

    Args:
        maps: As `TracingLearner` gives them.
        crops: The batch they come from, as `trace_targets` takes it.
    """
    losses = []
    for found in maps:
        wanted = trace_targets(crops, (found.shape[2], found.shape[3]))
        blended = functional.binary_cross_entropy_with_logits(found[:, 0], wanted[:, 0])
        losses.append(blended + functional.smooth_l1_loss(found[:, 1:], wanted[:, 1:]))
    return torch.stack(losses).mean()


@torch.no_grad()
def trace_targets(crops: Tensor, cells: tuple[int, int]) -> Tensor:
    """What was changed in each cell of a map; all zeros for reals.

    With d = fake - real in levels and e the energy of a picture's detail in the cell (mean square of grey minus
    its 3x3 mean, zeros beyond the picture), and means over the cell: min(1, mean |d| / 4); mean d / 16 for red,
    green and blue; log e(fake) - log e(real), clipped to ±3.

    Args:
        crops: uint8 RGB [2B, size, size, 3], B reals, then their fakes in the same order.
        cells: Rows and columns of the map.

    Returns:
        float32 [2B, 5, rows, columns].
    """
    pictures = crops.permute(0, 3, 1, 2).float().div(255)
    real, fake = pictures.chunk(2)
    change = (fake - real) * 255
    size = functional.adaptive_avg_pool2d(change.abs().mean(1, keepdim=True), cells)
    colour = functional.adaptive_avg_pool2d(change, cells)
    detail = _log_detail(fake, cells) - _log_detail(real, cells)
    changed = torch.cat(
        [
            (size / VISIBLE_LEVELS).clamp(max=1.0),
            colour / COLOUR_UNIT_LEVELS,
            detail.clamp(-DETAIL_LIMIT, DETAIL_LIMIT),
        ],
        dim=1,
    )
    return torch.cat([torch.zeros_like(changed), changed])


def _log_detail(pictures: Tensor, cells: tuple[int, int]) -> Tensor:
    grey = pictures.mean(1, keepdim=True)
    fine = grey - functional.avg_pool2d(grey, 3, stride=1, padding=1)
    return (functional.adaptive_avg_pool2d(fine.square(), cells) + _DETAIL_FLOOR).log()
