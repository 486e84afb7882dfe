"""Training on a GPU in the precisions that only exist there starts from the losses of the CPU in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import load_detector
from training.config import Settings, Stage
from training.run_folder import STATE
from training.run_log import read_log
from training.stages import train

Make = Callable[..., Settings]
DEVICE = "cuda"


def run(stage: Stage, settings: Settings, name: str) -> tuple[list[float], Any]:
    """Losses of every step, and the state the run ended with."""
    weights = train(stage, settings, name)
    folder = weights.parent.parent
    losses = [event["loss"] for event in read_log(folder) if event["kind"] == "step"]
    detector, _ = load_detector(weights)
    assert all(bool(value.isfinite().all()) for value in detector.state_dict().values())
    return losses, torch.load(folder / STATE, weights_only=False, map_location="cpu")


@pytest.mark.parametrize("stage", ["teacher", "stage1"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_a_run_on_the_gpu_starts_as_one_on_the_cpu(tiny: Make, stage: Stage, precision: str) -> None:
    # Dropped units are drawn on the device, and differently there.
    same = {"epochs": 1, "dropout": 0.0, "teacher_dropout": 0.0, "drop_path": 0.0}
    reference, _ = run(stage, tiny(**same), "cpu")
    losses, state = run(stage, tiny(device=DEVICE, precision=precision, **same), f"gpu-{precision}")
    assert len(losses) == len(reference)
    assert all(math.isfinite(loss) for loss in losses)
    # `auto` is bfloat16 there, which keeps 8 bits of what float16 keeps 11 of
    bound = {"fp32": 1e-3, "fp16": 1e-2, "auto": 6e-2}[precision]
    assert losses[0] == pytest.approx(reference[0], rel=bound)
    assert (state["scaler"] is not None) == (precision == "fp16")


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_the_student_is_distilled_on_the_gpu(tiny: Make, tmp_path: Path, precision: str) -> None:
    teacher = train("teacher", tiny(epochs=1, output=tmp_path / "teachers", device=DEVICE), "teacher")
    settings = tiny(epochs=1, device=DEVICE, precision=precision, teacher_weights=str(teacher))
    losses, _ = run("stage2", settings, f"distil-{precision}")
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
