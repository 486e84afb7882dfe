"""What an evaluation found: as JSON for programs, as Markdown for people, and several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError
from pipeline.manifest import ArtefactName
from pipeline.metrics import Estimate, LevelReport, MetricsReport
from pipeline.scoring import Interval
from training.networks import NetworkSpec

REPORT_NAME = "evaluation.json"

Measured = Literal["labelled", "self-blended"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CheckpointFacts(_Model):
    """Which network was measured."""

    path: str
    sha256: str
    stage: str
    epoch: int
    val_auc: float | None
    network: NetworkSpec


class ArtefactFacts(_Model):
    """Which form of the network was measured, where it was a bundle's.

    Attributes:
        bundle: Id of the bundle; `CheckpointFacts` are of the checkpoint that it was exported from.
        name: The artefact's format.
        sha256: Of the file that was opened.
        temperature: Of the bundle's scores.
        operating_point: Whose thresholds are used; None where a threshold was given.
    """

    bundle: str
    name: ArtefactName
    sha256: str
    temperature: float
    operating_point: str | None


class MethodCount(_Model):
    """How much of one manipulation (or "real") was scored."""

    method: str
    label: int
    videos: int
    frames: int
    faces: int


class DataFacts(_Model):
    """What it was measured on. `index_sha256` is the hash of the prepared folder's index."""

    folder: str
    index_sha256: str
    split: str
    measured: Measured
    blend_draws: int | None
    seed: int | None
    counts: list[MethodCount]


class Circumstances(_Model):
    """Where and how fast it ran; precision is the network's."""

    torch: str
    device: str
    precision: str
    seconds: float
    faces_per_second: float
    created: str


class EvaluationReport(_Model):
    """One checkpoint, or one artefact of a bundle, measured on one split.

    Attributes:
        artefact: None where the checkpoint itself was measured.
        statement: in plain words, what was measured and what it does not say.
        threshold_source: where the threshold of the accuracy rows comes from.
        messages: what the reader should do or beware of.
    """

    schema_version: Literal[1] = 1
    statement: str
    checkpoint: CheckpointFacts
    artefact: ArtefactFacts | None = None
    data: DataFacts
    threshold_source: str
    metrics: MetricsReport
    messages: list[str]
    circumstances: Circumstances


def read_report(path: Path) -> EvaluationReport:
    """Read an `evaluation.json`, given the file or its folder.

    Raises:
        InputError: it is missing or no evaluation report of this version.
    """
    file = path / REPORT_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such report; `stillface evaluate ... --out FOLDER` writes one.")
    try:
        return EvaluationReport.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{file}: not an evaluation report ({where}: {first['msg']}).") from error


def show(estimate: Estimate) -> str:
    """Value and interval as "0.934 (0.917 to 0.950)", or the reason why there is no value."""
    if estimate.value is None:
        return estimate.reason or "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def show_threshold(threshold: float, interval: Interval | None) -> str:
    """A threshold to six digits, because near 0 and 1 the last ones matter, and its interval."""
    if interval is None:
        return f"{threshold:.6g}"
    return f"{threshold:.6g} ({interval[0]:.6g} to {interval[1]:.6g})"


def to_markdown(report: EvaluationReport) -> str:
    """The report as a page for people."""
    name = Path(report.checkpoint.path).name
    parts = [
        f"# Evaluation of {name}" + (f", {report.artefact.name}" if report.artefact else ""),
        report.statement,
        *(f"> {message}" for message in report.messages),
        _facts(report),
        "## All data",
        _overall(report),
        "## By manipulation, each against all real videos",
        _by_method(report),
        "## Thresholds measured on this data",
        _thresholds(report),
        "## How to read this",
        _legend(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _facts(report: EvaluationReport) -> str:
    checkpoint, data, ran = report.checkpoint, report.data, report.circumstances
    network = checkpoint.network
    counts = "; ".join(
        f"{count.method}: {count.videos} videos, {count.frames} frames, {count.faces} faces"
        for count in data.counts
    )
    trained = f"({checkpoint.stage}, epoch {checkpoint.epoch})"
    rows = [
        ["checkpoint", f"`{checkpoint.path}` {trained}"],
        ["its SHA-256", f"`{checkpoint.sha256}`"],
    ]
    if (artefact := report.artefact) is not None:
        rows = [
            ["artefact", f"{artefact.name} of `{checkpoint.path}`, bundle {artefact.bundle} {trained}"],
            ["its SHA-256", f"`{artefact.sha256}`"],
            ["SHA-256 of the checkpoint", f"`{checkpoint.sha256}`"],
            ["temperature", f"{artefact.temperature:.6g}"],
        ]
    rows += [
        ["network", f"{network.name} at {network.image_size} px"],
        ["data", f"`{data.folder}`, split {data.split}, {data.measured}"],
        ["SHA-256 of its index", f"`{data.index_sha256}`"],
        ["scored", counts],
        ["faces that count", f"{report.metrics.faces_used} of {report.metrics.faces}"],
        ["video score", f"rule {report.metrics.rule}"],
        ["threshold", report.threshold_source],
        ["ran on", f"{ran.device}, {ran.precision}, torch {ran.torch}, {ran.faces_per_second:.1f} faces/s"],
    ]
    return _table(["", ""], rows)


def _measures(level: LevelReport) -> Iterator[tuple[str, str]]:
    """Name and shown value of every measure of a level, in the order of the table."""
    yield "samples", f"{level.real} real, {level.fake} fake"
    yield "AUC", show(level.auc)
    yield "average precision", show(level.average_precision)
    yield "EER", show(level.eer)
    for name, estimate in level.tpr_at_fpr.items():
        yield f"TPR at FPR {name.removeprefix('fpr-').replace('%', ' %')}", show(estimate)
    if level.at_threshold is not None:
        at = level.at_threshold
        yield "threshold", f"{at.threshold:.6g}"
        yield "accuracy at the threshold", show(at.accuracy)
        yield "balanced accuracy at the threshold", show(at.balanced_accuracy)
        yield "TPR at the threshold", show(at.tpr)
        yield "FPR at the threshold", show(at.fpr)
    yield "ECE", show(level.ece)
    yield "Brier score", show(level.brier)
    yield "log loss (nats)", show(level.log_loss)


def _overall(report: EvaluationReport) -> str:
    scope = report.metrics.overall
    rows = [
        [name, frame, video]
        for (name, frame), (_, video) in zip(_measures(scope.frame), _measures(scope.video), strict=True)
    ]
    return _table(["measure", "per frame", "per video"], rows)


def _by_method(report: EvaluationReport) -> str:
    rows = [
        [
            method,
            str(scope.video.fake),
            show(scope.frame.auc),
            show(scope.video.auc),
            show(scope.video.eer),
            show(scope.video.average_precision),
        ]
        for method, scope in report.metrics.methods.items()
    ]
    header = ["manipulation", "videos", "frame AUC", "video AUC", "video EER", "video AP"]
    return _table(header, rows) if rows else "No manipulated video in this data."


def _thresholds(report: EvaluationReport) -> str:
    rows = []
    for level in (report.metrics.overall.frame, report.metrics.overall.video):
        for point in level.operating_points:
            cells = [show_threshold(point.threshold, point.threshold_interval)]
            for rate, interval in ((point.fpr, point.fpr_interval), (point.tpr, point.tpr_interval)):
                low, high = interval or (None, None)
                cells.append(show(Estimate(value=rate, low=low, high=high)))
            rows.append([level.level, point.name, *cells, point.note or ""])
    if not rows:
        return "None: a threshold needs real and fake samples."
    return _table(["per", "point", "threshold", "FPR", "TPR", "note"], rows)


def _legend(report: EvaluationReport) -> str:
    metrics = report.metrics
    lines = [
        f"In brackets: {metrics.confidence:.0%} bootstrap intervals from {metrics.resamples} resamples of "
        f"whole videos (seed {metrics.seed}), real and fake drawn separately. Rates of exactly 0 or 1 have "
        "the exact binomial interval for their number of videos. Any other interval of width zero says that "
        "no resample differed, not that the value is certain.",
        "Scores >= threshold are called fake. Thresholds above were chosen on this very data: take those of "
        "validation data into use, and measure test data once.",
        *(
            f"Per {level.level}: {note}."
            for level in (metrics.overall.frame, metrics.overall.video)
            for note in level.notes
        ),
    ]
    return "\n".join(f"- {line}" for line in lines)


def compare(reports: Mapping[str, EvaluationReport]) -> str:
    """One Markdown table with a row per report, by the names given.

    Raises:
        InputError: no report, or reports on different data, whose numbers do not belong in one table.
    """
    if not reports:
        raise InputError("there is no report to compare; give at least one evaluation.")
    _same_data(reports)
    rows = []
    for name, report in reports.items():
        frame, video = report.metrics.overall.frame, report.metrics.overall.video
        at = frame.at_threshold
        rows.append(
            [
                name,
                f"{report.checkpoint.network.name} @ {report.checkpoint.network.image_size}",
                show(frame.auc),
                show(video.auc),
                show(frame.eer),
                show(frame.average_precision),
                f"{show(at.accuracy)} at {at.threshold:.6g}" if at else "no threshold",
            ]
        )
    first = next(iter(reports.values()))
    header = ["", "network", "frame AUC", "video AUC", "frame EER", "frame AP", "frame accuracy"]
    return f"{_table(header, rows)}\n\n{first.statement}\n"


def _same_data(reports: Mapping[str, EvaluationReport]) -> None:
    (first_name, first), *others = reports.items()
    for name, report in others:
        for field in ("index_sha256", "split", "measured", "blend_draws", "seed"):
            ours, theirs = getattr(first.data, field), getattr(report.data, field)
            if ours != theirs:
                raise InputError(
                    f"{first_name!r} and {name!r} were measured on different data ({field} {ours} and "
                    f"{theirs}): evaluate both on the same folder and split, then compare."
                )
