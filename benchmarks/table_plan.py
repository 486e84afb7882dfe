"""Which networks stand in the table, at which size and in which ways they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from benchmarks.ways import CPU, GPU, SIDE_WAYS, Device, Way
from pipeline.errors import InputError

Group = Literal["full", "equal", "width", "rival", "demo"]
ROLES: Final = ("teacher", "stage1", "stage2", "demo-teacher", "demo-stage1", "demo-stage2")
"""Networks that may come as checkpoints."""

RIVALS: Final = ("mobilenetv4_conv_medium@256", "fastvit_t8@256", "efficientnet_b0@224")
BESIDE_GPU: Final = ("torch", "onnx")
"""Ways of the CPU that are measured beside a GPU's."""
_COMPILED: Final = ("teacher", "stage2")
"""Compiling takes a minute or more, so it is shown where it says something new."""
_TWINS: Final = ("stage1", "demo-teacher", "demo-stage1")
"""Networks that differ from another of the table in their weights only: the plain ways show that this costs nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A network of the table.

    Attributes:
        key: Unique in the table.
        title: For people.
        group: Part of the table.
        name: Of timm.
        image_size: Side of the crop in pixels.
        checkpoint: None for random weights.
    """

    key: str
    title: str
    group: Group
    name: str
    image_size: int
    checkpoint: Path | None = None

    @property
    def is_side(self) -> bool:
        """Whether it stands there for comparison only: fewer ways, batch 1 only."""
        return self.group in ("width", "rival") or self.key in _TWINS

    def ways(self, ways: Sequence[Way]) -> list[Way]:
        """Of these, the ways in which it is shown."""
        if self.is_side:
            return [way for way in ways if way.name in SIDE_WAYS]
        return [way for way in ways if not way.compiled or self.key in _COMPILED]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: In which every row is asked once.
        round_seconds: Of single crops per row and round, at least `least_calls` of them.
        least_calls: Per round.
        batches: Batch sizes of the Offline-like part.
        batch_rounds: Its rounds.
        gpu_batches, gpu_batch_rounds: The same on a GPU, which is not full before dozens of crops. A CPU takes minutes
            for such a batch of a large network.
        train_steps: Steps of training per block, of three blocks.
        energy_seconds: Of full batches while a GPU's energy is counted.
    """

    rounds: int = 10
    round_seconds: float = 0.15
    least_calls: int = 3
    batches: tuple[int, ...] = (2, 4, 8, 16)
    batch_rounds: int = 1
    gpu_batches: tuple[int, ...] = (2, 8, 32, 128)
    gpu_batch_rounds: int = 3
    train_steps: int = 1
    energy_seconds: float = 1.0

    def offline(self, device: Device) -> tuple[tuple[int, ...], int]:
        """Batch sizes and rounds of the Offline-like part on a device."""
        if device == "cuda":
            return self.gpu_batches, self.gpu_batch_rounds
        return self.batches, self.batch_rounds


FULL: Final = Effort()
QUICK: Final = Effort(
    rounds=4,
    round_seconds=0.02,
    least_calls=2,
    batches=(2,),
    gpu_batches=(2, 8),
    gpu_batch_rounds=1,
    energy_seconds=0.2,
)


def entries(checkpoints: Mapping[str, Path], rivals: Sequence[str] = RIVALS) -> list[Entry]:
    """All networks.

    Args:
        checkpoints: By role; a role without one stands there with random weights.
        rivals: As NAME@SIZE, any name of timm.

    Raises:
        InputError: A rival that is not written so, or a checkpoint that cannot be read.
    """
    student, teacher, small = ("mobilevitv2_200", 256), ("tf_efficientnet_b4", 380), ("mobilevitv2_050", 128)
    found = [
        _entry("teacher", "teacher", "full", *teacher, checkpoints),
        _entry("stage1", "student, stage 1", "full", *student, checkpoints),
        _entry("stage2", "student, stage 2", "full", *student, checkpoints),
        Entry("student-380", "student at the teacher's size", "equal", student[0], 380),
        *(
            Entry(
                f"width-{width}", f"student, width {width / 100:.1f}", "width", f"mobilevitv2_{width:03}", 256
            )
            for width in (50, 100, 150)
        ),
        _entry("demo-teacher", "demo teacher", "demo", *small, checkpoints),
        _entry("demo-stage1", "demo student, stage 1", "demo", *small, checkpoints),
        _entry("demo-stage2", "demo student, stage 2", "demo", *small, checkpoints),
    ]
    return found + [_rival(text) for text in rivals]


def quick_entries(checkpoints: Mapping[str, Path]) -> list[Entry]:
    """The table's shape on networks of seconds."""
    student = ("mobilevitv2_050", 64)
    return [
        _entry("teacher", "teacher", "full", "test_efficientnet", 64, checkpoints),
        _entry("stage1", "student, stage 1", "full", *student, checkpoints),
        _entry("stage2", "student, stage 2", "full", *student, checkpoints),
    ]


def named(text: str) -> Entry:
    """A network given as NAME@SIZE or as the path of a checkpoint.

    Raises:
        InputError: It is neither, or the checkpoint cannot be read.
    """
    path = Path(text)
    if path.is_file():
        return _entry(path.stem, path.stem, "full", "", 0, {path.stem: path})
    return replace(_rival(text), group="full", title=text)


def choose_ways(names: Sequence[str] | None, *, gpu: bool) -> list[Way]:
    """Ways by name; by default those of the CPU, and with `gpu` those of a GPU.

    Raises:
        InputError: An unknown name.
    """
    known = {way.name: way for way in (*CPU, *GPU)}
    if names is None:
        return [*GPU, *(known[name] for name in BESIDE_GPU)] if gpu else list(CPU)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"{', '.join(unknown)}: no such way to run a network; choose from {', '.join(known)}."
        )
    return [known[name] for name in names]


def _entry(
    key: str, title: str, group: Group, name: str, size: int, checkpoints: Mapping[str, Path]
) -> Entry:
    path = checkpoints.get(key)
    if path is None:
        return Entry(key, title, group, name, size)
    from training.checkpoint import load_detector

    spec = load_detector(path)[1].network
    return Entry(key, title, group, spec.name, spec.image_size, path.resolve())


def _rival(text: str) -> Entry:
    name, _, size = text.partition("@")
    if not size.isdigit():
        raise InputError(f"{text}: expected NAME@SIZE, such as {RIVALS[0]}.")
    return Entry(f"{name}-{size}", name, "rival", name, int(size))
