"""An exponential moving average of the weights: a steadier model than the last step's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a module's floating-point parameters and buffers; integer buffers are copied.

    The decay warms up as (1 + n) / (10 + n) after n updates, so that the random start is soon forgotten.

    Args:
        module: Its present state is the start of the average.
        decay: Share of the old average kept per update, 0..1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._state = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module; call it after the step, with SAM's weights restored."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged: list[Tensor] = []
        live: list[Tensor] = []
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                averaged.append(self._state[key])
                live.append(value.detach())
            else:
                self._state[key].copy_(value)
        torch._foreach_lerp_(averaged, live, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The averaged state and the number of updates."""
        return {"state": self._state, "updates": self.updates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved average."""
        for key, value in saved["state"].items():
            self._state[key].copy_(value)
        self.updates = saved["updates"]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged state dict, as the module names it."""
        return self._state
