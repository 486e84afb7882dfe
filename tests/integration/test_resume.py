"""A run may die at any moment: the same command goes on and ends in the very bits of a run that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training.loop as loop
import training.stages as stages
from pipeline.errors import InputError, Stopped
from training.checkpoint import load_detector
from training.config import Settings, Stage
from training.index import read_index, write_index
from training.run_folder import STATE, read_provenance
from training.run_log import read_log
from training.stages import train

Make = Callable[..., Settings]
Start = Callable[..., "subprocess.Popen[str]"]
TIMING = {"time", "images_per_second", "data_wait_s"}

ADAMW = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "ema_decay": 0.9,
    "dropout": 0.3,
    "drop_path": 0.2,
    "schedule": "cosine",
    "warmup_share": 0.2,
}
SGD = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "dropout": 0.3,
    "accumulate": 2,
    "sam_interval": 2,
    "log_every_steps": 2,
}


class Killed(BaseException):
    """The process ends here, as far as its files are concerned."""


def outcome(folder: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on whether it was interrupted."""
    log = [{key: value for key, value in event.items() if key not in TIMING} for event in read_log(folder)]
    return {
        "state": tensors(torch.load(folder / STATE, weights_only=True)),
        "log": log,
        "weights": {
            path.name: tensors(torch.load(path, weights_only=True)["model"])
            for path in sorted((folder / "weights").iterdir())
        },
        "done": (folder / "done.json").read_text(),
    }


def tensors(content: Any) -> Any:
    """Nested content with tensors as bytes, so that equality is equality to the bit."""
    if isinstance(content, Tensor):
        return (str(content.dtype), tuple(content.shape), content.contiguous().numpy().tobytes())
    if isinstance(content, dict):
        return {key: tensors(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [tensors(value) for value in content]
    return content


def assert_same(resumed: Path, straight: Path) -> None:
    mine, theirs = outcome(resumed), outcome(straight)
    assert [event["step"] for event in mine["log"]] == [event["step"] for event in theirs["log"]]
    assert mine["log"] == theirs["log"]
    assert mine["weights"].keys() == theirs["weights"].keys()
    assert mine["weights"] == theirs["weights"]
    assert mine["state"] == theirs["state"]
    assert mine["done"] == theirs["done"]
    assert not list(resumed.rglob(".part-*"))


def run_of(settings: Settings) -> Path:
    (folder,) = settings.output.iterdir()
    return folder


@pytest.fixture
def teacher(tiny: Make, tmp_path: Path) -> str:
    return str(train("teacher", tiny(epochs=1, output=tmp_path / "teachers"), "teacher"))


# --- stops within this process, at every kind of moment ---


def die_in(monkeypatch: pytest.MonkeyPatch, stage: Stage, settings: Settings, **replaced: Any) -> None:
    """Train until one of the loop's functions, replaced for this once, raises `Killed`."""
    with monkeypatch.context() as patched:
        for name, replacement in replaced.items():
            patched.setattr(loop, name, replacement)
        with pytest.raises(Killed):
            train(stage, settings, "x")


def dying_at(step: int) -> Callable[[loop.Run, list[Any]], Any]:
    """A `train_step` that dies when step `step` (1-based) of the run would begin."""
    real = loop.train_step

    def train_step(run: loop.Run, group: list[Any]) -> Any:
        if run.position.step == step - 1:
            raise Killed
        return real(run, group)

    return train_step


@pytest.mark.parametrize(
    ("stage", "changes", "step"),
    [
        ("stage1", ADAMW, 5),  # within the second epoch, saved after step 4
        ("stage1", ADAMW, 3),  # the last of the first epoch
        ("stage1", ADAMW, 4),  # the first of the second epoch
        ("stage1", SGD, 4),
        ("teacher", SGD, 3),
        ("stage1", {**ADAMW, "workers": 1}, 6),
        ("stage1", {**ADAMW, "trace_loss_weight": 2.0}, 6),
    ],
)
def test_a_kill_between_two_steps_costs_nothing(
    tiny: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
    changes: dict[str, Any],
    step: int,
) -> None:
    straight = train(stage, tiny(**changes, output=tmp_path / "straight"), "x").parent.parent
    settings = tiny(**changes)
    die_in(monkeypatch, stage, settings, train_step=dying_at(step))
    resumed = train(stage, settings, "x").parent.parent
    assert resumed == run_of(settings)  # no second folder
    assert len(read_provenance(resumed)["resumed"]) == 1
    assert_same(resumed, straight)


def test_stage_2_resumes_exactly(
    tiny: Make, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**ADAMW, "teacher_weights": teacher, "alpha_table": {1: 0.9, 2: 0.5}}
    straight = train("stage2", tiny(**changes, output=tmp_path / "straight"), "x").parent.parent
    settings = tiny(**changes)
    for step in (3, 6):
        die_in(monkeypatch, "stage2", settings, train_step=dying_at(step))
    assert_same(train("stage2", settings, "x").parent.parent, straight)


def test_a_kill_between_the_weights_and_the_state_leaves_one_file_per_epoch(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**ADAMW, "epochs": 3, "keep_best": 2}
    straight = train("stage1", tiny(**changes, output=tmp_path / "straight"), "x").parent.parent
    settings = tiny(**changes)
    real = loop.save_state

    def save_state(run: loop.Run) -> None:
        if run.position.epoch == 2:
            raise Killed
        real(run)

    die_in(monkeypatch, "stage1", settings, save_state=save_state)
    folder = run_of(settings)
    # weights that a repetition of the epoch would name otherwise must not stay as a second file of that epoch
    (folder / "weights" / "2_0.9999_val.pth").write_bytes(b"of the epoch that was cut off")
    assert [event["epoch"] for event in read_log(folder) if event["kind"] == "epoch"] == [1, 2]
    assert_same(train("stage1", settings, "x").parent.parent, straight)


def test_a_kill_before_the_run_is_marked_as_finished(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train("stage1", tiny(output=tmp_path / "straight"), "x").parent.parent
    settings = tiny()

    def conclude(_: loop.Run) -> Path:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(stages, "conclude", conclude)
        with pytest.raises(Killed):
            train("stage1", settings, "x")
    assert_same(train("stage1", settings, "x").parent.parent, straight)


def test_a_stop_at_the_last_step_of_an_epoch_and_a_kill_after_its_validation(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation is logged at the very step that was saved, and would be logged twice."""
    straight = train("stage1", tiny(output=tmp_path / "straight"), "x").parent.parent
    settings = tiny()
    real_step, real_save = loop.train_step, loop.save_state

    def stopping(run: loop.Run, group: list[Any]) -> Any:
        if run.position.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(run, group)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", stopping)
        with pytest.raises(Stopped) as stop:
            train("stage1", settings, "x")
    assert stop.value.exit_code == 143

    def killed(run: loop.Run) -> None:
        if run.position.batch == 0:
            raise Killed
        real_save(run)

    die_in(monkeypatch, "stage1", settings, save_state=killed)
    assert_same(train("stage1", settings, "x").parent.parent, straight)


def test_workers_and_other_free_settings_may_change_on_the_way(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train("stage1", tiny(**ADAMW, output=tmp_path / "straight"), "x").parent.parent
    die_in(monkeypatch, "stage1", tiny(**ADAMW, workers=1), train_step=dying_at(5))
    assert_same(train("stage1", tiny(**ADAMW, save_every_steps=1), "x").parent.parent, straight)


# --- what is not gone on with ---


@pytest.fixture
def stopped_run(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = tiny()
    die_in(monkeypatch, "stage1", settings, train_step=dying_at(5))
    return settings


def test_other_settings_are_refused_and_named(stopped_run: Settings, tiny: Make) -> None:
    before = (run_of(stopped_run) / STATE).read_bytes()
    with pytest.raises(InputError, match=r"epochs: 2 there, 3 now; lr: 0\.01 there, 0\.5 now"):
        train("stage1", tiny(lr=0.5, epochs=3), "x")
    assert (run_of(stopped_run) / STATE).read_bytes() == before
    assert (train("stage1", tiny(lr=0.5), "x", resume="never").parent.parent) != run_of_first(stopped_run)


def run_of_first(settings: Settings) -> Path:
    return min(settings.output.iterdir())


def test_the_data_may_move_but_not_change(
    stopped_run: Settings, tiny: Make, store: Callable[[Path, dict[str, int]], Path], tmp_path: Path
) -> None:
    data = store(tmp_path / "moved", {"train": 6, "val": 4})
    records = read_index(data)
    write_index(data, [*records[:-1], replace(records[-1], identity="somebody")])
    with pytest.raises(InputError, match="began with other data"):
        train("stage1", tiny(data=data), "x")
    write_index(data, records)
    assert train("stage1", tiny(data=data), "x").parent.parent == run_of(stopped_run)


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_a_damaged_state_is_told_and_left_as_it_is(
    stopped_run: Settings, tiny: Make, content: bytes | None
) -> None:
    state = run_of(stopped_run) / STATE
    if content is None:
        torch.save({"model": {}}, state)
    else:
        state.write_bytes(content)
    kept = state.read_bytes()
    with pytest.raises(InputError, match=r"last\.pt"):
        train("stage1", tiny(), "x")
    assert state.read_bytes() == kept


def test_another_number_of_processes_is_refused(stopped_run: Settings, tiny: Make) -> None:
    path = run_of(stopped_run) / STATE
    content = torch.load(path, weights_only=True)
    torch.save({**content, "rng": content["rng"] * 2}, path)
    with pytest.raises(InputError, match=r"saved by 2 process\(es\), this run has 1"):
        train("stage1", tiny(), "x")


def test_a_checkpoint_of_a_resumed_run_tells_both_commands(stopped_run: Settings, tiny: Make) -> None:
    best = train("stage1", tiny(), "x")
    provenance = load_detector(best)[1].provenance
    first = read_provenance(run_of(stopped_run))
    assert provenance["started"] == first["started"]
    assert provenance["weights"] == first["weights"]


# --- real processes, really killed ---


def arguments(config: Path) -> tuple[str, ...]:
    return (str(config), "-n", "x")


def wait_for_state(process: subprocess.Popen[str], output: Path) -> Path:
    """The run's folder, once its state was saved for the first time."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = list(output.glob(f"x_*/{STATE}"))
        if found:
            return found[0].parents[1]
        time.sleep(0.005)
    raise AssertionError(process.communicate(timeout=10))


LONG = {"draws_per_face": 7, "save_every_steps": 1, "epochs": 2}
"""21 steps in an epoch: time to be killed in the first."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "changes"), [("train_student_only.py", ADAMW), ("main_distillation.py", SGD)]
)
def test_kill_9_in_mid_epoch(
    tiny: Make,
    written: Callable[..., Path],
    command: Start,
    run_script: Callable[..., tuple[int, str, str]],
    teacher: str,
    tmp_path: Path,
    script: str,
    changes: dict[str, Any],
) -> None:
    changes = {**LONG, **changes, "teacher_weights": teacher}
    config = written(**changes)
    process = command(script, *arguments(config))
    folder = wait_for_state(process, tmp_path / "output")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    position = torch.load(folder / STATE, weights_only=True)["position"]
    assert (position["epoch"], position["batch"] > 0) == (0, True)  # in the middle of the first epoch
    code, shown, errors = run_script(script, *arguments(config))
    assert code == 0, errors
    assert f"resuming {folder.relative_to(tmp_path)}" in shown
    stage: Stage = "stage1" if script == "train_student_only.py" else "stage2"
    straight = train(stage, tiny(**changes, output=tmp_path / "straight"), "x").parent.parent
    assert_same(folder, straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_job", "workers"), [(signal.SIGINT, False, 0), (signal.SIGTERM, True, 2)]
)
def test_a_signal_saves_the_state_says_so_and_resumes(
    tiny: Make,
    written: Callable[..., Path],
    command: Start,
    tmp_path: Path,
    number: signal.Signals,
    whole_job: bool,
    workers: int,
) -> None:
    """Schedulers send SIGTERM to every process of a job, the loader's workers among them."""
    changes = {**LONG, **ADAMW, "workers": workers, "save_every_steps": 3}
    process = command("train_student_only.py", *arguments(written(**changes)), start_new_session=True)
    folder = wait_for_state(process, tmp_path / "output")
    if whole_job:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors == f"stopped; the same command goes on from {folder.relative_to(tmp_path) / STATE}\n"
    assert "best:" not in shown
    assert not list(folder.rglob(".part-*"))
    resumed = train("stage1", tiny(**changes), "x").parent.parent
    assert resumed == folder
    assert_same(folder, train("stage1", tiny(**changes, output=tmp_path / "straight"), "x").parent.parent)
