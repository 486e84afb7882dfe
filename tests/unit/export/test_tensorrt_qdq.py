"""Symmetric int8 for TensorRT: what is rounded, to which step, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export.tensorrt_qdq import add_qdq, tensors_to_range
from pipeline.errors import InputError
from tests.unit.export.drawn_graph import CONVOLUTIONS, draw_graph, drawn_crops

LIMITS = {"scaled": 1.0, "silu": 2.0, "sum": 3.0}


def values(model: onnx.ModelProto, *names: str) -> list[NDArray[np.float32]]:
    """Tensors of a graph for four crops, computed without any rewriting."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {output.name for output in shown.graph.output}
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(list(names), {"crops": drawn_crops(4)})
    return found


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_inputs_of_convolutions_and_residuals_need_a_range() -> None:
    assert tensors_to_range(draw_graph(), CONVOLUTIONS) == ("scaled", "silu", "sum")
    assert tensors_to_range(draw_graph(), CONVOLUTIONS[1:2]) == ("silu",)


def test_of_two_outputs_that_are_added_each_may_be_the_residual_of_the_other() -> None:
    model = draw_graph()
    addition = next(node for node in model.graph.node if node.op_type == "Add")
    addition.input[1] = "stem"  # body + stem, both outputs of convolutions
    ranged = tensors_to_range(model, CONVOLUTIONS)
    assert ranged == ("scaled", "silu", "sum", "body", "stem")
    limits = dict.fromkeys(ranged, 1.0)
    assert list(addition.input) == ["body", "stem"]
    for chosen, rounded in ((CONVOLUTIONS[:1], "body"), (CONVOLUTIONS[1:2], "stem"), (CONVOLUTIONS, None)):
        nodes = add_qdq(model, chosen, limits).graph.node
        given = next(node for node in nodes if node.op_type == "Add").input
        assert [name for name in given if name.endswith("/rounded")] == (
            [f"{rounded}/rounded"] if rounded else []
        )


@pytest.mark.parametrize("half", [False, True])
def test_every_activation_gets_one_pair_and_weights_are_stored_in_int8(half: bool) -> None:
    model = add_qdq(draw_graph(half=half), CONVOLUTIONS, LIMITS)
    onnx.checker.check_model(model, full_check=True)
    assert kinds(model).count("QuantizeLinear") == 3
    assert kinds(model).count("DequantizeLinear") == 6
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert "body.weight" not in stored
    assert stored["body.weight/int8"].dtype == np.int8
    assert np.abs(stored["body.weight/int8"].reshape(8, -1)).max(axis=1).tolist() == [127] * 8
    assert stored["silu/scale"].dtype == (np.float16 if half else np.float32)
    zeros = [value for name, value in stored.items() if name.endswith("/zero")]
    assert len(zeros) == 6
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_a_residual_is_read_in_its_rounded_form() -> None:
    model = add_qdq(draw_graph(), CONVOLUTIONS, LIMITS)
    addition = next(node for node in model.graph.node if node.op_type == "Add")
    assert list(addition.input) == ["body", "silu/rounded"]
    alone = add_qdq(draw_graph(), CONVOLUTIONS[:1], LIMITS)
    addition = next(node for node in alone.graph.node if node.op_type == "Add")
    assert list(addition.input) == ["body", "silu"]


def test_values_are_rounded_to_255_steps_and_clipped_at_the_limit() -> None:
    model = add_qdq(draw_graph(), CONVOLUTIONS[1:2], {"silu": 0.5})
    given, rounded = values(model, "silu", "silu/rounded")
    step = np.float32(0.5) / 127
    assert np.abs(rounded).max() == pytest.approx(0.5)
    assert np.allclose(rounded, np.clip(np.rint(given / step), -128, 127) * step, atol=1e-6)


def test_a_convolution_computes_what_rounded_inputs_and_weights_make() -> None:
    model = add_qdq(draw_graph(), CONVOLUTIONS[2:], {"sum": 3.0})
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    weights = stored["body2.weight/int8"] * stored["body2.weight/scale"].reshape(-1, 1, 1, 1)
    inputs, found = values(model, "sum/rounded", "narrow")
    expected = np.einsum("nihw,oi->nohw", inputs, weights[:, :, 0, 0])
    assert np.allclose(found, expected, atol=1e-5)
    original = numpy_helper.to_array(draw_graph().graph.initializer[4])
    assert np.abs(weights - original).max() <= stored["body2.weight/scale"].max() / 2 + 1e-7


def test_float16_steps_hold_the_largest_value_even_of_tiny_channels() -> None:
    model = draw_graph(half=True)
    weights = next(item for item in model.graph.initializer if item.name == "body.weight")
    changed = numpy_helper.to_array(weights).copy()
    changed[0], changed[1] = 1e-3 * changed[0], 0
    weights.CopyFrom(numpy_helper.from_array(changed, "body.weight"))
    stored = {
        item.name: numpy_helper.to_array(item)
        for item in add_qdq(model, CONVOLUTIONS, LIMITS).graph.initializer
    }
    scale = stored["body.weight/scale"].astype(np.float32)
    back = stored["body.weight/int8"] * scale.reshape(-1, 1, 1, 1)
    assert (scale > 0).all()
    assert (np.abs(back - changed).reshape(8, -1).max(axis=1) <= scale * 0.51).all()


def test_the_source_is_left_alone_and_other_layers_stay() -> None:
    source = draw_graph()
    before = source.SerializeToString()
    model = add_qdq(source, CONVOLUTIONS, LIMITS)
    assert source.SerializeToString() == before
    head = next(node for node in model.graph.node if node.name == "head/Conv")
    assert list(head.input) == ["norm", "head.weight"]
    plain, rounded = values(source, "logits")[0], values(model, "logits")[0]
    assert 0 < np.abs(plain - rounded).max() < 0.1


def test_what_cannot_be_quantised_is_refused() -> None:
    old = draw_graph()
    old.opset_import[0].version = 20
    with pytest.raises(InputError, match="opset 20; symmetric int8 needs 21"):
        add_qdq(old, CONVOLUTIONS, LIMITS)
    with pytest.raises(InputError, match="neck/Conv: no convolution"):
        add_qdq(draw_graph(), ["neck/Conv"], LIMITS)
    with pytest.raises(InputError, match="No range is known of sum"):
        add_qdq(draw_graph(), CONVOLUTIONS, {"scaled": 1.0, "silu": 2.0})
