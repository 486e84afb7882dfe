"""The front door: `python -m benchmarks table|selfblend|train-step|export|serve|…` prints lines and writes JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.errors import InputError, run_command
from pipeline.storage import write_whole

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Measure speed and memory.")

Checkpoint = Annotated[Path | None, typer.Option(help="Weights file; by default random weights.")]
Networks = Annotated[list[str], typer.Argument(help="NAME@SIZE of timm, or a checkpoint; several.")]
Ways = Annotated[
    list[str] | None, typer.Option("--way", help="Only this way to run networks; may be given again.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Of every runtime; by default all cores.")]
Out = Annotated[Path | None, typer.Option(help="JSON file to write the result to.")]


@app.command()
def table(
    teacher: Checkpoint = None,
    stage1: Checkpoint = None,
    stage2: Checkpoint = None,
    demo_teacher: Checkpoint = None,
    demo_stage1: Checkpoint = None,
    demo_stage2: Checkpoint = None,
    rival: Annotated[
        list[str] | None, typer.Option(help="NAME@SIZE, any name of timm; may be given again.")
    ] = None,
    way: Ways = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small networks, a minute or two.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every runtime; by default all cores.")
    ] = None,
    config: Annotated[Path, typer.Option(help="Settings whose training steps are measured.")] = Path(
        "configs/config_SBI.json"
    ),
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value of those settings.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file; Markdown and plots are written beside it.")] = Path(
        "output/table/table.json"
    ),
    against: Annotated[
        Path | None, typer.Option(help="Another run's JSON: exit code 1 where a ratio does not agree.")
    ] = None,
) -> None:
    """The teacher-versus-student table: parameters, AUC, speed, memory, in every runtime of this machine's CPU.

    The same in the ways of a GPU: `python -m benchmarks.gpu`.
    """
    from benchmarks.table_command import Choice, run_table

    given = {
        "teacher": teacher,
        "stage1": stage1,
        "stage2": stage2,
        "demo-teacher": demo_teacher,
        "demo-stage1": demo_stage1,
        "demo-stage2": demo_stage2,
    }
    choice = Choice(
        checkpoints={role: path for role, path in given.items() if path is not None},
        rivals=rival,
        ways=way,
        quick=quick,
        threads=threads,
        config=config,
        overrides=set_ or (),
        out=out,
        against=against,
    )
    if not run_table(choice):
        raise typer.Exit(1)


@app.command()
def latency(
    network: Networks,
    way: Ways = None,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds.")] = 12,
    threads: Threads = None,
) -> None:
    """Milliseconds per crop and crops per second of any networks, in turns."""
    from benchmarks.table_command import run_networks

    typer.echo(run_networks(network, way, rounds, threads, show="rows"))


@app.command()
def memory(network: Networks, way: Ways = None, threads: Threads = None) -> None:
    """Memory that any networks take, each in a fresh process."""
    from benchmarks.table_command import run_networks

    typer.echo(run_networks(network, way, 2, threads, show="memory"))


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="Revision to compare with.")] = "HEAD",
    way: Ways = None,
    pairs: Annotated[int, typer.Option(min=2, help="Processes of each, per network and way.")] = 4,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds per pair, in which both are asked once.")] = 6,
    threshold: Annotated[float, typer.Option(min=0, help="Share of slowdown that is let pass.")] = 0.05,
    clock: Annotated[Literal["wall", "processor"], typer.Option(help="Which time is judged.")] = "wall",
) -> None:
    """Whether this checkout is slower than another revision: exit code 1 if so."""
    from benchmarks.table_command import run_compare

    if not run_compare(base, way, pairs, rounds, threshold, clock):
        raise typer.Exit(1)


@app.command()
def check(
    result: Annotated[Path, typer.Argument(help="JSON of `bench table`.")],
    teacher: Checkpoint = None,
    stage1: Checkpoint = None,
    stage2: Checkpoint = None,
) -> None:
    """Whether a table tells the truth of its networks and of these checkpoints."""
    from benchmarks.table_check import differences
    from benchmarks.table_result import read_table

    given = {"teacher": teacher, "stage1": stage1, "stage2": stage2}
    lines = differences(read_table(result), {role: path for role, path in given.items() if path is not None})
    if lines:
        raise InputError(f"{result} does not tell the truth: {'; '.join(lines)}")


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


@app.command("lowres-faces")
def lowres_faces(
    source: Annotated[Path, typer.Argument(help="Prepared folder with real faces.")],
    out: Annotated[Path, typer.Option(help="New prepared folder, with labelled fakes.")],
) -> None:
    """Make an easy task: real faces, and the same with their inner part at a tenth of its resolution."""
    from benchmarks.lowres import write_faces

    typer.echo(f"{out}: {write_faces(source, out)} faces and as many fakes")


@app.command("lowres-network")
def lowres_network(
    network: Annotated[str, typer.Argument(help="NAME@SIZE of timm.")],
    data: Annotated[Path, typer.Option(help="Folder of `lowres-faces`.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the faces.")] = 4,
    lr: Annotated[float, typer.Option(min=1e-8, help="Highest learning rate.")] = 1e-3,
) -> None:
    """Train a network with random weights on that task, so that export and gate have trained weights to work on."""
    from benchmarks.lowres import train
    from benchmarks.table_plan import named

    tell = partial(typer.echo, err=True)
    reached = train(named(network), data, out, epochs=epochs, lr=lr, tell=tell)
    typer.echo(f"{out}: AUC {reached:.4f} on the split val")


@app.command()
def gate(
    network: Networks,
    data: Annotated[Path, typer.Option(help="Prepared folder that formats are proven on.")],
    formats: Annotated[str, typer.Option(help="Comma-separated; by default all that can be made here.")] = "",
    images: Annotated[int, typer.Option(min=2, help="Labelled crops of the gate.")] = 300,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """What the parity gate says of each format of any networks, and what exporting them takes."""
    from benchmarks.gate import markdown, run

    tell = partial(typer.echo, err=True)
    result = run(
        network, data, formats=formats, images=images, threads=threads, tell=tell, keep=partial(_keep, out)
    )
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
    _keep(out, result)


def _keep(out: Path | None, result: dict[str, Any]) -> None:
    if out is not None:
        write_whole(out, (json.dumps(result, indent=2) + "\n").encode())


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
