"""Batch sizes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.runtime import Crops
from serving.batches import batch_size, buckets_up_to, pad, paying_buckets


def crops(*marks: int) -> Crops:
    return np.stack([np.full((4, 4, 3), mark, np.uint8) for mark in marks])


def test_powers_of_two_and_the_largest() -> None:
    assert buckets_up_to(16) == (1, 2, 4, 8, 16)
    assert buckets_up_to(6) == (1, 2, 4, 6)
    assert buckets_up_to(1) == (1,)


@pytest.mark.parametrize(
    ("waiting", "size"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 6), (7, 7), (8, 8), (11, 8)]
)
def test_at_most_a_quarter_of_a_batch_is_filling(waiting: int, size: int) -> None:
    assert batch_size(waiting, (1, 2, 4, 8)) == size


def test_padding_reaches_the_next_size() -> None:
    assert [len(pad(crops(*range(n)), (1, 2, 4, 8))) for n in (1, 2, 3, 4, 6, 8)] == [1, 2, 4, 4, 8, 8]
    assert not pad(crops(7, 7, 7), (4,))[3].any()


@pytest.mark.parametrize(
    ("call_ms", "crop_ms", "kept"),
    [
        # a call costs the same whatever its size: every size pays
        (4.0, 0.0, (1, 2, 4, 8)),
        # time grows with the crops, and they are slow: none does
        (0.0, 20.0, (1,)),
        # time grows with the crops, but so little that the way to the network and back counts
        (0.0, 1.0, (1, 2, 4, 8)),
        # eight at once would keep others waiting
        (25.0, 20.0, (1, 2, 4)),
        # slow networks are not even tried with more
        (60.0, 0.0, (1,)),
    ],
)
def test_sizes_are_kept_while_they_pay(call_ms: float, crop_ms: float, kept: tuple[int, ...]) -> None:
    now, tried = 0.0, set()

    def run(size: int) -> None:
        nonlocal now
        tried.add(size)
        now += (call_ms + crop_ms * size) / 1000

    assert paying_buckets(run, (1, 2, 4, 8), clock=lambda: now) == kept
    if call_ms == 60.0:
        assert tried == {1}


def test_a_slow_network_is_not_run_again_to_be_sure() -> None:
    now, runs = 0.0, 0

    def run(size: int) -> None:
        nonlocal now, runs
        runs += 1
        now += 0.2 * size

    paying_buckets(run, (1, 2, 4), clock=lambda: now)
    assert runs == 2  # one to warm up, one on the clock


@pytest.mark.parametrize(
    ("per_crop_ms", "kept"),
    [
        # the largest are dearer again
        ({1: 3.0, 2: 2.9, 4: 2.5, 8: 2.8}, (1, 2, 4)),
        # one bad moment does not decide
        ({1: 3.0, 2: 3.4, 4: 2.5, 8: 2.4}, (1, 2, 4, 8)),
    ],
)
def test_sizes_up_to_the_cheapest_are_kept(per_crop_ms: dict[int, float], kept: tuple[int, ...]) -> None:
    now = 0.0

    def run(size: int) -> None:
        nonlocal now
        now += per_crop_ms[size] * size / 1000

    assert paying_buckets(run, (1, 2, 4, 8), clock=lambda: now) == kept
