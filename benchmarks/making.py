"""Makes the files that the ways to run a network open, and says what the network is; runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.network_cost import cost_of
from benchmarks.ways import WAYS
from export.agreement import Gate
from pipeline.errors import InputError
from pipeline.runtime import Crops
from training.backbones import published_settings
from training.checkpoint import CheckpointInfo, load_detector, save_checkpoint
from training.networks import Detector, NetworkSpec, build_from_spec

RANDOM: Final = "random"
"""Stage of a checkpoint that was never trained."""
ANYTHING: Final = Gate(min_sqnr_db=-np.inf, max_delta_auc=np.inf, max_flips=np.inf)
"""Noise decides nothing, so there is no decision for int8 to keep."""
_RANGING_CROPS: Final = 8


def noise(count: int, size: int) -> Crops:
    """Crops of uniform noise: no network's time depends on what it sees."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@torch.no_grad()
def random_detector(spec: NetworkSpec, seed: int = 0, crops: Crops | None = None) -> Detector:
    """A network with random weights whose activations have the size of a trained one's.

    Args:
        spec: The network.
        seed: Of its weights.
        crops: What it is going to be shown, uint8 [N, H, W, 3]: BatchNorm's statistics are taken from them. None for
            noise, with which it can be timed; faces then drive a deep network beyond what float32 can repeat.
    """
    torch.manual_seed(seed)
    detector = build_from_spec(spec).train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    detector(torch.from_numpy(noise(4, spec.image_size) if crops is None else crops))
    return detector.eval()


def write_random(name: str, image_size: int, path: Path, seed: int = 0, crops: Crops | None = None) -> Path:
    """Store a network with random weights as a checkpoint that says so; see `random_detector`.

    Raises:
        InputError: timm knows no such network, or it cannot take this size.
    """
    published = published_settings(name)
    spec = NetworkSpec(name=name, image_size=image_size, mean=published.mean, std=published.std)
    detector = random_detector(spec, seed, crops)
    info = CheckpointInfo(
        stage=RANDOM, epoch=0, val_auc=None, threshold=None, network=spec, config={}, provenance={}
    )
    save_checkpoint(path, detector.state_dict(), info)
    return path


@dataclass(frozen=True, slots=True)
class Making:
    """What forms are made from."""

    detector: Detector
    folder: Path
    files: dict[str, str]
    threads: int
    calibrated: list[Any] = field(default_factory=list)
    """The calibration that every int8 form is made from, once it has been taken."""

    def path(self, name: str) -> Path:
        """Of a new file."""
        return self.folder / name

    @property
    def crops(self) -> Crops:
        """To take int8 ranges from."""
        return noise(_RANGING_CROPS, self.detector.spec.image_size)


def make(
    checkpoint: str | None, name: str, image_size: int, folder: str, forms: Collection[str], threads: int
) -> dict[str, Any]:
    """Make a network's files.

    Int8 forms have every layer in int8 with ranges by minimum and maximum: what is measured is their speed. What
    `stillface export` ships may keep layers in float to keep its decisions.

    Args:
        checkpoint: None makes one with random weights.
        name: Of the network; a checkpoint has its own.
        image_size: Likewise.
        folder: For the files.
        forms: Keys of `FORMS` that are wanted.
        threads: Of the CPU.

    Returns:
        Facts of the network, its files by form, bytes on disk by form, reasons for the forms that could not be
        made, and seconds that making took.

    Raises:
        InputError: The checkpoint cannot be read, or the network cannot be built.
    """
    torch.set_num_threads(threads)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = Path(checkpoint) if checkpoint else write_random(name, image_size, target / "random.pth")
    detector, info = load_detector(path)
    made = Making(detector, target, {"torch": str(path)}, threads)
    reasons: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for form, maker in FORMS.items():
        if form in forms:
            begun = time.perf_counter()
            try:
                made.files[form] = str(maker(made))
            except InputError as error:
                reasons[form] = str(error)
            except Exception as error:  # noqa: BLE001 - one form that cannot be made must not stop the others
                reasons[form] = f"{type(error).__name__}: {error}".partition("\n")[0]
            seconds[form] = round(time.perf_counter() - begun, 2)
    return {
        "network": {
            "name": detector.spec.name,
            "image_size": detector.spec.image_size,
            **asdict(cost_of(detector)),
            "weights": RANDOM if info.stage == RANDOM else info.sha256,
            "stage": info.stage,
            "val_auc": info.val_auc,
        },
        "files": made.files,
        "bytes": {form: _size(Path(file)) for form, file in made.files.items()},
        "reasons": reasons,
        "seconds": seconds,
    }


def _size(path: Path) -> int:
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" else 0)


def _torch(making: Making) -> str:
    return making.files["torch"]


def _onnx(making: Making) -> Path:
    from export.onnx_graph import write_onnx

    return write_onnx(making.detector, making.path("full.onnx"))


def _calibration(making: Making) -> Any:
    from export.int8_calibration import calibrate

    if not making.calibrated:
        crops = making.crops
        labels = np.arange(len(crops)) % 2
        making.calibrated.append(calibrate(Path(making.files["onnx"]), crops, labels, threads=making.threads))
    return making.calibrated[0]


def _onnx_int8(making: Making) -> Path:
    from export.int8 import quantise_onnx

    path = making.path("int8.onnx")
    return quantise_onnx(_calibration(making), path, methods=("minmax",), gate=ANYTHING).path


def _openvino(making: Making) -> Path:
    from export.openvino_formats import write_openvino

    return write_openvino(Path(making.files["onnx"]), making.path("full.xml"))[0]


def _openvino_int8(making: Making) -> Path:
    from export.openvino_formats import quantise_openvino

    path = making.path("int8.xml")
    return quantise_openvino(_calibration(making), path, methods=("minmax",), gate=ANYTHING).path


def _tensorrt(making: Making) -> Path:
    from export.tensorrt_formats import half_engine

    return half_engine(making.detector, making.path("fp16.engine"), library="tensorrt").path


def _tensorrt_int8(making: Making) -> Path:
    from export.tensorrt_formats import int8_engine

    path = making.path("int8.engine")
    return int8_engine(making.detector, path, making.crops, library="tensorrt")[0].path


def _torch_tensorrt(making: Making) -> Path:
    from export.torch_tensorrt_program import build_program

    return build_program(making.detector, making.path("program.pt2")).path


FORMS: Final[dict[str, Callable[[Making], Path | str]]] = {
    "torch": _torch,
    "onnx": _onnx,
    "onnx-int8": _onnx_int8,
    "openvino": _openvino,
    "openvino-int8": _openvino_int8,
    "tensorrt": _tensorrt,
    "tensorrt-int8": _tensorrt_int8,
    "torch-tensorrt": _torch_tensorrt,
}
"""How each form is made; those made from others come after them."""
assert {way.file for way in WAYS.values()} == set(FORMS)  # noqa: S101 - a way without a file is a fault of ours
