"""Engines are built for real, by TensorRT for RTX, which needs no GPU: parse, build, count types, refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.tensorrt_engine import PROFILES, BuiltEngine, build_engine, cast_first
from export.tensorrt_qdq import add_qdq
from pipeline.engine_check import read_facts
from pipeline.errors import InputError
from pipeline.manifest import Precision
from pipeline.tensorrt_library import RTX_TARGETS
from tests.unit.export.drawn_graph import CONVOLUTIONS, draw_graph, drawn_crops

LIMITS = {"scaled": 1.0, "silu": 2.0, "sum": 3.0}


def build(model: onnx.ModelProto, folder: Path, precision: Precision, **options: object) -> BuiltEngine:
    return build_engine(
        model.SerializeToString(),
        folder / "drawn.engine",
        library="tensorrt-rtx",
        precision=precision,
        threads=1,
        **options,  # type: ignore[arg-type]
    )


def test_an_engine_in_float32_has_float32_weights_alone_and_no_tf32(tmp_path: Path) -> None:
    built = build(draw_graph(), tmp_path, "fp32")
    assert built.path.stat().st_size > 1000
    assert set(built.facts.weight_layer_types) == {"Float"}
    assert not built.facts.tf32
    assert built.seconds > 0


def test_an_engine_in_float16_has_its_convolutions_in_half_and_the_head_in_float(tmp_path: Path) -> None:
    built = build(draw_graph(half=True), tmp_path, "fp16")
    assert built.facts.weight_layer_types["Half"] == 3
    assert built.facts.layer_types["Float"] >= 1
    assert built.facts.tf32


@pytest.mark.parametrize("half", [False, True])
def test_an_engine_in_int8_has_its_convolutions_in_int8(tmp_path: Path, half: bool) -> None:
    built = build(add_qdq(draw_graph(half=half), CONVOLUTIONS, LIMITS), tmp_path, "int8")
    assert built.facts.weight_layer_types["Int8"] == 3


def test_facts_lie_beside_the_engine(tmp_path: Path) -> None:
    model = draw_graph(half=True)
    built = build(model, tmp_path, "fp16")
    facts = read_facts(built.path)
    assert facts == built.facts
    assert facts.onnx_sha256 == hashlib.sha256(model.SerializeToString()).hexdigest()
    assert facts.compute_capabilities == RTX_TARGETS
    assert facts.profiles == PROFILES["tensorrt-rtx"] == ((1, 8, 32),)
    assert (facts.device, facts.driver, facts.platform) == (None, None, "any")


def test_several_profiles_are_built_and_recorded(tmp_path: Path) -> None:
    one = build(draw_graph(half=True), tmp_path, "fp16")
    two = build(draw_graph(half=True), tmp_path, "fp16", profiles=((1, 1, 1), (2, 4, 16)))
    assert two.facts.profiles == ((1, 1, 1), (2, 4, 16))
    assert two.facts.max_batch == 16
    assert two.facts.weight_layer_types["Half"] >= 2 * one.facts.weight_layer_types["Half"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_float32_graph_does_not_pass_for_less(tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(
        InputError, match=rf"An engine in {precision} was asked for, but of its layers \d+ Float"
    ):
        build(draw_graph(), tmp_path, precision)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_moves_bytes_is_rewritten_without_changing_an_answer(tmp_path: Path) -> None:
    model = draw_graph(cast_last=True)
    moved = cast_first(model)
    onnx.checker.check_model(moved, full_check=True)
    assert [node.op_type for node in moved.graph.node][:2] == ["Cast", "Transpose"]
    answers = [
        onnxruntime.InferenceSession(item.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"crops": drawn_crops(3)}
        )
        for item in (model, moved)
    ]
    for before, after in zip(*answers, strict=True):
        assert np.array_equal(before, after)
    already = draw_graph(cast_last=False)
    assert cast_first(already).SerializeToString() == already.SerializeToString()


def test_what_the_parser_says_is_all_told(tmp_path: Path) -> None:
    model = draw_graph()
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type, node.domain = "Sigmoidal", "nowhere"
    with pytest.raises(
        InputError, match=r"cannot parse this graph: node \d+ Sigmoid \(Sigmoidal\): .*Plugin not found"
    ):
        build(model, tmp_path, "fp32")


def test_other_things_than_our_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ONNX graph"):
        build_engine(b"no graph", tmp_path / "x.engine", library="tensorrt-rtx", precision="fp32")
    fixed = draw_graph()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(InputError, match="expected a free batch"):
        build(fixed, tmp_path, "fp32")
    with pytest.raises(InputError, match=r"\(4, 2, 8\) is no profile"):
        build(draw_graph(), tmp_path, "fp32", profiles=((4, 2, 8),))


def test_tensorrt_itself_says_what_it_lacks(tmp_path: Path) -> None:
    # Not installed, no GPU, or, where there are both, no graph.
    with pytest.raises(InputError, match=r"pip install -e '\.\[tensorrt\]'|no CUDA device|no ONNX graph"):
        build_engine(b"", tmp_path / "x.engine", library="tensorrt", precision="fp16")
