"""Puts a run together: data, networks, teacher gate, optimizer, folder; then hands it to the loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import InputError
from training.checkpoint import drop_later, ranked_weights
from training.config import Settings, Stage, without_effect
from training.dataset import Batch, BlendedFaces, EpochSampler, check_records, choose_frames
from training.ema import WeightAverage
from training.index import FaceRecord, Split, index_hash, read_index
from training.loader import blended_loader
from training.loop import Run, fit, restore_state
from training.networks import Detector
from training.plots import plot_training
from training.progress import Progress
from training.run_folder import (
    choose_folder,
    claimed,
    go_on,
    provenance_of,
    read_provenance,
    write_closing,
    write_opening,
)
from training.run_log import RunLog, read_log
from training.runtime import Runtime, seed_everything, start_runtime
from training.sam import SharpnessAware
from training.stage_networks import Networks, build_networks
from training.traces import TracingLearner
from training.validation import Validator
from training.weight_files import LoadReport


def train(
    stage: Stage, settings: Settings, name: str, *, resume: str = "auto", console: Console | None = None
) -> Path:
    """Run one stage to its end and return its best checkpoint.

    Args:
        stage: "teacher" (trains one by the self-blending recipe), "stage1" (student, hard labels) or "stage2"
            (student under a frozen teacher).
        settings: From `config.load_settings`.
        name: Of the run; its folder is `output/NAME_TIME`.
        resume: `auto`, `never` or a run folder.
        console: Where to show progress; None stays silent.

    Raises:
        InputError: anything about settings, data, weights or disk that a person can put right.
        Stopped: the run was asked to stop, and saved its state.
    """
    with start_runtime(settings) as runtime, ExitStack() as stack:
        shown = console if runtime.is_main else None
        train_faces, val_faces = read_faces(settings)
        folder, resumed = runtime.on_main(lambda: choose_folder(settings, stage, name, resume))
        begun = read_provenance(folder) if resumed else None
        networks = build_networks(stage, settings, runtime, begun)
        provenance = {**provenance_of(index_hash(settings.data)), **networks.origins}
        with Progress(shown, settings.epochs) as progress:
            validator = build_validator(val_faces, networks, settings, runtime)
            run = assemble(
                stage, settings, runtime, folder, networks, train_faces, validator, progress, provenance
            )
            introduce(run, train_faces, val_faces, resumed)
            if networks.teacher is not None:
                run.provenance["teacher_val_auc"] = check_teacher(run, networks.teacher)
            if resumed:
                restore_state(run)
            runtime.on_main(lambda: open_folder(run, stack, resumed))
            fit(run)
        return runtime.on_main(lambda: conclude(run))


def check_teacher(run: Run, teacher: Detector) -> float:
    """Put the teacher through the gate, in the main process alone, and return its validation AUC.

    Raises:
        InputError: it is too weak to teach.
    """
    needed = run.settings.min_teacher_auc
    reached = run.runtime.on_main(lambda: run.validator.gate(teacher, needed))
    run.progress.say(f"teacher: validation AUC {reached:.4f} (needed: {needed})")
    return reached


def open_folder(run: Run, stack: ExitStack, resumed: bool) -> None:
    """Claim the run's folder until `stack` closes, write the opening or tidy up what comes after the state, and log.

    Raises:
        InputError: the folder is taken or cannot be written, or the data are not those the run began with.
    """
    stack.enter_context(claimed(run.folder))
    if resumed:
        run.provenance = go_on(run.folder, run.provenance)
        drop_later(run.folder / "weights", run.position.epoch)
    else:
        write_opening(run.folder, run.settings, run.stage, run.provenance)
    step = run.position.step if resumed else None
    run.log = stack.enter_context(RunLog.open(run.folder, step, epochs_done=run.position.epoch))


def read_faces(settings: Settings) -> tuple[list[FaceRecord], list[FaceRecord]]:
    """Real faces to train and to validate on.

    Raises:
        InputError: no index, a split without real faces, or faces that do not fit their crops.
    """
    records = read_index(settings.data)
    train_faces, val_faces = (_real_faces(records, split, settings) for split in ("train", "val"))
    check_records([*train_faces, *val_faces], pixels=False)
    return train_faces, val_faces


def _real_faces(records: Sequence[FaceRecord], split: Split, settings: Settings) -> list[FaceRecord]:
    real = [record for record in records if record.split == split and record.label == 0]
    if real:
        return choose_frames(real, settings.frames_per_video)
    counts: dict[str, int] = {}
    for record in records:
        key = f"{record.split} {'fake' if record.label else 'real'}"
        counts[key] = counts.get(key, 0) + 1
    found = ", ".join(f"{count} {key}" for key, count in sorted(counts.items()))
    raise InputError(
        f"{settings.data}: no real faces in the {split} split, which self-blending starts from (found: {found}). "
        "Prepare the folder with real media in that split; `stillface prepare --help` tells how splits are made"
    )


def build_validator(
    faces: Sequence[FaceRecord], networks: Networks, settings: Settings, runtime: Runtime
) -> Validator:
    """The fixed self-blended validation set."""
    return Validator(
        faces,
        sizes=networks.sizes,
        draws=settings.val_draws,
        batch_size=settings.val_batch_size,
        seed=settings.seed,
        runtime=runtime,
        workers=settings.workers,
        reference_quirks=settings.reference_quirks,
    )


def assemble(
    stage: Stage,
    settings: Settings,
    runtime: Runtime,
    folder: Path,
    networks: Networks,
    faces: Sequence[FaceRecord],
    validator: Validator,
    progress: Progress,
    provenance: dict[str, Any],
) -> Run:
    """Wire the optimizer, SAM, the loader and the networks into a run that stands at its first step."""
    tracing = TracingLearner(networks.learner).to(runtime.device) if settings.trace_loss_weight else None
    model: nn.Module = tracing or networks.learner
    optimizer = build_optimizer(model, settings)
    if runtime.world_size > 1:
        # said of kernels of 1x1, which lie in memory alike either way
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        model = DistributedDataParallel(
            model, device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None
        )
    scaler = torch.amp.GradScaler(init_scale=512) if runtime.autocast_dtype == torch.float16 else None
    sampler, loader = build_loader(faces, networks.sizes, settings, runtime)
    # Dropout's stream starts here: a control run draws the masks of the run with a teacher, however many random
    # numbers building the networks took.
    seed_everything(settings.seed + runtime.rank)
    return Run(
        settings=settings,
        stage=stage,
        runtime=runtime,
        folder=folder,
        learner=networks.learner,
        model=model,
        teacher=networks.teacher,
        optimizer=optimizer,
        scaler=scaler,
        sam=SharpnessAware(
            model,
            optimizer,
            rho=settings.sam_rho,
            adaptive=settings.sam_adaptive,
            scope=settings.sam_scope,
            clip_norm=settings.clip_norm,
            scaler=scaler,
            sync_perturbation=settings.sam_sync_perturbation,
        ),
        average=None if settings.ema_decay is None else WeightAverage(networks.learner, settings.ema_decay),
        sampler=sampler,
        loader=loader,
        validator=validator,
        log=None,
        progress=progress,
        provenance=provenance,
        tracing=tracing,
    )


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and kernels only."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def build_loader(
    faces: Sequence[FaceRecord], sizes: tuple[int, ...], settings: Settings, runtime: Runtime
) -> tuple[EpochSampler, Iterable[Batch]]:
    """The endless road of self-blended pairs: sampler and loader of this process."""
    pairs = settings.batch_size // 2
    blended = BlendedFaces(
        faces,
        sizes=sizes,
        seed=settings.seed,
        phase="train",
        reference_quirks=settings.reference_quirks,
        draws=settings.draws_per_face,
    )
    sampler = EpochSampler(
        len(blended), seed=settings.seed, batch_size=pairs, rank=runtime.rank, world_size=runtime.world_size
    )
    return sampler, blended_loader(blended, sampler, runtime, workers=settings.workers, keep_workers=True)


def introduce(
    run: Run, train_faces: Sequence[FaceRecord], val_faces: Sequence[FaceRecord], resumed: bool
) -> None:
    """Say what is about to run, with which weights, on which data."""
    say, settings = run.progress.say, run.settings
    say(
        f"{run.stage}: {run.learner.spec.name} at {run.learner.spec.image_size} px on {run.runtime.device}, "
        f"{'resuming' if resumed else 'writing to'} {run.folder}"
    )
    for line in without_effect(settings):
        say(f"note: {line}")
    say(f"weights: {LoadReport.model_validate(run.provenance['weights'])}")
    if "teacher" in run.provenance:
        say(f"teacher: {LoadReport.model_validate(run.provenance['teacher'])}")
    videos = len({face.video for face in train_faces}), len({face.video for face in val_faces})
    say(
        f"data: {len(train_faces)} training faces of {videos[0]} videos, {len(val_faces)} validation faces of "
        f"{videos[1]}; {run.sampler.batches_per_epoch} batches of {settings.batch_size} images an epoch"
    )


def conclude(run: Run) -> Path:
    """Draw the curves, mark the run as finished and return its best checkpoint.

    Raises:
        InputError: no epoch left usable weights.
    """
    kept = ranked_weights(run.folder / "weights")
    if not kept:
        raise InputError(
            f"{run.folder}: training diverged; after no epoch were the network's answers finite. Start afresh "
            f"(--resume never) with a lower --set lr (now {run.settings.lr:g}) or --set precision=fp32"
        )
    plot_training(read_log(run.folder), run.folder / "curves.png", title=run.folder.name)
    result = {"best": kept[0].name, "steps": run.position.step, "skipped": run.position.skipped}
    write_closing(run.folder, result)
    run.progress.say(f"best: {kept[0]}\ncurves: {run.folder / 'curves.png'}")
    return kept[0]
