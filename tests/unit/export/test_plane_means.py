"""A mean over a large flat map is that of float64 to the last bits, in the runtimes that add up as they go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.plane_means import pool_plane_means

SIZE = 190


def averaging(keepdims: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["map", "axes"], ["mean"], "mean", keepdims=keepdims)],
        "means",
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 8, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(
                "mean", TensorProto.FLOAT, ["batch", 8, 1, 1][: 4 if keepdims else 2]
            )
        ],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answers(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    flat = np.full((2, 8, SIZE, SIZE), np.float32(0.7))
    path = folder / "model.onnx"
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {"onnxruntime": session.run(None, {"map": flat})[0], "openvino": compiled(flat)[0]}


def test_it_is_exact_where_one_sum_is_not(tmp_path: Path) -> None:
    model = averaging(keepdims=1)
    before = answers(model, tmp_path)
    pool_plane_means(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["AveragePool", "AveragePool"]
    assert not model.graph.initializer
    for runtime, found in answers(model, tmp_path).items():
        assert found.shape == before[runtime].shape == (2, 8, 1, 1)
        off, was = (float(np.abs(value / np.float32(0.7) - 1).max()) for value in (found, before[runtime]))
        assert off < 5e-6, runtime
        assert runtime == "openvino" or was > 3 * off


@pytest.mark.parametrize("change", ["no cells kept", "other axes", "unknown axes"])
def test_other_means_are_left_alone(change: str) -> None:
    model = averaging(keepdims=0 if change == "no cells kept" else 1)
    if change == "other axes":
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1, 2]), "axes"))
    if change == "unknown axes":
        model.graph.node[0].input[1] = ""
    content = model.SerializeToString()
    pool_plane_means(model)
    assert model.SerializeToString() == content
