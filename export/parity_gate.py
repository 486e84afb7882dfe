"""The gates: how far each precision may lie from PyTorch in fp32, and the sentence for each bound that is broken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from export.differences import LARGE
from export.parity_report import LinkReport
from pipeline.manifest import Precision


@dataclass(frozen=True, slots=True)
class Gate:
    """Bounds of one precision; None where something is reported but not bounded.

    Attributes:
        max_abs_logit: Of both logits, over all crops; relative for logits above `differences.LARGE`, and beyond what
            PyTorch itself is unsure of on a drawn image (`export.rounding`).
        mean_abs_p, max_abs_p: Of p_fake, over all crops.
        max_evidence_share: Of the evidence map, as a share of its largest value on the faces, and of that on all
            crops; the latter beyond what PyTorch is unsure of.
        flip_margin: A decision may change only where the reference's score is this close to the threshold.
        flip_share: Share of the faces whose decision may change at any one operating point.
        max_auc_change: Of frame AUC on the faces, either way.
        min_sqnr_db: Of the logits of the faces.
        max_repeat_logit: Change of a logit with the batch it is in; relative for logits above `differences.LARGE`.
        max_repeat_p: Change of p_fake with the batch it is in.
        max_rerun_p: Change of p_fake from one run to the next.
        needs_faces: Whether drawn images alone cannot prove it.
    """

    max_abs_logit: float | None = None
    mean_abs_p: float | None = None
    max_abs_p: float | None = None
    max_evidence_share: float | None = None
    flip_margin: float | None = None
    flip_share: float | None = None
    max_auc_change: float | None = None
    min_sqnr_db: float | None = None
    max_repeat_logit: float | None = None
    max_repeat_p: float = 1e-2
    max_rerun_p: float = 1e-3
    needs_faces: bool = False


_HALF = Gate(mean_abs_p=1e-3, max_abs_p=1e-2, flip_margin=0.01)
GATES: Mapping[Precision, Gate] = MappingProxyType(
    {
        "fp32": Gate(
            max_abs_logit=1e-4,
            max_evidence_share=1e-3,
            flip_margin=0.0,
            max_repeat_logit=1e-4,
            max_rerun_p=1e-5,
        ),
        "fp16": _HALF,
        "bf16": _HALF,
        "int8": Gate(flip_share=0.01, max_auc_change=0.005, min_sqnr_db=20.0, needs_faces=True),
    }
)


def broken_bounds(link: LinkReport) -> tuple[str, ...]:
    """One sentence for each bound of the link's precision that it breaks; empty when it passes."""
    gate = GATES[link.precision]
    return (*_numbers(link, gate), *_decisions(link, gate), *_repeats(link, gate))


def noise_to_lose(link: LinkReport) -> float | None:
    """Decibels by which less noise would let a link pass; None where it passes, or breaks what less noise cannot mend.

    Decisions flip, and AUC moves, in proportion to the noise's amplitude.
    """
    gate = GATES[link.precision]
    beyond_noise = link.overall.non_finite or [*_repeats(link, gate)]
    sqnr = None if link.faces is None else link.faces.sqnr_db
    if not link.broken or beyond_noise or sqnr is None or gate.min_sqnr_db is None:
        return None
    times = [1.0]
    if gate.flip_share is not None:
        times += [f.flips / (gate.flip_share * f.compared) for f in link.flips if f.on == "faces"]
    if gate.max_auc_change is not None and link.deltas is not None and link.deltas.auc.value is not None:
        times.append(abs(link.deltas.auc.value) / gate.max_auc_change)
    return max(20 * math.log10(max(times)), gate.min_sqnr_db - sqnr)


def _numbers(link: LinkReport, gate: Gate) -> Iterator[str]:
    whole = link.overall
    if whole.non_finite:
        yield f"{whole.non_finite} of {whole.count} crops get NaN or infinite logits"
    of = "max |Δlogit|" if whole.max_scaled == whole.max_abs else f"max |Δlogit|, as of logits of {LARGE:g},"
    if link.allowed is not None:
        of += " and beyond what PyTorch itself is unsure of,"
    yield from _above(of, whole.max_scaled, gate.max_abs_logit)
    yield from _above("mean |Δp|", whole.mean_abs_p, gate.mean_abs_p)
    yield from _above("max |Δp|", whole.max_abs_p, gate.max_abs_p)
    # the faces by themselves: drawn images may drive the map to thousands, beside which a face's is nothing
    shares = [(item, item.evidence_share) for item in (link.faces, whole) if item is not None]
    for item, share in shares:
        if share is not None and (item is whole or whole.count > item.count):
            where = "" if item is whole else " on faces"
            said = f"max |Δevidence| as a share of its largest value{where}"
            yield from _above(said, share, gate.max_evidence_share)
    noise = link.faces.sqnr_db if link.faces is not None else None
    if gate.min_sqnr_db is not None and noise is not None and noise < gate.min_sqnr_db:
        yield f"SQNR {noise:.1f} dB is below {gate.min_sqnr_db:g} dB"


def _decisions(link: LinkReport, gate: Gate) -> Iterator[str]:
    for found in link.flips:
        where = f"of {found.compared} decisions at {found.point}"
        if gate.flip_margin is not None and found.furthest is not None and found.furthest > gate.flip_margin:
            near = f", up to {found.furthest:.2g} from the threshold" if gate.flip_margin else ""
            yield f"{found.flips} {where} flip ({found.on}{near})"
        if (
            gate.flip_share is not None
            and found.on == "faces"
            and found.flips > gate.flip_share * found.compared
        ):
            yield f"{found.flips} {where} flip, more than {gate.flip_share:.0%}"
    if link.deltas is not None and gate.max_auc_change is not None and link.deltas.auc.value is not None:
        yield from _above("|ΔAUC|", abs(link.deltas.auc.value), gate.max_auc_change)


def _repeats(link: LinkReport, gate: Gate) -> Iterator[str]:
    yield from _above("change of a logit with its batch", link.repeat.max_scaled_logit, gate.max_repeat_logit)
    yield from _above("change of p with its batch", link.repeat.max_abs_p, gate.max_repeat_p)
    yield from _above("change of p from run to run", link.repeat.rerun_max_abs_p, gate.max_rerun_p)


def _above(name: str, value: float, bound: float | None) -> Iterator[str]:
    if bound is not None and value > bound:
        yield f"{name} {value:.3g} is above {bound:g}"
