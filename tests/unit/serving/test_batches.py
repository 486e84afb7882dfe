"""Batch sizes."""

from __future__ import annotations

import mmap
import platform
import time
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.runtime import Crops
from serving.batches import CALL_S, SizeSearch, Took, batch_size, buckets_up_to, pad, timed


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


def searched(seconds_of: Callable[[int], float], candidates: tuple[int, ...] = (1, 2, 4, 8)) -> SizeSearch:
    """A search that is over, of a network that takes so long for so many crops, and as much processor time."""
    search = SizeSearch(candidates)
    while search.next is not None:
        seconds = seconds_of(search.next)
        search.tell(Took(seconds, 2 * (seconds + CALL_S)))
    return search


@pytest.mark.parametrize(
    ("call_ms", "crop_ms", "kept"),
    [
        # a call costs the same whatever its size: every size pays
        (4.0, 0.0, (1, 2, 4, 8)),
        # time grows with the crops, and they are slow: none does
        (0.0, 20.0, (1,)),
        # time grows with the crops, but so little that the way to the network and back counts
        (0.0, 1.0, (1, 2, 4, 8)),
        # a network of a tenth of a second gains like a quick one
        (20.0, 60.0, (1, 2, 4, 8)),
        # eight at once would keep each other waiting
        (40.0, 80.0, (1, 2, 4)),
    ],
)
def test_sizes_are_kept_while_they_pay(call_ms: float, crop_ms: float, kept: tuple[int, ...]) -> None:
    assert searched(lambda size: (call_ms + crop_ms * size) / 1000).sizes == kept


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
    assert searched(lambda size: per_crop_ms[size] * size / 1000).sizes == kept


def test_how_long_a_batch_may_take_does_not_depend_on_how_many_processors_work_at_it() -> None:
    search = SizeSearch((1, 2, 4, 8))
    while search.next is not None:
        # 64 cores, and a call that costs as much as the crops
        search.tell(Took(0.01 * (search.next + 1), 0.65 * (search.next + 1)))
    assert search.sizes == (1, 2, 4, 8)


def test_a_size_that_wins_next_to_nothing_over_a_smaller_one_is_not_used() -> None:
    search = searched({1: 0.0030, 2: 0.0054, 4: 0.0098, 8: 0.0199}.__getitem__)
    assert search.sizes == (1, 2, 4)
    assert search.tried_in_vain
    assert not searched({1: 0.003, 2: 0.004}.__getitem__, (1, 2)).tried_in_vain


def test_no_size_is_tried_that_would_take_too_much_memory() -> None:
    def tried(most_bytes: int, taken: int) -> list[int]:
        search, sizes = SizeSearch((1, 2, 4, 8), most_bytes), []
        while search.next is not None:
            sizes.append(search.next)
            # a run takes what is more than any before it took
            grown, taken = max(0, 100 * search.next - taken), max(taken, 100 * search.next)
            search.tell(Took(0.06, 0.06, grown))
        return sorted(set(sizes))

    assert tried(300, taken=0) == [1, 2, 4]
    assert tried(299, taken=0) == [1, 2]
    # a lone crop was run before already
    assert tried(300, taken=100) == [1, 2, 4]
    assert tried(299, taken=100) == [1, 2]


def test_what_is_known_is_used_while_the_search_goes_on() -> None:
    search = SizeSearch((1, 2, 4))
    assert (search.next, search.sizes, search.expected_s) == (1, (1,), 0.0)
    for _ in range(3):
        search.tell(Took(0.08, 0.08))
    assert (search.next, search.sizes, search.expected_s) == (2, (1,), pytest.approx(0.16))
    for _ in range(3):
        search.tell(Took(0.14, 0.14))
    assert (search.next, search.sizes, search.expected_s) == (4, (1, 2), pytest.approx(0.28))


def test_a_slow_network_is_not_run_again_to_be_sure() -> None:
    runs = 0

    def seconds(size: int) -> float:
        nonlocal runs
        runs += 1
        return 0.2 * size

    searched(seconds, (1, 2, 4))
    assert runs == 6  # of each size one to warm up and two that count; four would take too long


def test_both_clocks_count_on_processors() -> None:
    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    took = timed(work, on_processors=True)
    assert took.cost >= took.seconds + 0.02 + 2 * CALL_S
    asleep = timed(lambda: time.sleep(0.02), on_processors=False)
    assert asleep.cost == asleep.seconds + CALL_S > 0.02


@pytest.mark.skipif(platform.system() != "Linux", reason="other systems do not tell")
def test_a_run_tells_how_much_memory_it_took() -> None:
    kept = []

    def take() -> None:
        # Pages of its own: an array may get what other tests have given back, and the process does not grow.
        kept.append(mmap.mmap(-1, 32 << 20))
        np.frombuffer(kept[0], np.uint8)[:] = 1

    took = timed(take, on_processors=True)
    assert 0.9 < took.grown / (32 << 20) < 1.5
