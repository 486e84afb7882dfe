"""One small file per finished video, so that a preparation that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import write_whole
from training.index import SCHEMA, table_from_records
from training.media import MediaItem
from training.prepare_video import VideoOutcome


@dataclass(frozen=True, slots=True)
class Part:
    """A finished video.

    Attributes:
        table: Its index rows, perhaps none.
        frames: Frames looked at.
        skipped: Reason to number of frames or faces not stored for it.
        unreadable: Why the video could not be read (to its end); None where it could.
    """

    table: pa.Table
    frames: int
    skipped: Counter[str]
    unreadable: str | None


def part_path(out: Path, video: str) -> Path:
    """Where a video's part lies; ids may hold any character, so the name is a hash."""
    return out / ".parts" / f"{hashlib.sha256(video.encode()).hexdigest()[:32]}.parquet"


def write_part(out: Path, video: str, fingerprint: str, outcome: VideoOutcome) -> None:
    """Note that a video is finished.

    Raises:
        InputError: The folder cannot be written.
    """
    facts = {
        "fingerprint": fingerprint,
        "video": video,
        "frames": outcome.frames,
        "skipped": outcome.skipped,
        "unreadable": outcome.unreadable,
    }
    table = table_from_records(out, outcome.records).replace_schema_metadata({"part": json.dumps(facts)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_whole(part_path(out, video), buffer.getvalue())


def read_part(out: Path, video: str, fingerprint: str) -> Part | None:
    """A finished video's part; None if there is none, it is out of date, or its crops are gone."""
    path = part_path(out, video)
    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"part"])
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None  # damaged, so the video is done again
    if facts["fingerprint"] != fingerprint or facts["video"] != video:
        return None
    if not all((out / name).is_file() for name in table.column("path").to_pylist()):
        return None
    return Part(
        table=table.replace_schema_metadata(None).cast(SCHEMA),
        frames=facts["frames"],
        skipped=Counter(facts["skipped"]),
        unreadable=facts["unreadable"],
    )


def merge(parts: Sequence[tuple[MediaItem, Part | None]]) -> pa.Table:
    """Join parts into the index's table.

    What the layout says of a video (split, label, identity, method) is taken from the items as they are now,
    so that a change there needs no new crops.
    """
    tables = []
    for item, part in parts:
        if part is None:
            continue
        table = part.table
        for name in ("split", "label", "identity", "method"):
            column = SCHEMA.get_field_index(name)
            values = pa.array([getattr(item, name)] * table.num_rows, SCHEMA.field(name).type)
            table = table.set_column(column, SCHEMA.field(name), values)
        tables.append(table)
    return pa.concat_tables(tables)
