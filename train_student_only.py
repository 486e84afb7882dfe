"""Stage 1 by the name the method's authors use: `python train_student_only.py CONFIG -n NAME`."""

from __future__ import annotations

import typer

from pipeline.errors import run_command
from training.__main__ import train_stage1

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(train_stage1)

if __name__ == "__main__":
    run_command(app)
