"""The serving package's front door: `python -m serving …`, which `stillface …` forwards to.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pipeline.errors import InputError, run_command

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Use a bundle.")

BundleFolder = Annotated[Path, typer.Argument(help="Bundle, as `stillface export` wrote it.")]
ArtefactName = Annotated[
    str | None, typer.Option("--artefact", help="Form of the network; by default the fastest that runs here.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default all cores.")]


@app.command()
def predict(
    bundle: BundleFolder,
    paths: Annotated[list[Path], typer.Argument(help="Pictures, videos, folders.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and file.")] = False,
    artefact: ArtefactName = None,
    operating_point: Annotated[
        str | None, typer.Option(help="Threshold by name, such as eer or fpr-1%; by default the bundle's.")
    ] = None,
    aggregation: Annotated[
        str | None, typer.Option(help="How frames become a video's score; by default the bundle's rule.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Frames per video; by default the bundle's number.")
    ] = None,
    evidence: Annotated[
        Literal["none", "grid", "png"], typer.Option(help="With --json: evidence map of each face.")
    ] = "none",
    threads: Threads = None,
) -> None:
    """Say of pictures and videos whether their faces are forged. Exit code 2 if a file could not be read."""
    from serving.predict import Options, Predictor, files_of, table_of

    if evidence != "none" and not as_json:
        raise InputError("--evidence is written into the JSON only: add --json.")
    options = Options(operating_point, aggregation, frames, evidence)
    files = files_of(paths)
    predictor = Predictor(bundle, artefact=artefact, threads=threads)
    predictor.check(options)
    started = time.perf_counter()
    done = []
    for prediction in predictor.predict_all(files, options):
        if as_json:
            typer.echo(prediction.model_dump_json())
        done.append(prediction)
    if not as_json:
        Console(soft_wrap=False).print(table_of(done, time.perf_counter() - started))
    failed = sum(prediction.error is not None for prediction in done)
    if failed:
        raise InputError(f"{failed} of {len(done)} files could not be analysed; see above.")


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
