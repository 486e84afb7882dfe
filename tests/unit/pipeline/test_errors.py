"""The border where what went wrong becomes a message and an exit code."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.errors import CannotRunHereError, InputError, NotProvenError, Stopped, run_command


def leaving(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def command() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as left:
        run_command(command)
    return left.value.code, capsys.readouterr().err


def test_a_command_that_ends_well_leaves_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving(None, capsys) == (0, "")


def test_bad_input_is_told_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving(InputError("x.json: no such file; give one"), capsys) == (
        2,
        "error: x.json: no such file; give one\n",
    )


def test_what_is_not_proven_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    broken = NotProvenError("onnx-int8: onnx -> onnx-int8")
    assert leaving(broken, capsys) == (3, "not proven: onnx-int8: onnx -> onnx-int8\n")
    assert leaving(CannotRunHereError("no GPU"), capsys) == (2, "error: no GPU\n")


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_a_stop_that_was_asked_for_leaves_with_the_signals_code(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaving(Stopped(number, "stopped; resumes"), capsys) == (code, "stopped; resumes\n")


def test_ctrl_c_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaving(KeyboardInterrupt(), capsys) == (130, "interrupted\n")


def test_a_full_disk_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = leaving(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl"), capsys)
    assert code == 2
    assert "the disk is full" in shown
    assert "metrics.jsonl" in shown


def test_what_is_our_own_mistake_keeps_its_traceback() -> None:
    def command() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        run_command(command)
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
