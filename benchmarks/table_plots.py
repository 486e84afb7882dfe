"""Pictures of the table, PNG, in the look of the training plots: ratios, frontier, throughput, memory, stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.table_result import PUBLISHED_SPEED, Network, Ratio, Row, Table
from benchmarks.ways import WAYS
from training.plots import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PLAIN,
    PURPLE,
    VERMILION,
    figure_of,
    save_figure,
    style,
)

_PALETTE: Final = (INK, BLUE, ORANGE, GREEN, VERMILION, PURPLE, "#56B4E9", "#8C6D31", "#999999")
_FRONTIER_WAYS: Final = (
    ("onnx", BLUE, "o"),
    ("openvino-int8", VERMILION, "s"),
    ("cuda-fp16-graph", GREEN, "D"),
)
_SHOWN: Final = ("teacher", "stage2", "student-380", "demo-stage2")


def plot_all(table: Table, out: Path) -> list[Path]:
    """Draw every picture that the table has figures for, as OUT-NAME.png.

    Args:
        table: The result.
        out: Path of its JSON.

    Returns:
        The files written.
    """
    made = []
    for name, draw in PICTURES.items():
        path = out.with_name(f"{out.stem}-{name}.png")
        if draw(table, path):
            made.append(path)
    return made


def _ratios(table: Table, path: Path) -> bool:
    """How many times faster the student is, way by way, beside what was published."""
    main = [r for r in table.ratios if r.what == "speed" and (r.first, r.second) == ("teacher", "stage2")]
    alone = {r.way: r for r in main if " / " not in r.way}
    equal = {r.way: r for r in table.ratios if r.what == "speed" and r.second == "student-380"}
    across = [r for r in main if " / " in r.way]
    if not alone:
        return False
    names = [WAYS[way].title for way in alone]
    names += [" / ".join(WAYS[way].title for way in r.way.split(" / ")) for r in across]
    figure = figure_of(
        9, 1.5 + 0.36 * len(names), "How many times faster the student answers than the teacher"
    )
    axes = figure.add_subplot()
    style(axes)
    axes.grid(axis="y", visible=False)
    for place, way in enumerate(alone):
        _forest(axes, place, alone[way], VERMILION, "o")
        if way in equal:
            _forest(axes, place + 0.22, equal[way], BLUE, "D")
    for place, item in enumerate(across, len(alone)):
        _forest(axes, place, item, VERMILION, "o")
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    if any(item.published for item in main):
        axes.axvline(PUBLISHED_SPEED, color=GREEN, linewidth=1, linestyle="--")
        axes.annotate(
            f"published {PUBLISHED_SPEED:g}", (PUBLISHED_SPEED, 1), (4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=GREEN, fontsize=8.5, va="bottom",
        )  # fmt: skip
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in (2.0**power for power in range(-4, 6)) if low <= tick <= high])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(
        "teacher's time / student's time per crop, batch 1 (95 % interval)", color=INK, fontsize=9
    )
    handles = [axes.plot([], [], "o", color=VERMILION, label=_sizes(table, "stage2"))[0]]
    if equal:
        handles.append(axes.plot([], [], "D", color=BLUE, label=_sizes(table, "student-380"))[0])
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
    save_figure(figure, path)
    return True


def _sizes(table: Table, key: str) -> str:
    teacher, student = table.network("teacher"), table.network(key)
    return f"{teacher.name} @{teacher.image_size} / {student.name} @{student.image_size}"


def _forest(axes: Axes, place: float, item: Ratio, colour: str, marker: str) -> None:
    axes.plot([item.low, item.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(item.value, place, marker, color=colour, markersize=5)


def _frontier(table: Table, path: Path) -> bool:
    """Time against arithmetic for every network, and time against AUC where checkpoints tell one."""
    shown = [(way, colour, mark) for way, colour, mark in _FRONTIER_WAYS if _rows(table, way)]
    if not shown:
        return False
    told = [network for network in table.networks if network.val_auc is not None]
    panels: list[tuple[str, Callable[[Network], float | None]]] = [
        ("GMACs per crop", lambda network: network.gmacs)
    ]
    if len(told) > 1:
        panels.append(("validation AUC (self-blended faces)", lambda network: network.val_auc))
    figure = figure_of(5.5 * len(panels) + 1, 5.4, "Time per crop at batch 1 against what is got for it")
    for number, (label, value) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        style(axes)
        rightmost: dict[str, tuple[float, float]] = {}
        for way, colour, mark in shown:
            for row in _rows(table, way):
                network = table.network(row.network)
                y = value(network)
                if row.p50 is None or y is None:
                    continue
                x = row.p50.value
                axes.plot(x, y, mark, color=colour, markersize=6, linestyle="none")
                name = f"{network.name} @{network.image_size}" if number == 0 else network.title
                rightmost[name] = max(rightmost.get(name, (x, y)), (x, y))
        axes.set_xscale("log")
        if number == 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PLAIN)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.45)  # room for the names
        _label(axes, rightmost)
        axes.set_xlabel("milliseconds per crop", color=INK, fontsize=9)
        axes.set_ylabel(label, color=INK, fontsize=9)
    handles = [
        figure.axes[0].plot([], [], mark, color=colour, label=WAYS[way].title)[0]
        for way, colour, mark in shown
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    save_figure(figure, path)
    return True


def _label(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Names to the right of the points, those of points at one height under each other."""
    previous = float("inf")
    for name, (x, y) in sorted(places.items(), key=lambda item: -item[1][1]):
        height = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi - 3
        text = min(height, previous - 9)
        axes.annotate(
            name,
            (x, y),
            (7, text - height - 3),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            va="baseline",
        )
        previous = text


def _throughput(table: Table, path: Path) -> bool:
    """Crops per second against batch size, a panel for each network."""
    keys = [key for key in _SHOWN if any(len(row.by_batch) > 1 for row in table.rows if row.network == key)]
    if not keys:
        return False
    columns = min(2, len(keys))
    lines = -(-len(keys) // columns)
    figure = figure_of(4.5 * columns, 3.1 * lines + 1.2, "Crops per second by batch size (Offline-like)")
    ways = list(dict.fromkeys(row.way for row in table.rows if len(row.by_batch) > 1))
    for number, key in enumerate(keys):
        axes = figure.add_subplot(lines, columns, number + 1)
        style(axes)
        for row in table.rows:
            if row.network == key and len(row.by_batch) > 1:
                sizes = sorted(row.by_batch)
                axes.plot(
                    sizes, [row.by_batch[size] for size in sizes], "o-", markersize=4, linewidth=1.6,
                    color=_colour(ways, row.way), label=WAYS[row.way].title,
                )  # fmt: skip
        network = table.network(key)
        axes.set_title(
            f"{network.title}\n{network.name} @{network.image_size}", fontsize=9, color=INK, loc="left"
        )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(PLAIN)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch", color=INK, fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=min(len(labels), 4), frameon=False, fontsize=8.5
    )
    save_figure(figure, path)
    return True


def _memory(table: Table, path: Path) -> bool:
    """Memory while single crops are answered, by way."""
    kind = "torch_peak" if any("torch_peak" in row.memory for row in table.rows) else "running_1"
    rows = [row for row in table.rows if row.network in _SHOWN[:3] and row.memory.get(kind)]
    if not rows:
        return False
    ways = list(dict.fromkeys(row.way for row in rows))
    keys = [key for key in _SHOWN[:3] if any(row.network == key for row in rows)]
    figure = figure_of(
        9, 1.6 + 0.2 * len(ways) * len(keys), "Memory that a network takes while it answers one crop"
    )
    axes = figure.add_subplot()
    style(axes)
    axes.grid(axis="y", visible=False)
    height = 0.8 / len(keys)
    for number, key in enumerate(keys):
        of_key = {row.way: row.memory[kind] / (1 << 20) for row in rows if row.network == key}
        places = [ways.index(way) + (number - (len(keys) - 1) / 2) * height for way in of_key]
        network = table.network(key)
        bars = axes.barh(
            places, list(of_key.values()), height * 0.9, color=_PALETTE[1:][number],
            label=f"{network.title} ({network.name} @{network.image_size})",
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=7.5, color=INK)
    axes.set_yticks(range(len(ways)), [WAYS[way].title for way in ways])
    axes.invert_yaxis()
    where = (
        "PyTorch's allocator on the GPU"
        if kind == "torch_peak"
        else "over the process with its libraries loaded"
    )
    axes.set_xlabel(f"MiB at most, {where}", color=INK, fontsize=9)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5)
    save_figure(figure, path)
    return True


def _stages(table: Table, path: Path) -> bool:
    """Where the time of a picture goes, from its bytes to the verdict."""
    rows = [item for item in table.end_to_end if item.reason is None and item.total_ms is not None]
    if not rows:
        return False
    figure = figure_of(9, 1.7 + 0.5 * len(rows), "From a picture's bytes to the verdict")
    axes = figure.add_subplot()
    style(axes)
    axes.grid(axis="y", visible=False)
    stages = list(rows[0].stage_ms)
    left = [0.0] * len(rows)
    for number, stage in enumerate(stages):
        widths = [item.stage_ms[stage] for item in rows]
        shade = FAINT if stage == "verdict" else _PALETTE[1:][number]
        bars = axes.barh(range(len(rows)), widths, 0.62, left=left, color=shade, label=stage)
        shares = [width / sum(item.stage_ms.values()) for width, item in zip(widths, rows, strict=True)]
        wide = max(sum(item.stage_ms.values()) for item in rows)
        axes.bar_label(
            bars,
            [f"{share:.0%}" if width > 0.045 * wide else "" for share, width in zip(shares, widths, strict=True)],
            label_type="center", fontsize=8, color="white",
        )  # fmt: skip
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(
        range(len(rows)), [f"{table.network(i.network).title}\n{WAYS[i.way].title}" for i in rows]
    )
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per picture (mean), share of each stage", color=INK, fontsize=9)
    figure.legend(loc="outside lower left", ncols=len(stages), frameon=False, fontsize=8.5)
    save_figure(figure, path)
    return True


def _rows(table: Table, way: str) -> list[Row]:
    return [row for row in table.rows if row.way == way and row.reason is None]


def _colour(ways: Sequence[str], way: str) -> str:
    return _PALETTE[ways.index(way) % len(_PALETTE)]


PICTURES: Final[dict[str, Callable[[Table, Path], bool]]] = {
    "ratios": _ratios,
    "frontier": _frontier,
    "throughput": _throughput,
    "memory": _memory,
    "stages": _stages,
}
"""By the end of the file's name; each says whether there was anything to draw."""
