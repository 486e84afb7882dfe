from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from pipeline.errors import InputError
from training.worker_pool import run_all


def square_or_die(number: int) -> int:
    if number < 0:
        os._exit(1)  # as a crashing decoder takes its process along
    time.sleep(0.02)
    return number * number


def refuse(number: int) -> int:
    raise InputError(f"no room for {number}")


def about_the_process(_: int) -> tuple[int, int]:
    return os.getpid(), cv2.getNumThreads()


def test_every_item_gets_its_result() -> None:
    assert sorted(run_all(square_or_die, range(10), 2)) == [(n, n * n) for n in range(10)]
    assert list(run_all(square_or_die, [], 2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_kills_its_process_is_lost_alone(workers: int) -> None:
    items = [1, 2, -3, 4, 5, 6, 7, 8, 9]
    results = dict(run_all(square_or_die, items, workers))
    assert results == {n: (n * n if n > 0 else None) for n in items}


def test_exceptions_of_the_task_are_passed_on() -> None:
    with pytest.raises(InputError, match="no room for 1"):
        list(run_all(refuse, [1], 1))


def test_work_is_done_in_other_processes_with_one_thread_each() -> None:
    for _, result in run_all(about_the_process, [0, 1], 2):
        assert result is not None
        assert result[0] != os.getpid()
        assert result[1] == 1


SLOW_TO_IMPORT = """
import sys, time
from pathlib import Path
from training.worker_pool import run_all

def one(number: int) -> int:
    return number

if __name__ == "__main__":
    try:
        list(run_all(one, range(4), 2))
    except KeyboardInterrupt:
        sys.exit(130)
else:
    Path(sys.argv[1]).touch()  # a worker, which imports this file first
    time.sleep(1.5)
"""


def test_ctrl_c_while_workers_still_import_is_the_parents_alone(tmp_path: Path) -> None:
    script, importing = tmp_path / "slow_to_import.py", tmp_path / "importing"
    script.write_text(SLOW_TO_IMPORT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(importing)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not importing.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors, errors
