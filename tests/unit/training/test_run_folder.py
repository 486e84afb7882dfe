"""Run folders: which one a command goes on with, what is refused, and that two processes never share one."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from pipeline.errors import InputError
from training.checkpoint import save_atomically
from training.config import Settings, Stage
from training.run_folder import (
    STATE,
    choose_folder,
    claimed,
    finished,
    go_on,
    provenance_of,
    read_provenance,
    write_closing,
    write_opening,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(output=tmp_path / "output")


def make_run(
    settings: Settings, name: str, *, stage: Stage = "stage1", saved: bool = True, done: bool = False
) -> Path:
    folder = settings.output / name
    write_opening(folder, settings, stage, {"data_hash": "abc"})
    if saved:
        save_atomically(folder / STATE, {"step": 1})
    if done:
        write_closing(folder, {"best": "1_0.5000_val.pth"})
    return folder


def test_a_first_run_gets_a_folder_of_its_name_and_time(settings: Settings) -> None:
    folder, resumed = choose_folder(settings, "stage1", "pretrain_mobilevit", "auto")
    assert not resumed
    assert folder.parent == settings.output
    assert re.fullmatch(r"pretrain_mobilevit_\d{8}-\d{6}", folder.name)
    assert not folder.exists()  # a run that is refused leaves nothing behind


def test_runs_of_the_same_second_get_different_folders(settings: Settings) -> None:
    made = set()
    for _ in range(4):
        folder, _ = choose_folder(settings, "stage1", "x", "never")
        folder.mkdir(parents=True)
        made.add(folder)
    assert len(made) == 4


def test_auto_goes_on_with_the_newest_run_of_exactly_that_name(settings: Settings) -> None:
    make_run(settings, "x_20250101-000000")
    newest = make_run(settings, "x_20250201-000000")
    make_run(settings, "x_20250301-000000", saved=False)  # killed before its first save
    make_run(settings, "x_other_20250401-000000")
    make_run(settings, "ax_20250401-000000")
    assert choose_folder(settings, "stage1", "x", "auto") == (newest, True)


def test_auto_starts_afresh_when_the_newest_run_is_finished(settings: Settings) -> None:
    make_run(settings, "x_20250101-000000")  # given up: a newer run was brought to its end
    done = make_run(settings, "x_20250201-000000", done=True)
    assert finished(done)
    folder, resumed = choose_folder(settings, "stage1", "x", "auto")
    assert not resumed
    assert folder.name not in ("x_20250101-000000", "x_20250201-000000")


def test_never_starts_afresh_and_a_folder_names_the_run(settings: Settings) -> None:
    older = make_run(settings, "x_20250101-000000")
    make_run(settings, "x_20250201-000000")
    assert choose_folder(settings, "stage1", "x", "never")[1] is False
    assert choose_folder(settings, "stage1", "anything", str(older)) == (older, True)


def test_a_name_with_the_signs_of_patterns_is_taken_literally(settings: Settings) -> None:
    make_run(settings, "xa_20250101-000000")
    assert choose_folder(settings, "stage1", "x[ab]", "auto")[1] is False
    mine = make_run(settings, "x[ab]_20250101-000000")
    assert choose_folder(settings, "stage1", "x[ab]", "auto") == (mine, True)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden"])
def test_a_name_that_is_no_plain_name_is_refused(settings: Settings, name: str) -> None:
    with pytest.raises(InputError, match=r"expected a plain name such as pretrain_mobilevit"):
        choose_folder(settings, "stage1", name, "auto")


def test_a_folder_that_cannot_be_gone_on_with_says_why(settings: Settings, tmp_path: Path) -> None:
    def refusal(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            choose_folder(settings, "stage1", "x", str(folder))
        return str(caught.value)

    assert "not a run folder (no config.json)" in refusal(tmp_path)
    assert "that run is finished" in refusal(make_run(settings, "done_20250101-000000", done=True))
    assert "stopped before its first save" in refusal(make_run(settings, "new_20250101-000000", saved=False))


def test_changed_settings_are_refused_and_named(settings: Settings) -> None:
    make_run(settings, "x_20250101-000000")
    other = settings.model_copy(update={"lr": 0.5, "sam_rho": 0.1, "workers": 9})
    with pytest.raises(InputError) as caught:
        choose_folder(other, "stage1", "x", "auto")
    text = str(caught.value)
    assert "lr: 0.0001 there, 0.5 now" in text
    assert "sam_rho: 0.05 there, 0.1 now" in text
    assert "workers" not in text
    assert "--resume never" in text
    with pytest.raises(InputError, match="stage: stage1 there, stage2 now"):
        choose_folder(settings, "stage2", "x", "auto")


def test_settings_that_compute_the_same_may_change(settings: Settings) -> None:
    folder = make_run(settings, "x_20250101-000000")
    other = settings.model_copy(
        update={
            "data": Path("/moved/data"),
            "workers": 0,
            "threads": 3,
            "log_every_steps": 1,
            "save_every_steps": 7,
            "val_batch_size": 2,
            "keep_best": 9,
        }
    )
    assert choose_folder(other, "stage1", "x", "auto") == (folder, True)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff"])
def test_damaged_settings_of_a_run_are_told_and_not_guessed(
    settings: Settings, content: bytes | None
) -> None:
    folder = make_run(settings, "x_20250101-000000")
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: .*--resume never"):
        choose_folder(settings, "stage1", "x", "auto")


def test_the_opening_holds_the_resolved_settings_and_the_origins(settings: Settings) -> None:
    folder = make_run(settings, "x_20250101-000000", stage="stage2")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("stage") == "stage2"
    assert Settings.model_validate(config) == settings
    assert read_provenance(folder) == {"data_hash": "abc"}


def test_provenance_tells_versions_revision_data_and_command() -> None:
    told = provenance_of("abc")
    assert told["data_hash"] == "abc"
    assert told["versions"]["torch"]
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", told["started"])
    assert told["git"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", told["git"])
    assert told["command"]


def test_going_on_keeps_the_first_origins_and_adds_the_present_ones(settings: Settings) -> None:
    folder = settings.output / "x_20250101-000000"
    first = {**provenance_of("abc"), "weights": {"source": "imagenet:x"}, "command": "first"}
    write_opening(folder, settings, "stage1", first)
    for number in (1, 2):
        told = go_on(folder, {**provenance_of("abc"), "command": f"again {number}"})
        assert told == read_provenance(folder)
        assert {key: told[key] for key in first} == first
        assert [once["command"] for once in told["resumed"]] == ["again 1", "again 2"][:number]


def test_other_data_than_the_run_began_with_are_refused(settings: Settings) -> None:
    folder = make_run(settings, "x_20250101-000000")
    with pytest.raises(InputError, match="began with other data"):
        go_on(folder, provenance_of("def"))


def test_a_run_belongs_to_one_process_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "x_20250101-000000"
    readable, writable = os.pipe()
    holder = os.fork()
    if not holder:
        with claimed(folder):
            os.write(writable, b"claimed")
            signal.pause()
    assert os.read(readable, 7) == b"claimed"
    with pytest.raises(InputError, match="another process is at work on this run"), claimed(folder):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with claimed(folder):
        pass


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path: Path) -> None:
    for name in ("state/.part-abc", "weights/.part-def", ".part-x", "weights/1_0.5000_val.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    with claimed(tmp_path):
        left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
        assert left == ["1_0.5000_val.pth"]


def test_a_place_that_cannot_hold_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be made"), claimed(tmp_path / "file" / "run"):
        pass
