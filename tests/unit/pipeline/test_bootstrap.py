from __future__ import annotations

import numpy as np
import pytest

from pipeline.bootstrap import percentile_interval, roc_band, too_few_videos, video_weights

LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 0])
VIDEOS = np.array([4, 4, 7, 9, 9, 2, 5, 1])


def test_each_class_is_drawn_as_often_as_it_has_videos() -> None:
    weights = np.concatenate(list(video_weights(LABELS, VIDEOS, 500, seed=0)))
    assert weights.shape == (500, 8)
    assert (weights == weights.round()).all()
    real_videos = weights[:, [0, 2, 7]].sum(axis=1)  # one sample of each real video
    fake_videos = weights[:, [3, 5, 6]].sum(axis=1)
    assert (real_videos == 3).all()
    assert (fake_videos == 3).all()


def test_frames_of_a_video_go_together() -> None:
    weights = np.concatenate(list(video_weights(LABELS, VIDEOS, 100, seed=0)))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 4])
    assert (weights[:, 0] != weights[:, 2]).any()


def test_the_draws_depend_on_the_seed_alone() -> None:
    first, again, other = (next(video_weights(LABELS, VIDEOS, 20, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_large_data_comes_in_batches_that_add_up() -> None:
    labels = np.tile((0, 1), 60_000)
    batches = [len(weights) for weights in video_weights(labels, np.arange(120_000), 7, seed=0)]
    assert sum(batches) == 7
    assert len(batches) > 1


def test_every_video_is_drawn_once_on_average() -> None:
    weights = np.concatenate(list(video_weights(LABELS, VIDEOS, 20_000, seed=1)))
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.03)


@pytest.mark.parametrize(
    ("labels", "videos", "few"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], False),
        ([0, 0, 1, 1], [1, 1, 3, 4], True),
        ([0, 0, 1, 1], [1, 2, 3, 3], True),
        ([0, 0, 0], [1, 2, 2], False),  # the absent class does not count
        ([1, 1], [1, 1], True),
    ],
)
def test_a_class_with_one_video_has_no_interval(labels: list[int], videos: list[int], few: bool) -> None:
    assert too_few_videos(np.array(labels), np.array(videos)) is few


def test_percentiles() -> None:
    assert percentile_interval(np.arange(101.0), 0.9) == (pytest.approx(5.0), pytest.approx(95.0))


def test_the_roc_band_holds_the_curve_and_narrows_with_data() -> None:
    rng = np.random.default_rng(0)

    def band(videos: int) -> np.ndarray:
        labels = np.tile((0, 1), videos)
        scores = rng.normal(size=labels.size) + labels
        grid = np.array([0.1, 0.3, 0.5])
        found = roc_band(scores, labels, np.arange(labels.size), grid, resamples=200)
        assert found is not None
        low, high = found
        order = np.sort(scores[labels == 0])[::-1]
        for share, bottom, top in zip(grid, low, high, strict=True):
            tpr = (scores[labels == 1] >= order[int(share * videos)]).mean()
            assert bottom - 0.02 <= tpr <= top + 0.02
        width: np.ndarray = high - low
        return width

    assert (band(40) > 2 * band(1000)).all()


def test_no_roc_band_from_one_video() -> None:
    assert roc_band(np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1]), np.arange(3), np.array([0.5])) is None
