"""The prepared folder's index: one Parquet row per stored face crop, checked when written and when read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.storage import write_whole

INDEX_NAME = "index.parquet"

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LANDMARK_COUNTS = (68, 81)
"""Points per face: iBUG-68, or those and 13 forehead points from the image-left to the image-right side."""

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("video", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=True),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("time_s", pa.float32(), nullable=False),
        pa.field("face", pa.int8(), nullable=False),
        pa.field("box", pa.list_(pa.float32()), nullable=False),
        pa.field("landmarks", pa.list_(pa.float32()), nullable=False),
        pa.field("origin", pa.list_(pa.int32()), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class FaceRecord:
    """One stored face crop and what is known about it.

    Attributes:
        path: The crop's image file, absolute.
        video: Video id including the manipulation, such as "Deepfakes/000_003" or "youtube/000".
        identity: The person shown, where known.
        split: "train", "val" or "test".
        label: 0 real, 1 fake.
        method: "real" or the manipulation's name.
        frame: Number of the frame in its video, from 0.
        time_s: Presentation time of the frame in seconds after the first; -1 where unknown.
        face: 0 for the largest face of the frame, 1 for the next.
        box: Face finder's x0, y0, x1, y1 in crop pixels.
        landmarks: float32 [81 or 68, 2], x and y in crop pixels, canonical order.
        origin: Crop's top-left corner x, y in the frame, pixels.
        width: Crop width in pixels.
        height: Crop height in pixels.
    """

    path: Path
    video: str
    identity: str | None
    split: Split
    label: int
    method: str
    frame: int
    time_s: float
    face: int
    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float32] = field(compare=False)
    origin: tuple[int, int]
    width: int
    height: int


def write_index(folder: Path, records: Sequence[FaceRecord]) -> None:
    """Write the index of a prepared folder, atomically: readers see the old index or the new one.

    Args:
        folder: The prepared folder; every record's path must lie inside it.
        records: Rows in the order they are to be read back.

    Raises:
        InputError: A record breaks the contract (path outside the folder, unknown split, wrong number of
            landmarks, non-finite numbers), or the folder cannot be written.
    """
    write_index_table(folder, table_from_records(folder, records))


def write_index_table(folder: Path, table: pa.Table) -> None:
    """Write an index that is already a table of `SCHEMA`; otherwise as `write_index`."""
    _check_rows(table, folder / INDEX_NAME)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(folder / INDEX_NAME, buffer.getvalue())


def table_from_records(folder: Path, records: Sequence[FaceRecord]) -> pa.Table:
    """Turn records into index rows, their paths relative to `folder`.

    Raises:
        InputError: A record's path lies outside the folder.
    """
    root = folder.absolute()
    return pa.table(
        {
            "path": [_relative(record.path, root) for record in records],
            "box": [list(record.box) for record in records],
            "landmarks": [np.asarray(record.landmarks, np.float32).ravel() for record in records],
            "origin": [list(record.origin) for record in records],
            **{
                name: [getattr(record, name) for record in records]
                for name in SCHEMA.names
                if name not in ("path", "box", "landmarks", "origin")
            },
        },
        schema=SCHEMA,
    )


def read_index(folder: Path) -> list[FaceRecord]:
    """Read a prepared folder's index.

    Args:
        folder: A folder made by `stillface prepare`.

    Returns:
        One record per stored crop, in the stored order; every crop file was there when this was called.

    Raises:
        InputError: The index is missing, empty or malformed, or crops it names are gone.
    """
    table = _read_table(folder)
    root = folder.absolute()
    columns = {
        name: table.column(name).to_pylist() for name in SCHEMA.names if name not in ("box", "landmarks")
    }
    boxes = table.column("box").to_pylist()
    landmarks = _landmark_rows(table)
    records = [
        FaceRecord(
            path=root / columns["path"][row],
            video=columns["video"][row],
            identity=columns["identity"][row],
            split=columns["split"][row],
            label=columns["label"][row],
            method=columns["method"][row],
            frame=columns["frame"][row],
            time_s=columns["time_s"][row],
            face=columns["face"][row],
            box=tuple(boxes[row]),
            landmarks=landmarks[row],
            origin=tuple(columns["origin"][row]),
            width=columns["width"][row],
            height=columns["height"][row],
        )
        for row in range(table.num_rows)
    ]
    _check_files(records, folder)
    return records


def index_hash(folder: Path) -> str:
    """SHA-256 (hex) of the index's logical content: column names, types, values and their order.

    Two indexes with equal rows have equal hashes however Parquet happened to encode them.

    Raises:
        InputError: As `read_index`, apart from the check that the crop files are there.
    """
    table = _read_table(folder)
    digest = hashlib.sha256()
    for schema_field in SCHEMA:
        digest.update(f"{schema_field.name}:{schema_field.type}:{table.num_rows}\n".encode())
        for value in _hashable_arrays(table.column(schema_field.name).combine_chunks()):
            digest.update(value)
    return digest.hexdigest()


def _hashable_arrays(column: Any) -> list[bytes]:
    """The column's nulls, lengths and values as bytes in a fixed little-endian layout."""
    nulls = column.is_null().to_numpy(zero_copy_only=False).astype(np.uint8).tobytes()
    if pa.types.is_string(column.type):
        texts = [(value or "").encode() for value in column.to_pylist()]
        lengths = np.array([len(text) for text in texts], dtype="<i8").tobytes()
        return [nulls, lengths, b"".join(texts)]
    if pa.types.is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        return [nulls, lengths, _number_bytes(column.flatten())]
    return [nulls, _number_bytes(column)]


def _number_bytes(column: Any) -> bytes:
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def _relative(path: Path, root: Path) -> str:
    try:
        return path.absolute().relative_to(root).as_posix()
    except ValueError:
        raise InputError(
            f"Crop {path} lies outside the prepared folder {root}: store it inside before it is indexed."
        ) from None


def _read_table(folder: Path) -> pa.Table:
    """Read and check the index as an Arrow table with exactly SCHEMA's columns."""
    path = folder / INDEX_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} is not a prepared folder: {INDEX_NAME} is missing. "
            "Make one with `stillface prepare SOURCE --out FOLDER`."
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} is not a readable Parquet file ({error}): prepare the folder again."
        ) from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}: prepare the folder again.")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"{path} holds a column of the wrong type ({error}): prepare the folder again."
        ) from error
    if table.num_rows == 0:
        raise InputError(
            f"{path} is empty: no face was stored. Look at report.json beside it for the reasons."
        )
    _check_rows(table, path)
    return table


def _check_rows(table: pa.Table, path: Path) -> None:
    """Refuse the first row that breaks the contract, by its number."""
    problems = {
        "split is not train, val or test": pc.invert(pc.is_in(table["split"], pa.array(SPLITS))),
        "label is not 0 or 1": pc.invert(pc.is_in(table["label"], pa.array([0, 1], pa.int8()))),
        "box has not 4 numbers": pc.not_equal(pc.list_value_length(table["box"]), 4),
        "origin has not 2 numbers": pc.not_equal(pc.list_value_length(table["origin"]), 2),
        "landmarks are not 68 or 81 points": pc.invert(
            pc.is_in(
                pc.list_value_length(table["landmarks"]),
                pa.array([2 * count for count in LANDMARK_COUNTS], pa.int32()),
            )
        ),
        "width or height is not positive": pc.less_equal(
            pc.min_element_wise(table["width"], table["height"]), 0
        ),
        "path leaves the folder": pc.match_substring_regex(
            table["path"], r"^/|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)"
        ),
        "path is empty": pc.equal(table["path"], ""),
    }
    for problem, mask in problems.items():
        row = pc.index(mask, True).as_py()
        if row >= 0:
            raise InputError(f"{path}, row {row + 1}: {problem}. Prepare the folder again.")
    for name in ("box", "landmarks"):
        values = pc.list_flatten(table[name])
        if values.null_count or not pc.all(pc.is_finite(values)).as_py():
            raise InputError(f"{path}: {name} holds a number that is not finite. Prepare the folder again.")


def _landmark_rows(table: pa.Table) -> list[NDArray[np.float32]]:
    """Landmarks as one float32 [points, 2] array per row, views of one block."""
    lengths = pc.list_value_length(table["landmarks"]).to_numpy()
    flat = pc.list_flatten(table["landmarks"]).to_numpy().astype(np.float32, copy=True)
    return [part.reshape(-1, 2) for part in np.split(flat, np.cumsum(lengths)[:-1])]


def _check_files(records: Sequence[FaceRecord], folder: Path) -> None:
    """Refuse an index whose crops are gone, listing each folder once instead of asking for every file."""
    listings: dict[Path, frozenset[str]] = {}
    gone: list[Path] = []
    for record in records:
        parent = record.path.parent
        if parent not in listings:
            listings[parent] = (
                frozenset(entry.name for entry in parent.iterdir()) if parent.is_dir() else frozenset()
            )
        if record.path.name not in listings[parent]:
            gone.append(record.path)
    if gone:
        raise InputError(
            f"{folder}: {len(gone)} of {len(records)} indexed crops are missing, the first is {gone[0]}. "
            "Copy the whole folder again, or run `stillface prepare` again to restore them."
        )
