"""One copy of the network with all threads, or one a thread."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.runtime import Answer, Crops
from serving.copies import Copies, find_copies, given_copies
from serving.settings import MIB

MUCH = 1 << 50


class Runtime:
    """Takes so long for a run; counts them."""

    label = "test"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.runs = 0

    def run(self, crops: Crops) -> Answer:
        self.runs += 1
        time.sleep(self.seconds)
        return Answer(np.zeros((len(crops), 2), np.float32), None)


@pytest.mark.parametrize(
    ("count", "threads", "copies"),
    [
        (None, None, None),
        (1, None, Copies(1, 4)),
        (2, None, Copies(2, 2)),
        (8, None, Copies(8, 1)),
        (None, 2, Copies(1, 2)),
        (3, 2, Copies(3, 2)),
    ],
)
def test_what_is_set_is_kept(count: int | None, threads: int | None, copies: Copies | None) -> None:
    assert given_copies(count, threads, cores=4) == copies


def test_there_is_nothing_to_find_on_one_core() -> None:
    assert given_copies(None, None, cores=1) == Copies(1, 1)


def test_a_network_that_one_thread_answers_as_quickly_gets_a_copy_a_core() -> None:
    together, alone = Runtime(0.003), Runtime(0.003)
    assert find_copies(together, lambda: alone, 4, 4, MUCH) == (Copies(4, 1), alone)
    assert find_copies(together, lambda: alone, 4, 64, MUCH) == (Copies(8, 1), alone)


def test_a_network_that_needs_its_threads_keeps_them() -> None:
    together = Runtime(0.003)
    assert find_copies(together, lambda: Runtime(0.008), 4, 4, MUCH) == (Copies(1, 4), together)


def opened() -> Runtime:
    raise AssertionError("opened")


def test_a_slow_network_is_not_opened_again() -> None:
    together = Runtime(0.03)
    assert find_copies(together, opened, 4, 4, MUCH) == (Copies(1, 4), together)
    assert together.runs == 2  # one warms up


class Sharing(Runtime):
    """Takes memory at its first run, and can run beside itself."""

    def __init__(self, seconds: float, mib: int) -> None:
        super().__init__(seconds)
        self.mib = mib
        self.taken = b""

    def run(self, crops: Crops) -> Answer:
        self.taken = self.taken or b"1" * (self.mib * MIB)
        return super().run(crops)

    def beside(self) -> Sharing:
        return self


def test_a_slow_network_that_can_gives_each_thread_a_crop_of_its_own() -> None:
    together = Sharing(0.03, mib=0)
    assert find_copies(together, opened, 4, 4, MUCH) == (Copies(1, 4, at_once=4), together)
    together = Sharing(0.03, mib=0)
    assert find_copies(together, opened, 4, 64, MUCH) == (Copies(1, 64, at_once=8), together)


def test_as_many_at_once_as_their_memory_allows() -> None:
    together = Sharing(0.03, mib=40)
    assert find_copies(together, opened, 4, 8, 100 * MIB) == (Copies(1, 8, at_once=3), together)
    together = Sharing(0.03, mib=40)
    assert find_copies(together, opened, 4, 8, 0) == (Copies(1, 8, at_once=1), together)
