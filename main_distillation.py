"""Stage 2 by the name the method's authors use: `python main_distillation.py CONFIG -n NAME`."""

from __future__ import annotations

import typer

from pipeline.errors import run_command
from training.__main__ import train_stage2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(train_stage2)

if __name__ == "__main__":
    run_command(app)
