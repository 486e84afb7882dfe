"""The float16 program as PyTorch traces it, and the refusal where it cannot be compiled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from export.engine_layers import check_precision, count_types
from export.graph import ExportGraph
from export.half_graph import HalfGraph
from export.torch_tensorrt_program import build_program, layers_of_program, make_program
from pipeline.cuda_device import find_device
from pipeline.errors import CannotRunHereError, InputError
from training.networks import Detector, NetworkSpec


def detector(name: str, size: int) -> Detector:
    torch.manual_seed(0)
    built = Detector(NetworkSpec(name=name, image_size=size))
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        built(torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8))
    return built.eval()


@pytest.fixture(scope="module")
def student() -> Detector:
    return detector("mobilevitv2_050", 64)


@pytest.fixture(scope="module")
def program(student: Detector) -> torch.export.ExportedProgram:
    return make_program(HalfGraph(student), (1, 2, 8))


def crops(count: int, size: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_efficientnet", 32),
        # float16 products on a CPU are emulated
        pytest.param("mobilevitv2_050", 64, marks=pytest.mark.slow),
    ],
)
def test_in_float16_the_network_says_nearly_the_same(name: str, size: int) -> None:
    network = detector(name, size)
    given = crops(2, size)
    with torch.no_grad():
        expected = ExportGraph(network)(given)
        found = HalfGraph(network)(given)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 0.02 * max(1.0, float(theirs.abs().max()))
    assert not torch.equal(found[0], expected[0])
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_norms_softmax_and_head_stay_in_float32(program: torch.export.ExportedProgram) -> None:
    types: dict[str, Counter[torch.dtype]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
            types.setdefault(str(node.target), Counter())[node.meta["val"].dtype] += 1
    assert types["aten.group_norm.default"] == {torch.float32: 21}
    assert types["aten.softmax.int"] == {torch.float32: 9}
    convolutions = types["aten.conv2d.default"]
    assert convolutions[torch.float32] == 1  # the head
    assert convolutions[torch.float16] > 50


def test_the_types_of_a_program_are_counted(program: torch.export.ExportedProgram) -> None:
    layers = layers_of_program(program)
    _, by_weights = count_types(layers)
    assert by_weights["Float"] == 1
    check_precision(layers, "fp16")
    with pytest.raises(InputError, match="An engine in int8 was asked for"):
        check_precision(layers, "int8")


def test_a_program_takes_the_batches_of_its_profile(program: torch.export.ExportedProgram) -> None:
    (batch,) = program.range_constraints.values()
    assert (batch.lower, batch.upper) == (1, 8)


def test_what_is_no_profile_is_refused(student: Detector, tmp_path: Path) -> None:
    for profile in ((1, 1, 1), (0, 1, 2), (4, 2, 8)):
        with pytest.raises(InputError, match="is no profile"):
            build_program(student, tmp_path / "x.pt2", profile=profile)


def test_without_a_gpu_or_torch_tensorrt_nothing_is_made(student: Detector, tmp_path: Path) -> None:
    try:
        find_device()
    except CannotRunHereError:
        with pytest.raises(CannotRunHereError, match="no CUDA device"):
            build_program(student, tmp_path / "x.pt2")
        assert list(tmp_path.iterdir()) == []
    else:
        pytest.skip("this machine has a GPU; tests/gpu makes programs on it")
