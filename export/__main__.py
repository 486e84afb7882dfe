"""The export package's front door: `python -m export …`, which `stillface …` forwards to.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.formats import FORMATS, default_formats, parse_formats
from pipeline.errors import run_command
from pipeline.scoring import DEFAULT_RULE

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Export a checkpoint and prove it."
)


class Split(StrEnum):
    """Parts of a prepared folder."""

    train = "train"
    val = "val"
    test = "test"


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="Weights file, or RUN/weights/BEST.pth.")],
    calibration: Annotated[
        Path, typer.Option(help="Prepared folder: scores are calibrated and formats proven on its faces.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; an older bundle is replaced.")] = Path(
        "output/bundle"
    ),
    formats: Annotated[
        str,
        typer.Option(help=f"Comma-separated: {', '.join(FORMATS)}; by default all that can be made here."),
    ] = "",
    split: Annotated[Split, typer.Option(help="Part of the folder; never what you test on.")] = Split.val,
    images: Annotated[
        int, typer.Option(min=2, help="About how many labelled crops, half of them real.")
    ] = 300,
    rule: Annotated[str, typer.Option(help="Aggregation of frames to a video score.")] = DEFAULT_RULE,
    frames: Annotated[int, typer.Option(min=1, help="Frames looked at per video when served.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the blends.")] = 5,
) -> None:
    """Turn a checkpoint into a bundle that can be deployed, each format proven equal to what was trained."""
    chosen = parse_formats(formats or default_formats())

    from export.exporter import ExportSettings, export_bundle
    from pipeline.manifest import Aggregation
    from pipeline.scoring import check_rule
    from training.checkpoint import resolve_weights

    settings = ExportSettings(
        checkpoint=resolve_weights(checkpoint),
        out=out,
        formats=chosen,
        data=calibration,
        split=split.value,
        images=images,
        aggregation=Aggregation(rule=check_rule(rule), frames=frames),
        threads=threads,
        seed=seed,
    )
    export_bundle(settings, Console(soft_wrap=True))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Everything found, as one JSON object.")] = False,
) -> None:
    """Say which formats this machine can build and run, and the command for what is missing."""
    from export.doctor import diagnose, show
    from export.machine import examine_machine

    diagnosis = diagnose(examine_machine())
    if as_json:
        typer.echo(diagnosis.model_dump_json(indent=2))
    else:
        show(diagnosis, Console())


@app.command()
def parity(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    calibration: Annotated[
        Path | None, typer.Option(help="Prepared folder whose faces are shown too; int8 needs them.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The checkpoint it was exported from, to compare with PyTorch itself.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Part of the folder.")] = Split.val,
    images: Annotated[int, typer.Option(min=2, help="About how many labelled crops.")] = 300,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the blends.")] = 5,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure only; leave the bundle as it is.")
    ] = False,
) -> None:
    """Measure a bundle's stored files again, on this machine; what passes for the first time may then be served."""
    from export.reprove import ProofSettings, prove_bundle
    from training.checkpoint import resolve_weights

    settings = ProofSettings(
        bundle=bundle,
        checkpoint=None if checkpoint is None else resolve_weights(checkpoint),
        data=calibration,
        split=split.value,
        images=images,
        seed=seed,
        threads=threads,
        write=not dry_run,
    )
    prove_bundle(settings, Console(soft_wrap=True))


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
