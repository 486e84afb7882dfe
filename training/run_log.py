"""The record of a run: one JSON object per event, readable at any moment, exact after a kill and a resume.

`metrics.jsonl` holds flat objects ``{"kind", "step", "epoch", "time", <scalars>}``; the same scalars go to
TensorBoard as ``<kind>/<scalar>`` in the folder `tensorboard`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, SupportsFloat

from pipeline.errors import InputError
from pipeline.storage import write_whole

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "metrics.jsonl"
BOARD_NAME = "tensorboard"
RESERVED = frozenset({"kind", "step", "epoch", "time", "text", "not_finite"})

Event = dict[str, Any]


def read_log(folder: Path) -> list[Event]:
    """Events of a run in the order they were written.

    A last line cut short by a kill is left out; everything before it is whole because lines are flushed.

    Raises:
        InputError: there is no log, or a line before the last is not a JSON object.
    """
    path = folder / LOG_NAME
    if not path.is_file():
        raise InputError(f"{folder} holds no {LOG_NAME}; give the folder of a run that was started at least.")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    # whole lines end in "\n", so that what follows the last one is empty or was cut short
    return [_parse(line, path, number) for number, line in enumerate(lines[:-1], start=1) if line]


def _parse(line: str, path: Path, number: int) -> Event:
    try:
        event = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number} is not JSON ({error.msg}); restore or remove it.") from error
    if not isinstance(event, dict) or "kind" not in event or not isinstance(event.get("step"), int):
        raise InputError(f"{path}, line {number} is no event with a kind and a step; restore or remove it.")
    return event


class RunLog:
    """Writes the events of one run; open it with `RunLog.open`, use it as a context manager or `close` it.

    Args:
        file: `metrics.jsonl`, open for appending text.
        board: TensorBoard writer, None to do without.
    """

    def __init__(self, file: IO[str], board: SummaryWriter | None) -> None:
        self._file = file
        self._board = board

    @classmethod
    def open(
        cls,
        folder: Path,
        resume_step: int | None = None,
        *,
        epochs_done: int | None = None,
        tensorboard: bool = True,
    ) -> RunLog:
        """Start the log of a new run, or go on with one.

        Args:
            folder: the run's folder; made when missing.
            resume_step: the step that was restored. Events after it are cut, because they will be written
                again. None: a new run.
            epochs_done: whole epochs at that step; the validation of a later one is cut too, because a run
                that stopped between an epoch's last step and its validation writes it again.
            tensorboard: also write TensorBoard files; on resume TensorBoard hides what came after
                `resume_step`.

        Raises:
            InputError: a new run in a folder that holds a log already, or a log that cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        if resume_step is not None:
            _cut_after(folder, resume_step, epochs_done)
        elif path.exists() and path.stat().st_size:
            raise InputError(
                f"{path} is the log of an earlier run; resume that run or choose another folder."
            )
        board = None
        if tensorboard:
            # imported here because it takes seconds and readers of logs do without it
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            board = SummaryWriter(str(folder / BOARD_NAME), purge_step=purge)
        return cls(path.open("a", encoding="utf-8"), board)

    def step(self, step: int, epoch: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Record a training step (loss, loss_hard, loss_soft, lr, alpha, grad_norm, sharpness, ...)."""
        self._write("step", step, epoch, scalars)

    def epoch(self, step: int, epoch: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Record the end of an epoch (val_auc, val_eer, val_loss, ...), `step` being its last."""
        self._write("epoch", step, epoch, scalars)

    def note(self, step: int, epoch: int, text: str) -> None:
        """Record something said once (a skipped batch, a resume)."""
        self._append({"kind": "note", "step": step, "epoch": epoch, "time": time.time(), "text": text})
        if self._board is not None:
            self._board.add_text("note", text, step)

    def close(self) -> None:
        """Finish both records; closing twice is allowed."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, kind: str, step: int, epoch: int, scalars: Mapping[str, SupportsFloat]) -> None:
        clash = RESERVED & scalars.keys()
        if clash:
            raise ValueError(
                f"scalars may not be called {sorted(clash)}: these names describe the event itself"
            )
        values = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        broken = {name: str(values[name]) for name, value in finite.items() if value is None}
        event: Event = {"kind": kind, "step": step, "epoch": epoch, "time": time.time(), **finite}
        if broken:  # JSON has no NaN; the name and what it was are kept
            event["not_finite"] = broken
        self._append(event)
        if self._board is not None:
            for name, value in finite.items():
                if value is not None:
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def _append(self, event: Event) -> None:
        self._file.write(json.dumps(event, allow_nan=False) + "\n")
        self._file.flush()


def _cut_after(folder: Path, step: int, epochs_done: int | None) -> None:
    """Rewrite the log without the events after `step`, whole or not at all."""
    path = folder / LOG_NAME
    if not path.exists():
        return
    kept = [
        event
        for event in read_log(folder)
        if event["step"] <= step
        and (epochs_done is None or event["kind"] != "epoch" or event["epoch"] <= epochs_done)
    ]
    write_whole(path, "".join(json.dumps(event) + "\n" for event in kept).encode())
