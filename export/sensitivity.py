"""Which layers to leave in float: what each alone does to the logits, against what it costs to compute in float.

Rounding errors of different layers add up like independent noise (measured: the sum over single layers is within
1 dB of all at once), so one layer at a time tells what a set of layers will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from export.agreement import Logits
from export.drift import sqnr_db


def noise_share(full: Logits, reduced: Logits) -> float:
    """Energy of the logits' error over their own: the SQNR, not in decibels."""
    return float(10 ** (-sqnr_db(full, reduced) / 10))


def measure_noise(
    products: Sequence[str], full: Logits, logits_with: Callable[[str], Logits]
) -> dict[str, float]:
    """Noise of every layer by itself.

    Args:
        products: Names of the layers.
        full: The float graph's logits on some crops.
        logits_with: Logits on the same crops with one layer quantised.
    """
    return {name: noise_share(full, logits_with(name)) for name in products}


def leave_in_float(noise: Mapping[str, float], costs: Mapping[str, float], allowed: float) -> set[str]:
    """The layers to put back to float so that the noise of the rest is at most `allowed`, cheaply.

    Layers with the most noise per cost go first; then those that turn out not to be needed come back, the dearest
    first.
    """
    kept: set[str] = set()
    total = sum(noise.values())
    for name in sorted(noise, key=lambda item: -noise[item] / costs[item]):
        if total <= allowed:
            break
        kept.add(name)
        total -= noise[name]
    for name in sorted(kept, key=lambda item: -costs[item]):
        if total + noise[name] <= allowed:
            kept.remove(name)
            total += noise[name]
    return kept
