"""The training loop, top to bottom: epochs of SAM steps, validation, the best weights, a state that resumes exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError, Stopped
from training.checkpoint import CheckpointInfo, prune, save_atomically, save_checkpoint, weights_name
from training.config import Settings, Stage
from training.dataset import Batch, EpochSampler
from training.ema import WeightAverage
from training.loader import LostWorkersError, batches_of
from training.losses import alpha_at, combine, hard_loss, soft_loss
from training.networks import Detector
from training.progress import Progress
from training.run_folder import STATE
from training.run_log import RunLog
from training.runtime import Runtime, gather_rng, restore_rng
from training.sam import SharpnessAware, StepReport
from training.stopping import stop_signals
from training.traces import TracingLearner, trace_loss
from training.validation import Validation, Validator
from training.weight_files import read_weight_file


@dataclass
class Position:
    """How far a run is; with the weights and streams of `save_state` it is all that a resume needs."""

    epoch: int = 0
    """Whole epochs done."""
    batch: int = 0
    """Batches of the present epoch done."""
    step: int = 0
    """Optimizer steps done, skipped ones included."""
    skipped: int = 0
    """Steps skipped because a loss or gradient was not finite."""
    skipped_in_a_row: int = 0


@dataclass
class Run:
    """Everything one run works with; `training/stages.py` puts it together."""

    settings: Settings
    stage: Stage
    runtime: Runtime
    folder: Path
    learner: Detector
    """The network that learns, bare."""
    model: nn.Module
    """The same, wrapped in `tracing` and for several processes where there are such."""
    teacher: Detector | None
    """Frozen; None in stage 1, in `train teacher` and in the no-KD control."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    sam: SharpnessAware
    average: WeightAverage | None
    sampler: EpochSampler
    loader: Iterable[Batch]
    validator: Validator
    log: RunLog | None
    """None in the processes that are not the main one, and before the run is opened."""
    progress: Progress
    provenance: dict[str, Any]
    tracing: TracingLearner | None = None
    """The learner with the heads of the trace loss; None without that loss."""
    position: Position = field(default_factory=Position)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; a last incomplete group of micro-batches is a step too."""
        return math.ceil(self.sampler.batches_per_epoch / self.settings.accumulate)

    @property
    def share_done(self) -> float:
        """Share of the run's steps that are done, 0..1."""
        return self.position.step / (self.steps_per_epoch * self.settings.epochs)


def fit(run: Run) -> None:
    """Train from `run.position` to the last epoch.

    Raises:
        Stopped: a signal asked to stop; the state was saved first.
        InputError: too many non-finite steps in a row, or the disk is full.
    """
    with stop_signals() as received:

        def asked_to_stop() -> int:
            # a signal reaches the processes between different steps; they must stop after the same one
            return run.runtime.largest(received())

        while run.position.epoch < run.settings.epochs:
            try:
                train_epoch(run, asked_to_stop)
                validate_and_keep(run)
            except LostWorkersError as error:
                # a signal to the whole job ends the loader's workers as well, and we stand between two steps
                if not received():
                    raise
                if run.runtime.world_size == 1:
                    save_state(run)
                raise stopped(run, received()) from error
            run.position.epoch, run.position.batch = run.position.epoch + 1, 0
            save_state(run)


def train_epoch(run: Run, asked_to_stop: Callable[[], int]) -> float:
    """Train from the present batch to the end of the present epoch; return the seconds spent waiting for data."""
    position, settings = run.position, run.settings
    run.model.train()
    run.sampler.set_position(position.epoch, position.batch)
    run.progress.start_epoch(position.epoch + 1, position.batch, run.sampler.batches_per_epoch)
    waits: list[float] = []
    logged = 0
    for group, seconds in grouped(run.loader, settings.accumulate):
        waits.append(seconds)
        scalars, report = train_step(run, group)
        position.step += 1
        position.batch += len(group)
        count_skips(run, report)
        images = sum(len(batch.labels) for batch in group) * run.runtime.world_size
        run.progress.advance(len(group), images)
        if position.step % settings.log_every_steps == 0:
            log_step(run, scalars, report, fmean(waits[logged:]))
            logged = len(waits)
        # the end of an epoch saves by itself
        at_border = position.batch >= run.sampler.batches_per_epoch
        signal_number = asked_to_stop()
        if signal_number or (position.step % settings.save_every_steps == 0 and not at_border):
            save_state(run)
        if signal_number:
            raise stopped(run, signal_number)
    return sum(waits)


def stopped(run: Run, signal_number: int) -> Stopped:
    """What to leave with after a signal."""
    return Stopped(signal_number, f"stopped; the same command goes on from {run.folder / STATE}")


def train_step(run: Run, group: list[Batch]) -> tuple[dict[str, Tensor], StepReport]:
    """One optimizer step over a group of micro-batches; the teacher runs once, both SAM passes reuse its logits."""
    settings = run.settings
    device = run.runtime.device
    alpha = alpha_of(run)
    group = [
        Batch(tuple(c.to(device, non_blocking=True) for c in b.crops), b.labels.to(device)) for b in group
    ]
    targets = [teacher_logits(run, batch) for batch in group]
    parts: list[dict[str, Tensor]] = []

    def closure(batch: Batch, target: Tensor | None) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            with run.runtime.autocast():
                answer = run.model(batch.crops[0])
            logits, maps = (answer, None) if run.tracing is None else answer
            losses = losses_of(logits, batch.labels, target, alpha, settings)
            if maps is not None:
                losses.setdefault("loss_hard", losses["loss"])
                losses["loss_trace"] = trace_loss(maps, batch.crops[0])
                losses["loss"] = losses["loss"] + settings.trace_loss_weight * losses["loss_trace"]
            parts.append({name: value.detach() for name, value in losses.items()})
            return losses["loss"]

        return forward

    for parameters in run.optimizer.param_groups:
        parameters["lr"] = settings.lr * lr_factor(run.share_done, settings)
    closures = [closure(batch, target) for batch, target in zip(group, targets, strict=True)]
    report = run.sam.step(closures, perturb=wants_sam(run))
    if run.average is not None and report.skipped is None:
        run.average.update(run.learner)
    first_pass = parts[: len(group)]
    return {name: torch.stack([part[name] for part in first_pass]).mean() for name in first_pass[0]}, report


def teacher_logits(run: Run, batch: Batch) -> Tensor | None:
    """The frozen teacher's answer to the very crops the student sees, at the teacher's size; None without one."""
    if run.teacher is None:
        return None
    with torch.no_grad(), run.runtime.autocast():
        logits: Tensor = run.teacher(batch.crops[-1])
    return logits.float()


def losses_of(
    logits: Tensor, labels: Tensor, target: Tensor | None, alpha: float, settings: Settings
) -> dict[str, Tensor]:
    """Hard loss, and with a teacher alpha * hard + (1 - alpha) * soft; `loss` is what is minimised."""
    hard = hard_loss(logits, labels)
    if target is None:
        return {"loss": hard}
    soft = soft_loss(settings.loss, logits, target, temperature=settings.temperature)
    return {"loss": combine(hard, soft, alpha), "loss_hard": hard, "loss_soft": soft}


def alpha_of(run: Run) -> float:
    """The hard loss's share in the present epoch."""
    settings = run.settings
    return alpha_at(run.position.epoch + 1, settings.alpha_table, settings.alpha_start, settings.alpha_end)


def lr_factor(share: float, settings: Settings) -> float:
    """Learning rate as a share of its peak, at a share of the run (both 0..1)."""
    if share < settings.warmup_share:
        return max(share / settings.warmup_share, 1e-3)
    if settings.schedule == "cosine":
        after = (share - settings.warmup_share) / (1 - settings.warmup_share)
        return 0.5 * (1 + math.cos(math.pi * after))
    if settings.schedule == "hold_linear" and share > settings.hold_share:
        return max(0.0, (1 - share) / (1 - settings.hold_share))
    return 1.0


def wants_sam(run: Run) -> bool:
    """Whether the present step perturbs: late SAM and SAM every k steps leave steps plain."""
    settings = run.settings
    return run.share_done >= settings.sam_start_fraction and run.position.step % settings.sam_interval == 0


def count_skips(run: Run, report: StepReport) -> None:
    """Count and note a skipped step.

    Raises:
        InputError: `max_bad_steps` of them in a row, with what to try.
    """
    position, limit = run.position, run.settings.max_bad_steps
    if report.skipped is None:
        position.skipped_in_a_row = 0
        return
    position.skipped += 1
    position.skipped_in_a_row += 1
    if run.log is not None:
        run.log.note(position.step, position.epoch + 1, f"step skipped: not finite in the {report.skipped}")
    if position.skipped_in_a_row >= limit:
        raise InputError(
            f"{limit} steps in a row had a loss or gradient that is not finite (step {position.step}). Check the "
            f"starting weights, or start afresh (--resume never) with a lower --set lr (now {run.settings.lr:g}), "
            f"--set precision=fp32 (now {run.settings.precision}) or a longer --set warmup_share; weights of the "
            f"epochs that were validated are in {run.folder / 'weights'}"
        )


def log_step(run: Run, scalars: dict[str, Tensor], report: StepReport, wait: float) -> None:
    """One line of the step log; losses are the main process's own, `wait` the seconds a step waited for data."""
    position, settings = run.position, run.settings
    line: dict[str, Any] = {name: float(value) for name, value in scalars.items()}
    line["lr"] = run.optimizer.param_groups[0]["lr"]
    line["grad_norm"] = float(report.grad_norm)
    if report.sharpness is not None:
        line["sharpness"], line["sam_rho"] = float(report.sharpness), settings.sam_rho
    if run.teacher is not None:
        line["alpha"] = alpha_of(run)
    line |= run.progress.rates()
    line["data_wait_s"] = wait
    line["skipped"] = position.skipped
    if run.log is not None:
        run.log.step(position.step, position.epoch + 1, line)
    run.progress.show(line)


def validate_and_keep(run: Run) -> None:
    """Validate the model that will be used, write its weights, keep the best; the main process does it for all."""

    def work() -> None:
        epoch = run.position.epoch + 1
        with evaluated_weights(run):
            result = run.validator.validate(run.learner)
            keep_weights(run, epoch, result)
        if run.log is not None:
            run.log.epoch(run.position.step, epoch, result.scalars())
        run.progress.end_epoch(epoch, result)

    run.runtime.on_main(work)


def keep_weights(run: Run, epoch: int, result: Validation) -> None:
    """Write the epoch's weights and delete those that fall out of the best `keep_best`."""
    if result.auc is None:
        note = "weights not kept: their answers on the validation set are not finite"
        run.progress.say(f"epoch {epoch}: {note}")
        if run.log is not None:
            run.log.note(run.position.step, epoch, note)
        return
    info = CheckpointInfo(
        stage=run.stage,
        epoch=epoch,
        val_auc=result.auc,
        threshold=result.threshold,
        network=run.learner.spec,
        config=run.settings.model_dump(mode="json"),
        provenance=run.provenance,
    )
    weights = run.folder / "weights"
    save_checkpoint(weights / weights_name(epoch, result.auc), run.learner.state_dict(), info)
    prune(weights, run.settings.keep_best)


@contextmanager
def evaluated_weights(run: Run) -> Iterator[None]:
    """Put the averaged weights, where there are any, into the learner for validation and saving, and back after."""
    if run.average is None:
        yield
        return
    live = {key: value.detach().clone() for key, value in run.learner.state_dict().items()}
    run.learner.load_state_dict(run.average.weights)
    try:
        yield
    finally:
        run.learner.load_state_dict(live)


def save_state(run: Run) -> None:
    """Save all that an exact resume needs; every process must call it."""
    streams = gather_rng(run.runtime)

    def work() -> None:
        content = {
            "model": run.learner.state_dict(),
            "trace_heads": None if run.tracing is None else run.tracing.heads.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": None if run.scaler is None else run.scaler.state_dict(),
            "average": None if run.average is None else run.average.state_dict(),
            "position": vars(run.position).copy(),
            "rng": streams,
        }
        save_atomically(run.folder / STATE, content)

    run.runtime.on_main(work)


def restore_state(run: Run) -> None:
    """Put a run back to where `save_state` left it.

    Raises:
        InputError: the state is damaged, or was saved by another number of processes.
    """
    path = run.folder / STATE
    state = read_weight_file(path).payload
    if not isinstance(state, dict) or not {"model", "optimizer", "position", "rng"} <= state.keys():
        raise InputError(f"{path}: not a saved state; start afresh with --resume never")
    if len(state["rng"]) != run.runtime.world_size:
        raise InputError(
            f"{path}: saved by {len(state['rng'])} process(es), this run has {run.runtime.world_size}; "
            "resume with as many, or start afresh with --resume never"
        )
    run.learner.load_state_dict(state["model"])
    if run.tracing is not None:
        run.tracing.heads.load_state_dict(state["trace_heads"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.scaler is not None and state["scaler"] is not None:
        run.scaler.load_state_dict(state["scaler"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    run.position = Position(**state["position"])
    restore_rng(state["rng"][run.runtime.rank], run.runtime.device)


def grouped(loader: Iterable[Batch], size: int) -> Iterator[tuple[list[Batch], float]]:
    """Groups of `size` micro-batches (the last may be shorter) and the seconds spent waiting for them."""
    batches = batches_of(loader)
    while True:
        start = time.perf_counter()
        group = list(islice(batches, size))
        if not group:
            return
        yield group, time.perf_counter() - start
