from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from pipeline.errors import InputError
from pipeline.metrics import Estimate, MetricsReport, Resampling, measure, summarise
from pipeline.samples import Samples, collect

QUICK = Resampling(resamples=200)
NO_INTERVALS = Resampling(resamples=0)


def synthetic(videos: int = 40, frames: int = 5, shift: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Half the videos real, half fake by two methods; scores spread between and within videos."""
    rng = np.random.default_rng(seed)
    rows: dict[str, Any] = {"scores": [], "labels": [], "videos": [], "methods": [], "frames": []}
    for video in range(videos):
        label = video % 2
        method = "real" if label == 0 else ("Swap", "Reenact")[video // 2 % 2]
        centre = rng.normal() + shift * label
        for frame in range(frames):
            rows["scores"].append(float(1 / (1 + np.exp(-(centre + 0.5 * rng.normal())))))
            rows["labels"].append(label)
            rows["videos"].append(f"{method}/{video:03}")
            rows["methods"].append(method)
            rows["frames"].append(frame)
    return rows


def only(rows: dict[str, Any], label: int) -> dict[str, Any]:
    keep = [index for index, value in enumerate(rows["labels"]) if value == label]
    return {name: [column[index] for index in keep] for name, column in rows.items()}


class TestCollect:
    def test_frames_and_videos_by_hand(self) -> None:
        found = collect(
            [0.2, 0.7, 0.9, 0.4, 0.6],
            [0, 0, 0, 1, 1],
            ["a", "a", "a", "b", "b"],
            ["real", "real", "real", "Swap", "Swap"],
            frames=[1, 0, 0, 5, 5],
            areas=[9, 10, 4, 10, 5],
        )
        # a: frame 0 max(.7; .9 is too small) = .7, frame 1 .2; b: frame 5 max(.4, .6) = .6
        assert found.frame.scores.tolist() == [0.7, 0.2, 0.6]
        assert found.frame.labels.tolist() == [0, 0, 1]
        assert found.frame.methods.tolist() == ["real", "real", "Swap"]
        assert found.video.scores.tolist() == [pytest.approx(0.45), 0.6]
        assert found.video.labels.tolist() == [0, 1]
        assert (found.faces, found.faces_used) == (5, 4)

    def test_the_order_of_the_faces_does_not_matter(self) -> None:
        rows = synthetic()
        straight = collect(**rows)
        shuffled = np.random.default_rng(1).permutation(len(rows["scores"]))
        mixed = collect(**{name: [column[i] for i in shuffled] for name, column in rows.items()})
        np.testing.assert_array_equal(straight.frame.scores, mixed.frame.scores)
        np.testing.assert_array_equal(straight.video.scores, mixed.video.scores)
        np.testing.assert_array_equal(straight.video.methods, mixed.video.methods)

    def test_without_frame_numbers_every_face_is_a_frame(self) -> None:
        assert collect([0.1, 0.2], [0, 0], ["a", "a"], ["real", "real"]).frame.scores.tolist() == [0.1, 0.2]

    def test_the_rule_decides_the_video_score(self) -> None:
        arguments = ([0.2, 0.6], [0, 0], ["a", "a"], ["real", "real"])
        assert collect(*arguments, frames=[0, 0], rule="mean-all").video.scores.tolist() == [
            pytest.approx(0.4)
        ]
        assert collect(*arguments, frames=[0, 0]).video.scores.tolist() == [0.6]

    def test_a_video_id_without_its_manipulation_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"'000_003' has two labels \(0 and 1\).*Deepfakes/000_003"):
            collect([0.1, 0.2, 0.3], [0, 1, 0], ["000_003", "000_003", "x"], ["real", "Swap", "real"])
        with pytest.raises(InputError, match="two methods"):
            collect([0.1, 0.2], [1, 1], ["a", "a"], ["Swap", "Reenact"])

    def test_logits_are_refused_as_scores(self) -> None:
        with pytest.raises(InputError, match=r"-2 to 3.*p_fake"):
            collect([-2.0, 3.0], [0, 1], ["a", "b"], ["real", "Swap"])

    def test_unequal_columns_are_refused_by_name(self) -> None:
        with pytest.raises(InputError, match="videos has 1 entries for 2 scores"):
            collect([0.1, 0.2], [0, 1], ["a"], ["real", "Swap"])

    def test_an_unknown_rule_is_refused(self) -> None:
        with pytest.raises(InputError, match="'median'"):
            collect([0.1], [0], ["a"], ["real"], rule="median")


class TestPointValues:
    def test_agree_with_scikit_learn(self) -> None:
        rows = synthetic()
        level = summarise(**rows, threshold=0.6, how=NO_INTERVALS).overall.frame
        scores, labels = np.array(rows["scores"]), np.array(rows["labels"])
        assert level.auc.value == pytest.approx(roc_auc_score(labels, scores))
        assert level.average_precision.value == pytest.approx(average_precision_score(labels, scores))
        assert level.brier.value == pytest.approx(brier_score_loss(labels, scores))
        assert level.log_loss.value == pytest.approx(sklearn_log_loss(labels, scores))
        assert level.at_threshold is not None
        assert level.at_threshold.accuracy.value == pytest.approx(accuracy_score(labels, scores >= 0.6))

    def test_rates_at_the_given_threshold_by_hand(self) -> None:
        at = summarise(
            [0.1, 0.6, 0.5, 0.2, 0.7],
            [0, 0, 0, 1, 1],
            list("abcde"),
            ["r", "r", "r", "s", "s"],
            threshold=0.5,
        ).overall.frame.at_threshold
        assert at is not None
        assert at.fpr.value == pytest.approx(2 / 3)  # 0.5 is called fake
        assert at.specificity.value == pytest.approx(1 / 3)
        assert at.tpr.value == pytest.approx(1 / 2)
        assert at.accuracy.value == pytest.approx(2 / 5)
        assert at.balanced_accuracy.value == pytest.approx((1 / 2 + 1 / 3) / 2)

    def test_no_threshold_no_accuracy(self) -> None:
        assert summarise(**synthetic(), how=NO_INTERVALS).overall.video.at_threshold is None

    def test_operating_points_do_what_they_say(self) -> None:
        rows = synthetic(videos=200)
        for level, samples in zip(
            (lambda scope: (scope.frame, scope.video))(summarise(**rows, how=NO_INTERVALS).overall),
            (lambda found: (found.frame, found.video))(collect(**rows)),
            strict=True,
        ):
            assert [point.name for point in level.operating_points] == ["eer", "fpr-0.1%", "fpr-1%", "fpr-5%"]
            for point in level.operating_points:
                called = samples.scores >= point.threshold
                assert point.fpr == pytest.approx(called[samples.labels == 0].mean())
                assert point.tpr == pytest.approx(called[samples.labels == 1].mean())
                assert point.level == level.level
            assert level.operating_points[3].fpr <= 0.05
            assert level.tpr_at_fpr["fpr-5%"].value == pytest.approx(level.operating_points[3].tpr)

    def test_a_rate_finer_than_the_data_is_marked(self) -> None:
        points = summarise(**synthetic(), how=NO_INTERVALS).overall.video.operating_points
        assert points[0].note is None
        assert points[1].note is not None
        assert "20 real samples" in points[1].note

    def test_reliability_bins_hold_every_sample(self) -> None:
        level = summarise(**synthetic(), how=NO_INTERVALS).overall.frame
        assert sum(item.count for item in level.reliability) == level.real + level.fake == 200
        assert len(level.reliability) == 15


class TestMethods:
    def test_each_manipulation_meets_all_reals(self) -> None:
        rows = synthetic()
        report = summarise(**rows, how=NO_INTERVALS)
        assert sorted(report.methods) == ["Reenact", "Swap"]
        swap = report.methods["Swap"]
        assert (swap.video.real, swap.video.fake) == (20, 10)
        assert (swap.frame.real, swap.frame.fake) == (100, 50)
        keep = [method in ("real", "Swap") for method in rows["methods"]]
        expected = roc_auc_score(np.array(rows["labels"])[keep], np.array(rows["scores"])[keep])
        assert swap.frame.auc.value == pytest.approx(expected)

    def test_only_fakes_are_methods(self) -> None:
        assert summarise(**only(synthetic(), 0), how=NO_INTERVALS).methods == {}


class TestOneClass:
    def test_only_reals_keep_what_reals_can_tell(self) -> None:
        level = summarise(**only(synthetic(), 0), threshold=0.5, how=QUICK).overall.frame
        for estimate in (level.auc, level.average_precision, level.eer, *level.tpr_at_fpr.values()):
            assert estimate == Estimate(value=None, reason="undefined: only real samples")
        assert level.operating_points == []
        at = level.at_threshold
        assert at is not None
        assert at.tpr.value is None
        assert at.balanced_accuracy.value is None
        assert at.fpr.value is not None
        assert at.fpr.low is not None
        assert at.fpr.low < at.fpr.value < (at.fpr.high or 0)
        assert at.specificity.value == pytest.approx(1 - at.fpr.value)
        assert at.accuracy.value == pytest.approx(at.specificity.value)
        assert "undefined: only real samples" in level.notes

    def test_only_fakes_keep_what_fakes_can_tell(self) -> None:
        level = summarise(**only(synthetic(), 1), threshold=0.5, how=NO_INTERVALS).overall.video
        assert level.auc.reason == "undefined: only fake samples"
        assert level.at_threshold is not None
        assert level.at_threshold.fpr == Estimate(value=None, reason="undefined: only fake samples")
        assert level.at_threshold.tpr.value is not None


class TestIntervals:
    def test_hold_the_value_and_depend_on_the_seed_alone(self) -> None:
        rows = synthetic()
        first = summarise(**rows, threshold=0.6, how=QUICK)
        assert summarise(**rows, threshold=0.6, how=QUICK) == first
        other = summarise(**rows, threshold=0.6, how=Resampling(200, seed=1))
        assert other.overall.video.auc.low != first.overall.video.auc.low
        level = first.overall.video
        for estimate in (level.auc, level.average_precision, level.eer, level.brier, level.log_loss):
            assert estimate.value is not None
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low < estimate.value < estimate.high

    def test_more_frames_of_the_same_videos_add_no_certainty(self) -> None:
        rng = np.random.default_rng(0)
        scores = rng.random(60)
        labels = np.tile((0, 1), 30)
        scores = np.clip(scores + 0.2 * labels, 0, 1)

        def width(times: int, *, as_frames: bool) -> float:
            videos = np.tile(np.arange(60), times) if as_frames else np.arange(60 * times)
            samples = Samples(
                "frame", np.tile(scores, times), np.tile(labels, times), videos, np.tile(["x"], 60 * times)
            )
            estimate = measure(samples, how=QUICK).auc
            assert estimate.low is not None
            assert estimate.high is not None
            return estimate.high - estimate.low

        assert width(9, as_frames=True) == pytest.approx(width(1, as_frames=True))
        assert width(9, as_frames=False) == pytest.approx(width(1, as_frames=False) / 3, rel=0.25)

    def test_cover_the_truth_as_often_as_they_say(self) -> None:
        # scores normal(0, 1) and normal(1, 1): AUC = Phi(1 / sqrt 2)
        truth = 0.5 * (1 + math.erf(1 / 2))
        rng = np.random.default_rng(0)
        hits = 0
        for trial in range(100):
            labels = np.tile((0, 1), 60)
            scores = 1 / (1 + np.exp(-(rng.normal(size=120) + labels)))
            samples = Samples("video", scores, labels, np.arange(120), np.tile(["x"], 120))
            estimate = measure(samples, how=Resampling(200, confidence=0.9, seed=trial)).auc
            hits += (estimate.low or 0) <= truth <= (estimate.high or 0)
        assert 80 <= hits <= 98

    def test_a_single_video_of_a_class_gives_none_and_says_why(self) -> None:
        rows = synthetic(videos=3)
        level = summarise(**rows, how=QUICK).overall.frame
        assert level.auc.value is not None
        assert (level.auc.low, level.auc.high) == (None, None)
        assert level.auc.reason == "no interval: a class has a single video"
        assert level.operating_points[0].threshold_interval is None

    def test_no_false_alarm_among_few_videos_is_not_certainty(self) -> None:
        scores = [0.1] * 10 + [0.9] * 20
        labels = [0] * 10 + [1] * 20
        names = [f"v{index}" for index in range(30)]
        level = summarise(scores, labels, names, ["m"] * 30, threshold=0.5, how=QUICK).overall.video
        assert level.at_threshold is not None
        fpr, tpr = level.at_threshold.fpr, level.at_threshold.tpr
        # (1 - 0.3085)^10 = 0.025: ten right verdicts are that unlikely at a false-alarm rate of 30.85 %
        assert (fpr.value, fpr.low, fpr.high) == (0.0, 0.0, pytest.approx(0.3085, abs=1e-4))
        assert (tpr.value, tpr.low, tpr.high) == (1.0, pytest.approx(0.025 ** (1 / 20)), 1.0)
        assert level.at_threshold.accuracy.low == pytest.approx(0.025 ** (1 / 30))
        assert level.at_threshold.specificity.low == pytest.approx(1 - 0.3085, abs=1e-4)
        assert level.operating_points[0].fpr_interval == (0.0, fpr.high)
        assert level.tpr_at_fpr["fpr-1%"].low == tpr.low

    def test_few_videos_are_noted(self) -> None:
        notes = summarise(**synthetic(videos=10), how=NO_INTERVALS).overall.frame.notes
        assert "only 5 real videos: the intervals are rough" in notes
        assert summarise(**synthetic(videos=40), how=NO_INTERVALS).overall.frame.notes == []

    def test_a_thousand_resamples_of_five_thousand_frames_take_seconds(self) -> None:
        rows = synthetic(videos=156, frames=32)
        samples = collect(**rows).frame
        started = time.process_time()
        measure(samples, threshold=0.5)
        assert time.process_time() - started < 6  # about 1 s of one core; a loop over resamples takes 30 s


class TestRefusals:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_score_that_is_not_finite_is_never_replaced(self, bad: float) -> None:
        rows = synthetic()
        rows["scores"][3] = bad
        with pytest.raises(InputError, match="1 of 200 scores are NaN or infinite"):
            summarise(**rows)

    def test_no_data(self) -> None:
        with pytest.raises(InputError, match="no sample"):
            summarise([], [], [], [])


def test_the_report_is_json_and_comes_back_equal() -> None:
    report = summarise(**synthetic(), threshold=0.5, how=QUICK)
    text = report.model_dump_json()
    assert "NaN" not in text
    assert json.loads(text)["overall"]["video"]["auc"]["value"] == report.overall.video.auc.value
    assert MetricsReport.model_validate_json(text) == report


def test_perfect_scores_do_not_exceed_one() -> None:
    level = summarise(
        [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1], list("abcdef"), ["m"] * 6
    ).overall.frame
    assert level.auc.value == level.average_precision.value == 1.0
    assert level.eer.value == 0.0
    assert level.operating_points[0].threshold == pytest.approx(0.5)
