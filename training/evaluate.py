"""Measures a network on a prepared folder: on labelled fakes, or on fakes blended from its real faces."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.errors import InputError
from pipeline.measures import undefined_reason
from pipeline.metrics import Resampling, measure_collected
from pipeline.samples import Collected
from pipeline.scoring import check_rule
from pipeline.storage import write_whole
from training.evaluated import Evaluated, Thresholds, open_checkpoint, open_in_bundle, refuse_unused
from training.evaluation_report import (
    REPORT_NAME,
    ArtefactFacts,
    Circumstances,
    DataFacts,
    EvaluationReport,
    MethodCount,
    to_markdown,
)
from training.face_scores import LoaderSettings, Progress, ScoredFaces, score_pairs, score_records
from training.index import SPLITS, FaceRecord, Split, index_hash, read_index
from training.plots import plot_reliability, plot_roc, plot_scores


def evaluate(
    subject: Path,
    data: Path,
    *,
    artefact: str | None = None,
    operating_point: str | None = None,
    split: Split = "test",
    self_blended: bool = False,
    out: Path | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    workers: int = 0,
    threads: int | None = None,
    threshold: float | None = None,
    rule: str | None = None,
    seed: int = 5,
    blend_draws: int = 1,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure a checkpoint, or an artefact of a bundle as a server runs it, on one split of a prepared folder.

    Args:
        subject: a file written by training, or the folder of a bundle.
        data: a folder written by `stillface prepare`.
        artefact: which of the bundle's.
        operating_point: of the bundle, whose thresholds are used; None: its default.
        split: which part of the data.
        self_blended: use the split's real faces only and blend a fake from each; says how well blending
            traces are found, not how well deepfakes are.
        out: folder for evaluation.json, evaluation.md, scores.csv and the pictures; None: nothing is written.
        device: an existing device, for a checkpoint.
        batch_size: images per batch.
        workers: loader processes.
        threads: CPU threads of an artefact's runtime; None: all cores.
        threshold: scores >= it are called fake; None: the network's own.
        rule: how a video's score comes from its faces; None: the bundle's, or the default.
        seed: of the blends and of the bootstrap.
        blend_draws: self-blended pairs per face.
        resamples: bootstrap resamples for the intervals; 0: none.
        progress: told after each batch how many faces it had.

    Raises:
        InputError: unusable network, data, split or setting; scores that are not finite.
    """
    _check(batch_size, blend_draws, self_blended, threshold)
    if threshold is not None and operating_point is not None:
        raise InputError("a threshold and an operating point were given, which has its own; leave one out.")
    refuse_unused(subject, artefact=artefact, operating_point=operating_point, threads=threads, device=device)
    if rule is not None:
        check_rule(rule)
    records = _of_split(read_index(data), split, data, only_real=self_blended)
    if artefact is None:
        evaluated = open_checkpoint(subject, torch.device(device))
    else:
        evaluated = open_in_bundle(subject, artefact, operating_point=operating_point, threads=threads)
    settings = LoaderSettings(batch_size, workers, torch.device(device))
    started = time.perf_counter()
    if self_blended:
        faces = score_pairs(
            evaluated.network, records, settings, seed=seed, draws=blend_draws, progress=progress
        )
    else:
        faces = score_records(evaluated.network, records, settings, progress=progress)
    seconds = time.perf_counter() - started
    used = evaluated.thresholds if threshold is None else Thresholds.given(threshold)
    collected = faces.collect(rule or evaluated.rule)
    metrics = measure_collected(
        collected,
        threshold=used.frame,
        video_threshold=used.video,
        how=Resampling(resamples, seed=seed),
    )
    facts = DataFacts(
        folder=str(data),
        index_sha256=index_hash(data),
        split=split,
        measured="self-blended" if self_blended else "labelled",
        blend_draws=blend_draws if self_blended else None,
        seed=seed if self_blended else None,
        counts=_count(faces),
    )
    report = EvaluationReport(
        statement=_statement(facts),
        checkpoint=evaluated.facts,
        artefact=_as_used(evaluated.artefact, threshold),
        data=facts,
        threshold_source=used.source,
        metrics=metrics,
        messages=_messages(facts, collected, used),
        circumstances=_circumstances(evaluated, seconds, len(faces.records)),
    )
    if out is not None:
        _write(report, collected, faces, data, out)
    return report


def _as_used(artefact: ArtefactFacts | None, threshold: float | None) -> ArtefactFacts | None:
    """A threshold that is given takes the place of the operating point's."""
    if artefact is None or threshold is None:
        return artefact
    return artefact.model_copy(update={"operating_point": None})


def _check(batch_size: int, blend_draws: int, self_blended: bool, threshold: float | None) -> None:
    if batch_size < 1 or blend_draws < 1:
        raise InputError(f"batch size {batch_size} and blend draws {blend_draws} must be 1 or more.")
    if blend_draws > 1 and not self_blended:
        raise InputError("several blend draws were asked for without self-blending; add --self-blended.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}; expected a probability in [0, 1].")


def _of_split(
    records: Sequence[FaceRecord], split: Split, data: Path, *, only_real: bool
) -> list[FaceRecord]:
    """Records of a split, only its real ones if asked; refuses an empty choice and says what there is."""
    chosen = [record for record in records if record.split == split and not (only_real and record.label)]
    if chosen:
        return chosen
    counts = Counter((record.split, record.label) for record in records)
    present = ", ".join(
        f"{name}: {counts[name, 0]} real and {counts[name, 1]} fake"
        for name in SPLITS
        if counts[name, 0] + counts[name, 1]
    )
    kind = "real face" if only_real else "face"
    raise InputError(f"{data} has no {kind} in split {split!r} (it has {present}); choose another split.")


def _count(faces: ScoredFaces) -> list[MethodCount]:
    videos: dict[tuple[str, int], set[str]] = {}
    frames: dict[tuple[str, int], set[tuple[str, int]]] = {}
    total = Counter((record.method, record.label) for record in faces.records)
    for record, frame in zip(faces.records, faces.frames, strict=True):
        videos.setdefault((record.method, record.label), set()).add(record.video)
        frames.setdefault((record.method, record.label), set()).add((record.video, frame))
    return [
        MethodCount(
            method=kind[0],
            label=kind[1],
            videos=len(videos[kind]),
            frames=len(frames[kind]),
            faces=total[kind],
        )
        for kind in sorted(total, key=lambda kind: (kind[1], kind[0]))
    ]


def _statement(facts: DataFacts) -> str:
    if facts.measured == "self-blended":
        times = "one blend" if facts.blend_draws == 1 else f"{facts.blend_draws} blends"
        return (
            "**AUC on self-blended images (SBI-val AUC), not accuracy on deepfakes**: real faces of the "
            f"{facts.split} split against self-blended twins of the same faces ({times} per face). It says "
            "how well the network finds blending traces of the kind it was trained on; only labelled "
            "deepfakes say how well it finds deepfakes."
        )
    methods = [count.method for count in facts.counts if count.label == 1]
    fakes = f"fakes by {', '.join(methods)}" if methods else "no fakes"
    return f"Labelled data: the {facts.split} split's real faces and {fakes}, as stored in `{facts.folder}`."


def _messages(facts: DataFacts, collected: Collected, used: Thresholds) -> list[str]:
    messages = []
    reason = undefined_reason(collected.video.labels)
    if reason:
        label = "real" if (collected.video.labels == 0).all() else "fake"
        messages.append(
            f"The {facts.split} split holds {label} faces only, so AUC, EER and the like are undefined."
            + (" Add --self-blended to measure on fakes blended from these faces." if label == "real" else "")
        )
    if used.frame is None:
        messages.append(
            "No threshold: the checkpoint holds none and none was given, so there is no accuracy."
        )
    elif used.frame == used.video:
        messages.append("The threshold is for frame scores; at video level it is applied as it stands.")
    if facts.split == "train":
        messages.append("These faces were trained on: the numbers say nothing about new ones.")
    return messages


def _circumstances(evaluated: Evaluated, seconds: float, faces: int) -> Circumstances:
    return Circumstances(
        torch=torch.__version__,
        device=evaluated.device,
        precision=evaluated.precision,
        seconds=seconds,
        faces_per_second=faces / max(seconds, 1e-9),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write(report: EvaluationReport, collected: Collected, faces: ScoredFaces, data: Path, out: Path) -> None:
    """Write the pictures and tables, the JSON last: where it is, everything is."""
    network, facts = report.checkpoint, report.data
    name = report.artefact.name if report.artefact else f"{network.stage} epoch {network.epoch}"
    title = f"{name}, {facts.split} split, {facts.measured}"
    levels = (
        (collected.frame, report.metrics.overall.frame),
        (collected.video, report.metrics.overall.video),
    )
    if undefined_reason(collected.video.labels) is None:
        plot_roc(levels, out / "roc.png", f"ROC: {title}")
        plot_reliability([level for _, level in levels], out / "reliability.png", f"Reliability: {title}")
    plot_scores(
        [samples for samples, _ in levels],
        out / "scores.png",
        f"Scores: {title}",
        thresholds=[at.threshold if (at := level.at_threshold) else None for _, level in levels],
    )
    write_whole(out / "scores.csv", _score_table(faces, data).encode())
    write_whole(out / "evaluation.md", to_markdown(report).encode())
    write_whole(out / REPORT_NAME, report.model_dump_json(indent=2).encode())


def _score_table(faces: ScoredFaces, data: Path) -> str:
    """Every face with its score as CSV, to find what went wrong."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("path", "video", "method", "label", "frame", "face", "p_fake"))
    root = data.absolute()
    for record, score in zip(faces.records, faces.scores, strict=True):
        path = record.path.relative_to(root).as_posix()
        table.writerow(
            (path, record.video, record.method, record.label, record.frame, record.face, f"{score:.9g}")
        )
    return text.getvalue()
