"""The table's headline: how many times faster and smaller, each with its interval, and whether two runs agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.interleaved import Ratio as Found
from benchmarks.interleaved import ratio, ratio_across
from benchmarks.table_result import (
    PUBLISHED_MEMORY,
    PUBLISHED_SPEED,
    TEACHER,
    Network,
    Ratio,
    Row,
    Training,
)
from benchmarks.ways import WAYS

_MEMORY_SLACK: Final = 1.1
_DISTURBED: Final = 1.1
_DEVIATIONS: Final = 2
"""Standard deviations on either side that hold 95 %."""
PAIRS: Final = (
    ("teacher", "stage2", "teacher / student"),
    ("teacher", "student-380", "teacher / student at the teacher's size"),
    ("stage1", "stage2", "the student against itself, which must be 1"),
    ("demo-teacher", "demo-stage2", "demo teacher / demo student, the same network"),
)
ACROSS: Final = (
    ("teacher", "torch", "stage2", "onnx", "teacher as trained / student in ONNX Runtime"),
    ("teacher", "torch", "stage2", "openvino-int8", "teacher as trained / student in OpenVINO int8"),
    ("stage2", "onnx", "stage2", "onnx-int8", "student: ONNX Runtime fp32 / int8"),
    ("stage2", "openvino", "stage2", "openvino-int8", "student: OpenVINO fp32 / int8"),
    ("stage2", "onnx", "stage2", "openvino-int8", "student: ONNX Runtime fp32 / OpenVINO int8"),
    ("teacher", "cuda", "stage2", "cuda-fp16-graph", "teacher as trained / student in fp16, CUDA graph"),
    ("stage2", "cuda", "stage2", "cuda-fp16-graph", "student: PyTorch fp32 / fp16, CUDA graph"),
    ("stage2", "cuda", "stage2", "tensorrt-fp16-graph", "student: PyTorch fp32 / TensorRT fp16, CUDA graph"),
)
"""Network and way of the slower and of the faster."""


def ratios_of(
    networks: Sequence[Network], rows: Sequence[Row], training: Sequence[Training]
) -> tuple[Ratio, ...]:
    """Every ratio that the rows allow.

    An interval holds what differs from round to round, by drawing the rounds again, and what differs from process to
    process (`process_spread`), which stays the same in all of a row's rounds.
    """
    at = {(row.network, row.way): row for row in rows if row.reason is None}
    spread = process_spread(networks, rows) or 0.0
    found = (*_in_one_way(networks, at), *_across(at), *_of_training(training))
    return tuple(
        _widened(item, _memory_spread(networks, at, item.way) if item.what == "memory" else spread)
        for item in found
    )


def disturbed(rows: Sequence[Row]) -> dict[str, float]:
    """Ways beside which the anchor was over a tenth slower than at its best, and how many times."""
    anchor = {row.way: float(np.median(row.anchor_ms)) for row in rows if row.anchor_ms}
    best = min(anchor.values(), default=0.0)
    return {way: taken / best for way, taken in anchor.items() if taken > _DISTURBED * best}


def process_spread(networks: Sequence[Network], rows: Sequence[Row]) -> float | None:
    """`twin_spread` of the time for a crop."""
    return twin_spread(networks, {(row.network, row.way): row.round_ms for row in rows if row.reason is None})


def twin_spread(
    networks: Sequence[Network], figures: Mapping[tuple[str, str], Sequence[float]]
) -> float | None:
    """How far processes lie apart that run the same network in the same way.

    Two such processes differ by some per cent throughout, by where their memory happens to lie. The table holds several
    networks more than once (its controls), so this is measured, not guessed.

    Args:
        networks: Of the table.
        figures: Of each network and way, as many as there were rounds.

    Returns:
        Standard deviation of the figure's logarithm, pooled over the ways: 0.02 for 2 %. None where no network
        stands in the table twice.
    """
    twins: dict[tuple[str, int], list[str]] = {}
    for network in networks:
        twins.setdefault((network.name, network.image_size), []).append(network.key)
    squares, freedom = 0.0, 0
    for way in dict.fromkeys(way for _, way in figures):
        for keys in twins.values():
            logs = np.log([figures[key, way] for key in keys if (key, way) in figures])  # [process, round]
            if len(logs) > 1:
                apart = np.median(logs - logs.mean(0), axis=1)
                squares += float((apart**2).sum())
                freedom += len(logs) - 1
    return float(np.sqrt(squares / freedom)) if freedom else None


def _memory_spread(networks: Sequence[Network], at: dict[tuple[str, str], Row], way: str) -> float:
    """Of all ways of the same library: PyTorch's allocations differ by a tenth, OpenVINO's by nothing."""
    library = way.partition("-")[0]
    figures = {
        place: (row.memory[kind],)
        for place, row in at.items()
        if place[1].partition("-")[0] == library and row.memory.get(kind := _memory_kind(row))
    }
    return twin_spread(networks, figures) or 0.0


def _widened(item: Ratio, spread: float) -> Ratio:
    """The interval with what differs between the processes that took part, within `_DEVIATIONS` of it."""
    if item.what == "training memory":
        return item
    processes = 4 if " / " in item.way else 2  # across ways each has an anchor beside it
    margin = _DEVIATIONS * spread * math.sqrt(processes)
    below = math.hypot(math.log(item.value / item.low), margin)
    above = math.hypot(math.log(item.high / item.value), margin)
    return item.model_copy(
        update={"low": item.value * math.exp(-below), "high": item.value * math.exp(above)}
    )


def disagreements(first: Iterable[Ratio], second: Sequence[Ratio]) -> list[str]:
    """Ratios of two runs whose intervals do not overlap, said in a line each.

    Memory is read once per row, so it has no interval over rounds; a tenth more is let pass.
    """
    lines = []
    for one in first:
        other = _counterpart(one, second)
        slack = _MEMORY_SLACK if "memory" in one.what else 1.0
        if other is not None and (one.high * slack < other.low or other.high * slack < one.low):
            lines.append(f"{one.what}, {one.title}, {one.way}: {said(one)} and {said(other)}")
    return lines


def agreement(first: Sequence[Ratio], second: Sequence[Ratio]) -> str:
    """How well two runs agree, in a sentence or two."""
    pairs = [(one, other) for one in first if (other := _counterpart(one, second)) is not None]
    lines = disagreements(first, second)
    speeds = sorted(abs(math.log(other.value / one.value)) for one, other in pairs if one.what == "speed")
    apart = (
        f" The speeds differ by {math.expm1(speeds[len(speeds) // 2]):.0%} at the median and "
        f"{math.expm1(speeds[-1]):.0%} at most."
        if speeds
        else ""
    )
    told = (
        "not: " + "; ".join(lines)
        if lines
        else "their intervals overlap; memory is let differ by a tenth more"
    )
    return f"of {len(pairs)} ratios {len(pairs) - len(lines)} agree ({told}).{apart}"


def said(item: Ratio | Found) -> str:
    """A ratio with its interval."""
    value = item.median if isinstance(item, Found) else item.value
    return f"{value:.2f} ({item.low:.2f} to {item.high:.2f})"


def _counterpart(one: Ratio, run: Iterable[Ratio]) -> Ratio | None:
    of_it = (one.what, one.first, one.second, one.way)
    return next((item for item in run if (item.what, item.first, item.second, item.way) == of_it), None)


def _in_one_way(networks: Sequence[Network], at: dict[tuple[str, str], Row]) -> Iterator[Ratio]:
    known = {network.key: network.name for network in networks}
    ways = list(dict.fromkeys(way for _, way in at))
    for first, second, title in PAIRS:
        if not {first, second} <= set(known):
            continue
        published = (first, second) == ("teacher", "stage2") and known[first] == TEACHER
        for way in ways:
            one, other = at.get((first, way)), at.get((second, way))
            if one is None or other is None:
                continue
            yield _speed(title, one, other, way, published)
            if (memory := _memory(title, one, other, way, published)) is not None:
                yield memory


def _speed(title: str, one: Row, other: Row, way: str, published: bool) -> Ratio:
    found = ratio(np.array(one.round_ms), np.array(other.round_ms))
    return Ratio(
        what="speed",
        title=title,
        first=one.network,
        second=other.network,
        way=way,
        value=found.median,
        low=found.low,
        high=found.high,
        published=PUBLISHED_SPEED if published else None,
    )


def _memory(title: str, one: Row, other: Row, way: str, published: bool) -> Ratio | None:
    kind = _memory_kind(one)
    if not one.memory.get(kind) or not other.memory.get(kind):
        return None
    value = other.memory[kind] / one.memory[kind]
    return Ratio(
        what="memory",
        title=title,
        first=one.network,
        second=other.network,
        way=way,
        value=value,
        low=value,
        high=value,
        published=PUBLISHED_MEMORY if published else None,
    )


def _memory_kind(row: Row) -> str:
    return "torch_peak" if "torch_peak" in row.memory else "running_1"


def _across(at: dict[tuple[str, str], Row]) -> Iterator[Ratio]:
    for first, first_way, second, second_way, title in ACROSS:
        one, other = at.get((first, first_way)), at.get((second, second_way))
        if one is None or other is None or not one.anchor_ms or not other.anchor_ms:
            continue
        found = ratio_across(np.array(one.round_ms), _beside(one), np.array(other.round_ms), _beside(other))
        yield Ratio(
            what="speed",
            title=title,
            first=first,
            second=second,
            way=f"{first_way} / {second_way}",
            value=found.median,
            low=found.low,
            high=found.high,
        )


def _beside(row: Row) -> NDArray[np.float64]:
    """What the anchor took in a row's rounds; a GPU is no slower for what slows an anchor on the CPU."""
    return np.ones(len(row.anchor_ms)) if WAYS[row.way].device == "cuda" else np.array(row.anchor_ms)


def _of_training(training: Sequence[Training]) -> Iterator[Ratio]:
    by_stage = {item.stage: item for item in training if item.reason is None}
    teacher = by_stage.get("teacher")
    for stage in ("stage1", "stage2"):
        student = by_stage.get(stage)
        if teacher is None or student is None or not teacher.step_seconds or not student.step_seconds:
            continue
        slow, fast = (item.step_seconds for item in (teacher, student))
        assert slow is not None and fast is not None  # noqa: S101, PT018 - looked at above
        per_image = teacher.batch / student.batch
        yield Ratio(
            what="training speed",
            title=f"teacher / student, {student.title}, per image",
            first="teacher",
            second=stage,
            way=student.way,
            value=slow.value / fast.value / per_image,
            low=slow.low / fast.high / per_image,
            high=slow.high / fast.low / per_image,
        )
        kind = "torch_peak" if "torch_peak" in student.memory else "running"
        if teacher.memory.get(kind) and student.memory.get(kind):
            value = student.memory[kind] / teacher.memory[kind]
            yield Ratio(
                what="training memory",
                title=f"student / teacher, {student.title}",
                first="teacher",
                second=stage,
                way=student.way,
                value=value,
                low=value,
                high=value,
                published=PUBLISHED_MEMORY if TEACHER in teacher.networks else None,
            )
