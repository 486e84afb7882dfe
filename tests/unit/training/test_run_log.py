from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import InputError
from training.run_log import BOARD_NAME, LOG_NAME, RunLog, read_log


def write(folder: Path, steps: range, resume_step: int | None = None) -> None:
    with RunLog.open(folder, resume_step, tensorboard=False) as log:
        for step in steps:
            log.step(step, 1, {"loss": step / 10})


def steps(folder: Path) -> list[int]:
    return [event["step"] for event in read_log(folder)]


def test_events_come_back_in_order_with_all_they_held(tmp_path: Path) -> None:
    with RunLog.open(tmp_path / "run", tensorboard=False) as log:
        log.step(1, 1, {"loss": 0.5, "lr": 1e-4})
        log.note(1, 1, "resumed")
        log.epoch(2, 1, {"val_auc": np.float32(0.75), "val_loss": torch.tensor(0.25)})
    first, note, last = read_log(tmp_path / "run")
    assert {key: first[key] for key in ("kind", "step", "epoch", "loss", "lr")} == {
        "kind": "step",
        "step": 1,
        "epoch": 1,
        "loss": 0.5,
        "lr": 1e-4,
    }
    assert (note["kind"], note["text"]) == ("note", "resumed")
    assert (last["kind"], last["val_auc"], last["val_loss"]) == ("epoch", 0.75, 0.25)
    assert first["time"] <= last["time"]


def test_every_line_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    log = RunLog.open(tmp_path, tensorboard=False)
    log.step(1, 1, {"loss": 0.5})
    assert steps(tmp_path) == [1]
    log.step(2, 1, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2]
    log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_named(tmp_path: Path, value: float) -> None:
    with RunLog.open(tmp_path) as log:
        log.step(1, 1, {"loss": value, "lr": 0.1})

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / LOG_NAME).read_text(encoding="utf-8")
    event = json.loads(line, parse_constant=refuse)
    assert event["loss"] is None
    assert event["not_finite"] == {"loss": str(value)}
    assert event["lr"] == 0.1


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    path = tmp_path / LOG_NAME
    path.write_bytes(path.read_bytes()[:-9])
    assert steps(tmp_path) == [1, 2]


def test_a_resume_cuts_what_came_after_and_the_broken_line(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    path = tmp_path / LOG_NAME
    path.write_bytes(path.read_bytes()[:-9])
    write(tmp_path, range(5, 10), resume_step=4)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert list(tmp_path.glob("*.new")) == []


def test_a_resume_without_a_log_starts_one(tmp_path: Path) -> None:
    write(tmp_path, range(5, 7), resume_step=4)
    assert steps(tmp_path) == [5, 6]


def test_a_new_run_never_mixes_with_an_old_one(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))
    with pytest.raises(InputError, match="earlier run"):
        RunLog.open(tmp_path, tensorboard=False)
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"kind": "step"}', '{"kind": "step", "step": "1"}'])
def test_damage_before_the_last_line_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    write(tmp_path, range(1, 3))
    path = tmp_path / LOG_NAME
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{line}\n{second}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_log(tmp_path)
    with pytest.raises(InputError, match="line 2"):
        RunLog.open(tmp_path, 1, tensorboard=False)
    assert path.read_text(encoding="utf-8").splitlines() == [first, line, second]


def test_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=LOG_NAME):
        read_log(tmp_path)


@pytest.mark.parametrize("name", ["step", "time", "not_finite"])
def test_a_scalar_may_not_hide_the_event(tmp_path: Path, name: str) -> None:
    with RunLog.open(tmp_path, tensorboard=False) as log, pytest.raises(ValueError, match=name):
        log.step(1, 1, {name: 1.0})


def test_tensorboard_holds_the_scalars_and_hides_purged_steps(tmp_path: Path) -> None:
    with RunLog.open(tmp_path) as log:
        for step in range(1, 7):
            log.step(step, 1, {"loss": float(step), "odd": math.nan})
    with RunLog.open(tmp_path, 3) as log:
        log.step(4, 1, {"loss": 40.0})
        log.epoch(4, 1, {"val_auc": 0.5})
    board = EventAccumulator(str(tmp_path / BOARD_NAME))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("step/loss")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]
    assert board.Scalars("epoch/val_auc")[0].value == 0.5
    assert "step/odd" not in board.Tags()["scalars"]
