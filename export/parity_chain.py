"""Walks the chain from PyTorch to each artefact, one link at a time, and names the first that breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from export.differences import (
    LARGE,
    Difference,
    Unsure,
    allowed,
    beyond_bounds,
    difference,
    drawn_flips,
    face_flips,
    labelled_deltas,
    scale_of,
)
from export.parity_gate import GATES, broken_bounds
from export.parity_inputs import ParityInputs
from export.parity_report import LinkReport, Repeat
from pipeline.manifest import Precision, ScoreCalibration
from pipeline.runtime import Answer, Crops
from pipeline.scoring import p_fake

LARGEST_BATCH = 32
"""The gate's `max` batch for a runtime that takes any; in it all crops are shown first."""
_ALONE = 8
"""Crops that are shown alone too: a runtime may have a program of its own for one, and that is what is served most."""
PYTORCH = "torch fp32"
Places = NDArray[np.int64]


class Runs(Protocol):
    """What a link needs of a runtime; `pipeline.runtime.Runtime` is one."""

    @property
    def label(self) -> str:
        """Library, version and device."""

    def run(self, crops: Crops) -> Answer:
        """Answer for a batch of crops."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers for some of the inputs: their places, int64 [M] rising, and what was said of them."""

    places: Places
    answer: Answer

    def at(self, places: Places) -> Answer:
        """Answers for those of the places that were given, which must be among them."""
        return pick(self.answer, np.searchsorted(self.places, places))


class ParityChain:
    """Measures links against one reference.

    Args:
        inputs: What every link is shown.
        calibration: Temperature and operating points.
        rule: From frames to videos.
        reference: The reference's answers for all inputs.
        label: What gave them.
        doubt: Tells by how much the reference is unsure of drawn images at some places, which takes a while; it is
            asked about those that do not hold their bounds. None allows them nothing.
    """

    def __init__(
        self,
        inputs: ParityInputs,
        calibration: ScoreCalibration,
        rule: str,
        reference: Answer,
        label: str = PYTORCH,
        doubt: Callable[[Places], Unsure] | None = None,
    ) -> None:
        self.inputs, self.calibration, self.rule = inputs, calibration, rule
        self.label = label
        self.unsure = Unsure(np.zeros(len(inputs)), np.zeros(len(inputs)))
        """What is allowed to each input: nothing to faces, nor to drawn images that hold their bounds."""
        self._doubt = doubt
        self.links: dict[str, LinkReport] = {}
        self.answers: dict[str, Answered] = {label: Answered(np.arange(len(inputs)), reference)}

    def measure(
        self,
        name: str,
        runtime: Runs,
        precision: Precision,
        *,
        before: str,
        max_batch: int | None = None,
        faces: int | None = None,
    ) -> LinkReport:
        """Run one form of the network over the inputs and compare.

        Args:
            name: Of the link.
            runtime: Its runtime, open.
            precision: Decides the gate.
            before: Name of the link it was made from, measured already, or of the reference.
            max_batch: Largest batch it takes.
            faces: Show it only so many of the faces; None shows all.
        """
        start = time.perf_counter()
        places = np.arange(len(self.inputs)) if faces is None else self.inputs.thinned(faces)
        answer = run_in_batches(runtime, self.inputs.crops[places], max_batch or LARGEST_BATCH)
        self.answers[name] = Answered(places, answer)
        repeat = measure_repeat(
            runtime, self.inputs.crops[places], answer, self.calibration.temperature, max_batch
        )
        seconds = time.perf_counter() - start
        link = self._judge(name, runtime.label, precision, before, repeat, seconds)
        if link.broken and self._ask(self._beyond(name, precision)):
            link = self._judge(name, runtime.label, precision, before, repeat, seconds)
        self.links[name] = link
        return link

    def _beyond(self, name: str, precision: Precision) -> Places:
        """Places of the crops that do not hold the bounds by themselves; none where there is no bound, or no number."""
        gate, mine = GATES[precision], self.answers[name]
        finite = bool(np.isfinite(mine.answer.logits).all())
        if gate.max_abs_logit is None or gate.max_evidence_share is None or not finite:
            return np.zeros(0, np.int64)
        beyond = beyond_bounds(
            self.answers[self.label].at(mine.places),
            mine.answer,
            max_abs_logit=gate.max_abs_logit,
            max_evidence_share=gate.max_evidence_share,
        )
        return mine.places[beyond]

    def _ask(self, places: Places) -> bool:
        """Have the reference doubt drawn images that it was not yet asked about; whether that allows anything.

        Those of large logits are asked about with them: another processor will round those.
        """
        first = self.inputs.labelled_count
        drawn = places[places >= first]
        new = drawn[self.unsure.logits[drawn] == 0]
        if self._doubt is not None and new.size:
            logits = np.abs(self.answers[self.label].answer.logits[first:]).max(axis=1)
            alike = first + np.flatnonzero((logits > LARGE) & (self.unsure.logits[first:] == 0))
            new = np.union1d(new, alike)
            found = self._doubt(new)
            self.unsure.logits[new], self.unsure.evidence[new] = found.logits, found.evidence
        return bool((self.unsure.logits[drawn] > 0).any())

    def _judge(
        self, name: str, label: str, precision: Precision, before: str, repeat: Repeat, seconds: float
    ) -> LinkReport:
        link = self._compare(name, label, precision, before, repeat, seconds)
        return link.model_copy(update={"broken": broken_bounds(link)})

    def path_to(self, name: str) -> tuple[str, ...]:
        """Names of the links from the reference to this one, both included."""
        path = [name]
        while path[-1] != self.label:
            before = self.links[path[-1]].before
            path.append(before or self.label)
        return tuple(reversed(path))

    def first_broken(self, name: str) -> str | None:
        """The first link on the way to `name` that breaks its gate, as "A -> B"; None where none does."""
        for link in self.path_to(name)[1:]:
            if self.links[link].broken:
                return f"{self.links[link].before} -> {link}"
        return None

    def _compare(
        self, name: str, label: str, precision: Precision, before: str, repeat: Repeat, seconds: float
    ) -> LinkReport:
        mine = self.answers[name]
        places, temperature = mine.places, self.calibration.temperature
        reference = self.answers[self.label].at(places)
        common = np.intersect1d(places, self.answers[before].places)
        kinds = self.inputs.kinds[places]
        count = int(np.searchsorted(places, self.inputs.labelled_count))
        finite = bool(np.isfinite(mine.answer.logits).all())
        points = self.calibration.operating_points
        flips = (
            drawn_flips(points, reference.logits[count:], mine.answer.logits[count:], temperature)
            if finite
            else ()
        )
        deltas = None
        if self.inputs.labelled is not None and finite:
            shown = self.inputs.labelled.at(places[:count])
            logits = reference.logits[:count], mine.answer.logits[:count]
            flips += face_flips(points, shown, *logits, temperature, self.rule)
            if len(set(shown.labels.tolist())) == 2:
                deltas = labelled_deltas(shown, *logits, temperature)

        unsure = self.unsure.at(places)

        def between(inside: Places) -> Difference:
            given = pick(reference, inside), pick(mine.answer, inside)
            return difference(*given, temperature, unsure.at(inside))

        return LinkReport(
            name=name,
            before=before,
            runtime=label,
            precision=precision,
            overall=between(np.arange(places.size)),
            faces=between(np.arange(count)) if count else None,
            kinds={str(kind): between(np.flatnonzero(kinds == kind)) for kind in dict.fromkeys(kinds)},
            from_before=difference(self.answers[before].at(common), mine.at(common), temperature),
            flips=flips,
            deltas=deltas,
            repeat=repeat,
            allowed=allowed(reference, mine.answer, unsure, np.isin(places, self._beyond(name, precision))),
            seconds=seconds,
        )


def run_in_batches(runtime: Runs, crops: Crops, batch: int = LARGEST_BATCH) -> Answer:
    """Answers for crops [N, ...], a batch at a time; the last may be smaller."""
    return joined([runtime.run(crops[start : start + batch]) for start in range(0, len(crops), batch)])


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers for parts of a set, as one; evidence only where all have it."""
    maps = [answer.evidence for answer in answers if answer.evidence is not None]
    return Answer(
        np.concatenate([answer.logits for answer in answers]),
        np.concatenate(maps) if len(maps) == len(answers) else None,
    )


def measure_repeat(
    runtime: Runs, crops: Crops, expected: Answer, temperature: float, max_batch: int | None = None
) -> Repeat:
    """Ask for the first crops again, each alone, and in batches of 2, 7 twice and 5: even after odd, odd after even.

    Args:
        runtime: Open.
        crops: uint8 [N, ...].
        expected: What it said of them before, in batches of the largest size.
        temperature: Of the scores.
        max_batch: That size, where it takes no more; None for any.
    """
    largest = min(max_batch or LARGEST_BATCH, len(crops))
    sizes = [min(size, largest) for size in (2, 7, 7, 5)]
    alone = run_in_batches(runtime, crops[:_ALONE], 1).logits
    said = [alone, *(runtime.run(crops[:size]).logits for size in sizes)]
    changes = [_change(expected.logits[: len(logits)], logits, temperature) for logits in said]
    _, _, first, again, _ = said
    rerun = _change(first, again, temperature)
    return Repeat(
        batches=(largest, 1, *sizes),
        max_abs_logit=max(change.logit for change in changes),
        max_scaled_logit=max(change.scaled for change in changes),
        max_abs_p=max(change.p for change in changes),
        rerun_max_abs_logit=rerun.logit,
        rerun_max_abs_p=rerun.p,
    )


class _Change(NamedTuple):
    """Largest change of a logit, of one on the scale of bounds, and of p_fake."""

    logit: float
    scaled: float
    p: float


def _change(first: NDArray[np.floating], second: NDArray[np.floating], temperature: float) -> _Change:
    """Over the rows where both are finite; where only one is, p has changed by all it can."""
    finite = [np.isfinite(logits).all(axis=1) for logits in (first, second)]
    fine = finite[0] & finite[1]
    gap = np.abs(first[fine].astype(np.float64) - second[fine])
    scaled = gap / scale_of(first[fine].astype(np.float64))
    scores = [p_fake(logits[fine], temperature) for logits in (first, second)]
    moved = np.abs(scores[0] - scores[1]).max(initial=0.0)
    return _Change(
        float(gap.max(initial=0.0)),
        float(scaled.max(initial=0.0)),
        1.0 if (finite[0] != finite[1]).any() else float(moved),
    )


def pick(answer: Answer, places: Sequence[int] | Places | slice) -> Answer:
    """The answers for some of the crops."""
    return Answer(answer.logits[places], None if answer.evidence is None else answer.evidence[places])
