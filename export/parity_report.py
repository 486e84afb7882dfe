"""What the parity gate found, as it is stored in `parity.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.differences import Allowed, Difference, Flips, LabelledDeltas, Unsure
from pipeline.errors import InputError
from pipeline.manifest import Precision, ScoreCalibration

REPORT_JSON = "parity.json"
REPORT_MARKDOWN = "parity.md"

Verdict = Literal["passed", "broken", "not worth it", "unproven"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Repeat(_Model):
    """Whether an answer depends on the crop alone.

    Attributes:
        batches: Batch sizes in the order they were run.
        max_abs_logit, max_abs_p: Largest change of a crop's answer with the batch it is in.
        max_scaled_logit: As `max_abs_logit`, divided by max(1, the crop's largest logit / `differences.LARGE`).
        rerun_max_abs_logit, rerun_max_abs_p: Largest change when the same batch is run again.
    """

    batches: tuple[int, ...]
    max_abs_logit: float
    max_scaled_logit: float
    max_abs_p: float
    rerun_max_abs_logit: float
    rerun_max_abs_p: float


class LinkReport(_Model):
    """One link of the chain: one form of the network against PyTorch in fp32, and against the link before it.

    Attributes:
        name: Such as "onnx, optimiser off".
        before: The link it was made from; None for the first.
        runtime: What ran it.
        precision: Decides its gate.
        overall: Difference from PyTorch over all crops it was shown.
        faces: Over the labelled faces alone.
        kinds: By kind of crop.
        from_before: Difference from the link before.
        flips: Changed decisions at each operating point.
        deltas: Change of AUC, EER and ECE on the faces it was shown; None without faces of both classes.
        repeat: Batch invariance and determinism.
        allowed: Drawn images that pass because PyTorch itself is no surer of them; None where none had to.
        seconds: It took.
        broken: A sentence for each bound that does not hold; empty when it passes.
    """

    name: str
    before: str | None
    runtime: str
    precision: Precision
    overall: Difference
    faces: Difference | None
    kinds: dict[str, Difference]
    from_before: Difference | None
    flips: tuple[Flips, ...]
    deltas: LabelledDeltas | None
    repeat: Repeat
    allowed: Allowed | None = None
    seconds: float
    broken: tuple[str, ...] = ()


class Drift(_Model):
    """Where a broken graph leaves the fp32 one.

    Attributes:
        starts_at: The first layer, in the graph's order, that loses much; None where none does by itself.
        sqnr_db: Signal to noise of the layers that lose most, by name, the worst first; -200 where it is not finite.
    """

    starts_at: str | None
    sqnr_db: dict[str, float]


class ArtefactVerdict(_Model):
    """What was decided about one artefact.

    Attributes:
        name: Of the artefact.
        verdict: Only what "passed" is served.
        reason: In one sentence, where it did not pass.
        links: The chain from PyTorch to it, in order.
        first_broken: The first link of that chain that breaks its gate, as "A -> B".
        speedup: Over fp32 in the same runtime, on this machine.
        drift: Layer by layer, where an ONNX file broke.
        notes: How it was made.
    """

    name: str
    verdict: Verdict
    reason: str | None = None
    links: tuple[str, ...] = ()
    first_broken: str | None = None
    speedup: float | None = None
    drift: Drift | None = None
    notes: tuple[str, ...] = ()


class ShownCrops(_Model):
    """What the links were shown.

    Attributes:
        counts: Crops by kind.
        notes: Where the labelled ones are from.
        drawn_sha256: Of the drawn crops' pixels.
        drawn_logits: PyTorch's logits of the drawn crops, to prove the bundle on another machine.
        drawn_unsure: What each drawn crop's logits and evidence may be off by beyond the bounds, see `export.rounding`;
            0 for those that no link had to be granted. None in reports that know of no such allowance.
    """

    counts: dict[str, int]
    notes: tuple[str, ...]
    drawn_sha256: str
    drawn_logits: tuple[tuple[float, float], ...] = Field(min_length=1)
    drawn_unsure: tuple[tuple[float, float], ...] | None = None

    @property
    def unsure(self) -> Unsure:
        """`drawn_unsure` as the gate takes it."""
        stored = self.drawn_unsure or ((0.0, 0.0),) * len(self.drawn_logits)
        return Unsure(*np.array(stored, np.float64).T)


class ParityReport(_Model):
    """All links and verdicts of one run of the gate."""

    schema_version: Literal[1] = 1
    network: str
    image_size: int
    checkpoint_sha256: str
    reference: str
    """What every link is compared with."""
    calibration: ScoreCalibration
    rule: str
    shown: ShownCrops
    links: tuple[LinkReport, ...]
    artefacts: tuple[ArtefactVerdict, ...]
    gates: dict[str, dict[str, Any]]
    machine: str
    packages: dict[str, str]
    seconds: float

    def link(self, name: str) -> LinkReport | None:
        """The link of that name."""
        return next((link for link in self.links if link.name == name), None)

    def artefact(self, name: str) -> ArtefactVerdict | None:
        """The verdict on the artefact of that name."""
        return next((item for item in self.artefacts if item.name == name), None)


def stored_unsure(unsure: Unsure) -> tuple[tuple[float, float], ...]:
    """As `ShownCrops` keeps it."""
    return tuple(zip(unsure.logits.tolist(), unsure.evidence.tolist(), strict=True))


def read_parity(folder: Path) -> ParityReport:
    """Read a bundle's parity report.

    Raises:
        InputError: It is missing or no report of this version.
    """
    path = folder / REPORT_JSON
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the bundle cannot be proven again. Export the checkpoint again."
        )
    try:
        return ParityReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} is no parity report of this version ({where}: {first['msg']}).") from error
