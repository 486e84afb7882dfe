"""What the doctor says of this machine, which is examined for real, and of machines put together here."""

from __future__ import annotations

import importlib.util
import io
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from rich.console import Console

from export.doctor import Diagnosis, FormatState, diagnose, show
from export.formats import FORMATS
from export.machine import Gpu, Machine, Package, Processor, examine_machine, nvidia_smi

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", cuda="13.0", driver="580.65", memory=24 << 30)
H100 = Gpu(name="NVIDIA H100", compute_capability="9.0", cuda="13.0", driver=None, memory=80 << 30)
EVERYTHING = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "torch_tensorrt",
    "cuda.bindings",
    "tensorrt",
    "tensorrt-rtx",
)


def machine(gpu: Gpu | None = L4, lacking: tuple[str, ...] = (), **changes: Any) -> Machine:
    """A machine with everything but what is lacking."""
    packages = {
        name: Package(name=name, problem="is not installed", fix=f"pip install {name}")
        if name in lacking
        else Package(name=name, version="1.0", devices=("CPU", "CUDA"))
        for name in EVERYTHING
    }
    whole: dict[str, Any] = {
        "python": "3.11",
        "platform": "linux-x86_64",
        "processor": Processor(name="CPU", cores=2, memory=1 << 34, flags=("avx2", "avx512_vnni")),
        "gpu": gpu,
        "no_gpu": None if gpu else "no driver",
        "packages": packages,
    }
    return Machine(**{**whole, **changes})


def state(found: Diagnosis, name: str) -> FormatState:
    return next(item for item in found.formats if item.name == name)


@pytest.fixture(scope="session")
def here() -> Machine:
    return examine_machine()


def test_this_machine_is_examined(here: Machine) -> None:
    assert here.processor.cores >= 1
    assert here.package("onnxruntime").version
    assert "CPU" in here.package("onnxruntime").devices
    assert here.package("tensorrt-rtx").version
    assert (here.gpu is None) == (here.no_gpu is not None)
    if importlib.util.find_spec("torch_tensorrt") is None:
        assert str(here.package("torch_tensorrt").fix).startswith("pip install -e '.[torch-tensorrt]'")


def test_this_machine_builds_what_needs_no_gpu(here: Machine) -> None:
    found = diagnose(here)
    assert [item.name for item in found.formats] == list(FORMATS)
    for name in ("onnx", "onnx-int8", "openvino", "openvino-int8"):
        assert (state(found, name).builds, state(found, name).runs) == (True, True)
    assert state(found, "tensorrt-rtx").builds
    if here.gpu is None:
        assert not state(found, "tensorrt-rtx").runs
        assert not state(found, "tensorrt").builds


def test_a_machine_with_everything_builds_and_runs_everything() -> None:
    found = diagnose(machine())
    assert all(item.builds and item.runs for item in found.formats)
    assert not any(item.problems or item.fixes for item in found.formats)


def test_without_a_gpu_only_rtx_engines_can_be_built() -> None:
    found = diagnose(machine(gpu=None))
    assert {item.name for item in found.formats if not item.builds} == {
        "tensorrt",
        "tensorrt-int8",
        "torch-tensorrt",
    }
    assert {item.name for item in found.formats if not item.runs} == {
        "tensorrt",
        "tensorrt-int8",
        "tensorrt-rtx",
        "torch-tensorrt",
        "onnx-cuda",
    }
    assert "Dockerfile.gpu" in " ".join(state(found, "tensorrt").fixes)


def test_a_missing_library_is_named_with_its_command() -> None:
    found = diagnose(machine(lacking=("tensorrt", "nncf")))
    assert state(found, "tensorrt").problems == ("tensorrt is not installed",)
    assert state(found, "tensorrt").fixes == ("pip install tensorrt",)
    openvino = state(found, "openvino-int8")
    assert (openvino.builds, openvino.runs) == (False, True)
    assert openvino.fixes == ("pip install nncf",)


def test_an_engine_cannot_be_fed_without_bindings_of_cuda() -> None:
    rtx = state(diagnose(machine(lacking=("cuda.bindings",))), "tensorrt-rtx")
    assert (rtx.builds, rtx.runs) == (True, False)
    assert rtx.fixes == ("pip install cuda.bindings",)


def test_onnx_runtime_must_be_the_one_for_gpus() -> None:
    found = machine()
    packages = {**found.packages, "onnxruntime": Package(name="onnxruntime", version="1.0", devices=("CPU",))}
    cuda = state(diagnose(machine(packages=packages)), "onnx-cuda")
    assert (cuda.builds, cuda.runs) == (True, False)
    assert cuda.problems == ("onnxruntime 1.0 here is built without CUDA",)
    assert "onnxruntime-gpu" in cuda.fixes[0]
    assert state(diagnose(machine(lacking=("cuda.bindings",))), "onnx-cuda").runs


def test_a_module_may_come_under_another_distributions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(distribution: str) -> str:
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(metadata, "version", version)
    found = examine_machine().package("onnxruntime")  # as onnxruntime-gpu brings it
    assert (found.version, found.problem) == (onnxruntime.__version__, None)
    assert "CPU" in found.devices


def test_rtx_engines_do_not_run_on_every_gpu() -> None:
    found = diagnose(machine(gpu=H100))
    assert not state(found, "tensorrt-rtx").runs
    assert "NVIDIA H100 has 9.0" in " ".join(state(found, "tensorrt-rtx").problems)
    assert state(found, "tensorrt").runs


def test_int8_on_a_processor_without_byte_products_is_remarked() -> None:
    old = Processor(name="old", cores=2, memory=None, flags=("avx2",))
    assert "no VNNI" in state(diagnose(machine(processor=old)), "onnx-int8").problems[0]
    arm = diagnose(machine(processor=old, platform="linux-aarch64"))
    assert state(arm, "onnx-int8").problems == ()


def test_a_diagnosis_is_shown_and_survives_json() -> None:
    found = diagnose(machine(gpu=None, lacking=("tensorrt",)))
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found
    text = io.StringIO()
    show(found, Console(file=text, width=160))
    shown = text.getvalue()
    assert "no driver" in shown
    assert "tensorrt, tensorrt-int8: pip install tensorrt" in shown
    for name in FORMATS:
        assert name in shown


def test_nvidia_smi_is_asked_for_the_first_gpu_and_believed_only_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi("driver_version") is None  # there is none
    tool = tmp_path / "nvidia-smi"
    for script, told in (
        (
            '[ "$1 $3" = "--id=0 --format=csv,noheader" ] && echo "580.159.04, 1980 MHz"',
            ("580.159.04", "1980 MHz"),
        ),
        ("echo 580.159.04", None),  # one of the two
        ("echo", None),
        ("echo Failed to initialize NVML; exit 9", None),
    ):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert nvidia_smi("driver_version", "clocks.max.sm") == told, script
