"""A graph of our contract drawn by hand, small enough to build engines from in a moment."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 32
CONVOLUTIONS = ("stem/Conv", "body/Conv", "body/Conv_2")


def draw_graph(
    *, half: bool = False, opset: int = 21, cast_last: bool = True, seed: int = 0
) -> onnx.ModelProto:
    """crops uint8 [N, 32, 32, 3] -> logits [N, 2], evidence [N, 16, 16]; three convolutions, one residual.

    Args:
        half: Convolutions in float16, normalisation and head in float32.
        opset: Of the graph.
        cast_last: Move the axes of the bytes, as PyTorch's exporter writes it, and not of the floats.
        seed: Of the weights.
    """
    generator = np.random.default_rng(seed)
    kind = np.dtype(np.float16 if half else np.float32)
    float_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT

    def drawn(*shape: int) -> NDArray[np.floating]:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(kind)

    constants = {
        "scale": np.array(255, kind),
        "stem.weight": drawn(8, 3, 3, 3),
        "body.weight": drawn(8, 8, 3, 3),
        "body.bias": np.linspace(-0.1, 0.1, 8).astype(kind),
        "body2.weight": drawn(8, 8, 1, 1),
        "norm.weight": np.ones(8, np.float32),
        "norm.bias": np.zeros(8, np.float32),
        "head.weight": drawn(2, 8, 1, 1).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
        "one": np.array(1, np.int64),
        "zero": np.array(0, np.int64),
    }
    order = [2, 0, 1]
    make = helper.make_node
    first = (
        [
            make("Transpose", ["crops"], ["moved"], "Transpose", perm=[0, *(axis + 1 for axis in order)]),
            make("Cast", ["moved"], ["floats"], "Cast", to=float_type),
        ]
        if cast_last
        else [
            make("Cast", ["crops"], ["cast"], "Cast", to=float_type),
            make("Transpose", ["cast"], ["floats"], "Transpose", perm=[0, *(axis + 1 for axis in order)]),
        ]
    )
    nodes = [
        *first,
        make("Div", ["floats", "scale"], ["scaled"], "Div"),
        make("Conv", ["scaled", "stem.weight"], ["stem"], CONVOLUTIONS[0], pads=[1] * 4, strides=[2, 2]),
        make("Sigmoid", ["stem"], ["gate"], "Sigmoid"),
        make("Mul", ["stem", "gate"], ["silu"], "Mul"),
        make("Conv", ["silu", "body.weight", "body.bias"], ["body"], CONVOLUTIONS[1], pads=[1] * 4),
        make("Add", ["body", "silu"], ["sum"], "Add"),
        make("Conv", ["sum", "body2.weight"], ["narrow"], CONVOLUTIONS[2]),
        make("Cast", ["narrow"], ["wide"], "Cast_2", to=TensorProto.FLOAT),
        make("GroupNormalization", ["wide", "norm.weight", "norm.bias"], ["norm"], "Norm", num_groups=1),
        make("Conv", ["norm", "head.weight"], ["cells"], "head/Conv"),
        make("ReduceMean", ["cells", "axes"], ["logits"], "ReduceMean", keepdims=0),
        make("Gather", ["cells", "one"], ["fake"], "Gather", axis=1),
        make("Gather", ["cells", "zero"], ["real"], "Gather_2", axis=1),
        make("Sub", ["fake", "real"], ["evidence"], "Sub"),
    ]
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("evidence", TensorProto.FLOAT, ["batch", 16, 16]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def drawn_crops(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
