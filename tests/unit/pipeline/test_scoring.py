from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.scoring import RULES, FrameScores, OperatingPoint, Verdict, judge, p_fake, video_score


def frame(scores: list[float], areas: list[float] | None = None, index: int = 0) -> FrameScores:
    return FrameScores(np.array(scores), np.array(areas if areas is not None else [1.0] * len(scores)), index)


class TestPFake:
    def test_hand_computed(self) -> None:
        scores = p_fake([[0.0, 0.0], [0.0, math.log(3)], [math.log(3), 0.0]])
        np.testing.assert_allclose(scores, [0.5, 0.75, 0.25], rtol=1e-15)
        assert scores.dtype == np.float64

    def test_temperature_divides_the_logits(self) -> None:
        np.testing.assert_allclose(p_fake([[0.0, 2 * math.log(3)]], temperature=2.0), [0.75])

    @pytest.mark.filterwarnings("error")
    def test_huge_logits_neither_overflow_nor_warn(self) -> None:
        scores = p_fake(np.array([[1e4, -1e4], [-1e4, 1e4], [3e38, 3e38]], dtype=np.float32))
        np.testing.assert_array_equal(scores, [0.0, 1.0, 0.5])

    def test_no_logits_give_no_scores(self) -> None:
        assert p_fake(np.zeros((0, 2))).shape == (0,)

    @settings(deadline=None)
    @given(st.floats(-30, 30), st.floats(-30, 30), st.floats(0.1, 10))
    def test_swapping_the_classes_gives_the_complement(self, real: float, fake: float, t: float) -> None:
        both = p_fake([[real, fake], [fake, real]], t)
        assert both.sum() == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_refuses_what_is_not_finite_and_counts_it(self, bad: float) -> None:
        with pytest.raises(InputError, match="1 of 2 rows"):
            p_fake([[0.0, bad], [0.0, 1.0]])

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_a_temperature_that_is_not_positive(self, temperature: float) -> None:
        with pytest.raises(InputError, match="temperature"):
            p_fake([[0.0, 1.0]], temperature)

    @pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (1, 3, 2)])
    def test_refuses_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="shape"):
            p_fake(np.zeros(shape))


class TestFrameScores:
    def test_faces_of_exactly_half_the_largest_count(self) -> None:
        found = frame([0.1, 0.8, 0.9], areas=[100, 50, 49.9])
        assert found.prominent().tolist() == [0.1, 0.8]
        assert found.score() == 0.8

    def test_without_a_face_there_is_no_score(self) -> None:
        assert frame([]).score() is None

    @pytest.mark.parametrize("score", [-0.01, 1.01, math.nan])
    def test_refuses_scores_that_are_no_probability(self, score: float) -> None:
        with pytest.raises(InputError, match="frame 7"):
            frame([0.5, score], index=7)

    @pytest.mark.parametrize("area", [0.0, -1.0, math.inf, math.nan])
    def test_refuses_areas_that_are_not_positive(self, area: float) -> None:
        with pytest.raises(InputError, match="areas"):
            frame([0.5], areas=[area])

    def test_refuses_unequal_lengths(self) -> None:
        with pytest.raises(InputError, match="2 scores, 1 areas"):
            frame([0.5, 0.5], areas=[1.0])


class TestVideoScore:
    FRAMES = (
        frame([0.2, 0.6], areas=[10, 8]),  # both count: max 0.6
        frame([]),  # no face
        frame([0.4, 0.99], areas=[10, 1]),  # the second is too small
    )

    def test_default_is_the_mean_over_frames_of_the_largest_score(self) -> None:
        result = video_score(self.FRAMES)
        assert result.rule == "max-mean"
        assert result.score == pytest.approx((0.6 + 0.4) / 2)

    def test_says_what_it_rests_on(self) -> None:
        result = video_score(self.FRAMES)
        assert (result.frames, result.frames_used) == (3, 2)
        assert (result.faces, result.faces_used) == (4, 3)
        assert result.frame_scores == (0.6, None, 0.4)

    def test_mean_all_weighs_every_prominent_face_alike(self) -> None:
        assert video_score(self.FRAMES, "mean-all").score == pytest.approx((0.2 + 0.6 + 0.4) / 3)

    def test_topk_mean_takes_a_quarter_rounded_up(self) -> None:
        nine = [frame([value]) for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
        assert video_score(nine, "topk-mean").score == pytest.approx((0.9 + 0.8 + 0.7) / 3)
        assert video_score(nine[:1], "topk-mean").score == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("scores", "expected"),
        [
            ([0.9, 0.95, 0.1, 0.1, 0.1], 0.43),  # 40 % sure fakes are not more than 40 %: plain mean
            ([0.9, 0.95, 1.0, 0.1, 0.1], 0.95),  # 60 %: their mean
            ([0.1] * 10 + [0.7], 0.1),  # over 90 % sure reals
            ([0.1] * 9 + [0.7], 0.16),  # exactly 90 %: plain mean
            ([0.8] * 4, 0.8),  # 0.8 is not above 0.8
        ],
    )
    def test_confident(self, scores: list[float], expected: float) -> None:
        assert video_score([frame([s]) for s in scores], "confident").score == pytest.approx(expected)

    @pytest.mark.parametrize("rule", RULES)
    def test_no_face_is_no_score_under_any_rule(self, rule: str) -> None:
        result = video_score([frame([]), frame([])], rule)
        assert result.score is None
        assert (result.frames, result.frames_used, result.faces_used) == (2, 0, 0)
        assert video_score([], rule).score is None

    @pytest.mark.parametrize("rule", RULES)
    @settings(deadline=None)
    @given(frames=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=1, max_size=12))
    def test_every_rule_stays_within_the_scores_and_ignores_the_order(
        self, rule: str, frames: list[list[float]]
    ) -> None:
        flat = [score for faces in frames for score in faces]
        score = video_score([frame(faces) for faces in frames], rule).score
        assert score is not None
        assert min(flat) - 1e-9 <= score <= max(flat) + 1e-9
        again = video_score([frame(faces[::-1]) for faces in frames[::-1]], rule).score
        assert again == pytest.approx(score, abs=1e-12)

    def test_an_unknown_rule_is_refused_with_those_known(self) -> None:
        with pytest.raises(InputError, match=r"'median'.*max-mean.*confident"):
            video_score(self.FRAMES, "median")


class TestJudge:
    @pytest.mark.parametrize(
        ("score", "verdict"),
        [(0.69, Verdict.REAL), (0.7, Verdict.FAKE), (1.0, Verdict.FAKE), (None, Verdict.NO_FACE)],
    )
    def test_without_a_band(self, score: float | None, verdict: Verdict) -> None:
        assert judge(score, 0.7) is verdict

    @pytest.mark.parametrize(
        ("score", "verdict"),
        [
            (0.59, Verdict.REAL),
            (0.6, Verdict.UNCERTAIN),
            (0.79, Verdict.UNCERTAIN),
            (0.8, Verdict.FAKE),
            (None, Verdict.NO_FACE),
        ],
    )
    def test_with_a_band(self, score: float | None, verdict: Verdict) -> None:
        assert judge(score, 0.7, (0.6, 0.8)) is verdict

    @pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
    def test_refuses_scores_that_are_no_probability(self, score: float) -> None:
        with pytest.raises(InputError, match="score is"):
            judge(score, 0.5)

    @pytest.mark.parametrize("band", [(0.75, 0.8), (0.5, 0.6), (0.8, 0.6)])
    def test_refuses_a_band_beside_the_threshold(self, band: tuple[float, float]) -> None:
        with pytest.raises(InputError, match="does not hold the threshold"):
            judge(0.5, 0.7, band)

    def test_refuses_a_threshold_that_is_not_a_number(self) -> None:
        with pytest.raises(InputError, match="threshold is nan"):
            judge(0.5, math.nan)


def test_an_operating_point_survives_json_exactly() -> None:
    point = OperatingPoint(
        name="fpr-1%",
        level="video",
        threshold=np.nextafter(1.0, 2.0),
        fpr=0.01,
        tpr=1 / 3,
        fpr_interval=(0, 0.02),
    )
    assert OperatingPoint.model_validate_json(point.model_dump_json()) == point


@pytest.mark.parametrize("change", [{"threshold": math.inf}, {"fpr": 1.5}, {"tpr": math.nan}, {"far": 0.1}])
def test_an_operating_point_refuses_what_cannot_be(change: dict[str, float]) -> None:
    good = {"name": "eer", "level": "frame", "threshold": 0.5, "fpr": 0.1, "tpr": 0.9}
    with pytest.raises(ValueError, match="validation error"):
        OperatingPoint.model_validate(good | change)
