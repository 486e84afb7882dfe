"""Temperature, operating points and abstain bands do what they say, on good data and on poor data."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from export.labelled_crops import LabelledCrops
from export.score_calibration import HIGHEST, LOWEST, abstain_band, calibrate, fit_temperature
from pipeline.errors import InputError
from pipeline.metrics import Resampling
from pipeline.samples import Samples
from pipeline.scoring import p_fake

QUICK = Resampling(resamples=50)


def crops(labels: NDArray[np.int64], per_video: int) -> LabelledCrops:
    """Columns of that many crops; the pixels are not looked at."""
    count = len(labels)
    return LabelledCrops(
        crops=np.zeros((count, 1, 1, 3), np.uint8),
        labels=labels,
        videos=tuple(f"{label}/{place // per_video}" for place, label in enumerate(labels)),
        methods=tuple("swap" if label else "real" for label in labels),
        frames=tuple(range(count)),
        areas=(1.0,) * count,
        data="faces",
        data_sha256="0" * 64,
        split="val",
        fakes="labelled",
        notes=("noted",),
    )


def drawn(count: int, *, temperature: float, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels drawn from known probabilities, and logits that are too sharp by `temperature`."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-honest))).astype(np.int64)
    logits = np.stack((np.zeros(count), honest * temperature), axis=1)
    order = np.argsort(labels, kind="stable")
    return labels[order], logits[order]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    labels, logits = drawn(20_000, temperature=temperature)
    found, notes = fit_temperature(logits[:, 1], labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert notes == []


def test_it_is_the_minimum_of_the_balanced_likelihood() -> None:
    labels, logits = drawn(400, temperature=2.0)
    labels, logits = labels[50:], logits[50:]  # unequal classes
    found, _ = fit_temperature(logits[:, 1], labels)

    def loss(value: NDArray[np.float64]) -> float:
        p = np.clip(p_fake(logits, float(value[0])), 1e-12, 1 - 1e-12)
        return float(-np.log(p[labels == 1]).mean() - np.log(1 - p[labels == 0]).mean())

    best = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-6}).x[0]
    assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(
    ("margin", "expected", "said"),
    [
        ([-3.0, -1.0, 1.0, 2.0], 1.0, "left at 1"),
        ([2.0, 3.0, -1.0, -2.0], HIGHEST, "hardly tell real from fake"),
        ([-1.0] * 50 + [1.0] * 49 + [-1e-4], LOWEST, "all but separated"),
    ],
)
def test_data_that_determine_no_temperature_say_so(margin: list[float], expected: float, said: str) -> None:
    found, notes = fit_temperature(np.array(margin), np.repeat([0, 1], len(margin) // 2))
    assert found == expected
    assert said in notes[0]


def test_what_is_fitted_goes_together() -> None:
    labels, logits = drawn(600, temperature=3.0)
    found, metrics = calibrate(crops(labels, 10), logits, how=QUICK)
    low, high = found.temperature_interval or (0, 0)
    assert low < found.temperature < high
    assert found.ece_before is not None
    assert found.ece_after is not None
    assert found.ece_after < found.ece_before
    assert [(point.level, point.name) for point in found.operating_points] == [
        (level, name) for level in ("frame", "video") for name in ("eer", "fpr-1%", "fpr-5%")
    ]
    scores = p_fake(logits, found.temperature)
    for point in found.operating_points[:3]:
        called = scores >= point.threshold
        assert called[labels == 0].mean() == pytest.approx(point.fpr)
        assert called[labels == 1].mean() == pytest.approx(point.tpr)
    assert found.operating_points[1].fpr <= 0.01
    assert found.notes[0] == "noted"
    assert metrics.overall.frame.auc.value is not None


def test_a_threshold_above_every_score_is_clear_of_them() -> None:
    logits = np.array([[0, 2.0], [0, -1], [0, 1], [0, -2]])  # the highest score is a real one's
    found, _ = calibrate(crops(np.array([0, 0, 1, 1]), 1), logits, how=QUICK)
    highest = p_fake(logits, found.temperature).max()
    strict = next(point for point in found.operating_points if point.name == "fpr-1%")
    assert strict.threshold == pytest.approx((highest + 1) / 2)
    assert (strict.fpr, strict.tpr) == (0, 0)


def test_a_threshold_between_neighbours_that_all_but_touch_is_moved_and_noted() -> None:
    margins = np.array([-2.0, -1.5, -1.0, 0.00005, 1.0, -1.2, 0.0, 1.5, 2.0, 3.0])
    labels = np.repeat([0, 1], 5)
    found, metrics = calibrate(crops(labels, 1), np.stack([np.zeros(10), margins], axis=1), how=QUICK)
    before, after = metrics.overall.frame.operating_points[0], found.operating_points[0]
    assert before.threshold != after.threshold
    moved = f"threshold frame eer moved from {before.threshold:.6g} to {after.threshold:.6g}, past one sample"
    assert [note for note in found.notes if note.startswith(moved)]
    called = p_fake(np.stack([np.zeros(10), margins], axis=1), found.temperature) >= after.threshold
    assert (called[:5].mean(), called[5:].mean()) == pytest.approx((after.fpr, after.tpr))


def test_few_videos_are_noted() -> None:
    labels, logits = drawn(40, temperature=1.0)
    found, _ = calibrate(crops(labels, 40), logits, how=QUICK)
    assert found.temperature_interval is None
    assert "only 1 videos of a class: thresholds for videos are guesses" in found.notes


def test_one_class_or_broken_logits_are_refused() -> None:
    logits = np.zeros((4, 2))
    with pytest.raises(InputError, match="only real faces"):
        calibrate(crops(np.zeros(4, np.int64), 2), logits)
    with pytest.raises(InputError, match="only fake faces"):
        calibrate(crops(np.ones(4, np.int64), 2), logits)
    logits[2, 1] = np.nan
    with pytest.raises(InputError, match="1 of 4 rows of logits are NaN"):
        calibrate(crops(np.array([0, 0, 1, 1]), 2), logits)


def samples(reals: list[float], fakes: list[float]) -> Samples:
    labels = np.array([0] * len(reals) + [1] * len(fakes))
    count = np.arange(labels.size)
    return Samples("frame", np.array(reals + fakes), labels, count, count.astype(np.str_))


def test_the_band_bounds_both_errors() -> None:
    rng = np.random.default_rng(0)
    reals, fakes = rng.beta(2, 4, 300), rng.beta(4, 2, 200)
    band = abstain_band(samples(reals.tolist(), fakes.tolist()))
    assert band is not None
    assert (fakes < band.low).mean() <= 0.05
    assert (reals >= band.high).mean() <= 0.05
    # and no wider than that: one more sample on either side would break the bound
    assert (fakes < band.low + 0.02).mean() > 0.05
    assert (reals >= band.high - 0.02).mean() > 0.05


def test_no_band_where_one_threshold_does_both() -> None:
    assert abstain_band(samples([0.1, 0.2, 0.3], [0.7, 0.8])) is None


def test_a_band_over_everything_stays_within_scores() -> None:
    band = abstain_band(samples([0.9, 1.0], [0.0, 0.1]))
    assert band is not None
    assert (band.low, band.high) == (0.0, 1.0)
