"""The front door: `python -m benchmarks selfblend|train-step|export|serve` prints lines and writes JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.errors import InputError, run_command
from pipeline.storage import write_whole

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Measure speed and memory.")

Out = Annotated[Path | None, typer.Option(help="JSON file to write the result to.")]


@app.command()
def selfblend(
    data: Annotated[
        Path | None, typer.Option(help="Prepared folder; by default a drawn 1280x720 frame.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs timed.")] = 300,
    size: Annotated[list[int] | None, typer.Option(help="Crop sizes; may be given again.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="OpenCV threads.")] = 1,
    reference_quirks: Annotated[bool, typer.Option(help="Blend as the reference generator does.")] = False,
    out: Out = None,
) -> None:
    """Milliseconds per self-blended pair, decode included, by stage."""
    from benchmarks.selfblend import markdown, run

    result = run(
        data, pairs=pairs, sizes=tuple(size or (380,)), threads=threads, reference_quirks=reference_quirks
    )
    _report(result, markdown(result), out)


@app.command("train-step")
def train_step(
    config: Annotated[Path, typer.Option(help="Config whose networks are timed.")] = Path(
        "configs/demo.json"
    ),
    stage: Annotated[Literal["teacher", "stage1"], typer.Option(help="Which of its networks.")] = "stage1",
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value settings.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps per block.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of each kind.")] = 7,
    out: Out = None,
) -> None:
    """What the loop adds to bare forward/backward/step, and whether the loader keeps up."""
    from benchmarks.train_step import markdown, run

    result = run(config, stage=stage, overrides=set_ or [], steps=steps, rounds=rounds)
    _report(result, markdown(result), out)


@app.command()
def export(
    student: Annotated[Path | None, typer.Option(help="Checkpoint; by default random weights.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Checkpoint; by default random weights.")] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared folder, for checkpoints' int8 ranges.")] = None,
    images: Annotated[int, typer.Option(min=16, help="Crops for the int8 ranges.")] = 300,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of the race.")] = 40,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every runtime.")] = 2,
    out: Out = None,
) -> None:
    """Every CPU format of student and teacher against the others and PyTorch, at batch 1."""
    from benchmarks.export_speed import markdown, run

    result = run(student, teacher, data, images=images, rounds=rounds, threads=threads)
    _report(result, markdown(result), out)


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle that is served.")],
    artefact: Annotated[str | None, typer.Option(help="Its form; by default the fastest here.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of one measurement.")] = 6.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of bare, served and LitServe.")] = 5,
    alone: Annotated[int, typer.Option(min=2, help="Requests sent one at a time.")] = 100,
    overload_seconds: Annotated[float, typer.Option(min=0, help="Length of the overload; 0: none.")] = 60.0,
    requests: Annotated[int, typer.Option(min=0, help="Requests to see memory grow; 0: none.")] = 10_000,
    litserve: Annotated[bool, typer.Option(help="Measure LitServe too, where it is installed.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value of the server.")] = None,
    out: Out = None,
) -> None:
    """The API against the bare network and LitServe, alone and 16 at once, then three times over capacity."""
    from benchmarks.serve import markdown, run

    result = run(
        bundle,
        artefact=artefact,
        seconds=seconds,
        rounds=rounds,
        alone=alone,
        overload_seconds=overload_seconds,
        requests=requests,
        rival=litserve,
        settings=set_ or (),
    )
    _report(result, markdown(result), out)


@app.command()
def readme(
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the tables are up to date.")
    ] = False,
) -> None:
    """Write the README's tables out of benchmarks/results."""
    from benchmarks.readme import update

    if not update(check=check) and check:
        raise InputError("README.md does not show benchmarks/results; run `python -m benchmarks readme`")


def _report(result: dict[str, Any], line: str, out: Path | None) -> None:
    typer.echo(line)
    if out is not None:
        write_whole(out, (json.dumps(result, indent=2) + "\n").encode())


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
