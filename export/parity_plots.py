"""Pictures of the gate: how far the logits lie apart, and the scores of each artefact against PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from export.parity_chain import Answered, ParityChain
from export.parity_report import LinkReport
from pipeline.scoring import p_fake
from training.plots import BLUE, INK, ORANGE, VERMILION, figure_of, save_figure, style

_EMPTY = 1e-9
"""Where equal logits are drawn on the logarithmic axis."""


def plot_differences(chain: ParityChain, path: Path) -> Path:
    """One histogram per link of |Δlogit|, with the bound of its gate."""
    links = list(chain.links.values())
    figure = figure_of(8.0, 1.0 + 1.15 * len(links), "Distance of each link from PyTorch")
    grid = figure.subplots(len(links), 1, squeeze=False, sharex=True)
    edges = np.logspace(np.log10(_EMPTY), 2, 90)
    for axes, link in zip(grid.flat, links, strict=True):
        _draw_differences(axes, chain, link, edges)
    grid.flat[-1].set_xlabel("|Δlogit| from PyTorch in fp32 (equal ones at the left edge)")
    return save_figure(figure, path)


def _draw_differences(axes: Axes, chain: ParityChain, link: LinkReport, edges: np.ndarray) -> None:
    from export.parity_gate import GATES

    style(axes)
    mine = chain.answers[link.name]
    gap = np.abs(mine.answer.logits - chain.answers[chain.label].at(mine.places).logits).ravel()
    gap = np.clip(gap[np.isfinite(gap)], _EMPTY, edges[-1])
    colour = VERMILION if link.broken else BLUE
    axes.hist(gap, edges.tolist(), color=colour, alpha=0.75)
    axes.set_xscale("log")
    axes.set_yticks([])
    gate = GATES[link.precision]
    bound = gate.max_abs_logit
    if bound is not None:
        axes.axvline(bound, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(bound, 0.95, " bound", transform=axes.get_xaxis_transform(), fontsize=8, va="top")
    verdict = "BROKEN" if link.broken else "holds"
    axes.set_title(f"{link.name} ({link.precision}, {verdict})", loc="left", fontsize=9, color=colour)


def plot_scores(chain: ParityChain, names: Mapping[str, str], path: Path) -> Path | None:
    """Scores of each artefact against PyTorch's, with the thresholds.

    Args:
        chain: Measured.
        names: Links to draw, with their titles.
        path: PNG to write.

    Returns:
        None where there is nothing to draw.
    """
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = figure_of(4.2 * columns, 4.3 * rows + 0.4, "Scores of each artefact against PyTorch's")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, title) in zip(grid.flat, names.items(), strict=False):
        _draw_scores(axes, chain, chain.answers[name], title)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    return save_figure(figure, path)


def _draw_scores(axes: Axes, chain: ParityChain, mine: Answered, title: str) -> None:
    style(axes)
    reference = chain.answers[chain.label].at(mine.places).logits
    fine = np.isfinite(mine.answer.logits).all(axis=1)
    scores = [
        p_fake(logits[fine], chain.calibration.temperature) for logits in (reference, mine.answer.logits)
    ]
    kinds = chain.inputs.kinds[mine.places][fine]
    for point in chain.calibration.operating_points:
        if point.level == "frame" and point.threshold <= 1:
            axes.axvline(point.threshold, color="#BBBBBB", linewidth=0.8)
            axes.axhline(point.threshold, color="#BBBBBB", linewidth=0.8)
    axes.plot((0, 1), (0, 1), color=INK, linewidth=0.7)
    groups = (
        ("drawn", ~np.isin(kinds, ("real", "fake")), ORANGE),
        ("real", kinds == "real", BLUE),
        ("fake", kinds == "fake", VERMILION),
    )
    for place, (name, inside, colour) in enumerate(groups):
        if inside.any():
            axes.plot(
                scores[0][inside],
                scores[1][inside],
                "o",
                color=colour,
                markersize=3,
                alpha=0.5,
                markeredgewidth=0,
            )
            axes.text(
                0.03,
                0.95 - 0.07 * place,
                f"{inside.sum()} {name}",
                transform=axes.transAxes,
                color=colour,
                fontsize=9,
                bbox={"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 1},
            )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel("PyTorch's score")
    axes.set_ylabel("score")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
