"""Thresholds stand clear of the faces they were fitted on, at the price of one face at most."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from export.agreement import Decisions, logit
from export.clear_thresholds import CLEAR, cleared
from pipeline.measures import SMALLEST_PROBABILITY
from pipeline.metrics import Resampling, measure
from pipeline.samples import Samples
from pipeline.scoring import OperatingPoint

QUICK = Resampling(resamples=50)


def sigmoid(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-margins)))


def samples(reals: list[float], fakes: list[float]) -> Samples:
    """Faces of one video each, by the logits of their scores."""
    labels = np.array([0] * len(reals) + [1] * len(fakes))
    count = np.arange(labels.size)
    return Samples("frame", sigmoid(np.array(reals + fakes)), labels, count, count.astype(np.str_))


def fitted(data: Samples, name: str = "eer") -> OperatingPoint:
    return next(point for point in measure(data, how=QUICK).operating_points if point.name == name)


def nearest(data: Samples, point: OperatingPoint) -> float:
    """Logits from the threshold to the nearest face."""
    return float(np.abs(logit(data.scores) - logit(np.array(point.threshold))).min())


def rates(data: Samples, point: OperatingPoint) -> tuple[float, float]:
    called = data.scores >= point.threshold
    return float(called[data.labels == 0].mean()), float(called[data.labels == 1].mean())


# the two middle faces lie 5e-5 apart, with as many errors of either kind below and above
REALS = [-4.0, -3.0, -2.0, -1.0, -0.3, 0.00005, 1.0]
FAKES = [-1.2, 0.0, 0.4, 2.0, 3.0, 4.0, 5.0]


def test_a_threshold_between_two_faces_that_all_but_touch_is_moved_by_one() -> None:
    data = samples(REALS, FAKES)
    point = fitted(data)
    assert nearest(data, point) < 1e-4
    found = cleared(data, point, QUICK)
    assert nearest(data, found) > CLEAR
    assert (found.fpr, found.tpr) == pytest.approx(rates(data, found))
    before, after = rates(data, point), rates(data, found)
    assert (abs(after[0] - before[0]) + abs(after[1] - before[1])) * 7 == pytest.approx(1)
    assert found.tpr_interval is not None
    assert found.tpr_interval[0] <= found.tpr <= found.tpr_interval[1]
    assert (found.name, found.threshold_interval) == (point.name, point.threshold_interval)


def test_noise_that_int8_makes_then_flips_nothing() -> None:
    data = samples(REALS, FAKES)
    logits = np.stack([np.zeros(data.scores.size), logit(data.scores)], axis=1)
    errors = np.array([-0.05, 0.05])
    point = fitted(data)
    assert Decisions.by(logits, [point.threshold]).expected_flips(errors) > 0
    assert Decisions.by(logits, [cleared(data, point, QUICK).threshold]).expected_flips(errors) == 0


def test_a_clear_threshold_is_left_as_it_is() -> None:
    data = samples([-3.0, -2.0, 1.0], [-1.0, 2.0, 8.0])  # a wider gap lies beside it, and would cost a face
    point = fitted(data)
    assert nearest(data, point) > CLEAR
    assert cleared(data, point, QUICK) == point


def test_the_interpolated_threshold_next_to_a_face_goes_to_the_middle_of_its_gap() -> None:
    reals, fakes = list(np.linspace(-6, -0.5, 50)), list(np.linspace(0.5, 6, 3))
    data = samples(reals, fakes)
    low = float(sigmoid(np.array(-0.5)))
    point = fitted(data).model_copy(update={"threshold": low + 1e-6})
    found = cleared(data, point, QUICK)
    assert logit(np.array(found.threshold)) == pytest.approx(0)
    assert found == point.model_copy(update={"threshold": found.threshold})  # it acts alike


def test_a_bound_on_the_false_alarm_rate_stays_kept() -> None:
    reals = [*np.linspace(-8, -1, 199).tolist(), 0.0]
    fakes = [0.001, 1.0, 2.0, 3.0]
    data = samples([*reals, 0.0005], fakes)
    for name, limit in (("fpr-1%", 0.01), ("fpr-0.1%", 0.001)):
        point = fitted(data, name)
        found = cleared(data, point, QUICK)
        assert found.fpr <= limit
        assert (found.fpr, found.tpr) == pytest.approx(rates(data, found))
        assert nearest(data, found) > nearest(data, point)


def test_faces_with_one_score_are_not_passed_together() -> None:
    crowd = [0.0] * 5
    data = samples([-3.0, *crowd], [0.00002, 0.00004, 0.00006, 3.0])
    point = fitted(data).model_copy(update={"threshold": float(sigmoid(np.array(0.00001)))})
    called = int((data.scores >= cleared(data, point, QUICK).threshold).sum())
    assert called in (3, 4)


def test_a_threshold_that_decides_all_alike_is_not_moved_to() -> None:
    data = samples([-3.0, -0.00001], [0.00001, 3.0])
    found = cleared(data, fitted(data), QUICK)
    assert 1 <= int((data.scores >= found.threshold).sum()) <= 3
    assert nearest(data, found) > 1


def test_a_threshold_above_every_score_goes_halfway_to_one() -> None:
    data = samples([2.0, -1.0], [1.0, -2.0])
    point = fitted(data, "fpr-1%")
    highest = float(data.scores.max())
    assert point.threshold > highest
    assert cleared(data, point, QUICK).threshold == pytest.approx((highest + 1) / 2)
    sure = Samples("frame", np.array([1.0, 0.2]), np.array([0, 1]), np.arange(2), np.array(["a", "b"]))
    point = fitted(sure, "fpr-1%")
    assert cleared(sure, point, QUICK) == point  # nothing lies between 1 and what is above it


def test_scores_that_logits_do_not_tell_apart_keep_their_decisions() -> None:
    top = 1 - SMALLEST_PROBABILITY / 8
    data = Samples(
        "frame", np.array([0.1, top, top, 1.0]), np.array([0, 0, 1, 1]), np.arange(4), np.array(list("abcd"))
    )
    point = fitted(data)
    assert rates(data, cleared(data, point, QUICK)) == rates(data, point)


def test_where_faces_lie_dense_one_face_is_the_price_and_no_more() -> None:
    rng = np.random.default_rng(0)
    data = samples(rng.normal(-1, 1, 2000).tolist(), rng.normal(1, 1, 2000).tolist())
    point = fitted(data)
    found = cleared(data, point, QUICK)
    before, after = (data.scores >= item.threshold for item in (point, found))
    assert np.count_nonzero(before != after) <= 1
    assert nearest(data, found) >= nearest(data, point)
