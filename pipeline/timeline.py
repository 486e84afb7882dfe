"""When a video's frames are shown, and which of them lie evenly in time: arithmetic only, no decoding."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Stamp: TypeAlias = int
"""A frame's presentation timestamp in the stream's time base, or its number where a file has none."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a video in presentation order.

    Attributes:
        stamps: Stamps of all frames, ascending, at least one.
        keys: Stamps of the frames that can be decoded without others, ascending.
        has_timestamps: False where the file has none and stamps are frame numbers.
        unit_s: Length of one stamp unit in seconds.
    """

    stamps: list[Stamp]
    keys: list[Stamp]
    has_timestamps: bool
    unit_s: float

    def evenly(self, count: int) -> list[Stamp]:
        """The stamps of the frames on show at `count` moments evenly from the first frame to the last.

        Each frame once, ascending. At a constant rate these are the frames floor(linspace(0, N - 1, count)).
        """
        first, last, frames = self.stamps[0], self.stamps[-1], len(self.stamps)
        if count == 1 or frames == 1:
            return [first]
        if self._has_constant_rate():
            places = {(frames - 1) * step // (count - 1) for step in range(count)}
        else:
            moments = (first + (last - first) * step // (count - 1) for step in range(count))
            places = {bisect.bisect_right(self.stamps, moment) - 1 for moment in moments}
        return [self.stamps[place] for place in sorted(places)]

    def key_before(self, stamp: Stamp) -> Stamp | None:
        """The latest key frame's stamp not after `stamp`; None where there is none."""
        place = bisect.bisect_right(self.keys, stamp)
        return self.keys[place - 1] if place else None

    def index(self, stamp: Stamp) -> int:
        """Number of the frame on show at `stamp`, from 0."""
        return max(0, bisect.bisect_right(self.stamps, stamp) - 1)

    def seconds(self, stamp: Stamp) -> float:
        """Time of `stamp` after the first frame, in seconds."""
        return (stamp - self.stamps[0]) * self.unit_s

    def _has_constant_rate(self) -> bool:
        """Whether the stamps are an even grid but for rounding (Matroska rounds to milliseconds)."""
        stamps = np.array(self.stamps, np.float64)
        grid = np.linspace(stamps[0], stamps[-1], len(stamps))
        spacing = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        return bool(np.abs(stamps - grid).max() <= min(1.0, spacing / 4))
