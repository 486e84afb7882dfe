"""What a measurement ran on: every result file begins with it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from export.machine import examine_gpu, examine_processor, nvidia_smi
from training.run_folder import git_revision, version_of

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "torch-tensorrt",
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def environment() -> dict[str, Any]:
    """Command, machine, processor, GPU, its load, versions and git revision, JSON-able."""
    processor = examine_processor()
    gpu, no_gpu = examine_gpu()
    return {
        "command": _command(),
        "git": git_revision(),
        "machine": platform.platform(),
        "processor": processor.name,
        "cores": processor.cores,
        "flags": list(processor.flags),
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else "not told",
        "memory_mib": None if processor.memory is None else processor.memory >> 20,
        "gpu": gpu.model_dump(mode="json") | _gpu_limits() if gpu else no_gpu,
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
    }


def _gpu_limits() -> dict[str, str]:
    """Highest clocks and power of the first GPU, as nvidia-smi tells them; empty where it cannot."""
    names = ("clocks.max.sm", "clocks.max.memory", "power.limit")
    return dict(zip(names, nvidia_smi(*names) or (), strict=False))


def _command() -> str:
    """As a person would type it; of absolute paths only the last part, for the rest is nobody's business."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.stem == "__main__" else f"{program.parent.name}.{program.stem}"
    start = ["python", "-m", module] if program.suffix == ".py" else [program.name]
    return shlex.join(
        [*start, *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])]
    )
