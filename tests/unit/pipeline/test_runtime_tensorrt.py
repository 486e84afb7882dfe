"""What a machine without a GPU can prove of the GPU runtime: that it refuses, and why. The rest is in tests/gpu."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pipeline.cuda_device import ask, cuda_runtime, find_device
from pipeline.errors import CannotRunHereError, InputError
from pipeline.manifest import Artefact, EngineFacts
from pipeline.runtime import open_artefact
from pipeline.tensorrt_library import engine_log, open_library


def has_gpu() -> bool:
    try:
        find_device()
    except InputError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU; tests/gpu runs engines on it")


def artefact(runtime: str, engine: bool = True) -> Artefact:
    facts = EngineFacts(
        runtime_version="1.7.1.116",
        compute_capabilities=("8.9",),
        device=None,
        driver=None,
        platform="any",
        profiles=((1, 8, 32),),
        onnx_sha256="0" * 64,
    )
    file = {"path": "student.engine", "sha256": "0" * 64, "size": 1}
    entry: dict[str, Any] = {
        "name": runtime,
        "runtime": runtime,
        "precision": "fp16",
        "files": [file],
        "parity": {
            "passed": True,
            "artefact_sha256": "0" * 64,
            "report": {**file, "path": "parity.json"},
            "max_abs_logit": 0.0,
            "max_abs_p": 0.0,
            "flips": {},
            "compared": 1,
        },
        "engine": facts if engine else None,
    }
    return Artefact.model_validate(entry)


@without_gpu
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_an_engine_is_refused_before_its_file_is_read(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(CannotRunHereError, match=r"no CUDA device .*onnx-int8"):
        open_artefact(tmp_path, artefact(runtime))


def test_an_engine_without_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no `engine` entry"):
        open_artefact(tmp_path, artefact("tensorrt-rtx", engine=False))


def test_a_program_of_torch_is_not_for_a_server(tmp_path: Path) -> None:
    with pytest.raises(CannotRunHereError, match="it has no torch"):
        open_artefact(tmp_path, artefact("torch-tensorrt"))


@without_gpu
def test_a_failing_call_of_cuda_says_what_failed() -> None:
    with pytest.raises(RuntimeError, match=r"CUDA: .*cudaError"):
        ask(cuda_runtime().cudaMalloc(1))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        InputError, match=r"tensorrt is not installed here\. .*pip install -e '\.\[tensorrt\]'"
    ):
        open_library("tensorrt")


def test_another_name_is_no_library() -> None:
    with pytest.raises(InputError, match="choose from tensorrt, tensorrt-rtx"):
        open_library("openvino")  # type: ignore[arg-type]


def test_tensorrt_for_rtx_opens_and_its_log_keeps_errors() -> None:
    library = open_library("tensorrt-rtx")
    assert library.is_rtx
    log = engine_log(library)
    builder = library.api.Builder(log)
    network = builder.create_network(0)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert any("at least one output" in message for message in log.errors)
