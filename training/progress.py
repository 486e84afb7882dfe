"""What a person sees while a run goes on: a bar on a terminal, one line per epoch anywhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.validation import Validation


class Progress:
    """Shows and times one run.

    Args:
        console: Where to; None shows nothing (the processes that are not the main one).
        epochs: Of the whole run.
    """

    def __init__(self, console: Console | None, epochs: int) -> None:
        self.console = console
        self.epochs = epochs
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            transient=True,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, said="")
        self._epoch_start = self._window_start = time.perf_counter()
        self._epoch_images = self._window_images = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line of plain information."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False)

    def start_epoch(self, epoch: int, batches_done: int, batches: int) -> None:
        """Begin (or go on with) an epoch, counted from 1."""
        description = f"epoch {epoch}/{self.epochs}"
        self._bar.reset(self._task, total=batches, completed=batches_done, description=description)
        self._epoch_start = self._window_start = time.perf_counter()
        self._epoch_images = self._window_images = 0

    def advance(self, batches: int, images: int) -> None:
        """Count work done."""
        self._epoch_images += images
        self._window_images += images
        self._bar.advance(self._task, batches)

    def rates(self) -> dict[str, float]:
        """Images per second since the last call."""
        now = time.perf_counter()
        rate = self._window_images / max(now - self._window_start, 1e-9)
        self._window_start, self._window_images = now, 0
        return {"images_per_second": rate}

    def show(self, line: dict[str, Any]) -> None:
        """Put a step's numbers beside the bar."""
        self._bar.update(self._task, said=f"loss {line['loss']:.4f}  {line['images_per_second']:.0f} img/s")

    def end_epoch(self, epoch: int, result: Validation) -> None:
        """One line that stays."""
        seconds = time.perf_counter() - self._epoch_start
        rate = self._epoch_images / max(seconds, 1e-9)
        parts = [f"{name.removeprefix('val_')} {value:.4f}" for name, value in result.scalars().items()]
        self.say(
            f"epoch {epoch:>3}/{self.epochs}  val: {'  '.join(parts)}  ({seconds:.0f} s, {rate:.0f} img/s)"
        )
