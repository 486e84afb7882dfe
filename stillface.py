"""The one command-line door: `stillface prepare|train|evaluate|export|serve|bench|…` forwards to the packages' own."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from export.__main__ import app as export_app
from pipeline.errors import run_command
from serving.__main__ import app as serving_app
from training.__main__ import app as training_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil a face-forgery detector into a network that can be deployed, and measure it.",
)
app.add_typer(training_app)
app.add_typer(export_app)
app.add_typer(serving_app)
if find_spec("benchmarks"):  # images do without
    from benchmarks.__main__ import app as benchmarks_app

    app.add_typer(benchmarks_app, name="bench")


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
