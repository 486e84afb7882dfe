from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from training.index import INDEX_NAME, SCHEMA, FaceRecord, index_hash, read_index, write_index


def record(folder: Path, number: int = 0, **changes: Any) -> FaceRecord:
    path = folder / "crops" / f"{number}.jpg"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    base = FaceRecord(
        path=path,
        video="Deepfakes/000_003",
        identity="000",
        split="train",
        label=1,
        method="Deepfakes",
        frame=17 + number,
        time_s=0.5,
        face=0,
        box=(10.25, 20.5, 110.0, 140.0),
        landmarks=np.arange(162, dtype=np.float32).reshape(81, 2) / 4,
        origin=(300, 40),
        width=200,
        height=260,
    )
    return replace(base, **changes)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    shorter = np.arange(136, dtype=np.float32).reshape(68, 2)
    written = [
        record(tmp_path, 0),
        record(tmp_path, 1, identity=None, label=0, method="real", split="val", landmarks=shorter),
        record(tmp_path, 2, split="test", face=1, time_s=-1.0),
    ]
    write_index(tmp_path, written)
    read = read_index(tmp_path)
    assert read == written  # landmarks are compared below
    for before, after in zip(written, read, strict=True):
        np.testing.assert_array_equal(before.landmarks, after.landmarks)
        assert after.landmarks.dtype == np.float32
        assert after.path.is_absolute()
        assert isinstance(after.box, tuple)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_index(tmp_path / "a", [record(tmp_path / "a")])
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_index(tmp_path / "b")[0].path == tmp_path / "b" / "crops" / "0.jpg"


def test_hash_depends_on_content_and_not_on_encoding(tmp_path: Path) -> None:
    write_index(tmp_path, [record(tmp_path, 0), record(tmp_path, 1)])
    original = index_hash(tmp_path)
    table = pq.read_table(tmp_path / INDEX_NAME)
    pq.write_table(table, tmp_path / INDEX_NAME, compression="none", row_group_size=1, use_dictionary=False)
    assert index_hash(tmp_path) == original


@pytest.mark.parametrize(
    "change",
    [
        {"video": "x"},
        {"identity": None},
        {"split": "val"},
        {"label": 0},
        {"box": (10.25, 20.5, 110.0, 140.5)},
        {"landmarks": np.zeros((81, 2), np.float32)},
        {"landmarks": (np.arange(162, dtype=np.float32).reshape(81, 2) / 4)[:68]},
        {"origin": (300, 41)},
        {"time_s": 0.25},
    ],
)
def test_hash_changes_with_every_column(tmp_path: Path, change: dict[str, Any]) -> None:
    write_index(tmp_path, [record(tmp_path)])
    before = index_hash(tmp_path)
    write_index(tmp_path, [record(tmp_path, **change)])
    assert index_hash(tmp_path) != before


def test_hash_tells_the_order_of_rows_and_where_texts_end(tmp_path: Path) -> None:
    one, two = record(tmp_path, 0, video="a", method="bc"), record(tmp_path, 1, video="ab", method="c")
    hashes = set()
    for rows in ([one, two], [two, one], [replace(one, video="ab"), replace(two, video="a")]):
        write_index(tmp_path, rows)
        hashes.add(index_hash(tmp_path))
    assert len(hashes) == 3


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a prepared folder: index\.parquet is missing"):
        read_index(tmp_path)


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text("hello")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_index(tmp_path)


def test_empty_index(tmp_path: Path) -> None:
    pq.write_table(SCHEMA.empty_table(), tmp_path / INDEX_NAME)
    with pytest.raises(InputError, match="is empty: no face was stored"):
        read_index(tmp_path)


def test_missing_column(tmp_path: Path) -> None:
    write_index(tmp_path, [record(tmp_path)])
    table = pq.read_table(tmp_path / INDEX_NAME).drop_columns(["box", "split"])
    pq.write_table(table, tmp_path / INDEX_NAME)
    with pytest.raises(InputError, match="lacks the columns split, box"):
        read_index(tmp_path)


def test_column_of_the_wrong_type(tmp_path: Path) -> None:
    write_index(tmp_path, [record(tmp_path)])
    table = pq.read_table(tmp_path / INDEX_NAME)
    place = table.column_names.index("frame")
    table = table.set_column(place, "frame", pa.array(["first"]))
    pq.write_table(table, tmp_path / INDEX_NAME)
    with pytest.raises(InputError, match="column of the wrong type"):
        read_index(tmp_path)


def test_missing_value(tmp_path: Path) -> None:
    write_index(tmp_path, [record(tmp_path)])
    table = pq.read_table(tmp_path / INDEX_NAME)
    place = table.column_names.index("video")
    table = table.set_column(place, "video", pa.array([None], pa.string()))
    pq.write_table(table, tmp_path / INDEX_NAME)
    with pytest.raises(InputError):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"row 2: split is not train, val or test"),
        ({"label": 2}, r"row 2: label is not 0 or 1"),
        ({"box": (1.0, 2.0, 3.0)}, r"row 2: box has not 4 numbers"),
        ({"origin": (1,)}, r"row 2: origin has not 2 numbers"),
        ({"landmarks": np.zeros((5, 2), np.float32)}, r"row 2: landmarks are not 68 or 81 points"),
        ({"landmarks": np.full((81, 2), np.nan, np.float32)}, r"landmarks holds a number that is not finite"),
        ({"box": (0.0, 0.0, float("inf"), 1.0)}, r"box holds a number that is not finite"),
        ({"width": 0}, r"row 2: width or height is not positive"),
    ],
)
def test_records_that_break_the_contract_are_not_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_index(tmp_path, [record(tmp_path, 0), record(tmp_path, 1, **change)])
    assert not (tmp_path / INDEX_NAME).exists()


def test_a_crop_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="lies outside the prepared folder"):
        write_index(tmp_path / "in", [record(tmp_path)])


def test_an_index_from_elsewhere_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    write_index(tmp_path, [record(tmp_path)])
    table = pq.read_table(tmp_path / INDEX_NAME)
    for path in ("../secret.jpg", "/etc/passwd", "crops/../../x.jpg", "C:\\x.jpg"):
        pq.write_table(table.set_column(0, "path", pa.array([path])), tmp_path / INDEX_NAME)
        with pytest.raises(InputError, match="path leaves the folder"):
            read_index(tmp_path)


def test_missing_crops_are_told_with_their_number(tmp_path: Path) -> None:
    rows = [record(tmp_path, number) for number in range(3)]
    write_index(tmp_path, rows)
    rows[1].path.unlink()
    with pytest.raises(InputError, match=r"1 of 3 indexed crops are missing, the first is .*1\.jpg"):
        read_index(tmp_path)
