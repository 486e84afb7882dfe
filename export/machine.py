"""What this machine has: processor, GPU and the libraries that build and run formats, each asked directly."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.cuda_device import find_device
from pipeline.engine_check import this_platform
from pipeline.errors import InputError
from pipeline.runtime_openvino import openvino_core
from pipeline.tensorrt_library import LibraryName, install_command, open_library

INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions that sum products of bytes; without any of them int8 gains little on x86."""
BF16_FLAGS = ("avx512_bf16", "amx_bf16")

_LIBRARIES: tuple[LibraryName, ...] = ("tensorrt", "tensorrt-rtx")
# Module, distribution, extra that brings it.
_PACKAGES = (
    ("torch", "torch", "train"),
    ("onnx", "onnx", "export"),
    ("onnxscript", "onnxscript", "export"),
    ("onnxruntime", "onnxruntime", "serve"),
    ("openvino", "openvino", "openvino"),
    ("nncf", "nncf", "export"),
    ("torch_tensorrt", "torch-tensorrt", "torch-tensorrt"),
    ("cuda.bindings", "cuda-bindings", "tensorrt-rtx"),
)


_NVIDIA = {
    extra: f"pip install -e '.[{extra}]'  # fetches libraries from NVIDIA's own package index"
    for extra in ("tensorrt", "torch-tensorrt")
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(_Model):
    """A library.

    Attributes:
        name: Of its module; TensorRT's two go by their runtime's name.
        version: None where it is not installed or cannot be loaded.
        problem: Then, why.
        fix: Then, the command that installs it.
        devices: Where it says that it can compute.
    """

    name: str
    version: str | None = None
    problem: str | None = None
    fix: str | None = None
    devices: tuple[str, ...] = ()


class Processor(_Model):
    """The CPU.

    Attributes:
        name: As its maker calls it.
        cores: That this process may use.
        memory: In bytes; None where the system does not tell.
        flags: Of those that matter to us: AVX2, AVX-512, VNNI, AMX, bf16.
    """

    name: str
    cores: int
    memory: int | None
    flags: tuple[str, ...]


class Gpu(_Model):
    """The first GPU.

    Attributes:
        name: As its maker calls it.
        compute_capability: Such as "8.9".
        cuda: Highest CUDA version its driver knows.
        driver: The driver's own version, by `nvidia-smi`.
        memory: In bytes.
    """

    name: str
    compute_capability: str
    cuda: str
    driver: str | None
    memory: int


class Machine(_Model):
    """This machine.

    Attributes:
        python: Version.
        platform: Such as "linux-x86_64".
        processor: The CPU.
        gpu: None where none can be used.
        no_gpu: Then, why.
        packages: By name.
    """

    python: str
    platform: str
    processor: Processor
    gpu: Gpu | None
    no_gpu: str | None
    packages: dict[str, Package]

    def package(self, name: str) -> Package:
        """A library by the name of its module or runtime."""
        return self.packages.get(name) or Package(name=name, problem="is not known here")


def examine_machine() -> Machine:
    """Look at processor, GPU and libraries; each library is really loaded, which takes seconds."""
    gpu, no_gpu = examine_gpu()
    packages = [_package(*names) for names in _PACKAGES] + [_library(name) for name in _LIBRARIES]
    return Machine(
        python=sys.version.split()[0],
        platform=this_platform(),
        processor=examine_processor(),
        gpu=gpu,
        no_gpu=no_gpu,
        packages={package.name: package for package in packages},
    )


def examine_gpu() -> tuple[Gpu | None, str | None]:
    """The first GPU, or why there is none."""
    try:
        device = find_device()
    except InputError as error:
        return None, str(error)
    told = nvidia_smi("driver_version")
    gpu = Gpu(
        name=device.name,
        compute_capability=device.compute_capability,
        cuda=device.driver,
        driver=told[0] if told else None,
        memory=device.memory,
    )
    return gpu, None


def nvidia_smi(*fields: str) -> tuple[str, ...] | None:
    """What `nvidia-smi` tells of the first GPU, each with its unit; None where it cannot.

    Args:
        fields: As `nvidia-smi --help-query-gpu` names them.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    told = tuple(done.stdout.strip().split(", "))
    return told if len(told) == len(fields) and all(told) else None


def examine_processor() -> Processor:
    """The processor; Linux tells it in /proc, other systems through platform."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    known = ("avx2", "avx512f", *INT8_FLAGS, *BF16_FLAGS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processor(
        name=name, cores=cores, memory=_memory(), flags=tuple(flag for flag in known if flag in flags)
    )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _package(module: str, distribution: str, extra: str) -> Package:
    fix = _NVIDIA.get(extra, f"pip install -e '.[{extra}]'")
    try:
        loaded = importlib.import_module(module)
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a ModuleNotFoundError too, so it comes first
        # onnxruntime-gpu and its like bring the module under another distribution's name
        version = str(getattr(loaded, "__version__", "unknown"))
    except ModuleNotFoundError as error:
        missing = error.name in (module, module.partition(".")[0])
        return Package(name=module, problem="is not installed" if missing else f"lacks {error.name}", fix=fix)
    except Exception as error:  # noqa: BLE001 - torch_tensorrt raises bare Exceptions without a driver
        return Package(name=module, problem=f"cannot be loaded: {error}", fix=fix)
    return Package(name=module, version=version, devices=_devices(module, loaded))


def _devices(module: str, loaded: object) -> tuple[str, ...]:
    if module == "onnxruntime":
        providers: list[str] = loaded.get_available_providers()  # type: ignore[attr-defined]
        return tuple(name.removesuffix("ExecutionProvider") for name in providers)
    if module == "openvino":
        return tuple(openvino_core().available_devices)
    if module == "torch":
        return ("CPU", "CUDA") if loaded.cuda.is_available() else ("CPU",)  # type: ignore[attr-defined]
    return ()


def _library(name: LibraryName) -> Package:
    try:
        return Package(name=name, version=open_library(name).version)
    except InputError as error:
        return Package(name=name, problem=str(error), fix=_NVIDIA.get(name, install_command(name)))
