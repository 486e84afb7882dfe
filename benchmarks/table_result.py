"""The result file of the table: its schema, which a file written by another version is refused by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError

SCHEMA_VERSION: Final = 1
TEACHER: Final = "tf_efficientnet_b4"
"""The method's own; published figures stand beside no other."""
PUBLISHED: Final = {
    "teacher": {"auc": 0.96, "ms": 50, "gigabytes": 8},
    "stage1": {"auc": 0.91, "ms": 30, "gigabytes": 4},
    "stage2": {"auc": 0.94, "ms": 30, "gigabytes": 4},
}
"""What the method's authors print; on which machine, in which runtime and at which batch they do not say."""
PUBLISHED_SPEED: Final = 1.67
PUBLISHED_MEMORY: Final = 0.5


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Model):
    """A number and its 95 % bootstrap interval over rounds."""

    value: float
    low: float
    high: float


class Network(_Model):
    """A network of the table.

    Attributes:
        key, title, group: As in `benchmarks.table_plan.Entry`.
        name: Of timm.
        image_size: In pixels.
        parameters, gmacs, mactivations: See `benchmarks.network_cost`.
        weights: "random", or the checkpoint's SHA-256.
        stage: The checkpoint's; "random" where there is none.
        val_auc: The checkpoint's own, on self-blended validation faces; None where it has none.
        bytes: On disk, by form.
    """

    key: str
    title: str
    group: str
    name: str
    image_size: int
    parameters: int
    gmacs: float
    mactivations: float
    weights: str
    stage: str
    val_auc: float | None
    bytes: dict[str, int]


class Row(_Model):
    """A network run in one way.

    Attributes:
        network, way: Their keys.
        reason: Why it could not be measured; then the rest is empty.
        label: Library, version and device.
        samples: Single crops timed, one after the other ("SingleStream-like").
        p50, p90, p99: Milliseconds per crop; None where fewer than three samples lie beyond.
        core_ms: Processor milliseconds per crop, of all cores.
        round_ms: Median of each round.
        anchor_ms: Of the heat's anchor in the same rounds.
        by_batch: Crops per second by batch size ("Offline-like").
        batch_core_ms: Processor milliseconds per crop at the best batch.
        memory: Bytes by kind; see `MEMORY_KINDS`.
        joules: Of the whole GPU per crop at the best batch, by the counter in it.
        ready_seconds: From opening to the first answer.
    """

    network: str
    way: str
    reason: str | None = None
    label: str = ""
    samples: int = 0
    p50: Interval | None = None
    p90: Interval | None = None
    p99: Interval | None = None
    core_ms: float | None = None
    round_ms: tuple[float, ...] = ()
    anchor_ms: tuple[float, ...] = ()
    by_batch: dict[int, float] = {}
    batch_core_ms: float | None = None
    memory: dict[str, int] = {}
    joules: float | None = None
    ready_seconds: float | None = None

    @property
    def best_batch(self) -> int | None:
        """Batch size with the most crops per second."""
        return max(self.by_batch, key=lambda size: self.by_batch[size], default=None)


MEMORY_KINDS: Final = {
    "opening": "resident at most while it is opened and compiled, over the process with its libraries loaded",
    "running_1": "resident at most while single crops are answered, likewise",
    "running": "resident at most over all batch sizes, likewise",
    "torch_peak": "PyTorch's allocator on the GPU, at most, while single crops are answered",
    "torch_peak_minus_weights": "that without the weights: activations and workspaces",
    "torch_reserved": "what that allocator took from the GPU, likewise",
    "torch_peak_batches": "that allocator, at most, over all batch sizes",
    "device": "growth of the GPU's used memory as nvidia-smi tells it, CUDA context and engines included",
}


class Training(_Model):
    """Steps of one stage's training, SAM's both passes in each; `way` is the one whose arithmetic they are done in."""

    stage: str
    title: str
    reason: str | None = None
    networks: str = ""
    way: str = "torch"
    batch: int = 0
    step_seconds: Interval | None = None
    memory: dict[str, int] = {}


class EndToEnd(_Model):
    """From a picture's bytes to a verdict, by stage."""

    network: str
    way: str
    reason: str | None = None
    picture: str = ""
    samples: int = 0
    total_ms: Interval | None = None
    stage_ms: dict[str, float] = {}


class Ratio(_Model):
    """How two rows compare; over 1 means that the second is faster, or for memory that it takes more."""

    what: Literal["speed", "throughput", "memory", "training speed", "training memory"]
    title: str
    first: str
    second: str
    way: str
    value: float
    low: float
    high: float
    published: float | None = None


class Table(_Model):
    """The whole result.

    Attributes:
        process_spread: How far two processes of the same network lie apart, as a share of their time; see
            `table_ratios.process_spread`. The ratios' intervals hold it.
    """

    schema_version: Literal[1] = 1
    benchmark: Literal["table"] = "table"
    machine: dict[str, Any]
    settings: dict[str, Any]
    seconds: float
    networks: tuple[Network, ...]
    rows: tuple[Row, ...]
    training: tuple[Training, ...] = ()
    end_to_end: tuple[EndToEnd, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    process_spread: float | None = None

    def network(self, key: str) -> Network:
        """A network by its key."""
        return next(network for network in self.networks if network.key == key)

    def row(self, network: str, way: str) -> Row | None:
        """A row that was measured."""
        return next(
            (row for row in self.rows if (row.network, row.way) == (network, way) and row.reason is None),
            None,
        )


def read_table(path: Path) -> Table:
    """Read a result file.

    Raises:
        InputError: There is none, or another version wrote it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such result file; `make bench` writes one.")
    try:
        return Table.model_validate(json.loads(path.read_bytes()))
    except (ValidationError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: not a result of this version's `bench table` (schema {SCHEMA_VERSION}): {first}"
        ) from error
