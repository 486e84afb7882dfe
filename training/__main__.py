"""The training package's front door: `python -m training …`, which `stillface …` forwards to.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pipeline.errors import InputError, run_command

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Prepare, train and evaluate.")
train_app = typer.Typer(no_args_is_help=True, help="Train the teacher or one of the student's two stages.")
app.add_typer(train_app, name="train")

Layout = Literal["ffpp", "celebdf", "dfdc", "dfdcp", "ffiw", "folder"]


class Split(StrEnum):
    """Parts of a prepared folder."""

    train = "train"
    val = "val"
    test = "test"


Config = Annotated[Path, typer.Argument(help="JSON config, for example configs/config_SBI.json.")]
Name = Annotated[str, typer.Option("-n", "--name", help="Name of the run; its folder is output/NAME_TIME.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value on top of the config; may be given again.")
]
Resume = Annotated[
    str,
    typer.Option(help="auto: go on with the newest run of that name if unfinished; never; or a run folder."),
]


@train_app.command("teacher")
def train_teacher(config: Config, name: Name = "teacher", set_: Set = None, resume: Resume = "auto") -> None:
    """Train a teacher on self-blended images, for those who have none."""
    run_stage("teacher", config, name, set_, resume)


@train_app.command("stage1")
def train_stage1(config: Config, name: Name = "stage1", set_: Set = None, resume: Resume = "auto") -> None:
    """Stage 1: the student alone, hard labels."""
    run_stage("stage1", config, name, set_, resume)


@train_app.command("stage2")
def train_stage2(config: Config, name: Name = "stage2", set_: Set = None, resume: Resume = "auto") -> None:
    """Stage 2: the student under the frozen teacher."""
    run_stage("stage2", config, name, set_, resume)


def run_stage(
    stage: Literal["teacher", "stage1", "stage2"],
    config: Path,
    name: str,
    pairs: list[str] | None,
    resume: str,
) -> Path:
    """Read the config and train one stage."""
    from training.config import check_read_by, load_settings, parse_overrides
    from training.stages import train

    check_read_by(stage, parse_overrides(pairs or []))
    settings = load_settings(config, stage, pairs)
    return train(stage, settings, name, resume=resume, console=Console(soft_wrap=True))


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    layout: Annotated[Layout, typer.Option(help="How the folder is laid out.")],
    out: Annotated[Path, typer.Option(help="Folder to write crops and index to.")] = Path("data/prepared"),
    frames_per_video: Annotated[int, typer.Option(min=1, help="Frames per video, evenly in time.")] = 32,
    compression: Annotated[str, typer.Option(help="FF++: raw, c23 or c40.")] = "c23",
    method: Annotated[
        list[str] | None, typer.Option(help="Only these manipulations (or 'real'); may be given again.")
    ] = None,
    store: Annotated[
        Literal["jpeg", "png"], typer.Option(help="How crops are stored; png is lossless.")
    ] = "jpeg",
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality, colour not subsampled.")] = 98,
    val_share: Annotated[
        float, typer.Option(help="Share of people (or videos) for val where nothing says.")
    ] = 0.2,
    max_side: Annotated[
        int, typer.Option(min=64, help="Faces are searched on frames no larger than this.")
    ] = 640,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="The face finder's lowest score.")] = 0.7,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
) -> None:
    """Turn a folder of videos or pictures into face crops with landmarks and an index."""
    from training.prepare import run

    run(
        source,
        layout,
        out,
        frames_per_video=frames_per_video,
        compression=compression,
        methods=method,
        store=store,
        quality=quality,
        workers=workers,
        val_share=val_share,
        max_side=max_side,
        min_score=min_score,
        console=Console(soft_wrap=True),
    )


@app.command("contact-sheet")
def contact_sheet(
    data: Annotated[Path, typer.Argument(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("output/contact_sheet.png"),
    count: Annotated[int, typer.Option(min=1, help="Faces shown.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the blending.")] = 0,
    split: Annotated[Split, typer.Option(help="Faces to take.")] = Split.train,
    phase: Annotated[Literal["train", "val"], typer.Option(help="val: no flip, no augmentation.")] = "train",
    size: Annotated[int, typer.Option(min=32, help="Side of a cell, pixels.")] = 256,
    reference_quirks: Annotated[bool, typer.Option(help="Blend as the reference generator does.")] = False,
) -> None:
    """Draw real faces, their self-blended twins, masks and differences, for a person to look at."""
    from training.contact_sheet import write_contact_sheet

    rows = write_contact_sheet(
        data,
        out,
        count=count,
        seed=seed,
        split=split.value,
        phase=phase,
        size=size,
        reference_quirks=reference_quirks,
    )
    Console(soft_wrap=True).print(f"{rows} faces drawn to {out}")


@app.command()
def evaluate(
    subject: Annotated[str, typer.Argument(help="Weights file, RUN/weights/BEST.pth, or a bundle's folder.")],
    data: Annotated[Path, typer.Argument(help="Prepared folder.")],
    artefact: Annotated[str | None, typer.Option(help="Of the bundle: onnx, openvino-int8, ...")] = None,
    split: Annotated[Split, typer.Option(help="Part to measure on.")] = Split.test,
    self_blended: Annotated[
        bool, typer.Option("--self-blended", help="Blend fakes from the real faces; the report says so.")
    ] = False,
    blend_draws: Annotated[int, typer.Option(min=1, help="Self-blended draws per face.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report; by default evaluation_… beside the weights folder or bundle."
        ),
    ] = None,
    operating_point: Annotated[
        str | None,
        typer.Option(help="Of the bundle, whose thresholds are used; by default the bundle's own."),
    ] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Instead of the stored one.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Frames to a video score; by default the bundle's, or max-mean.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a checkpoint: cpu, cuda, cuda:1.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of an artefact; by default all cores.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per batch.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of blending and resampling.")] = 5,
) -> None:
    """Measure a checkpoint or an artefact: AUC, EER, AP, accuracy, intervals over videos; JSON, Markdown, plots."""
    from training.checkpoint import resolve_weights
    from training.evaluate import evaluate as measure
    from training.evaluated import is_bundle
    from training.evaluation_report import to_markdown

    path = Path(subject)
    if is_bundle(path):
        beside, name = path.absolute().parent, f"{path.absolute().name}_{artefact}"
    else:
        path = resolve_weights(subject)
        beside, name = path.parent.parent, path.stem
    folder = out or beside / f"evaluation_{name}_{split.value}{'_self_blended' * self_blended}"
    report = measure(
        path,
        data,
        artefact=artefact,
        operating_point=operating_point,
        split=split.value,
        self_blended=self_blended,
        out=folder,
        device=device,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        threshold=threshold,
        rule=rule,
        seed=seed,
        blend_draws=blend_draws,
    )
    console = Console(soft_wrap=True)
    console.print(to_markdown(report), markup=False, highlight=False)
    console.print(f"report and plots: {folder}")


@app.command()
def compare(
    reports: Annotated[
        list[str], typer.Argument(help="NAME=FOLDER of evaluations on the same data, NAME as in the table.")
    ],
    out: Annotated[Path | None, typer.Option(help="Markdown file to write the table to.")] = None,
) -> None:
    """One table out of several evaluations: teacher, stage 1, stage 2."""
    from pipeline.storage import write_whole
    from training.evaluation_report import compare as table_of
    from training.evaluation_report import read_report

    named = dict(_named_folder(pair) for pair in reports)
    table = table_of({name: read_report(folder / "evaluation.json") for name, folder in named.items()})
    if out is not None:
        write_whole(out, table.encode())
    Console(soft_wrap=True).print(table, markup=False, highlight=False)


@app.command("config-schema")
def config_schema() -> None:
    """Print the JSON Schema of the config files (configs/schema.json)."""
    import json

    from training.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def assets(
    fetch: Annotated[list[str] | None, typer.Option(help="Fetch these; 'all' for every one.")] = None,
) -> None:
    """List the third-party files (models, demo clips) with licence and state, or fetch them for work offline."""
    from pipeline.assets import ASSETS, describe
    from pipeline.assets import fetch as fetch_asset

    for name in ASSETS if fetch == ["all"] else fetch or ():
        fetch_asset(name)
    for state in describe():
        typer.echo(f"{state.asset.name}: {state.source}, {state.path}, {state.asset.licence}")


@app.command()
def demo(
    config: Config = Path("configs/demo.json"),
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the reports.")] = Path(
        "output/demo"
    ),
    set_: Set = None,
) -> None:
    """The whole road in minutes on two CPU cores: real clips, small teacher, stage 1, stage 2, table."""
    from training.demo import run_demo

    run_demo(config, out, set_ or [], Console(soft_wrap=True))


def _named_folder(pair: str) -> tuple[str, Path]:
    name, separator, folder = pair.partition("=")
    if not separator:
        raise InputError(f"{pair!r}: expected NAME=FOLDER, for example stage1=output/demo/stage1_report")
    return name, Path(folder)


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
