"""The GPU of this machine, asked through CUDA's own runtime and without torch, which a server does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import CannotRunHereError


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A GPU.

    Attributes:
        name: As its maker calls it, such as "NVIDIA L4".
        compute_capability: Such as "8.9".
        driver: Highest CUDA version that the installed driver knows, such as "13.0".
        memory: Of the whole device, in bytes.
    """

    name: str
    compute_capability: str
    driver: str
    memory: int


def cuda_runtime() -> Any:
    """`cuda.bindings.runtime`, CUDA's runtime in Python.

    Raises:
        CannotRunHereError: It is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise CannotRunHereError(
            f"No way to reach a GPU: CUDA's Python bindings are not installed ({error}). "
            "Install them with `pip install cuda-bindings`."
        ) from error
    return runtime


def ask(answer: tuple[Any, ...]) -> Any:
    """What a call of CUDA's runtime returned, without its error code.

    Raises:
        RuntimeError: The call failed. CUDA errors stick: only a new process gets rid of them.
    """
    code, *values = answer
    if int(code) != 0:
        from cuda.bindings import runtime

        said = runtime.cudaGetErrorString(code)[1]
        text = said.decode() if isinstance(said, bytes) else str(said)
        raise RuntimeError(f"CUDA: {text} ({code.name}). Restart the process if this does not go away.")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def find_device(index: int = 0) -> CudaDevice:
    """Describe a GPU of this machine.

    Raises:
        CannotRunHereError: CUDA's bindings are not installed, or no driver or no such device is here.
    """
    cuda = cuda_runtime()
    try:
        count = ask(cuda.cudaGetDeviceCount())
    except RuntimeError as error:
        raise CannotRunHereError(_no_device(str(error).partition(" (")[0])) from error
    if index >= count:
        raise CannotRunHereError(_no_device(f"{count} found, number {index} asked for"))
    properties = ask(cuda.cudaGetDeviceProperties(index))
    version = ask(cuda.cudaDriverGetVersion())
    name = properties.name
    return CudaDevice(
        name=(name.split(b"\0")[0].decode() if isinstance(name, bytes) else str(name)),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
        memory=int(properties.totalGlobalMem),
    )


def _no_device(why: str) -> str:
    return (
        f"This machine has no CUDA device that can be used ({why}). On a machine without one, use onnx, onnx-int8, "
        "openvino or openvino-int8; with one, check that its driver is installed (`nvidia-smi`) and that this "
        "process may see it."
    )
