"""The networks of a stage and the weights they start from: every tensor accounted for, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from training.checkpoint import is_checkpoint, load_detector, resolve_weights
from training.config import Settings, Stage
from training.networks import Detector, build_student, build_teacher
from training.runtime import Runtime
from training.weight_files import LoadReport


@dataclass(frozen=True)
class Networks:
    """The network that learns, its frozen teacher if any, and where their weights came from."""

    learner: Detector
    teacher: Detector | None
    sizes: tuple[int, ...]
    """Crop sizes the loader makes: the learner's, then the teacher's."""
    origins: dict[str, Any]


def build_networks(
    stage: Stage, settings: Settings, runtime: Runtime, begun: dict[str, Any] | None = None
) -> Networks:
    """Networks of a stage with their starting weights.

    Args:
        stage: Which one.
        settings: Of the run.
        runtime: Where they live.
        begun: Provenance of the run to go on with. Its learner's weights come from the saved state, so none are
            fetched; its teacher is the file it began with, whatever a pattern would find by now.

    Raises:
        InputError: weights that are missing, of the wrong kind or of another network.
    """
    if stage == "teacher":
        learner, report = build_student(
            settings.teacher,
            image_size=settings.teacher_image_size,
            pretrained="none" if begun else settings.teacher_pretrained,
            dropout=settings.teacher_dropout,
            drop_path=settings.teacher_drop_path,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),  # as the published teacher: RGB / 255
        )
        return _on(runtime, learner, None, _origin("weights", report, begun), settings)
    fresh = begun is None and (stage == "stage1" or _starts_afresh(settings))
    learner, report = build_student(
        settings.student,
        image_size=settings.image_size,
        # weights that others are about to replace need not be fetched
        pretrained=settings.pretrained if fresh else "none",
        dropout=settings.dropout,
        drop_path=settings.drop_path,
    )
    if stage == "stage2" and not fresh and begun is None:
        report = load_stage1(learner, str(settings.pretrained_student_weights))
    origins = _origin("weights", report, begun)
    if stage == "stage1" or settings.loss == "none":
        return _on(runtime, learner, None, origins, settings)
    teacher, report = load_teacher(settings) if begun is None else reload_teacher(settings, begun)
    origins |= _origin("teacher", report, begun)
    return _on(runtime, learner, teacher.requires_grad_(False).eval(), origins, settings)


def _origin(name: str, report: LoadReport, begun: dict[str, Any] | None) -> dict[str, Any]:
    return {name: report.model_dump(mode="json") if begun is None else begun[name]}


def _starts_afresh(settings: Settings) -> bool:
    """Whether stage 2 was told to do without stage 1; forgetting to say so is refused."""
    if settings.pretrained_student_weights is None:
        raise InputError(
            "pretrained_student_weights is not set, so stage 2 would start without stage 1. Set it to stage 1's "
            'weights, for example "output/pretrain_mobilevit_*/weights/BEST.pth", or to "none" if you mean to '
            "skip stage 1"
        )
    return settings.pretrained_student_weights == "none"


def load_stage1(learner: Detector, pattern: str) -> LoadReport:
    """Fill the student with a checkpoint of stage 1, every tensor of it.

    Raises:
        InputError: no such file, or one of another network.
    """
    path = resolve_weights(pattern)
    parent, info = load_detector(path)
    theirs, mine = info.network, learner.spec
    if theirs.name != mine.name:
        raise InputError(
            f"{path}: holds a {theirs.name}, the student is a {mine.name}; give stage 1's "
            "weights of this student, or set student to that network"
        )
    if (theirs.mean, theirs.std) != (mine.mean, mine.std):
        raise InputError(
            f"{path}: was trained on pixels normalised by mean {theirs.mean} and std {theirs.std}, the student takes "
            f"{mine.mean} and {mine.std} (a {info.stage} run wrote it); give weights that stage 1 wrote"
        )
    learner.load_state_dict(parent.state_dict())
    total = len(learner.state_dict())
    return LoadReport(source=f"file:{path}", matched=total, total=total, head="loaded", sha256=info.sha256)


def load_teacher(settings: Settings) -> tuple[Detector, LoadReport]:
    """The teacher from a self-blended-images file (`FFc23.tar`) or from one of our checkpoints.

    Raises:
        InputError: none given, no such file, or one of another network or image size.
    """
    if settings.teacher_weights is None:
        raise InputError(
            "teacher_weights is not set, and a teacher with random weights teaches nothing. Give FFc23.tar or "
            "FFraw.tar of the self-blended-images authors, or train one: `make train-teacher`, then "
            '"output/teacher_*/weights/BEST.pth"'
        )
    return _read_teacher(resolve_weights(settings.teacher_weights), settings)


def reload_teacher(settings: Settings, begun: dict[str, Any]) -> tuple[Detector, LoadReport]:
    """The teacher a run began with.

    Raises:
        InputError: its file is gone or was exchanged.
    """
    told = LoadReport.model_validate(begun["teacher"])
    path = Path(told.source.partition(":")[2])
    teacher, report = _read_teacher(path, settings)
    if report.sha256 != told.sha256:
        raise InputError(
            f"{path}: is not the teacher this run began with (SHA-256 {report.sha256} instead of {told.sha256}); put "
            "that file back to go on, or start afresh with --resume never"
        )
    return teacher, report


def _read_teacher(path: Path, settings: Settings) -> tuple[Detector, LoadReport]:
    if not is_checkpoint(path):
        return build_teacher(path, name=settings.teacher, image_size=settings.teacher_image_size)
    teacher, info = load_detector(path)
    asked = (settings.teacher, settings.teacher_image_size)
    if (info.network.name, info.network.image_size) != asked:
        raise InputError(
            f"{path}: holds a {info.network.name} at {info.network.image_size} px, the settings say {asked[0]} at "
            f"{asked[1]} px; set teacher and teacher_image_size to what the file holds"
        )
    total = len(teacher.state_dict())
    return teacher, LoadReport(
        source=f"file:{path}", matched=total, total=total, head="loaded", sha256=info.sha256
    )


def _on(
    runtime: Runtime, learner: Detector, teacher: Detector | None, origins: dict[str, Any], settings: Settings
) -> Networks:
    if settings.gradient_checkpointing:
        learner.set_gradient_checkpointing(True)
    for network in filter(None, (learner, teacher)):
        network.to(runtime.device)
    sizes = (
        (learner.spec.image_size,) if teacher is None else (learner.spec.image_size, teacher.spec.image_size)
    )
    return Networks(learner, teacher, sizes, origins)
