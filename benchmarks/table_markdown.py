"""The table for people: Markdown made from the result file, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.table_ratios import disturbed, said
from benchmarks.table_result import (
    MEMORY_KINDS,
    PUBLISHED,
    PUBLISHED_MEMORY,
    PUBLISHED_SPEED,
    TEACHER,
    Interval,
    Network,
    Ratio,
    Row,
    Table,
)
from benchmarks.ways import ANCHOR, ANCHOR_NETWORK, WAYS


def summary(table: Table) -> str:
    """What the README shows: the ratios first, then what stands behind them."""
    return "\n\n".join(
        (
            _headline(table),
            f"**Ratios** at batch 1 (95 % interval: {_interval_text(table)}; a speed over 1 means that the student is "
            "faster; the control is the same network twice, so it must be 1):\n\n" + _ratios_by_way(table),
            "**Networks**; the AUC is what each checkpoint says of itself, on self-blended validation faces:\n\n"
            + _networks(table),
            "**Milliseconds per crop** at batch 1, median (SingleStream-like):\n\n" + _latencies(table),
        )
    )


def full(table: Table) -> str:
    """Everything in the result file."""
    parts = [
        "# Teacher against student",
        _headline(table),
        _machine(table),
        "## Ratios\n\nSpeed over 1: the second is faster. Memory: the second's share of the first's. 95 % interval: "
        f"{_interval_text(table)}.\n\n" + _ratios(table),
        "## Networks\n\n" + _networks(table),
        "## Milliseconds per crop, batch 1, SingleStream-like\n\nMedian; the rows below give intervals.\n\n"
        + _latencies(table),
        "## Rows\n\n" + rows_text(table),
        "## Memory\n\n"
        + memory_text(table)
        + "\n\n"
        + "\n".join(f"- `{kind}`: {text}" for kind, text in MEMORY_KINDS.items()),
        "## End to end\n\n" + _ends(table),
        "## Training\n\n" + _training(table),
        "## Not measured\n\n" + missing_text(table),
        "## How\n\n" + _how(table),
    ]
    return "\n\n".join(parts) + "\n"


def lines_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _headline(table: Table) -> str:
    where = table.machine
    gpu = where["gpu"]["name"] if isinstance(where["gpu"], dict) else "no GPU"
    return (
        f"Measured on {where['processor']} ({', '.join(where['flags']) or 'no vector flags told'}), "
        f"{table.settings['threads']} threads of {where['cores']} cores, {gpu}, in {table.seconds / 60:.0f} minutes "
        f"(`{where['command']}`)."
    )


def _machine(table: Table) -> str:
    where = table.machine
    versions = ", ".join(f"{name} {found}" for name, found in where["versions"].items() if found)
    gpu = where["gpu"]
    told = ", ".join(f"{key} {value}" for key, value in gpu.items()) if isinstance(gpu, dict) else gpu
    return (
        f"{where['machine']}; governor: {where['governor']}; memory {where['memory_mib']} MiB; load average at the "
        f"start {where['load_average']}; git {where['git']}. {versions}. GPU: {told}"
    )


def _interval_text(table: Table) -> str:
    rounds = "bootstrap over rounds"
    if table.process_spread is None:
        return rounds
    return (
        f"{rounds}, and the {table.process_spread:.1%} by which processes of one network were found to differ"
    )


def _ratios(table: Table) -> str:
    return lines_of(
        ("what", "of", "in", "measured", "published"),
        (
            (item.what, item.title, _ways(item.way), _said(item), _or_dash(item.published, "{:g}"))
            for item in table.ratios
        ),
    )


def _ratios_by_way(table: Table) -> str:
    """The ratios that matter most: one line per way, then what only two ways together or training show."""
    found = {(str(item.what), item.first, item.second, item.way): item for item in table.ratios}
    columns = (
        ("speed", "teacher", "stage2"), ("memory", "teacher", "stage2"), ("speed", "teacher", "student-380"),
        ("speed", "stage1", "stage2"),
    )  # fmt: skip
    published = next((item.published for item in table.ratios if item.published), None)
    ways = [way for way in WAYS if any((*column, way) in found for column in columns)]
    lines = [
        (
            WAYS[way].title,
            *(_said(item) if (item := found.get((*column, way))) else "-" for column in columns),
        )
        for way in ways
    ]
    if published:
        lines.insert(
            0,
            (
                "*published by the method's authors*",
                f"*{PUBLISHED_SPEED:g}*",
                f"*{PUBLISHED_MEMORY:g}*",
                "",
                "",
            ),
        )
    head = (
        "", "speed, teacher / student", "memory, student / teacher", "speed at the teacher's size",
        "control: stage 1 / stage 2",
    )  # fmt: skip
    rest = [item for item in table.ratios if " / " in item.way or item.what.startswith("training")]
    others = lines_of(
        ("", "", "ratio", "published"),
        (
            (item.what, f"{item.title} ({_ways(item.way)})", _said(item), _or_dash(item.published, "{:g}"))
            for item in rest
        ),
    )
    return f"{lines_of(head, lines)}\n\n{others}"


def _ways(text: str) -> str:
    return " / ".join(WAYS[name].title if name in WAYS else name for name in text.split(" / "))


def _said(item: Ratio) -> str:
    return (
        f"**{item.value:.2f}**"
        if item.low == item.high
        else said(item).replace(" ", "** ", 1).join(("**", ""))
    )


def _networks(table: Table) -> str:
    return lines_of(
        (
            "network", "", "px", "parameters (M)", "GMACs", "activations (M)", "fp32 ONNX (MB)", "int8 ONNX (MB)",
            "validation AUC", "published AUC, ms, GB",
        ),
        (
            (
                network.title,
                f"`{network.name}`",
                network.image_size,
                f"{network.parameters / 1e6:.2f}",
                f"{network.gmacs:.2f}",
                f"{network.mactivations:.1f}",
                _megabytes(network, "onnx"),
                _megabytes(network, "onnx-int8"),
                auc_text(network),
                _published(network.key, table),
            )
            for network in table.networks
        ),
    )  # fmt: skip


def auc_text(network: Network) -> str:
    """The checkpoint's AUC, or why there is none."""
    if network.val_auc is not None:
        return f"{network.val_auc:.4f}"
    return "random weights" if network.weights == "random" else "none in the checkpoint"


def _published(key: str, table: Table) -> str:
    found = PUBLISHED.get(key) if table.network("teacher").name == TEACHER else None
    return "" if found is None else f"{found['auc']:g}, {found['ms']:g}, {found['gigabytes']:g}"


def _megabytes(network: Network, form: str) -> str:
    size = network.bytes.get(form)
    return "-" if size is None else f"{size / 1e6:.1f}"


def _latencies(table: Table) -> str:
    ways = [way for way in dict.fromkeys(row.way for row in table.rows) if any(_measured(table, way))]
    text = lines_of(
        ("network", *(WAYS[way].title for way in ways)),
        (
            (f"{network.title} @{network.image_size}", *(_cell(table.row(network.key, way)) for way in ways))
            for network in table.networks
        ),
    )
    return "\n\n".join(filter(None, (text, _disturbed(table))))


def _disturbed(table: Table) -> str:
    """What the anchor tells of the machine; empty where it was alike for all."""
    found = disturbed(table.rows)
    if not found:
        return ""
    anchor = f"{table.network(ANCHOR_NETWORK).title} in {ANCHOR.title}"
    slowed = ", ".join(f"{times:.2f} times in {WAYS[way].title}" for way, times in found.items())
    return (
        f"Beside every way, {anchor} is asked in turns. Beside some it took longer than at its best: "
        f"{slowed}. Milliseconds there are too many by up to as much; ratios are within one way, or divided by that."
    )


def _measured(table: Table, way: str) -> Iterator[Row]:
    return (row for row in table.rows if row.way == way and row.reason is None)


def _cell(row: Row | None) -> str:
    if row is None or row.p50 is None:
        return "-"
    return f"{row.p50.value:.{1 if row.p50.value >= 10 else 2}f}"


def rows_text(table: Table) -> str:
    """Latency, throughput and core time of every row that was measured."""
    return lines_of(
        (
            "network", "way", "n", "p50 (ms)", "p90", "p99", "core ms per crop", "crops/s by batch", "best batch",
            "core hours per million crops", "GPU joules per crop", "ready after (s)",
        ),
        (
            (
                table.network(row.network).title,
                f"{WAYS[row.way].title} ({row.label})",
                row.samples,
                _interval(row.p50),
                _interval(row.p90),
                _interval(row.p99),
                _or_dash(row.core_ms, "{:.1f}"),
                ", ".join(f"{size}: {rate:.1f}" for size, rate in row.by_batch.items()),
                row.best_batch or "",
                _or_dash(row.batch_core_ms and row.batch_core_ms / 3.6, "{:.1f}"),
                _or_dash(row.joules, "{:.2g}"),
                _or_dash(row.ready_seconds, "{:.1f}"),
            )
            for row in table.rows
            if row.reason is None
        ),
    )  # fmt: skip


def memory_text(table: Table) -> str:
    """Memory by kind of every row that was measured."""
    kinds = [kind for kind in MEMORY_KINDS if any(kind in row.memory for row in table.rows)]
    return lines_of(
        ("network", "way", *(f"{kind} (MiB)" for kind in kinds)),
        (
            (
                table.network(row.network).title,
                WAYS[row.way].title,
                *(_or_dash(row.memory.get(kind), "{:.0f}", 1 << 20) for kind in kinds),
            )
            for row in table.rows
            if row.reason is None
        ),
    )


def _ends(table: Table) -> str:
    measured = [item for item in table.end_to_end if item.reason is None and item.total_ms is not None]
    if not measured:
        return "Not measured."
    stages = list(measured[0].stage_ms)
    return (
        f"{measured[0].picture}, bytes in memory to the verdict; share of the mean by stage.\n\n"
        + lines_of(
            ("network", "way", "n", "total p50 (ms)", *stages),
            (
                (
                    table.network(item.network).title,
                    WAYS[item.way].title,
                    item.samples,
                    _interval(item.total_ms),
                    *(
                        f"{ms:.1f} ms, {ms / sum(item.stage_ms.values()):.0%}"
                        for ms in item.stage_ms.values()
                    ),
                )
                for item in measured
            ),
        )
    )


def _training(table: Table) -> str:
    measured = [item for item in table.training if item.reason is None]
    if not measured:
        return "Not measured."
    return "A step of the loop with SAM's two passes, on batches in memory.\n\n" + lines_of(
        ("stage", "networks", "in", "images", "seconds per step", "memory (MiB)", "published memory (GB)"),
        (
            (
                item.title,
                item.networks,
                _ways(item.way),
                item.batch,
                _interval(item.step_seconds, "{:.3g}"),
                ", ".join(f"{kind} {size / (1 << 20):.0f}" for kind, size in item.memory.items()),
                f"{PUBLISHED[item.stage]['gigabytes']:g}" if TEACHER in measured[0].networks else "",
            )
            for item in measured
        ),
    )


def missing_text(table: Table) -> str:
    """What could not be measured, and why."""
    found: list[tuple[str, str, str]] = [
        (row.network, _ways(row.way), row.reason) for row in table.rows if row.reason is not None
    ]
    found += [
        (item.network, f"end to end, {item.way}", item.reason) for item in table.end_to_end if item.reason
    ]
    found += [(item.stage, "training step", item.reason) for item in table.training if item.reason]
    titles = {network.key: network.title for network in table.networks}
    by_cause: dict[tuple[str, str], list[str]] = {}
    for key, what, reason in found:
        by_cause.setdefault((what, reason.replace("|", "\\|")), []).append(titles.get(key, key))
    if not by_cause:
        return "Everything that was asked for was measured."
    return lines_of(
        ("what", "networks", "why"), ((what, ", ".join(keys), why) for (what, why), keys in by_cause.items())
    )


def _how(table: Table) -> str:
    settings: dict[str, Any] = table.settings
    inside = "\n".join(f"- {_ways(way)}: {text}" for way, text in settings["inside"].items())
    return (
        f"One process per row; {settings['rounds']} rounds in which every network of a way is asked once, in a new "
        f"order each; {settings['least_calls']} or more single crops per turn. SingleStream-like: the next crop when "
        "the last is answered. Offline-like: full batches one after the other. MLPerf's own rules ask for 270,336 "
        "samples before a 99th percentile may be named; here a percentile is shown where three samples lie beyond "
        "it. Crops are noise of the network's size. Int8 has every layer in int8: what `stillface export` ships may "
        "keep some in float. Core time is that of all cores together. Energy is a GPU's own, by its counter, at "
        "the best batch; a CPU's is not measured. A dash in the "
        "table of latencies: widths, rivals and networks that differ in their weights only are shown in the plain "
        "ways, to end in time.\n\n"
        f"What the timer holds:\n\n{inside}"
    )


def _interval(found: Interval | None, form: str = "{:.1f}") -> str:
    if found is None:
        return "too few samples"
    return f"{form.format(found.value)} ({form.format(found.low)} to {form.format(found.high)})"


def _or_dash(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else form.format(value / unit)
