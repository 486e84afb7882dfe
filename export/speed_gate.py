"""Whether a format of reduced precision is worth having: its time against fp32 in the same runtime, interleaved."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from export.parity_chain import Runs
from pipeline.runtime import Crops

WORTH: Final = 1.05
"""A format that is not faster by so much is not worth having: two runs of one file differ by a few per cent."""
_FEWEST, _MOST = 10, 60
_SECONDS = 2.0


def speedup(full: Runs, reduced: Runs, crops: Crops) -> float:
    """How many times faster `reduced` answers one crop than `full`, on this machine as it is now.

    The two take turns, so that whatever else the machine does slows both; the median of the ratios is given.

    Args:
        full: The fp32 artefact.
        reduced: The other one, in the same runtime.
        crops: uint8 [N, ...]; one after the other is shown.
    """
    ratios: list[float] = []
    _once(full, crops[:1]), _once(reduced, crops[:1])
    start = time.perf_counter()
    while len(ratios) < _FEWEST or (len(ratios) < _MOST and time.perf_counter() - start < _SECONDS):
        crop = crops[len(ratios) % len(crops)][None]
        ratios.append(_once(full, crop) / _once(reduced, crop))
    return float(np.median(ratios))


def _once(runtime: Runs, crop: Crops) -> float:
    start = time.perf_counter()
    runtime.run(crop)
    return time.perf_counter() - start
