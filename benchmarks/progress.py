"""Says how far a long measurement is: a bar where a person looks on and rich is installed, else a line per step."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self


class Progress:
    """Counts steps, on the standard error."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._done, self._total = 0, 0
        self._begun = time.perf_counter()

    def begin(self, total: int) -> None:
        """Start to count to `total`."""
        self._total = total
        if not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
        except ImportError:
            return
        columns = (
            BarColumn(30),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def step(self, text: str) -> None:
        """Say what comes next; what came before is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        else:
            minutes, seconds = divmod(int(time.perf_counter() - self._begun), 60)
            sys.stderr.write(f"{minutes:3}:{seconds:02} {self._done}/{self._total} {text}\n")
            sys.stderr.flush()
        self._done += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._total if kind is None else self._done, description=""
            )
            self._bar.stop()
