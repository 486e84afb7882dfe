"""What a preparation stored and what it did not, and why: as data, as report.json, as a table to print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from pipeline.storage import write_whole
from training.index import SPLITS
from training.media import MediaItem
from training.prepare_parts import Part

REPORT_NAME = "report.json"
_CRASHED = "the process that worked on it died; out of memory, or a decoder crashed on it"


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """The outcome of a preparation.

    Attributes:
        videos: Videos and pictures the data set has.
        videos_used: Those with at least one stored face.
        videos_reused: Those finished by an earlier run.
        videos_short: Videos with fewer frames than were asked for; all their frames were used.
        frames: Frames looked at.
        faces: Faces stored.
        stored: Split to label ("real", "fake") to the number of videos and of faces.
        skipped: Reason to number of frames (or faces in them) not stored for it.
        unreadable: Video id to why it could not be read (to its end).
        seconds: Time this run took.
        frames_per_s: Frames this run looked at per second of it.
    """

    videos: int
    videos_used: int
    videos_reused: int
    videos_short: int
    frames: int
    faces: int
    stored: dict[str, dict[str, dict[str, int]]]
    skipped: dict[str, int]
    unreadable: dict[str, str]
    seconds: float
    frames_per_s: float

    def write(self, out: Path) -> None:
        """Write report.json into the prepared folder.

        Raises:
            InputError: The folder cannot be written.
        """
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        write_whole(out / REPORT_NAME, content.encode())

    def reasons(self) -> str:
        """The reasons why something was not stored, with their counts, in one line."""
        counts = dict(self.skipped)
        if self.unreadable:
            counts["video or picture cannot be read"] = len(self.unreadable)
        reasons = [f"{reason}: {count}" for reason, count in counts.items()]
        first = next(iter(self.unreadable.values()), None)
        return (", ".join(reasons) or "no frames") + (f" (the first: {first.rstrip('.')})" if first else "")

    def table(self) -> Table:
        """What was stored and what was skipped, to print."""
        table = Table("", "videos", "faces or frames", title="Prepared")
        for split, labels in self.stored.items():
            for label, counts in labels.items():
                table.add_row(f"{split}, {label}", str(counts["videos"]), str(counts["faces"]))
        table.add_section()
        for reason, count in self.skipped.items():
            table.add_row(f"skipped: {reason}", "", str(count))
        if self.unreadable:
            table.add_row("skipped: cannot be read (see report.json)", str(len(self.unreadable)), "")
        if self.videos_short:
            table.add_row("fewer frames than asked for, all used", str(self.videos_short), "")
        return table


def summarize(
    parts: Sequence[tuple[MediaItem, Part | None]],
    *,
    wanted_frames: int,
    crashed: Collection[str],
    worked_on: Collection[str],
    seconds: float,
) -> PrepareReport:
    """Count up the parts of a preparation.

    Args:
        parts: Every item with its part; None where its process died.
        wanted_frames: Frames asked for per video.
        crashed: Ids of the videos whose processes died.
        worked_on: Ids of the videos this run did.
        seconds: Time this run took.
    """
    finished = [(item, part) for item, part in parts if part is not None]
    skipped: Counter[str] = Counter()
    for _, part in finished:
        skipped.update(part.skipped)
    unreadable = {item.video: part.unreadable for item, part in finished if part.unreadable}
    fresh = sum(part.frames for item, part in finished if item.video in worked_on)
    return PrepareReport(
        videos=len(parts),
        videos_used=sum(part.table.num_rows > 0 for _, part in finished),
        videos_reused=len(parts) - len(worked_on),
        videos_short=sum(_is_short(item, part, wanted_frames) for item, part in finished),
        frames=sum(part.frames for _, part in finished),
        faces=sum(part.table.num_rows for _, part in finished),
        stored=_stored(finished),
        skipped=dict(skipped.most_common()),
        unreadable=unreadable | dict.fromkeys(sorted(crashed), _CRASHED),
        seconds=round(seconds, 3),
        frames_per_s=round(fresh / seconds, 2) if seconds > 0 else 0.0,
    )


def _is_short(item: MediaItem, part: Part, wanted_frames: int) -> bool:
    return item.kind != "image" and part.unreadable is None and part.frames < wanted_frames


def _stored(finished: Sequence[tuple[MediaItem, Part]]) -> dict[str, dict[str, dict[str, int]]]:
    stored: dict[str, dict[str, dict[str, int]]] = {}
    for split in SPLITS:
        for label, name in enumerate(("real", "fake")):
            rows = [
                part.table.num_rows
                for item, part in finished
                if item.split == split and item.label == label and part.table.num_rows
            ]
            if rows:
                stored.setdefault(split, {})[name] = {"videos": len(rows), "faces": sum(rows)}
    return stored
