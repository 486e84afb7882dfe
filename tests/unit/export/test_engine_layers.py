"""What the engine's own layers say of their types, in the forms that the libraries print it."""

from __future__ import annotations

import json

import pytest

from export.engine_layers import EngineLayer, check_precision, count_types, layers_of_inspector, layers_of_log
from pipeline.errors import InputError

LOG = """Layers:
Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: conv + silu, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,64,64], Strides: [1,1,1,1], \
StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, \
Dimensions: [24,4,3,3], Strides: [36,1,12,4], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: s, \
Dimensions: [1,24,1,1], Strides: [24,1,24,24], Datatype: Float, Format: (NHWC) Channel major format }], \
Outputs: [ { Name: b, Dimensions: [-1,24,32,32], Strides: [1,1,1,1], Datatype: Half, Format: (Linear) }], TacticName: x
Name: mul, LayerType: kgen, Inputs: [ { Name: b, Dimensions: [-1,24,32,32], Datatype: Half, Format: (Linear) }], \
Constants: [ { Name: f, Dimensions: [1,24,1,1], Datatype: Float, Format: (Linear) }], Outputs: [ { Name: c, \
Dimensions: [-1,24,32,32], Datatype: Float, Format: (Linear) }], TacticName: y
"""

# As TensorRT 10 prints fused and precompiled kernels.
TEN = {
    "Layers": [
        {
            "Name": "conv",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Channel major FP16 format"}
            ],
            "Outputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
            "Weights": {"Type": "Half", "Count": 432},
            "Bias": {"Type": "Half", "Count": 16},
        },
        {
            "Name": "int8 conv",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [],
            "Weights": {"Type": "Int8", "Count": 1024},
        },
        {
            "Name": "pool",
            "LayerType": "kgen",
            "Inputs": [{"Format/Datatype": "Float"}],
            "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}],
        },
    ],
    "Bindings": ["x"],
}

# As TensorRT 11 prints them.
ELEVEN = {
    "Layers": [
        {
            "Name": "fused",
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "Dimensions": [1, 64], "Datatype": "BFloat16", "Format": "(Linear)"}],
            "Constants": [{"Name": "w", "Dimensions": [64, 2], "Datatype": "BFloat16", "Format": "(Linear)"}],
            "Outputs": [],
        },
    ],
    "I/O Tensors": [],
}


def layer(weights: str | None, *reads: str) -> EngineLayer:
    return EngineLayer("layer", frozenset(reads), weights)


def test_the_builders_log_is_read() -> None:
    layers = layers_of_log(LOG)
    assert [item.name for item in layers] == ["shapes", "conv + silu", "mul"]
    assert [item.weights for item in layers] == [None, "Int8", None]
    assert [item.type for item in layers] == [None, "Int8", "Half"]
    assert count_types(layers) == ({"Half": 1, "Int8": 1}, {"Int8": 1})


def test_the_inspector_of_tensorrt_10_is_read() -> None:
    assert count_types(layers_of_inspector(json.dumps(TEN))) == (
        {"Float": 1, "Half": 1, "Int8": 1},
        {"Half": 1, "Int8": 1},
    )


def test_the_inspector_of_tensorrt_11_is_read() -> None:
    assert count_types(layers_of_inspector(json.dumps(ELEVEN))) == ({"BFloat16": 1}, {"BFloat16": 1})


def test_an_engine_that_tells_names_only_is_refused() -> None:
    with pytest.raises(InputError, match="only the names of its layers"):
        layers_of_inspector(json.dumps({"Layers": ["conv", "pool"]}))


def test_a_quarter_of_the_weights_in_the_precision_asked_for_is_enough() -> None:
    mixed = [layer("Half", "Half"), *[layer("Float", "Half")] * 3]
    check_precision(mixed, "fp16")
    with pytest.raises(InputError, match="3 Float, 1 Half"):
        check_precision(mixed, "int8")
    with pytest.raises(InputError, match="4 Float, 1 Half: it would be called fp16"):
        check_precision([*mixed, layer("Float", "Half")], "fp16")


def test_float32_asks_nothing_but_layers() -> None:
    check_precision([layer("Float", "Float")], "fp32")
    with pytest.raises(InputError, match="does not tell the types"):
        check_precision([], "fp32")


def test_without_known_weights_all_layers_are_counted() -> None:
    check_precision([layer(None, "Half"), layer(None, "Float")], "fp16")
    with pytest.raises(InputError, match="2 Float"):
        check_precision([layer(None, "Float"), layer(None, "Float")], "fp16")
