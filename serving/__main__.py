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
        str | None, typer.Option(help="How faces and frames become one score; by default the bundle's rule.")
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


@app.command()
def serve(
    bundle: BundleFolder,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; by default only this machine.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port, by default 8000.")] = None,
    artefact: ArtefactName = None,
    keys: Annotated[Path | None, typer.Option(help="File of API keys, as `stillface key` writes it.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, for instance max_inflight=64; `--settings` lists them."),
    ] = None,
    show: Annotated[bool, typer.Option("--settings", help="List the settings and leave.")] = False,
) -> None:
    """Serve a bundle over HTTP. Settings come from options, --set, or STILLFACE_SERVE_<NAME>."""
    from serving.settings import load_settings, settings_table

    given = {"bundle": bundle, "host": host, "port": port, "artefact": artefact, "keys": keys}
    settings = load_settings(given, set_ or ())
    if show:
        Console().print(settings_table(settings))
        return
    from serving.run import serve as run

    run(settings)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; stands in logs.")],
    keys: Annotated[Path, typer.Option(help="Key file; made if it does not exist.")] = Path("keys.json"),
    per_minute: Annotated[int, typer.Option(min=1, help="Requests a minute.")] = 600,
    admin: Annotated[bool, typer.Option("--admin", help="May reload the bundle.")] = False,
) -> None:
    """Make an API key. It is shown once; the file holds only its hash."""
    from serving.keys import add_key

    typer.echo(add_key(keys, name, per_minute=per_minute, admin=admin))


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
