"""Puts tensors and random streams back where they were, for code that must be able to take a step back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Snapshot:
    """Copies of tensors, and the way back into the same storage.

    Args:
        tensors: Parameters or buffers; they stay the caller's.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._copies = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the old values back, to the bit."""
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._copies)


class RandomStreams:
    """Where the random streams that dropout draws from stand now.

    Args:
        device: The one that computes; the CPU's stream is always kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._device = device if device.type == "cuda" else None
        self._cuda = torch.cuda.get_rng_state(device) if self._device is not None else None

    def rewind(self) -> None:
        """Draw the same numbers again from here on."""
        torch.set_rng_state(self._cpu)
        if self._device is not None and self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
