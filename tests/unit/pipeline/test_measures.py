from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.errors import InputError
from pipeline.measures import (
    RankedScores,
    auc,
    average_precision,
    best_within_fpr,
    brier,
    calibration_error,
    check_samples,
    curve_auc,
    curve_average_precision,
    equal_error_rate,
    equal_mass_bins,
    log_loss,
)

# a coarse grid makes ties likely; both classes are there
scored = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=40)


def split(samples: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([score for score, _ in samples], dtype=np.float64) / 12
    labels = np.array([int(fake) for _, fake in samples])
    assume(0 < labels.sum() < labels.size)
    return scores, labels


class TestAuc:
    def test_hand_computed_with_a_tie(self) -> None:
        # pairs (fake, real): (.8,.2) 1, (.8,.5) 1, (.5,.2) 1, (.5,.5) half -> 3.5 / 4
        assert auc([0.2, 0.5, 0.5, 0.8], [0, 0, 1, 1]) == 3.5 / 4

    def test_equal_scores_are_worth_a_coin_toss(self) -> None:
        assert auc([0.3] * 5, [0, 1, 1, 0, 1]) == 0.5

    @pytest.mark.parametrize("label", [0, 1])
    def test_one_class_has_none(self, label: int) -> None:
        assert auc([0.1, 0.9], [label, label]) is None
        assert average_precision([0.1, 0.9], [label, label]) is None
        assert equal_error_rate([0.1, 0.9], [label, label]) == (None, None)

    @settings(deadline=None)
    @given(scored)
    def test_monotone_transforms_change_nothing(self, samples: list[tuple[int, bool]]) -> None:
        scores, labels = split(samples)
        for moved in (np.exp(3 * scores), scores**3 - 7, np.arctan(scores)):
            assert auc(moved, labels) == pytest.approx(auc(scores, labels), abs=1e-12)
            assert equal_error_rate(moved, labels)[0] == pytest.approx(equal_error_rate(scores, labels)[0])

    @settings(deadline=None)
    @given(scored)
    def test_turning_the_scores_round_gives_the_complement(self, samples: list[tuple[int, bool]]) -> None:
        scores, labels = split(samples)
        assert auc(1 - scores, labels) == pytest.approx(1 - (auc(scores, labels) or 0), abs=1e-12)

    @settings(deadline=None)
    @given(scored)
    def test_swapping_the_classes_and_the_scores_changes_nothing(
        self, samples: list[tuple[int, bool]]
    ) -> None:
        scores, labels = split(samples)
        assert auc(1 - scores, 1 - labels) == pytest.approx(auc(scores, labels), abs=1e-12)
        swapped, straight = equal_error_rate(1 - scores, 1 - labels)[0], equal_error_rate(scores, labels)[0]
        assert swapped == pytest.approx(straight, abs=1e-9)


class TestCurves:
    @settings(deadline=None)
    @given(scored, st.integers(0, 2**32 - 1))
    def test_agree_with_scikit_learn_under_any_weights(
        self, samples: list[tuple[int, bool]], seed: int
    ) -> None:
        scores, labels = split(samples)
        weights = np.random.default_rng(seed).integers(0, 4, size=(6, scores.size)).astype(np.float64)
        weights[:, np.argmax(labels == 1)] += 1
        weights[:, np.argmax(labels == 0)] += 1
        curves = RankedScores(scores, labels).curves(weights)
        for row, area, precision in zip(
            weights, curve_auc(curves), curve_average_precision(curves), strict=True
        ):
            assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=row), abs=1e-9)
            expected = average_precision_score(labels, scores, sample_weight=row)
            assert precision == pytest.approx(expected, abs=1e-9)

    def test_are_those_of_scikit_learn(self) -> None:
        rng = np.random.default_rng(1)
        labels = rng.integers(0, 2, 200)
        scores = np.round(rng.random(200) + 0.3 * labels, 2)
        curves = RankedScores(scores, labels).curves()
        fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(curves.fpr[0], fpr, atol=1e-12)
        np.testing.assert_allclose(curves.tpr[0], tpr, atol=1e-12)
        np.testing.assert_array_equal(curves.thresholds[1:], thresholds[1:])
        assert curves.thresholds[0] > scores.max()
        assert math.isfinite(curves.thresholds[0])


class TestEqualError:
    def test_perfect_separation_cuts_in_the_middle_of_the_gap(self) -> None:
        assert equal_error_rate([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == (0.0, pytest.approx(0.5))

    def test_exact_crossing(self) -> None:
        # at >= 0.4: 1 of 4 reals hit, 1 of 4 fakes missed
        scores = [0.1, 0.2, 0.3, 0.5, 0.25, 0.4, 0.6, 0.7]
        rate, threshold = equal_error_rate(scores, [0, 0, 0, 0, 1, 1, 1, 1])
        assert rate == pytest.approx(0.25)
        assert threshold == pytest.approx((0.4 + 0.3) / 2)

    def test_interpolates_between_two_points(self) -> None:
        # points (FPR, TPR): (0, 0), (0, 1/2) at .9, (1/3, 1/2) at .6, (1/3, 1) at .5, ...
        # FPR - FNR: -1, -1/2, -1/6, +1/3: crossing a third of the way from .6 to .5, where FPR stays 1/3
        rate, threshold = equal_error_rate([0.1, 0.2, 0.6, 0.5, 0.9], [0, 0, 0, 1, 1])
        assert rate == pytest.approx(1 / 3)
        assert threshold == pytest.approx(0.6 - 0.1 / 3)

    def test_interpolates_the_rate_too(self) -> None:
        # one tied score holds everything: from (0, 0) straight to (1, 1)
        assert equal_error_rate([0.5, 0.5], [0, 1]) == (pytest.approx(0.5), pytest.approx(0.5))

    def test_wholly_wrong_scores(self) -> None:
        assert equal_error_rate([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1])[0] == pytest.approx(1.0)

    @settings(deadline=None)
    @given(scored)
    def test_lies_where_the_curve_crosses_the_other_diagonal(self, samples: list[tuple[int, bool]]) -> None:
        scores, labels = split(samples)
        rate, threshold = equal_error_rate(scores, labels)
        assert rate is not None
        assert threshold is not None
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        # the curve as a function of its own length: FPR - FNR rises from -1 to 1
        along = np.linspace(0, len(fpr) - 1, 20001)
        gap = np.interp(along, np.arange(len(fpr)), fpr + tpr - 1)
        dense = np.interp(along[np.argmin(np.abs(gap))], np.arange(len(fpr)), fpr)
        assert rate == pytest.approx(dense, abs=2e-3)
        assert threshold >= scores.min()
        assert threshold <= np.nextafter(scores.max(), 2)


class TestBestWithinFpr:
    SCORES = np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.8, 0.9])
    LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])

    def best(self, limit: float) -> tuple[float, float]:
        found, threshold = best_within_fpr(RankedScores(self.SCORES, self.LABELS).curves(), limit)
        return float(found[0]), float(threshold[0])

    def test_no_false_alarm_allowed(self) -> None:
        assert self.best(0.1) == (0.5, pytest.approx((0.8 + 0.7) / 2))

    def test_one_real_in_four_allowed(self) -> None:
        assert self.best(0.25) == (1.0, pytest.approx((0.4 + 0.3) / 2))

    def test_at_the_threshold_the_rates_are_those_promised(self) -> None:
        for limit in (0.0, 0.1, 0.25, 0.3, 0.5, 1.0):
            found, threshold = self.best(limit)
            called = threshold <= self.SCORES
            labels = self.LABELS
            tpr, fpr = called[labels == 1].mean(), called[labels == 0].mean()
            assert tpr == found
            assert fpr <= limit

    def test_finds_nothing_where_the_highest_score_is_real(self) -> None:
        scores = np.array([1.0, 0.5])
        found, threshold = best_within_fpr(RankedScores(scores, np.array([0, 1])).curves(), 0.5)
        assert found[0] == 0.0
        assert threshold[0] > 1.0


class TestCalibration:
    def test_bins_are_of_equal_mass(self) -> None:
        bins = equal_mass_bins(np.random.default_rng(0).random(100), 15)
        assert set(np.bincount(bins)) == {6, 7}
        assert bins.max() == 14

    def test_bins_rise_with_the_score(self) -> None:
        scores = np.random.default_rng(0).random(50)
        assert (np.diff(equal_mass_bins(scores, 7)[np.argsort(scores)]) >= 0).all()

    def test_equal_scores_share_a_bin(self) -> None:
        bins = equal_mass_bins(np.array([0.5, 0.1, 0.5, 0.5, 0.9, 0.5]), 3)
        assert len(set(bins[[0, 2, 3, 5]])) == 1

    def test_hand_computed_error(self) -> None:
        # two bins: {.1, .3} fakes 1 of 2 -> |.2 - .5| * 1/2; {.6, .8} fakes 2 of 2 -> |.7 - 1| * 1/2
        error = calibration_error(np.array([0.1, 0.3, 0.6, 0.8]), np.array([0, 1, 1, 1]), bins=2)
        assert error == pytest.approx([0.3])

    def test_weights_act_like_repeated_samples(self) -> None:
        rng = np.random.default_rng(3)
        scores, labels = rng.random(40), rng.integers(0, 2, 40)
        once = calibration_error(scores, labels)
        twice = calibration_error(scores, labels, np.full((1, 40), 2.0))
        assert once == pytest.approx(twice)

    def test_honest_scores_have_a_small_error_and_bold_ones_a_large(self) -> None:
        rng = np.random.default_rng(0)
        honest = rng.random(20000)
        labels = (rng.random(20000) < honest).astype(np.int64)
        bold = np.where(honest > 0.5, 0.99, 0.01)
        assert calibration_error(honest, labels)[0] < 0.02
        assert calibration_error(bold, labels)[0] > 0.2

    def test_brier_and_log_loss_by_hand(self) -> None:
        scores, labels = np.array([0.25, 1.0, 0.0]), np.array([1, 1, 1])
        np.testing.assert_allclose(brier(scores, labels), [0.5625, 0.0, 1.0])
        np.testing.assert_allclose(log_loss(scores, labels), [math.log(4), 0.0, 15 * math.log(10)])


class TestCheckSamples:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_score_that_is_not_finite_is_refused_and_counted(self, bad: float) -> None:
        with pytest.raises(InputError, match="2 of 3 scores"):
            check_samples([bad, 0.5, bad], [0, 1, 0])

    @pytest.mark.parametrize("labels", [[0, 2], [0.5, 1], [-1, 1]])
    def test_other_labels_are_refused(self, labels: list[float]) -> None:
        with pytest.raises(InputError, match="labels hold"):
            check_samples([0.1, 0.2], labels)

    def test_unequal_lengths_are_refused(self) -> None:
        with pytest.raises(InputError, match="equal length"):
            check_samples([0.1, 0.2], [0])

    def test_nothing_is_refused(self) -> None:
        with pytest.raises(InputError, match="no sample"):
            check_samples([], [])
