"""The networks of a stage and the weights they start from: every tensor accounted for, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

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


def build_networks(stage: Stage, settings: Settings, runtime: Runtime) -> Networks:
    """Networks of a stage with their starting weights.

    Raises:
        InputError: weights that are missing, of the wrong kind or of another network.
    """
    if stage == "teacher":
        learner, report = build_student(
            settings.teacher,
            image_size=settings.teacher_image_size,
            pretrained=settings.teacher_pretrained,
            dropout=settings.teacher_dropout,
            drop_path=settings.teacher_drop_path,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),  # as the published teacher: RGB / 255
        )
        return _on(runtime, learner, None, {"weights": report.model_dump(mode="json")}, settings)
    learner, report = build_student(
        settings.student,
        image_size=settings.image_size,
        # weights that stage 1's are about to replace need not be fetched
        pretrained=settings.pretrained if stage == "stage1" or _starts_afresh(settings) else "none",
        dropout=settings.dropout,
        drop_path=settings.drop_path,
    )
    origins: dict[str, Any] = {"weights": report.model_dump(mode="json")}
    if stage == "stage1":
        return _on(runtime, learner, None, origins, settings)
    if not _starts_afresh(settings):
        origins["weights"] = load_stage1(learner, str(settings.pretrained_student_weights)).model_dump(
            mode="json"
        )
    if settings.loss == "none":
        return _on(runtime, learner, None, origins, settings)
    teacher, report = load_teacher(settings)
    origins["teacher"] = report.model_dump(mode="json")
    return _on(runtime, learner, teacher.requires_grad_(False).eval(), origins, settings)


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
    if info.network.name != learner.spec.name:
        raise InputError(
            f"{path}: holds a {info.network.name}, the student is a {learner.spec.name}; give stage 1's "
            "weights of this student, or set student to that network"
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
    path = resolve_weights(settings.teacher_weights)
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
    # channels-last is the order the uint8 crops arrive in; the kernels follow it (1.7 times faster on a CPU)
    for network in filter(None, (learner, teacher)):
        network.to(runtime.device).to(memory_format=torch.channels_last)
    sizes = (
        (learner.spec.image_size,) if teacher is None else (learner.spec.image_size, teacher.spec.image_size)
    )
    return Networks(learner, teacher, sizes, origins)
