"""The formats a bundle can hold, as data: what each is made from, what runs it and what making it needs.

Nothing heavy is imported here, so that `stillface doctor` and `--help` may read it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.manifest import ArtefactName, Precision, RuntimeName


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        name: As in `--formats` and in the manifest.
        runtime: What opens it.
        precision: Of most of its arithmetic; decides which gate it has to pass.
        made_from: "checkpoint", or the format it is converted from.
        made_with: Modules that must be importable to make it.
        extra: The extra of pyproject.toml that brings them.
        needs_gpu: Whether it runs on a GPU only; it may still be built without one.
        builds_without_gpu: Whether it can be built on a machine without one.
        suffix: Of its main file.
        about: One line for people.
    """

    name: ArtefactName
    runtime: RuntimeName
    precision: Precision
    made_from: str
    made_with: tuple[str, ...]
    extra: str
    needs_gpu: bool
    builds_without_gpu: bool
    suffix: str
    about: str


_ONNX = ("onnx", "onnxscript", "onnxruntime")

FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format(
            "onnx", "onnxruntime", "fp32", "checkpoint", _ONNX, "export", False, True, ".onnx",
            "ONNX in fp32: runs everywhere, and every other format is measured against it",
        ),
        Format(
            "onnx-fp16", "onnxruntime", "fp16", "checkpoint", _ONNX, "export", False, True, ".onnx",
            "ONNX in fp16 with norms, softmax and head in fp32: for GPUs",
        ),
        Format(
            "onnx-int8", "onnxruntime", "int8", "onnx", _ONNX, "export", False, True, ".onnx",
            "ONNX with int8 convolutions (QDQ): for CPUs",
        ),
        Format(
            "onnx-cuda", "onnxruntime-cuda", "fp16", "checkpoint", _ONNX, "export", True, True, ".onnx",
            "onnx-fp16 in ONNX Runtime on an NVIDIA GPU: where there is no TensorRT",
        ),
        Format(
            "openvino", "openvino", "fp32", "onnx", (*_ONNX, "openvino"), "openvino", False, True, ".xml",
            "OpenVINO in fp32: for Intel and AMD CPUs",
        ),
        Format(
            "openvino-int8", "openvino", "int8", "onnx", (*_ONNX, "openvino", "nncf"), "export",
            False, True, ".xml", "OpenVINO in int8: the fastest on CPUs with int8 instructions",
        ),
        Format(
            "tensorrt", "tensorrt", "fp16", "checkpoint", (*_ONNX, "tensorrt"), "tensorrt",
            True, False, ".engine", "TensorRT engine in fp16, for the GPU it was built on",
        ),
        Format(
            "tensorrt-int8", "tensorrt", "int8", "checkpoint", (*_ONNX, "tensorrt"), "tensorrt",
            True, False, ".engine", "TensorRT engine with int8 convolutions, for the GPU it was built on",
        ),
        Format(
            "tensorrt-rtx", "tensorrt-rtx", "fp16", "checkpoint", (*_ONNX, "tensorrt_rtx_bindings"), "tensorrt-rtx",
            True, True, ".engine", "TensorRT for RTX engine in fp16: builds without a GPU, runs on RTX cards",
        ),
        Format(
            "torch-tensorrt", "torch-tensorrt", "fp16", "checkpoint", ("torch_tensorrt",), "torch-tensorrt",
            True, False, ".pt2", "a torch.export program whose parts run in TensorRT",
        ),
    )
}  # fmt: skip
"""By name, in the order they are built: what others are made from comes first."""

REFERENCE = "onnx"
"""Always exported: it is what all others are compared with, and what every machine can run."""


def missing_modules(item: Format) -> list[str]:
    """Modules that making it needs and that are not installed here."""
    return [name for name in item.made_with if importlib.util.find_spec(name) is None]


def parse_formats(text: str) -> tuple[Format, ...]:
    """Turn `--formats` into formats in building order, `onnx` among them.

    Raises:
        InputError: An unknown name, or a format that this machine lacks the packages for.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise InputError(
            f"--formats {text!r}: {', '.join(unknown) or 'nothing'} is no format; choose from {', '.join(FORMATS)}."
        )
    chosen = tuple(item for item in FORMATS.values() if item.name in {*names, REFERENCE})
    for item in chosen:
        missing = missing_modules(item)
        if missing:
            raise InputError(
                f"{item.name} cannot be made here: {', '.join(missing)} is not installed. "
                f"Install it with `pip install -e '.[{item.extra}]'`, or leave {item.name} out of --formats."
            )
    return chosen


def default_formats() -> str:
    """What `--formats` is where it is not given: all that this machine can build without a GPU."""
    return ",".join(
        item.name for item in FORMATS.values() if item.builds_without_gpu and not missing_modules(item)
    )
