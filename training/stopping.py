"""Turns signals into a question that the loop asks between two steps, where everything can be saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Catch SIGINT and SIGTERM; yields a function that tells the number of the first one caught, else 0.

    One Ctrl-C may arrive twice (from the terminal and from `torchrun`), so what follows within a second is taken for
    the same; a later one stops at once.
    """
    received, since = 0, 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received, since
        if not received:
            received, since = number, time.monotonic()
            # The loader's own handler would raise in mid-step when the same signal has ended its workers.
            # Python complains of a signal that waits while its handler is taken away, so there stays one.
            signal.signal(signal.SIGCHLD, lambda *_: None)
        elif time.monotonic() - since > 1:
            signal.default_int_handler(number, frame)

    caught = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, on_signal) for number in caught}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
