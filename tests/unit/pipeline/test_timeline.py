from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.timeline import Timeline


def timeline(stamps: list[int], keys: list[int] | None = None, unit_s: float = 0.001) -> Timeline:
    return Timeline(stamps, keys or [stamps[0]], has_timestamps=True, unit_s=unit_s)


@given(frames=st.integers(1, 400), count=st.integers(1, 64), start=st.integers(-5000, 5000))
def test_constant_rate_gives_the_frame_numbers_of_linspace(frames: int, count: int, start: int) -> None:
    line = timeline([start + 1001 * n for n in range(frames)])
    expected = sorted(
        {
            frames - 1 if step == count - 1 and count > 1 else (frames - 1) * step // max(1, count - 1)
            for step in range(count)
        }
    )
    assert [line.index(stamp) for stamp in line.evenly(count)] == expected


def test_constant_rate_agrees_with_numpy() -> None:
    line = timeline(list(range(0, 425 * 512, 512)))
    expected = np.linspace(0, 424, 32).astype(int).tolist()
    assert [line.index(stamp) for stamp in line.evenly(32)] == expected


@pytest.mark.parametrize("rate", [24000 / 1001, 25.0, 30000 / 1001, 30.0, 60.0])
def test_timestamps_rounded_to_milliseconds_do_not_shift_a_frame(rate: float) -> None:
    line = timeline([round(1000 * n / rate) for n in range(311)])
    assert [line.index(stamp) for stamp in line.evenly(32)] == list(range(0, 311, 10))


def test_variable_rate_goes_by_time_not_by_frame_number() -> None:
    # Ten frames in the first 90 ms, then one every second: evenly in time means mostly the slow part.
    line = timeline([*range(0, 100, 10), 1000, 2000, 3000, 4000])
    assert line.evenly(5) == [0, 1000, 2000, 3000, 4000]


def test_variable_rate_takes_the_frame_on_show_and_none_twice() -> None:
    line = timeline([0, 900, 1000, 4000])
    # Moments 0, 1000, 2000, 3000, 4000: the frame of 1000 is on show until 4000.
    assert line.evenly(5) == [0, 1000, 4000]


def test_key_before_and_seconds() -> None:
    line = timeline([10, 20, 30, 40, 50], keys=[20, 40], unit_s=0.5)
    assert line.key_before(15) is None
    assert line.key_before(20) == 20
    assert line.key_before(39) == 20
    assert line.key_before(50) == 40
    assert line.seconds(30) == 10.0
