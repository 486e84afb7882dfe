from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.metrics import Resampling, measure
from pipeline.samples import Samples
from training.plots import (
    plot_reliability,
    plot_roc,
    plot_scores,
    plot_training,
    running_mean,
    spread,
)

BLUE, VERMILION = (0, 114, 178), (213, 94, 0)


def pixels(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def pixels_of(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels drawn in a colour, near enough."""
    distance = np.abs(pixels(path).astype(int) - colour).max(axis=2)
    return int((distance < 60).sum())


def samples(labels: list[int] | None = None) -> Samples:
    rng = np.random.default_rng(0)
    truth = np.tile((0, 1), 60) if labels is None else np.array(labels)
    scores = 1 / (1 + np.exp(-(rng.normal(size=truth.size) + truth)))
    return Samples("frame", scores, truth, np.arange(truth.size) // 2 * 2 + truth, np.tile(["x"], truth.size))


def events(count: int) -> list[dict[str, object]]:
    steps = [
        {"kind": "step", "step": step, "epoch": 1, "time": 0.0, "loss": 1 / step, "grad_norm": 1.0}
        for step in range(1, count + 1)
    ]
    return [*steps, {"kind": "epoch", "step": count, "epoch": 1, "time": 0.0, "val_auc": 0.8}]


class TestTraining:
    def test_panels_appear_for_what_was_logged(self, tmp_path: Path) -> None:
        few = pixels(plot_training(events(60), tmp_path / "few.png"))
        more = [event | {"lr": 0.1, "sharpness": 0.1} for event in events(60)]
        many = pixels(plot_training(more, tmp_path / "many.png"))
        assert many.shape[0] > 1.5 * few.shape[0]  # five panels need a second row
        assert pixels_of(tmp_path / "few.png", BLUE) > 20  # val_auc

    def test_null_values_are_gaps_that_are_told(self, tmp_path: Path) -> None:
        broken = events(60)
        broken[10] = broken[10] | {"loss": None}
        assert pixels_of(plot_training(events(60), tmp_path / "whole.png"), VERMILION) == 0
        assert pixels_of(plot_training(broken, tmp_path / "broken.png"), VERMILION) > 10

    def test_one_step_is_enough(self, tmp_path: Path) -> None:
        assert plot_training(events(1), tmp_path / "one.png").stat().st_size > 5000

    def test_a_log_of_notes_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no losses"):
            plot_training(
                [{"kind": "note", "step": 1, "epoch": 1, "time": 0.0, "text": "x"}], tmp_path / "a.png"
            )
        assert not (tmp_path / "a.png").exists()


class TestEvaluation:
    def test_roc_shows_the_curve_and_its_points(self, tmp_path: Path) -> None:
        pair = (samples(), measure(samples(), how=Resampling(50)))
        path = plot_roc([pair, pair], tmp_path / "roc.png", "title")
        assert pixels_of(path, BLUE) > 500
        assert pixels_of(path, VERMILION) > 100

    def test_roc_needs_both_classes(self, tmp_path: Path) -> None:
        reals = samples([0] * 20)
        with pytest.raises(InputError, match="only real samples"):
            plot_roc([(reals, measure(reals, how=Resampling(0)))], tmp_path / "roc.png", "title")

    def test_histogram_of_one_class_shows_that_class_only(self, tmp_path: Path) -> None:
        path = plot_scores([samples([0] * 40)], tmp_path / "scores.png", "title", thresholds=[0.5])
        assert pixels_of(path, BLUE) > 100
        assert pixels_of(path, VERMILION) == 0

    def test_reliability(self, tmp_path: Path) -> None:
        report = measure(samples(), how=Resampling(0))
        assert pixels_of(plot_reliability([report], tmp_path / "rel.png", "title"), BLUE) > 200


class TestSpread:
    def test_leaves_what_does_not_overlap(self) -> None:
        assert spread([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])

    def test_pushes_apart_what_does_and_keeps_the_order(self) -> None:
        assert spread([0.5, 0.5, 0.52], 0.1) == pytest.approx([0.5, 0.6, 0.7])

    @settings(deadline=None)
    @given(st.lists(st.floats(-1, 2), max_size=8))
    def test_always_fits_and_never_overlaps(self, places: list[float]) -> None:
        moved = spread(places, 0.1, low=0.1, high=0.9)
        assert all(0.1 - 1e-9 <= place <= 0.9 + 1e-9 for place in moved)
        assert all(gap >= 0.1 - 1e-9 for gap in np.diff(sorted(moved)))


class TestRunningMean:
    def test_by_hand_with_a_gap(self) -> None:
        mean = running_mean(np.array([1.0, 2.0, 6.0, math.nan, 8.0]), 3)
        np.testing.assert_allclose(mean, [1.5, 3.0, 4.0, 7.0, 8.0])

    def test_is_as_long_as_its_input_even_when_the_window_is_longer(self) -> None:
        np.testing.assert_allclose(running_mean(np.array([2.0, 4.0]), 9), [3.0, 3.0], atol=1.0)
        assert running_mean(np.array([2.0, 4.0]), 9).size == 2

    def test_nothing_known_stays_unknown(self) -> None:
        assert np.isnan(running_mean(np.full(5, math.nan), 3)).all()
