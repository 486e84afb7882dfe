"""Signals become a question; a second one, after a moment, is meant.

Each case has a process of its own: a signal is sent to a process, and in the one that runs all other tests there are
threads and handlers of many libraries.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OPENING = """
import os, signal, sys
import training.stopping as stopping
from training.stopping import stop_signals
me = os.getpid()
"""


def run(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENING + case], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("through\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_told_and_nothing_is_interrupted(name: str) -> None:
    run(f"""
with stop_signals() as received:
    assert received() == 0
    os.kill(me, signal.{name})
    assert received() == signal.{name}
print("through")
""")


def test_the_same_ctrl_c_may_arrive_twice_and_a_later_one_stops_at_once() -> None:
    run("""
now = 100.0
stopping.time.monotonic = lambda: now
with stop_signals() as received:
    os.kill(me, signal.SIGINT)
    now = 100.9
    os.kill(me, signal.SIGTERM)  # torchrun hands Ctrl-C on
    assert received() == signal.SIGINT
    now = 101.1
    try:
        os.kill(me, signal.SIGINT)
    except KeyboardInterrupt:
        print("through")
""")


def test_afterwards_signals_do_what_they_did_before() -> None:
    run("""
seen = []
signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
with stop_signals():
    os.kill(me, signal.SIGTERM)
assert seen == []
os.kill(me, signal.SIGTERM)
assert seen == [signal.SIGTERM]
print("through")
""")


def test_workers_that_the_same_signal_ended_interrupt_no_step() -> None:
    """torch's loader raises from its SIGCHLD handler, in the middle of whatever runs."""
    run("""
def raising(*_):
    raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

signal.signal(signal.SIGCHLD, raising)
with stop_signals():
    os.kill(me, signal.SIGTERM)
    os.kill(me, signal.SIGCHLD)
print("through")
""")


def test_a_worker_that_ends_together_with_the_signal_interrupts_no_step() -> None:
    """Both signals wait when Python looks: the loader's handler must not be taken away from under the second."""
    run("""
signal.signal(signal.SIGCHLD, lambda *_: None)
both = {signal.SIGTERM, signal.SIGCHLD}
with stop_signals() as received:
    signal.pthread_sigmask(signal.SIG_BLOCK, both)
    os.kill(me, signal.SIGCHLD)
    os.kill(me, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    assert received() == signal.SIGTERM
print("through")
""")
