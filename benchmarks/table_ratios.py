"""The table's headline: how many times faster and smaller, each with its interval, and whether two runs agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

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

_MEMORY_SLACK: Final = 1.1
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
)
"""Network and way of the slower and of the faster."""


def ratios_of(
    networks: Sequence[Network], rows: Sequence[Row], training: Sequence[Training]
) -> tuple[Ratio, ...]:
    """Every ratio that the rows allow."""
    at = {(row.network, row.way): row for row in rows if row.reason is None}
    return (*_in_one_way(networks, at), *_across(at), *_of_training(training))


def disagreements(first: Iterable[Ratio], second: Iterable[Ratio]) -> list[str]:
    """Ratios of two runs whose intervals do not overlap, said in a line each.

    Memory is read once per row and has no interval; a tenth is let pass.
    """
    known = {(item.what, item.first, item.second, item.way): item for item in second}
    lines = []
    for one in first:
        other = known.get((one.what, one.first, one.second, one.way))
        slack = _MEMORY_SLACK if "memory" in one.what else 1.0
        if other is not None and (one.high * slack < other.low or other.high * slack < one.low):
            lines.append(f"{one.what}, {one.title}, {one.way}: {said(one)} and {said(other)}")
    return lines


def said(item: Ratio | Found) -> str:
    """A ratio with its interval."""
    value = item.median if isinstance(item, Found) else item.value
    return f"{value:.2f} ({item.low:.2f} to {item.high:.2f})"


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
    kind = "torch_peak" if "torch_peak" in one.memory else "running_1"
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


def _across(at: dict[tuple[str, str], Row]) -> Iterator[Ratio]:
    for first, first_way, second, second_way, title in ACROSS:
        one, other = at.get((first, first_way)), at.get((second, second_way))
        if one is None or other is None or not one.anchor_ms or not other.anchor_ms:
            continue
        found = ratio_across(
            np.array(one.round_ms),
            np.array(one.anchor_ms),
            np.array(other.round_ms),
            np.array(other.anchor_ms),
        )
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
            way="torch",
            value=slow.value / fast.value / per_image,
            low=slow.low / fast.high / per_image,
            high=slow.high / fast.low / per_image,
        )
        if teacher.memory.get("running") and student.memory.get("running"):
            value = student.memory["running"] / teacher.memory["running"]
            yield Ratio(
                what="training memory",
                title=f"student / teacher, {student.title}",
                first="teacher",
                second=stage,
                way="torch",
                value=value,
                low=value,
                high=value,
                published=PUBLISHED_MEMORY if TEACHER in teacher.networks else None,
            )
