"""Signals become a question; a second one, after a moment, is meant."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

import training.stopping as stopping
from training.stopping import stop_signals


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_and_nothing_is_interrupted(number: signal.Signals) -> None:
    with stop_signals() as received:
        assert received() == 0
        os.kill(os.getpid(), number)
        assert received() == number


def test_the_same_ctrl_c_may_arrive_twice_and_a_later_one_stops_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        now = 100.9
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun hands Ctrl-C on
        assert received() == signal.SIGINT
        now = 101.1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_signals_do_what_they_did_before() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_workers_that_the_same_signal_ended_interrupt_no_step() -> None:
    """torch's loader raises from its SIGCHLD handler, in the middle of whatever runs."""

    def raising(*_: object) -> None:
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    signal.signal(signal.SIGCHLD, raising)
    with stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGCHLD)
