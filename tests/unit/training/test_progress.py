"""What a person sees, and the rates that go into the log."""

from __future__ import annotations

import pytest
from rich.console import Console

import training.progress as progress_module
from training.progress import Progress
from training.validation import Validation


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    return now


def test_rates_are_those_since_the_last_line(clock: list[float]) -> None:
    progress = Progress(None, 1)
    progress.start_epoch(1, 0, 10)
    progress.advance(2, 32)
    clock[0] = 4.0
    assert progress.rates() == {"images_per_second": 8.0}
    progress.advance(1, 16)
    clock[0] = 5.0
    assert progress.rates() == {"images_per_second": 16.0}


def test_a_pause_for_validation_slows_no_rate(clock: list[float]) -> None:
    progress = Progress(None, 2)
    progress.start_epoch(1, 0, 10)
    progress.advance(1, 16)
    clock[0] = 1000.0  # validation, saving
    progress.start_epoch(2, 0, 10)
    progress.advance(1, 16)
    clock[0] = 1002.0
    assert progress.rates() == {"images_per_second": 8.0}


def test_an_epoch_ends_in_one_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Console(width=200), 12) as progress:
        progress.start_epoch(3, 0, 10)
        progress.advance(10, 160)
        clock[0] = 20.0
        progress.end_epoch(3, Validation(auc=0.75, eer=0.25, threshold=0.5, loss=0.6))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "epoch   3/12  val: auc 0.7500  eer 0.2500  threshold 0.5000  loss 0.6000  (20 s, 8 img/s)"


def test_what_is_undefined_is_not_shown(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Console(width=200), 1) as progress:
        progress.start_epoch(1, 0, 1)
        progress.end_epoch(1, Validation(auc=None, eer=None, threshold=None, loss=float("nan")))
    assert "auc" not in capsys.readouterr().out


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, 1) as progress:
        progress.say("nothing")
    assert capsys.readouterr().out == ""


def test_what_is_said_is_said_literally(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(Console(width=200), 1).say("writing to /data/[old]/x and [bold]")
    assert capsys.readouterr().out == "writing to /data/[old]/x and [bold]\n"
