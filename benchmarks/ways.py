"""The ways to run a network that are compared: runtime, precision and device by name, and what is inside the timer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

_HOST: Final = "crops in the process's memory to logits and evidence there"
_DEVICE: Final = "crops on the GPU to logits and evidence on the GPU, by CUDA events"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a network.

    Attributes:
        name: As in results and options.
        runtime: What runs it, for people.
        precision: Of most of its arithmetic.
        file: The form of the network it opens, a key of `benchmarks.making.FORMS`.
        device: Where it runs.
        detail: What sets it apart from its runtime's other ways.
        channels_last, compiled, graphs: Of PyTorch.
        every_batch: Whether another batch size costs no more than running it.
    """

    name: str
    runtime: str
    precision: Precision
    file: str
    device: Device = "cpu"
    detail: str = ""
    channels_last: bool = False
    compiled: bool = False
    graphs: bool = False
    every_batch: bool = True

    @property
    def title(self) -> str:
        """Runtime, precision and detail."""
        return " ".join(filter(None, (self.runtime, self.precision, self.detail)))

    @property
    def inside(self) -> str:
        """What the timer holds."""
        return _DEVICE if self.device == "cuda" and self.file == "torch" else _HOST


_TORCH, _ORT, _OPENVINO = "PyTorch", "ONNX Runtime", "OpenVINO"
_TORCH_GPU = "PyTorch CUDA"

CPU: Final = (
    Way("torch", _TORCH, "fp32", "torch", detail="eager"),
    Way("torch-channels-last", _TORCH, "fp32", "torch", detail="channels-last", channels_last=True),
    Way("torch-compiled", _TORCH, "fp32", "torch", detail="compiled", compiled=True, every_batch=False),
    Way("torch-bf16", _TORCH, "bf16", "torch", detail="autocast", channels_last=True),
    Way("onnx", _ORT, "fp32", "onnx"),
    Way("onnx-int8", _ORT, "int8", "onnx-int8"),
    Way("openvino", _OPENVINO, "fp32", "openvino"),
    Way("openvino-bf16", _OPENVINO, "bf16", "openvino"),
    Way("openvino-int8", _OPENVINO, "int8", "openvino-int8"),
)
GPU: Final = (
    Way("cuda", _TORCH_GPU, "fp32", "torch", "cuda", "eager"),
    Way(
        "cuda-fp16-graph", _TORCH_GPU, "fp16", "torch", "cuda", "autocast, CUDA graph",
        channels_last=True, graphs=True,
    ),
    Way("onnx-cuda", "ONNX Runtime CUDA", "fp32", "onnx", "cuda"),
    Way("tensorrt-fp16", "TensorRT", "fp16", "tensorrt", "cuda"),
    Way("tensorrt-fp16-graph", "TensorRT", "fp16", "tensorrt", "cuda", "CUDA graph", graphs=True),
    Way("tensorrt-int8", "TensorRT", "int8", "tensorrt-int8", "cuda"),
    Way("torch-tensorrt", "torch-tensorrt", "fp16", "torch-tensorrt", "cuda"),
    Way("cuda-graph", _TORCH_GPU, "fp32", "torch", "cuda", "CUDA graph", graphs=True),
    Way("cuda-bf16", _TORCH_GPU, "bf16", "torch", "cuda", "autocast", channels_last=True),
    Way("cuda-fp16", _TORCH_GPU, "fp16", "torch", "cuda", "autocast", channels_last=True),
    Way("cuda-tf32", _TORCH_GPU, "tf32", "torch", "cuda", "eager"),
    Way("cuda-channels-last", _TORCH_GPU, "fp32", "torch", "cuda", "channels-last", channels_last=True),
    Way(
        "cuda-compiled", _TORCH_GPU, "fp16", "torch", "cuda", "compiled",
        channels_last=True, compiled=True, every_batch=False,
    ),
)  # fmt: skip
"""Those that tell most first: on a machine that is paid for by the minute the last ones may not be begun."""
WAYS: Final[dict[str, Way]] = {way.name: way for way in (*CPU, *GPU)}

ANCHOR: Final = WAYS["onnx"]
"""One network runs this way in every heat, so that heats, which are apart in time, can be compared."""
ANCHOR_NETWORK: Final = "stage2"
"""Its key."""
SIDE_WAYS: Final = (
    "torch",
    "onnx",
    "onnx-int8",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
    "cuda-fp16-graph",
)
"""Ways in which widths and rivals are shown; the others would take the time and tell little more."""
