"""Pictures of a run and of an evaluation: training curves, ROC, score histograms, reliability.

PNG files, drawn without a screen. The colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.bootstrap import roc_band
from pipeline.errors import InputError
from pipeline.measures import RankedScores, undefined_reason
from pipeline.metrics import Estimate, LevelReport
from pipeline.samples import Samples
from pipeline.storage import write_whole
from training.run_log import Event

Floats = NDArray[np.float64]

BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#AA4499"
INK, FAINT = "#333333", "#BBBBBB"
DOTS_PER_INCH = 100

_POINT_NAMES = {"eer": "EER", "fpr-0.1%": "FPR 0.1 %", "fpr-1%": "FPR 1 %", "fpr-5%": "FPR 5 %"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a training panel: the log's kind of event and scalar, and how it is drawn.

    `noisy` series get a running mean drawn over them.
    """

    kind: str
    scalar: str
    name: str
    colour: str
    noisy: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of the training figure."""

    title: str
    lines: tuple[Line, ...]
    unit: str = ""
    log: bool = False


PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")

PANELS = (
    Panel(
        "Training loss",
        (
            Line("step", "loss", "total", INK, noisy=True),
            Line("step", "loss_hard", "hard", BLUE, noisy=True),
            Line("step", "loss_soft", "soft", VERMILION, noisy=True),
            Line("step", "loss_trace", "trace", PURPLE, noisy=True),
        ),
        "nats",
    ),
    Panel("Validation loss", (Line("epoch", "val_loss", "", BLUE),), "nats"),
    Panel("Validation AUC", (Line("epoch", "val_auc", "", BLUE),)),
    Panel("Validation EER", (Line("epoch", "val_eer", "", BLUE),), "%"),
    Panel("KL to the teacher on validation", (Line("epoch", "val_teacher_kl", "", VERMILION),), "nats"),
    Panel("Agreement with the teacher", (Line("epoch", "val_agreement", "", VERMILION),), "%"),
    Panel("Learning rate", (Line("step", "lr", "", INK),)),
    Panel("Alpha: share of the hard loss", (Line("step", "alpha", "", INK),)),
    Panel("Gradient norm before clipping", (Line("step", "grad_norm", "", GREEN, noisy=True),), log=True),
    Panel("Sharpness: rise of the loss", (Line("step", "sharpness", "", PURPLE, noisy=True),), "nats"),
    Panel("Speed", (Line("step", "images_per_second", "", INK, noisy=True),), "images/s"),
)
"""What the training figure shows; panels whose scalars a run did not log are left out."""


def plot_training(events: Sequence[Event], path: Path, title: str = "Training") -> Path:
    """Draw a run's curves over its steps and write them to `path` (PNG).

    Args:
        events: what `run_log.read_log` returns. Scalars logged as null (not finite) are gaps, and the
            panel says how many there were.
        path: where the picture goes; replaced whole.
        title: headline, for example the run's name.

    Raises:
        InputError: the log has no scalar that is drawn here.
    """
    panels = [panel for panel in PANELS if any(_series(events, line)[0].size for line in panel.lines)]
    if not panels:
        raise InputError("the log holds no losses and no validation scores yet; let the run do a step first.")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figure_of(4.8 * columns, 3.0 * rows + 0.5, title)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, events)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    return save_figure(figure, path)


def _series(events: Sequence[Event], line: Line) -> tuple[Floats, Floats]:
    """Steps and values of one scalar, NaN where it was not finite; float64 [n] each."""
    found = [event for event in events if event["kind"] == line.kind and line.scalar in event]
    steps = np.array([event["step"] for event in found], dtype=np.float64)
    values = [event[line.scalar] for event in found]
    return steps, np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _draw_panel(axes: Axes, panel: Panel, events: Sequence[Event]) -> None:
    style(axes)
    unit = f" ({panel.unit})" if panel.unit not in ("", "%") else ""
    axes.set_title(panel.title + unit, loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(PERCENT if panel.unit == "%" else PLAIN)
    ends: list[tuple[float, str, str]] = []
    missing = 0
    for line in panel.lines:
        steps, values = _series(events, line)
        if not steps.size:
            continue
        missing += int(np.isnan(values).sum())
        smooth = _draw_line(axes, line, steps, values)
        ends.append((smooth, line.name, line.colour))
    if panel.log and any(end > 0 for end, _, _ in ends):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PLAIN)
    if missing:
        _corner_note(axes, f"{missing} not finite")
    if len(ends) > 1:
        _label_ends(axes, ends)


def _corner_note(axes: Axes, text: str) -> None:
    axes.text(0.02, 0.03, text, transform=axes.transAxes, color=VERMILION, fontsize=8)


def _draw_line(axes: Axes, line: Line, steps: Floats, values: Floats) -> float:
    """Draw one line and return where it ends."""
    if not line.noisy or steps.size < 40:
        marker = "o" if steps.size < 40 else None
        axes.plot(steps, values, color=line.colour, linewidth=1.6, marker=marker, markersize=3.5)
        smooth = values
    else:
        smooth = running_mean(values, max(3, steps.size // 30))
        axes.plot(steps, values, color=line.colour, linewidth=0.6, alpha=0.25)
        axes.plot(steps, smooth, color=line.colour, linewidth=1.6)
    finite = smooth[np.isfinite(smooth)]
    return float(finite[-1]) if finite.size else math.nan


def running_mean(values: Floats, width: int) -> Floats:
    """Mean over a centred window of `width` values, shorter at the ends and without NaN. float64 [n]."""
    kernel = np.ones(min(width, values.size))
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(np.float64), kernel, mode="same")
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return mean


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at its right end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    places = [(end - low) / (high - low) for end, _, _ in ends]
    for place, (_, name, colour) in zip(spread(places, 0.085), ends, strict=True):
        axes.text(1.015, place, name, transform=axes.transAxes, color=colour, fontsize=9, va="center")


def spread(places: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Move places little, so that neighbours are `gap` apart and all lie within low..high (if they fit)."""
    order = np.argsort(places, kind="stable")
    moved = np.asarray(places, dtype=np.float64)[order]
    for number in range(moved.size):
        least = low if number == 0 else moved[number - 1] + gap
        moved[number] = max(moved[number], least)
    for number in reversed(range(moved.size)):
        most = high if number == moved.size - 1 else moved[number + 1] - gap
        moved[number] = min(moved[number], most)
    result = np.empty_like(moved)
    result[order] = moved
    return [float(place) for place in result]


def plot_roc(levels: Sequence[tuple[Samples, LevelReport]], path: Path, title: str) -> Path:
    """ROC curve of each level with its bootstrap band and operating points, side by side.

    Args:
        levels: samples with the report measured on them; both classes present.
        path: where the picture goes; replaced whole.
        title: headline.

    Raises:
        InputError: a level has one class only.
    """
    figure = figure_of(5.2 * len(levels), 5.4, title)
    grid = figure.subplots(1, len(levels), squeeze=False)
    for axes, (samples, report) in zip(grid.flat, levels, strict=True):
        _need_both_classes(samples)
        _draw_roc(axes, samples, report)
    return save_figure(figure, path)


def _draw_roc(axes: Axes, samples: Samples, report: LevelReport) -> None:
    style(axes)
    curves = RankedScores(samples.scores, samples.labels).curves()
    grid = np.linspace(0, 1, 201)
    band = roc_band(samples.scores, samples.labels, samples.videos, grid, resamples=400)
    if band is not None:
        axes.fill_between(grid, *band, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(curves.fpr[0], curves.tpr[0], color=BLUE, linewidth=1.8)
    _mark_points(axes, report)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("real samples called fake (FPR)")
    axes.set_ylabel("fake samples found (TPR)")
    axes.set_title(
        f"per {report.level}:  AUC {_with_interval(report.auc)}", loc="left", fontsize=10, color=INK
    )


def _mark_points(axes: Axes, report: LevelReport) -> None:
    """Dot and label each operating point; those with one threshold share a label."""
    names: dict[tuple[float, float, float], list[str]] = {}
    for point in report.operating_points:
        place = (point.fpr, point.tpr, point.threshold)
        names.setdefault(place, []).append(_POINT_NAMES.get(point.name, point.name))
    heights = spread([0.9 * tpr - 0.1 for _, tpr, _ in names], 0.09, low=0.06, high=0.9)
    leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 4}
    for ((fpr, tpr, threshold), shared), height in zip(names.items(), heights, strict=True):
        axes.plot(fpr, tpr, "o", color=VERMILION, markersize=5, zorder=5)
        axes.annotate(
            f"{', '.join(shared)}\nTPR {100 * tpr:.1f} % at score {threshold:.4g}",
            xy=(fpr, tpr),
            xytext=(0.45, height),
            textcoords="axes fraction",
            fontsize=8.5,
            color=INK,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
            arrowprops={**leader, "relpos": (0, 0.5)},
        )


def plot_scores(
    levels: Sequence[Samples], path: Path, title: str, *, thresholds: Sequence[float | None]
) -> Path:
    """Histogram of the scores of real and fake samples, one panel per level, with its threshold if there is one."""
    figure = figure_of(5.2 * len(levels), 3.9, title)
    grid = figure.subplots(1, len(levels), squeeze=False)
    for axes, samples, threshold in zip(grid.flat, levels, thresholds, strict=True):
        _draw_histogram(axes, samples, threshold)
    return save_figure(figure, path)


def _draw_histogram(axes: Axes, samples: Samples, threshold: float | None) -> None:
    style(axes)
    edges = np.linspace(0, 1, 41 if samples.scores.size >= 1000 else 21)
    for label, name, colour, left in ((0, "real", BLUE, 0.22), (1, "fake", VERMILION, 0.45)):
        scores = samples.scores[samples.labels == label]
        if not scores.size:
            continue
        share = np.histogram(scores, edges)[0] / scores.size
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
        axes.stairs(share, edges, color=colour, linewidth=1.4)
        axes.text(left, 1.03, f"{scores.size} {name}", transform=axes.transAxes, color=colour, fontsize=10)
    axes.set_title(f"per {samples.level}:", loc="left", fontsize=10, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    if threshold is not None:
        _mark_threshold(axes, threshold)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("score (probability of fake)")
    axes.set_ylabel(f"share of the class's {samples.level}s")


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    on_right = threshold < 0.7
    axes.annotate(
        f"threshold {threshold:.4g}",
        (threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 if on_right else -4, -10),
        textcoords="offset points",
        ha="left" if on_right else "right",
        fontsize=8.5,
        color=INK,
    )


def plot_reliability(levels: Sequence[LevelReport], path: Path, title: str) -> Path:
    """Mean score of each equal-mass bin against its share of fakes; honest scores are on the diagonal."""
    figure = figure_of(5.2 * len(levels), 5.4, title)
    grid = figure.subplots(1, len(levels), squeeze=False)
    for axes, report in zip(grid.flat, levels, strict=True):
        style(axes)
        axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.62, 0.58, "honest", rotation=45, color="#888888", fontsize=8.5, ha="center", va="center")
        mean = [item.mean_score for item in report.reliability]
        share = [item.fake_share for item in report.reliability]
        axes.plot(mean, share, "o-", color=BLUE, linewidth=1.2, markersize=5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel("mean score of the bin")
        axes.set_ylabel("share of the bin that is fake")
        axes.set_title(
            f"per {report.level}:  ECE {_with_interval(report.ece)}", loc="left", fontsize=10, color=INK
        )
    return save_figure(figure, path)


def _with_interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return str(estimate.reason)
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _need_both_classes(samples: Samples) -> None:
    reason = undefined_reason(samples.labels)
    if reason:
        raise InputError(f"an ROC curve is {reason}; give real and fake samples.")


def figure_of(width: float, height: float, title: str) -> Figure:
    """An empty figure of our look; inches."""
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return figure


def style(axes: Axes) -> None:
    """Give axes our look."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
    return path
