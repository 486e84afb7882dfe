"""The numbers of the gate are those of their formulas, and each bound breaks where it says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from export.differences import Flips, difference, drawn_flips, flips, labelled_deltas
from export.parity_chain import measure_repeat
from export.parity_gate import GATES, broken_bounds
from export.parity_inputs import build_inputs, digest, drawn_crops
from export.parity_report import LinkReport, Repeat
from pipeline.manifest import Precision
from pipeline.measures import auc, equal_error_rate
from pipeline.runtime import Answer
from pipeline.scoring import OperatingPoint, p_fake
from tests.unit.export.test_score_calibration import crops, drawn

POINT = OperatingPoint(name="eer", level="frame", threshold=0.5, fpr=0.1, tpr=0.9)
STEADY = Repeat(
    batches=(1, 2),
    max_abs_logit=0.0,
    max_scaled_logit=0.0,
    max_abs_p=0.0,
    rerun_max_abs_logit=0.0,
    rerun_max_abs_p=0.0,
)


def answer(logits: object, evidence: object = None) -> Answer:
    maps = None if evidence is None else np.asarray(evidence, np.float32)
    return Answer(np.asarray(logits, np.float32), maps)


def test_the_numbers_by_hand() -> None:
    found = difference(answer([[1, 2], [0, -4]]), answer([[1, 2.5], [0, -4]]), 1.0)
    assert (found.count, found.non_finite) == (2, 0)
    assert found.max_abs == pytest.approx(0.5)
    assert found.mean_abs == pytest.approx(0.125)
    assert found.max_rel == pytest.approx(0.25)
    assert found.sqnr_db == pytest.approx(20 * np.log10(np.sqrt(21) / 0.5))
    assert found.cosine == pytest.approx((1 + 5 + 16) / np.sqrt(21 * (1 + 6.25 + 16)))
    assert found.max_abs_p == pytest.approx(1 / (1 + np.exp(-1.5)) - 1 / (1 + np.exp(-1.0)))
    assert found.evidence_max_abs is None


def test_a_large_logit_may_be_off_by_as_much_more() -> None:
    """A teacher whose logits were 550 on noise was rejected for a difference of two float32 steps."""
    found = difference(answer([[0, 500.0], [0, 5.0]]), answer([[0, 500.001], [0, 5.00005]]), 1.0)
    assert found.max_abs == pytest.approx(1e-3, rel=0.1)
    assert found.max_scaled == pytest.approx(5e-5, rel=0.1)  # of the small logit, whose bound is absolute


def test_equal_answers_have_no_noise() -> None:
    same = answer([[0, 1]], [[[2.0]]])
    found = difference(same, same, 1.0)
    assert (found.max_abs, found.sqnr_db, found.cosine, found.evidence_share) == (0, None, 1, 0)


def test_the_temperature_is_that_of_the_scores() -> None:
    pair = answer([[0, 0]]), answer([[0, 1]])
    assert difference(*pair, 10.0).max_abs_p < difference(*pair, 1.0).max_abs_p / 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_and_left_out(bad: float) -> None:
    found = difference(answer([[0, 1], [0, 1]]), answer([[0, bad], [0, 1]]), 1.0)
    assert (found.non_finite, found.max_abs) == (1, 0)
    found = difference(answer([[0, 1]]), answer([[bad, bad]]), 1.0)
    assert (found.non_finite, found.max_abs) == (1, 0)


def test_evidence_is_compared_as_a_share_of_its_largest_value() -> None:
    found = difference(answer([[0, 0]], [[[4.0, -8.0]]]), answer([[0, 0]], [[[4.0, -6.0]]]), 1.0)
    assert found.evidence_max_abs == 2
    assert found.evidence_share == 0.25


def test_flips_and_how_far_they_were_from_the_threshold() -> None:
    found = flips(POINT, np.array([0.4, 0.49, 0.5, 0.9]), np.array([0.4, 0.51, 0.49, 0.9]))
    assert (found.flips, found.compared, found.point) == (2, 4, "frame eer")
    assert found.furthest == pytest.approx(0.01)
    assert flips(POINT, np.array([0.4]), np.array([0.4])).furthest is None


def test_a_report_of_before_is_read_without_what_it_excused() -> None:
    found = flips(POINT, np.array([0.49, 0.9]), np.array([0.51, 0.9]))
    assert Flips.model_validate({**found.model_dump(), "on_threshold": 1}) == found
    with pytest.raises(ValidationError):
        Flips.model_validate({**found.model_dump(), "on_thresholds": 1})


def test_drawn_images_flip_at_frame_level_only() -> None:
    logits = np.array([[0.0, 1.0]])
    points = (POINT, POINT.model_copy(update={"level": "video"}))
    assert [flip.point for flip in drawn_flips(points, logits, -logits, 1.0)] == ["frame eer"]


def test_deltas_are_differences_of_the_measures() -> None:
    labels, logits = drawn(200, temperature=1.0)
    worse = logits + np.random.default_rng(1).normal(0, 1, logits.shape)
    found = labelled_deltas(crops(labels, 10), logits, worse, 1.0, resamples=100)
    scores = p_fake(logits), p_fake(worse)
    values = [auc(score, labels) for score in scores]
    assert found.auc.value == pytest.approx(values[1] - values[0])  # type: ignore[operator]
    rates = [equal_error_rate(score, labels)[0] for score in scores]
    assert found.eer.value == pytest.approx(rates[1] - rates[0])  # type: ignore[operator]
    assert found.auc.low is not None
    assert found.auc.low < found.auc.value < (found.auc.high or 0) < 0.02  # type: ignore[operator]


def test_one_video_of_a_class_gives_no_interval() -> None:
    labels, logits = drawn(40, temperature=1.0)
    found = labelled_deltas(crops(labels, 40), logits, logits, 1.0)
    assert found.auc.value == 0
    assert (found.auc.low, found.auc.reason) == (None, "a class has a single video")


def link(precision: Precision, change: float, *, at: float = 2.0, repeat: Repeat = STEADY) -> LinkReport:
    """A link whose fake logit is off by `change` for half of 200 faces."""
    rng = np.random.default_rng(0)
    reference = rng.normal(0, at, (200, 2)).astype(np.float32)
    other = reference.copy()
    other[::2, 1] += change
    labels = np.repeat(np.array([0, 1]), 100)
    whole = difference(answer(reference), answer(other), 1.0)
    scores = p_fake(reference), p_fake(other)
    return LinkReport(
        name="x",
        before="y",
        runtime="r",
        precision=precision,
        overall=whole,
        faces=whole,
        kinds={},
        from_before=None,
        flips=(flips(POINT, *scores),),
        deltas=labelled_deltas(crops(labels, 10), reference, other, 1.0, resamples=0),
        repeat=repeat,
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("precision", "change", "said"),
    [
        ("fp32", 5e-5, ""),
        ("fp32", 2e-4, "max |Δlogit| 0.0002 is above 0.0001"),
        ("fp16", 1e-3, ""),
        ("fp16", 3e-2, "mean |Δp| 0.00"),
        ("fp16", 0.1, "max |Δp|"),
        ("int8", 0.01, ""),
        ("int8", 1.5, "flip, more than 1%"),
        ("int8", 0.5, "SQNR 1"),
    ],
)
def test_each_precision_has_its_bounds(precision: Precision, change: float, said: str) -> None:
    told = "; ".join(broken_bounds(link(precision, change)))
    assert said in told if said else told == ""


def test_a_flip_near_the_threshold_is_forgiven_to_half_precision_alone() -> None:
    near = flips(POINT, np.array([0.4999]), np.array([0.5001]))
    far = flips(POINT, np.array([0.48]), np.array([0.5]))
    for precision, flip, broken in (("fp32", near, True), ("fp16", near, False), ("fp16", far, True)):
        changed = link(precision, 0.0).model_copy(update={"flips": (flip,)})  # type: ignore[arg-type]
        assert bool(broken_bounds(changed)) == broken


def test_auc_may_not_move_either_way() -> None:
    base = link("int8", 0.0)
    assert base.deltas is not None
    for value in (0.006, -0.006):
        estimate = base.deltas.auc.model_copy(update={"value": value})
        moved = base.model_copy(update={"deltas": base.deltas.model_copy(update={"auc": estimate})})
        assert broken_bounds(moved) == ("|ΔAUC| 0.006 is above 0.005",)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("field", ["max_abs_p", "rerun_max_abs_p"])
def test_answers_that_depend_on_the_batch_or_the_run_are_refused(precision: Precision, field: str) -> None:
    shaky = STEADY.model_copy(update={field: 0.02})
    assert len(broken_bounds(link(precision, 0.0, repeat=shaky))) == 1


class BatchDependent:
    """Answers that move by a fixed share with the size of the batch, as sums in another order do."""

    label = "made up"

    def __init__(self, logit: float, share: float) -> None:
        self._logit, self._share = logit, share

    def run(self, crops: NDArray[np.uint8]) -> Answer:
        fake = self._logit * (1 + self._share * (len(crops) % 2))
        return answer([[0.0, fake]] * len(crops))


@pytest.mark.parametrize(("logit", "broken"), [(1877.0, ()), (2.0, ("change of a logit with its batch",))])
def test_a_change_with_the_batch_counts_as_much_as_any_other(logit: float, broken: tuple[str, ...]) -> None:
    """Between float32 numbers of two thousand lie 1e-4; a drawn image drove a teacher there."""
    share = 2.4e-4 / logit
    runtime, crops = BatchDependent(logit, share), np.zeros((8, 1), np.uint8)
    found = measure_repeat(runtime, crops, runtime.run(crops), 1.0)
    assert found.max_abs_logit == pytest.approx(2.4e-4, rel=0.05)
    said = broken_bounds(link("fp32", 0.0, repeat=found))
    assert len(said) == len(broken)
    assert all(text.startswith(start) for text, start in zip(said, broken, strict=True))


class WrongAlone:
    """Has a program of its own for a single crop, which errs on some."""

    label = "made up"

    def run(self, crops: NDArray[np.uint8]) -> Answer:
        wrong = len(crops) == 1 and crops[0, 0] == 5
        return answer([[0.0, 3.0 if wrong else 2.0]] * len(crops))


def test_more_than_one_crop_is_shown_alone() -> None:
    runtime, crops = WrongAlone(), np.arange(9, dtype=np.uint8)[:, None]
    found = measure_repeat(runtime, crops, runtime.run(crops), 1.0)
    assert found.max_abs_logit == 1.0
    assert found.rerun_max_abs_logit == 0.0
    assert found.batches == (9, 1, 2, 7, 7, 5)


def test_every_precision_of_a_manifest_has_a_gate() -> None:
    assert set(GATES) == {"fp32", "fp16", "bf16", "int8"}


def test_drawn_images_are_the_same_everywhere() -> None:
    first, kinds = drawn_crops(64)
    assert first.shape == (35, 64, 64, 3)
    assert dict(zip(*np.unique(kinds, return_counts=True), strict=True)) == {
        "noise": 8,
        "clouds": 24,
        "black": 1,
        "white": 1,
        "checkerboard": 1,
    }
    assert digest(first) == "9b5553043b4a82b75802635099cc80f7760adcfc1bc9b7e1be3ef4769d97a3f9"
    assert first[kinds == "black"].max() == 0
    assert first[kinds == "white"].min() == 255
    clouds: NDArray[np.uint8] = first[kinds == "clouds"]
    steps = np.abs(np.diff(clouds.astype(int), axis=2)).mean()
    assert steps < np.abs(np.diff(first[kinds == "noise"].astype(int), axis=2)).mean() / 4
    assert len(build_inputs(64, None)) == 35
