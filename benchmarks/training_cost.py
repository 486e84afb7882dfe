"""What a step of training costs in time and memory: where the published 8 GB and 4 GB come from.

The loop itself is run on batches in memory, with drawn faces and random weights, which change neither.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import resident
from benchmarks.train_step import build_run, loop_ms
from training.config import Stage, load_settings
from training.run_log import RunLog
from training.runtime import start_runtime

_SUFFIXES = {None: "", torch.bfloat16: "-bf16", torch.float16: "-fp16"}


def measure(
    config: str,
    stage: Stage,
    teacher: str | None,
    overrides: list[str],
    batch: int,
    steps: int,
    blocks: int,
    threads: int,
) -> dict[str, Any]:
    """Run a few steps of a stage.

    Args:
        config: Its networks and settings.
        stage: Which one.
        teacher: Checkpoint for stage 2; its content does not matter.
        overrides: `key=value` settings.
        batch: Images of a step, half of them fakes.
        steps: Per block.
        blocks: Timed, after one that is not.
        threads: Of the CPU.

    Returns:
        Seconds per step of each block, bytes by kind, what was trained, and by which of `ways.WAYS`.

    Raises:
        InputError: A setting that cannot be used.
    """
    torch.set_num_threads(threads)
    own = [
        f"batch_size={batch}",
        "workers=0",
        "epochs=1",
        "log_every_steps=5",
        "sam_start_fraction=0",
        "draws_per_face=1",
    ]
    if stage == "teacher":
        own.append("teacher_pretrained=none")
    elif stage == "stage1":
        own.append("pretrained=none")
    else:
        own += ["pretrained_student_weights=none", "pretrained=none", f"teacher_weights={teacher}"]
    settings = load_settings(Path(config), stage, [*own, *overrides])
    base = resident.now()
    with tempfile.TemporaryDirectory() as scratch, start_runtime(settings) as runtime:
        run = build_run(stage, settings, runtime, Path(scratch), steps)
        run = replace(run, loader=list(run.loader))
        on_gpu = runtime.device.type == "cuda"
        way = ("cuda" if on_gpu else "torch") + _SUFFIXES[runtime.autocast_dtype]
        resident.reset_peak()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with RunLog.open(Path(scratch) / "log") as run.log:
            times = [loop_ms(run) / 1000 for _ in range(blocks + 1)][1:]
        memory = {"running": resident.peak() - base}
        if on_gpu:
            memory = {
                "torch_peak": torch.cuda.max_memory_allocated(),
                "torch_reserved": torch.cuda.max_memory_reserved(),
            }
    networks = f"{run.learner.spec.name} @{run.learner.spec.image_size}"
    if run.teacher is not None:
        networks += f" under {run.teacher.spec.name} @{run.teacher.spec.image_size}"
    return {"networks": networks, "step_seconds": times, "memory": memory, "way": way}
