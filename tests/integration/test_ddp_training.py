"""Two real processes under torchrun: one folder, one log, equal weights, and the same exact resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import ranked_weights
from training.run_folder import STATE
from training.run_log import read_log

ROOT = Path(__file__).resolve().parents[2]
Written = Callable[..., Path]
TIMING = {"time", "images_per_second", "data_wait_s"}

# Runs the script given and leaves every rank's last weights in the folder of the environment variable RANKS.
WITNESS = """
import os, runpy, sys
import torch
import training.stages as stages

fit = stages.fit

def watched(run):
    scored = []
    score = run.validator.score
    run.validator.score = lambda *given: (scored.append(1), score(*given))[1]
    fit(run)
    rank = run.runtime.rank
    torch.save(
        {
            "parameters": {name: value.detach() for name, value in run.learner.named_parameters()},
            "scored": len(scored),
            "stream": torch.get_rng_state(),
            "folder": str(run.folder),
        },
        os.path.join(os.environ["RANKS"], f"{rank}.pt"),
    )

stages.fit = watched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts two processes of a script under torchrun, each watched by `WITNESS`."""
    witness = tmp_path / "witness.py"
    witness.write_text(WITNESS)

    def start(script: str, *arguments: object, ranks: Path) -> subprocess.Popen[str]:
        ranks.mkdir(exist_ok=True)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.Popen(
            [*launcher, str(witness), str(ROOT / script), *map(str, arguments)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200", "RANKS": str(ranks), "OMP_NUM_THREADS": "1"},
        )

    return start


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key not in TIMING} for event in read_log(folder)]


@pytest.mark.slow
def test_two_processes_make_one_run_that_resumes_exactly(
    torchrun: Callable[..., subprocess.Popen[str]], written: Written, tmp_path: Path
) -> None:
    changes = {
        "draws_per_face": 6,
        "trace_loss_weight": 1.0,
        "save_every_steps": 1,
        "momentum": 0.9,
        "drop_path": 0.2,
        "ema_decay": 0.9,
    }
    script = "train_student_only.py"
    straight = torchrun(script, written(**changes, output="straight"), "-n", "x", ranks=tmp_path / "one")
    shown, errors = straight.communicate(timeout=500)
    assert straight.returncode == 0, errors
    assert "Traceback" not in errors
    assert shown.count("writing to") == shown.count("best: ") == 1  # one process speaks

    (folder,) = (tmp_path / "straight").iterdir()
    first, second = (torch.load(tmp_path / "one" / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["folder"] == second["folder"] == str(folder.relative_to(tmp_path))
    differing = [
        name
        for name, value in first["parameters"].items()
        if not torch.equal(value, second["parameters"][name])
    ]
    assert differing == []
    assert not torch.equal(first["stream"], second["stream"])  # each draws dropout masks of its own
    assert (first["scored"], second["scored"]) == (2, 0)  # the main process validates, once per epoch
    # 36 draws make 9 batches of 2 pairs for each of the two
    assert [event["step"] for event in log_of(folder) if event["kind"] == "step"] == list(range(1, 19))
    assert len(ranked_weights(folder / "weights")) == 2
    assert len(torch.load(folder / STATE, weights_only=True)["rng"]) == 2

    stopped = torchrun(script, written(**changes), "-n", "x", ranks=tmp_path / "two")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "output").glob(f"x_*/{STATE}")):
        assert stopped.poll() is None, stopped.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)  # torchrun hands it on to both
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode != 0
    assert "stopped; the same command goes on from" in errors
    (resumed,) = (tmp_path / "output").iterdir()
    position = torch.load(resumed / STATE, weights_only=True)["position"]
    assert 0 < position["step"] < 18

    again = torchrun(script, written(**changes), "-n", "x", ranks=tmp_path / "two")
    shown, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert "resuming" in shown
    assert list((tmp_path / "output").iterdir()) == [resumed]
    assert log_of(resumed) == log_of(folder)
    for rank in (0, 1):
        mine, theirs = (
            torch.load(tmp_path / name / f"{rank}.pt", weights_only=True)["parameters"]
            for name in ("two", "one")
        )
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert json.loads((resumed / "done.json").read_text()) == json.loads((folder / "done.json").read_text())


@pytest.mark.slow
def test_what_one_process_refuses_ends_both_with_one_message(
    torchrun: Callable[..., subprocess.Popen[str]], written: Written, tmp_path: Path
) -> None:
    (tmp_path / "output").write_bytes(b"a file where the folder should be")
    process = torchrun("train_student_only.py", written(), "-n", "x", ranks=tmp_path / "ranks")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert errors.count("error: ") == 1, errors
    assert "exitcode  : 2" in errors or "exitcode: 2" in errors
