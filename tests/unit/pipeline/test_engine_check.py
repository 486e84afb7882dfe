from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cuda_device import CudaDevice
from pipeline.engine_check import check_engine, differences, facts_path, read_facts, this_platform
from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import EngineFacts

L4 = CudaDevice(name="NVIDIA L4", compute_capability="8.9", driver="13.0", memory=24 << 30)


def facts(**changes: Any) -> EngineFacts:
    """Facts of an engine built on an L4, with changes."""
    as_built: dict[str, Any] = {
        "runtime_version": "11.1.0.106",
        "compute_capabilities": ("8.9",),
        "device": "NVIDIA L4",
        "driver": "13.0",
        "platform": "linux-x86_64",
        "profiles": ((1, 1, 1), (2, 8, 32)),
        "onnx_sha256": "0" * 64,
    }
    return EngineFacts.model_validate({**as_built, **changes})


def compare(engine: EngineFacts, device: CudaDevice = L4, version: str = "11.1.0.106") -> list[str]:
    return differences(engine, version=version, device=device, here="linux-x86_64")


def test_an_engine_runs_where_it_was_built() -> None:
    assert compare(facts()) == []
    check_engine(
        Path("x.engine"), facts(), name="tensorrt", version="11.1.0.106", device=L4, here="linux-x86_64"
    )


def test_an_engine_built_without_a_gpu_runs_on_every_kind_it_was_built_for() -> None:
    ahead = facts(compute_capabilities=("8.6", "8.9"), device=None, driver=None, platform="any")
    assert compare(ahead) == []
    assert compare(ahead, CudaDevice("NVIDIA A10", "8.6", "12.4", 1)) == []
    hopper = CudaDevice("NVIDIA H100", "9.0", "13.0", 1)
    assert compare(ahead, hopper) == ["built for compute capability 8.6, 8.9, NVIDIA H100 has 9.0"]


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (facts(runtime_version="10.15.1.29"), "version 10.15.1.29"),
        (facts(compute_capabilities=("8.6",), device="NVIDIA A10"), "compute capability 8.6"),
        (facts(device="NVIDIA GeForce RTX 4090"), "built on NVIDIA GeForce RTX 4090, this is NVIDIA L4"),
        (facts(platform="windows-amd64"), "built for windows-amd64"),
        (facts(driver="13.1"), "a driver for CUDA 13.1, the one here knows CUDA 13.0"),
    ],
)
def test_each_difference_is_named(engine: EngineFacts, says: str) -> None:
    (difference,) = compare(engine)
    assert says in difference


def test_a_newer_driver_is_no_difference() -> None:
    assert compare(facts(driver="12.9")) == []
    assert compare(facts(driver="9.2")) == []


def test_a_foreign_engine_is_refused_with_all_reasons_and_the_command() -> None:
    foreign = facts(runtime_version="10.15.1.29", compute_capabilities=("9.0",), device="NVIDIA H100")
    with pytest.raises(CannotRunHereError) as refused:
        check_engine(Path("b/student.engine"), foreign, name="tensorrt-int8", version="11.1.0.106", device=L4)
    said = str(refused.value)
    assert "b/student.engine was not built for this machine" in said
    assert "10.15.1.29" in said
    assert "9.0" in said
    assert "stillface export CHECKPOINT --out BUNDLE --formats tensorrt-int8" in said


def test_this_platform_names_system_and_processor() -> None:
    system, _, processor = this_platform().partition("-")
    assert system in ("linux", "darwin", "windows")
    assert processor


def test_facts_lie_beside_the_engine(tmp_path: Path) -> None:
    engine = tmp_path / "student.engine"
    facts_path(engine).write_text(facts().model_dump_json())
    assert read_facts(engine) == facts()
    assert read_facts(engine).max_batch == 32


def test_an_engine_without_facts_or_with_other_content_is_refused(tmp_path: Path) -> None:
    engine = tmp_path / "student.engine"
    with pytest.raises(InputError, match=r"student.engine.json beside it.*stillface export"):
        read_facts(engine)
    facts_path(engine).write_text(json.dumps({"runtime_version": "11"}))
    with pytest.raises(InputError, match="does not describe an engine"):
        read_facts(engine)
