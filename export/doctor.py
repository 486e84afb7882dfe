"""Says of every format whether this machine can build it and run it, and what command would change that."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from export.formats import FORMATS, Format
from export.machine import INT8_FLAGS, Machine, Package
from pipeline.manifest import ArtefactName
from pipeline.runtime import INSTALL_ONNX_CUDA
from pipeline.tensorrt_library import RTX_TARGETS

_NO_GPU = "is built and run on an NVIDIA GPU, and there is none here"
_LIBRARIES = {"torch-tensorrt": "torch_tensorrt", "onnxruntime-cuda": "onnxruntime"}
"""Where a runtime's library goes by another name."""
_ANOTHER_MACHINE = "use a machine with an NVIDIA GPU (Dockerfile.gpu has what it needs)"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FormatState(_Model):
    """What this machine can do with a format.

    Attributes:
        name: The format.
        builds, runs: Whether it can be made and whether it can be used here.
        problems: Why not, and what to keep in mind.
        fixes: Commands, or where there is none what to do.
    """

    name: ArtefactName
    builds: bool
    runs: bool
    problems: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()


class Diagnosis(_Model):
    """This machine and every format."""

    machine: Machine
    formats: tuple[FormatState, ...]


def diagnose(machine: Machine) -> Diagnosis:
    """Judge every format by what a machine has."""
    return Diagnosis(machine=machine, formats=tuple(_state(item, machine) for item in FORMATS.values()))


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis as tables."""
    machine = diagnosis.machine
    facts = Table(show_header=False, box=None)
    for name, value in _facts(machine):
        facts.add_row(name, value)
    console.print(facts)
    table = Table("format", "build", "run", "what to know")
    for state in diagnosis.formats:
        about = "; ".join(state.problems) or FORMATS[state.name].about
        table.add_row(state.name, _word(state.builds), _word(state.runs), about)
    console.print(table)
    fixes: dict[str, list[str]] = {}
    for state in diagnosis.formats:
        for fix in state.fixes:
            fixes.setdefault(fix, []).append(state.name)
    for fix, names in fixes.items():
        console.print(f"{', '.join(names)}: {fix}", markup=False, highlight=False, soft_wrap=True)


def _state(item: Format, machine: Machine) -> FormatState:
    lacking = [machine.package(name) for name in _needed_to_build(item)]
    missing = [package for package in lacking if package.version is None]
    problems = [f"{package.name} {_why(package)}" for package in missing]
    fixes = [package.fix for package in missing if package.fix]
    builds = not missing
    if not item.builds_without_gpu and machine.gpu is None:
        builds = False
        problems.append(_NO_GPU)
        fixes.append(_ANOTHER_MACHINE)
    runs = _runs(item, machine, problems, fixes)
    _remarks(item, machine, problems)
    return FormatState(
        name=item.name,
        builds=builds,
        runs=runs,
        problems=tuple(dict.fromkeys(problems)),
        fixes=tuple(dict.fromkeys(fixes)),
    )


def _runs(item: Format, machine: Machine, problems: list[str], fixes: list[str]) -> bool:
    """Whether a format runs; what stands against it is added to the lists."""
    runtime = machine.package(_LIBRARIES.get(item.runtime, item.runtime))
    good = runtime.version is not None
    if not good:
        problems.append(f"{runtime.name} {_why(runtime)}")
        fixes.extend([runtime.fix] if runtime.fix else [])
    if not item.needs_gpu:
        return good
    if machine.gpu is None:
        problems.append(
            "runs on an NVIDIA GPU, and there is none here" if item.builds_without_gpu else _NO_GPU
        )
        fixes.append(_ANOTHER_MACHINE)
        return False
    if item.runtime == "onnxruntime-cuda":
        if good and "CUDA" not in runtime.devices:
            problems.append(f"{runtime.name} {runtime.version} here is built without CUDA")
            fixes.append(INSTALL_ONNX_CUDA)
        return "CUDA" in runtime.devices
    bindings = machine.package("cuda.bindings")
    if bindings.version is None:
        problems.append(f"{bindings.name} {_why(bindings)}")
        fixes.extend([bindings.fix] if bindings.fix else [])
        return False
    if item.runtime == "tensorrt-rtx" and machine.gpu.compute_capability not in RTX_TARGETS:
        problems.append(
            f"runs on compute capability {', '.join(RTX_TARGETS)}; "
            f"{machine.gpu.name} has {machine.gpu.compute_capability}"
        )
        fixes.append("use tensorrt on this GPU")
        return False
    return good


def _remarks(item: Format, machine: Machine, problems: list[str]) -> None:
    flags = machine.processor.flags
    x86 = machine.platform.endswith(("x86_64", "amd64"))
    if item.name in ("onnx-int8", "openvino-int8") and x86 and not set(INT8_FLAGS) & set(flags):
        problems.append("this processor has no VNNI: int8 gains little, and weights keep to 7 bits")
    if item.name == "onnx-fp16" and "CUDA" not in machine.package("onnxruntime").devices:
        problems.append("on a CPU slower than onnx: ONNX Runtime computes it in float32 between casts")


def _needed_to_build(item: Format) -> tuple[str, ...]:
    """Modules, by the names under which `Machine` keeps them."""
    own = {"tensorrt": "tensorrt", "tensorrt_rtx_bindings": "tensorrt-rtx"}
    return tuple(own.get(name, name) for name in item.made_with)


def _why(package: Package) -> str:
    """Why a library is not there, without what the list of commands says anyway."""
    text = (package.problem or "is not installed").partition(". Install it")[0]
    return text.removeprefix(f"{package.name} ").replace("installed here", "installed").partition("\n")[0]


def _facts(machine: Machine) -> list[tuple[str, str]]:
    cpu, gpu = machine.processor, machine.gpu
    memory = f", {cpu.memory / 2**30:.1f} GiB" if cpu.memory else ""
    rows = [
        ("python", f"{machine.python}, {machine.platform}"),
        ("processor", f"{cpu.name}, {cpu.cores} cores{memory}; {' '.join(cpu.flags) or 'no flags known'}"),
    ]
    if gpu is None:
        rows.append(("gpu", (machine.no_gpu or "none").partition(". On a machine")[0]))
    else:
        rows.append(
            (
                "gpu",
                f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB, compute capability {gpu.compute_capability}, "
                f"driver {gpu.driver or 'unknown'} (CUDA {gpu.cuda})",
            )
        )
    for package in machine.packages.values():
        devices = f" on {', '.join(package.devices)}" if package.devices else ""
        rows.append((package.name, f"{package.version}{devices}" if package.version else _why(package)))
    return rows


def _word(good: bool) -> str:
    return "[green]yes[/green]" if good else "[red]no[/red]"
