"""From a checkpoint to a bundle: calibrate, build each format, prove it, and put what passed into a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from export.agreement import Decisions
from export.build import Ingredients
from export.bundle_writer import REPORT, check_place, new_folder, put_in_place, reject, settle, write_manifest
from export.facts import gates, machine, network_facts, training_facts, versions
from export.formats import REFERENCE, Format
from export.labelled_crops import LabelledCrops, gather, gather_for_ranges
from export.make_and_prove import make_and_prove
from export.model_card import model_card
from export.parity_chain import ParityChain
from export.parity_inputs import ParityInputs, build_inputs, digest, drawn_crops
from export.parity_page import verdict_table
from export.parity_plots import plot_differences, plot_scores
from export.parity_report import ArtefactVerdict, ParityReport, ShownCrops, stored_unsure
from export.prove import Opened
from export.rounding import doubt_of
from export.score_calibration import calibrate
from export.torch_runtimes import EagerRuntime, answer_all
from pipeline import assets
from pipeline.bundle import Bundle, describe_file, open_bundle
from pipeline.cuda_device import find_device
from pipeline.errors import InputError, NotProvenError
from pipeline.manifest import (
    UNSEALED_ID,
    Aggregation,
    CropRule,
    FaceFinderRule,
    Manifest,
    MeasuredOn,
    Unproven,
)
from pipeline.metrics import MetricsReport
from pipeline.runtime import Answer
from training.checkpoint import CheckpointInfo, load_detector
from training.index import Split
from training.networks import Detector


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What an export was asked for.

    Attributes:
        checkpoint: A file written by training.
        out: The bundle's folder.
        formats: In building order, `onnx` first.
        data: Prepared folder that scores are calibrated on.
        split: Its part.
        images: About how many labelled crops.
        aggregation: How a video's score is made.
        threads: CPU threads of every runtime; None for all cores.
        seed: Of blends and intervals.
    """

    checkpoint: Path
    out: Path
    formats: tuple[Format, ...]
    data: Path
    split: Split = "val"
    images: int = 300
    aggregation: Aggregation = field(default_factory=Aggregation)
    threads: int | None = None
    seed: int = 5


@dataclass(frozen=True, slots=True)
class Subject:
    """The network to export, what it is shown and what was fitted on it."""

    detector: Detector
    info: CheckpointInfo
    labelled: LabelledCrops
    inputs: ParityInputs
    chain: ParityChain
    metrics: MetricsReport


def export_bundle(settings: ExportSettings, console: Console) -> Bundle:
    """Export a checkpoint and prove what was exported.

    Returns:
        The bundle, as a server would open it.

    Raises:
        CannotRunHereError: A format that is built on a GPU, and there is none.
        InputError: An unusable checkpoint, data set, format or place.
        NotProvenError: An artefact does not do what was trained. The bundle is there without it, unless it is the
            fp32 ONNX file: then there is no bundle, and what was found lies in `OUT.rejected`.
    """
    start = time.perf_counter()
    check_place(settings.out)
    if not all(item.builds_without_gpu for item in settings.formats):
        find_device()  # now, and not after minutes of work
    with _torch_threads(settings.threads), new_folder(settings.out) as folder:
        subject = _examine(settings, console)
        ingredients = _ingredients(settings, subject, folder)
        built, verdicts = _walk(settings.formats, subject.chain, ingredients, console)
        report = _report(subject, verdicts, settings, time.perf_counter() - start)
        _refuse_broken_reference(folder, settings.out, report)
        manifest = _finish(folder, settings, subject, built, report, ingredients.range_notes)
        put_in_place(folder, settings.out)
    console.print(verdict_table(report), markup=False, highlight=False)
    for item in report.artefacts:
        if item.reason:
            console.print(f"{item.name}: {item.verdict}. {item.reason}", markup=False, highlight=False)
    console.print(f"bundle {manifest.id}: {settings.out}", markup=False, highlight=False)
    _refuse_broken(report, settings.out)
    return open_bundle(settings.out)


def _examine(settings: ExportSettings, console: Console) -> Subject:
    """Load the network, gather crops, and fit what belongs to its scores."""
    detector, info = load_detector(settings.checkpoint)
    size = info.network.image_size
    _say(console, f"{info.network.name} at {size} px, {info.stage} epoch {info.epoch}")
    labelled = gather(settings.data, size, split=settings.split, images=settings.images, seed=settings.seed)
    for note in labelled.notes:
        _say(console, note)
    inputs = build_inputs(size, labelled)
    eager = EagerRuntime(detector)
    with console.status(f"{eager.label}: {len(inputs)} crops"):
        reference = answer_all(eager, inputs.crops)
    _refuse_non_finite(reference, settings.checkpoint)
    rule = settings.aggregation.rule
    calibration, metrics = calibrate(labelled, reference.logits[: len(labelled)], rule=rule)
    _say(
        console, f"temperature {calibration.temperature:.4g}, frame AUC {metrics.overall.frame.auc.value:.4f}"
    )
    chain = ParityChain(inputs, calibration, rule, reference, doubt=doubt_of(detector, inputs, reference))
    return Subject(detector, info, labelled, inputs, chain, metrics)


def _refuse_non_finite(reference: Answer, checkpoint: Path) -> None:
    bad = int((~torch.from_numpy(reference.logits).isfinite()).any(dim=1).sum())
    if bad:
        raise InputError(
            f"{checkpoint}: the network answers {bad} of {len(reference.logits)} crops with NaN or infinite logits. "
            "The training run diverged; export an earlier checkpoint."
        )


def _ingredients(settings: ExportSettings, subject: Subject, folder: Path) -> Ingredients:
    info = subject.info

    def ranges() -> LabelledCrops:
        return gather_for_ranges(
            settings.data,
            info.network.image_size,
            proven_on=settings.split,
            # a third of them chooses between int8 graphs and sets no ranges
            images=settings.images * 3 // 2,
            seed=settings.seed,
        )

    return Ingredients(
        detector=subject.detector,
        folder=folder / "artefacts",
        metadata={"checkpoint_sha256": info.sha256, "stage": info.stage, "epoch": str(info.epoch)},
        gather_ranges=ranges,
        decisions=_decisions(subject),
        threads=settings.threads,
    )


def _decisions(subject: Subject) -> Decisions:
    """What the bundle decides of the gate's faces; the faces that int8 is made with are those of training."""
    calibration = subject.chain.calibration
    logits = subject.chain.answers[subject.chain.label].answer.logits[: len(subject.labelled)]
    points = [point.threshold for point in calibration.operating_points if point.level == "frame"]
    return Decisions.by(logits, points, calibration.temperature)


def _walk(
    formats: tuple[Format, ...], chain: ParityChain, ingredients: Ingredients, console: Console
) -> tuple[list[Unproven], list[ArtefactVerdict]]:
    """Build and measure, link by link; nothing is built on an ONNX file that is broken."""
    opened = Opened()
    built: list[Unproven] = []
    verdicts: list[ArtefactVerdict] = []
    for item in formats:
        with _step(console, item.name):
            entry, verdict = make_and_prove(item, chain, ingredients, opened)
        if entry is not None:
            built.append(entry)
        verdicts.append(verdict)
        if item.name == REFERENCE and verdict.verdict != "passed":
            break
    return built, verdicts


def _report(
    subject: Subject, verdicts: list[ArtefactVerdict], settings: ExportSettings, seconds: float
) -> ParityReport:
    inputs, info = subject.inputs, subject.info
    kinds = list(dict.fromkeys(inputs.kinds.tolist()))
    reference = subject.chain.answers[subject.chain.label].answer.logits
    drawn = drawn_crops(info.network.image_size)[0]
    return ParityReport(
        network=info.network.name,
        image_size=info.network.image_size,
        checkpoint_sha256=info.sha256,
        reference=f"torch {torch.__version__}, eager, fp32, CPU",
        calibration=subject.chain.calibration,
        rule=subject.chain.rule,
        shown=ShownCrops(
            counts={kind: int((inputs.kinds == kind).sum()) for kind in kinds},
            notes=subject.labelled.notes,
            drawn_sha256=digest(drawn),
            drawn_logits=tuple(
                (float(real), float(fake)) for real, fake in reference[inputs.labelled_count :]
            ),
            drawn_unsure=stored_unsure(subject.chain.unsure.at(slice(inputs.labelled_count, None))),
        ),
        links=tuple(subject.chain.links.values()),
        artefacts=tuple(verdicts),
        gates=gates(),
        machine=machine(settings.threads),
        packages=versions(),
        seconds=seconds,
    )


def _finish(
    folder: Path,
    settings: ExportSettings,
    subject: Subject,
    built: list[Unproven],
    report: ParityReport,
    range_notes: tuple[str, ...],
) -> Manifest:
    """Write everything but the name of the folder."""
    pictures = [plot_differences(subject.chain, folder / "parity_differences.png")]
    titles = {
        item.name: f"{item.name}: {item.verdict}" for item in report.artefacts if report.link(item.name)
    }
    scatter = plot_scores(subject.chain, titles, folder / "parity_scores.png")
    artefacts, rejected, unproven = settle(folder, built, report)
    finder = folder / "face_finder" / "yunet.onnx"
    finder.parent.mkdir()
    shutil.copyfile(assets.fetch("yunet"), finder)
    manifest = Manifest(
        id=UNSEALED_ID,
        network=network_facts(subject.detector, subject.chain.answers[subject.chain.label].answer),
        crop=CropRule(),
        face_finder=FaceFinderRule(file=describe_file(folder, finder)),
        aggregation=settings.aggregation,
        calibration=report.calibration.model_copy(
            update={"notes": (*report.calibration.notes, *(f"int8 ranges: {note}" for note in range_notes))}
        ),
        artefacts=artefacts,
        rejected=rejected,
        unproven=unproven,
        measured=MeasuredOn(
            data=subject.labelled.data,
            data_sha256=subject.labelled.data_sha256,
            split=subject.labelled.split,
            fakes=subject.labelled.fakes,
            metrics=subject.metrics,
        ),
        training=training_facts(subject.info),
        packages=report.packages,
    )
    card = folder / "model_card.md"
    card.write_text(model_card(manifest), encoding="utf-8")
    pages = [card, folder / "parity.md", *pictures, *([scatter] if scatter else [])]
    documents = tuple(describe_file(folder, page) for page in pages)
    return write_manifest(folder, manifest.model_copy(update={"documents": documents}))


def _refuse_broken_reference(folder: Path, out: Path, report: ParityReport) -> None:
    """No bundle stands on a broken fp32 ONNX file; what was found is kept beside its place."""
    verdict = report.artefact(REFERENCE)
    if verdict is not None and verdict.verdict == "passed":
        return
    kept = out.with_name(f"{out.name}.rejected")
    if verdict is not None:
        reject(folder, verdict, report)
        shutil.move(folder / "artefacts" / REFERENCE, folder / "rejected" / REFERENCE / "artefact")
    if kept.exists() and not (kept / REFERENCE / REPORT).is_file():
        raise InputError(
            f"{kept} is in the way of the report on what was rejected: move it, and export again."
        )
    shutil.rmtree(kept, ignore_errors=True)
    (folder / "rejected").rename(kept)
    reason = verdict.reason if verdict else "it was not measured"
    raise NotProvenError(
        f"the ONNX file does not do what was trained, so there is no bundle. {reason} See {kept}."
    )


def _refuse_broken(report: ParityReport, out: Path) -> None:
    broken = [item for item in report.artefacts if item.verdict == "broken"]
    if broken:
        said = "; ".join(f"{item.name} ({item.first_broken})" for item in broken)
        raise NotProvenError(
            f"{said}. The bundle has the others; what was rejected lies with its report in {out / 'rejected'}."
        )


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _step(console: Console, name: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(name):
        yield
    _say(console, f"{name}: {time.perf_counter() - start:.1f} s")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
