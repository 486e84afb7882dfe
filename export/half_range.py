"""Whether a network's values fit float16, asked before it is written in float16.

Overflow there is silent until an infinity meets a zero; the parity gate would see the damage on its crops, but neither
the layer nor how near a network that passes came to the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.runtime import Crops
from training.networks import Detector

HALF_MAX: Final = float(torch.finfo(torch.float16).max)
"""65504."""
_BATCH = 4


class DoesNotFitError(InputError):
    """A value of a network is beyond what float16 can hold; the message names the layer."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest value in a network.

    Attributes:
        module: Where it goes in or comes out.
        value: Its size.
    """

    module: str
    value: float

    @property
    def note(self) -> str:
        """For the manifest."""
        return (
            f"largest activation {self.value:.3g} at {self.module}, of {HALF_MAX:.0f} that float16 can hold"
        )


@torch.no_grad()
def find_peak(detector: Detector, crops: Crops) -> Peak:
    """Run the fp32 network and return the largest value that goes into or comes out of any layer of its backbone.

    Args:
        detector: In evaluation mode; it is left alone.
        crops: uint8 RGB [N, image_size, image_size, 3]; extreme ones (black, white, noise) find extreme values.

    Raises:
        DoesNotFitError: The value does not fit float16, or a weight does not.
    """
    peaks: dict[str, Tensor] = {
        f"the weights {name}": value.abs().max()
        for name, value in detector.backbone.named_parameters()
        if value.numel()
    }
    hooks = [
        module.register_forward_hook(_watch(name or "backbone", peaks))
        for name, module in detector.backbone.named_modules(prefix="backbone")
    ]
    try:
        for start in range(0, len(crops), _BATCH):
            detector(torch.from_numpy(crops[start : start + _BATCH]))
    finally:
        for hook in hooks:
            hook.remove()
    for name, value in peaks.items():  # as the crops pass them, so that the first is the culprit
        if not value <= HALF_MAX:  # NaN is not
            raise DoesNotFitError(
                f"{detector.spec.name} cannot be exported in fp16: {name} reaches {float(value):.3g}, and float16 ends "
                f"at {HALF_MAX:.0f}. Leave the fp16 formats out of --formats, or train with a smaller lr or more "
                "weight decay."
            )
    name = max(peaks, key=lambda each: float(peaks[each]))
    return Peak(name, float(peaks[name]))


def _watch(name: str, peaks: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def look(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        # What goes in, too: sums and products between layers are no module's output.
        for value in (*given, made):
            if isinstance(value, Tensor) and value.is_floating_point():
                peak = value.abs().max()
                peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    return look
