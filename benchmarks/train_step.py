"""Measures what the loop adds to the bare arithmetic of a step, and whether the loader keeps up with training.

Loop and bare code run the same networks on the same batches in turns, so that a noisy machine slows both alike; the
figure to read is the ratio.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from benchmarks.machine import environment
from benchmarks.selfblend import drawn_faces
from pipeline.errors import InputError
from training.config import Settings, Stage, load_settings
from training.dataset import Batch
from training.index import FaceRecord
from training.loop import Run, train_epoch
from training.progress import Progress
from training.run_log import RunLog
from training.runtime import Runtime, start_runtime
from training.stage_networks import build_networks
from training.stages import assemble, build_validator


def run(
    config: Path = Path("configs/demo.json"),
    *,
    stage: Stage = "stage1",
    overrides: Sequence[str] = (),
    steps: int = 8,
    rounds: int = 7,
) -> dict[str, Any]:
    """Time the loop against bare steps, and the real loader against the loop.

    Args:
        config: Networks, batch size, optimizer and SAM are taken from it.
        stage: "teacher" or "stage1"; stage 2 adds a teacher's forward pass to both sides alike.
        overrides: `key=value` settings.
        steps: Steps per block.
        rounds: Blocks of each kind, in turns, after one of each to warm up.

    Returns:
        Milliseconds per step of both, their ratio (median and range over the rounds), images per second, and the share
        of time spent waiting for the real loader.

    Raises:
        InputError: a setting that cannot be used, or fewer than one step or round.
    """
    if steps < 1 or rounds < 1 or stage == "stage2":
        raise InputError(
            f"steps {steps}, rounds {rounds}, stage {stage}: expected 1 or more, and teacher or stage1"
        )
    settings = load_settings(
        config, stage, [*overrides, "epochs=1", "log_every_steps=5", "sam_start_fraction=0"]
    )
    with tempfile.TemporaryDirectory() as scratch, start_runtime(settings) as runtime:
        run = build_run(stage, settings, runtime, Path(scratch), steps)
        batches = list(run.loader)
        in_memory = replace(run, loader=batches)
        with RunLog.open(Path(scratch) / "log") as run.log:
            in_memory.log = run.log
            pairs = [(loop_ms(in_memory), _bare_ms(run, batches)) for _ in range(rounds + 1)][1:]
            waits = [_wait_share(run) for _ in range(2)][-1]
    loop, bare = np.array(pairs).T
    ratios = loop / bare
    images = settings.batch_size * 1000
    return {
        "benchmark": "train-step",
        **environment(),
        "settings": settings.model_dump(mode="json"),
        "stage": stage,
        "steps": steps,
        "rounds": rounds,
        "loop_ms": round(float(np.median(loop)), 2),
        "bare_ms": round(float(np.median(bare)), 2),
        "ratio": {
            "median": round(float(np.median(ratios)), 4),
            "min": round(float(ratios.min()), 4),
            "max": round(float(ratios.max()), 4),
        },
        "images_per_second": round(images / float(np.median(loop)), 1),
        "loader_wait_share": round(waits, 4),
    }


def markdown(result: dict[str, Any]) -> str:
    """One line for the README."""
    settings = result["settings"]
    return (
        f"| {settings['student']} @{settings['image_size']}, batch {settings['batch_size']}, "
        f"SAM rho {settings['sam_rho']} | loop / bare {ratio_text(result)} | "
        f"{result['images_per_second']:.0f} images/s | {settings['workers']} worker(s): "
        f"{result['loader_wait_share']:.1%} of the time spent waiting for data |"
    )


def ratio_text(result: dict[str, Any]) -> str:
    """The ratio loop / bare: median and range over the rounds."""
    ratio = result["ratio"]
    return f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"


def build_run(stage: Stage, settings: Settings, runtime: Runtime, scratch: Path, steps: int) -> Run:
    """A run of so many steps on drawn faces, standing at its first one."""
    faces = _repeated(drawn_faces(scratch), steps * settings.batch_size // 2)
    settings = settings.model_copy(update={"draws_per_face": 1})
    networks = build_networks(stage, settings, runtime)
    validator = build_validator(faces[:1], networks, settings, runtime)
    progress = Progress(None, 1)
    return assemble(stage, settings, runtime, scratch, networks, faces, validator, progress, {})


def _repeated(faces: Sequence[FaceRecord], count: int) -> list[FaceRecord]:
    return [faces[index % len(faces)] for index in range(count)]


def loop_ms(run: Run) -> float:
    """Milliseconds per step of the real loop over batches held in memory."""
    run.position.epoch = run.position.batch = run.position.step = 0
    start = time.perf_counter()
    train_epoch(run, lambda: 0)
    return 1000 * (time.perf_counter() - start) / run.position.step


def _bare_ms(run: Run, batches: Sequence[Batch]) -> float:
    """Milliseconds per step of nothing but forward, backward (twice under SAM), clip, step."""
    settings, model, optimizer = run.settings, run.learner, run.optimizer
    parameters = list(model.parameters())
    model.train()
    start = time.perf_counter()
    for batch in batches:
        _backward(model, optimizer, batch)
        if settings.sam_rho > 0:
            _perturb(parameters, settings.sam_rho)
            _backward(model, optimizer, batch)
        if settings.clip_norm is not None:
            clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
    return 1000 * (time.perf_counter() - start) / len(batches)


def _backward(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(functional.cross_entropy(model(batch.crops[0]), batch.labels))


@torch.no_grad()
def _perturb(parameters: Sequence[torch.nn.Parameter], rho: float) -> None:
    """SAM's climb without the way back: the least that any implementation has to do between the passes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_add_(
        [p for p in parameters if p.grad is not None], gradients, alpha=rho / (float(norm) + 1e-12)
    )


def _wait_share(run: Run) -> float:
    """Share of an epoch's time that the loop spends waiting for the real loader."""
    run.position.epoch = run.position.batch = run.position.step = 0
    start = time.perf_counter()
    waited = train_epoch(run, lambda: 0)
    return waited / (time.perf_counter() - start)
