"""Norms as OpenVINO's own operator: the same function in one pass, and nothing that only looks like one."""

from __future__ import annotations

import collections
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from export.mobilevit import PlainNorm
from export.onnx_graph import write_onnx
from export.openvino_norms import fuse_norms
from export.plane_means import pool_plane_means
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.runtime_openvino import OpenVinoRuntime, openvino_core
from tests.unit.export.detectors import random_crops, random_detector

SHAPE = (1, 256, 32, 32)


@cache
def norm_graph(eps: float = 1e-5) -> bytes:
    """A norm as it stands in the fp32 graph of a MobileViTv2."""
    norm, x = PlainNorm(nn.GroupNorm(1, SHAPE[1], eps=eps), native=False).eval(), torch.zeros(SHAPE)
    program: Any = torch.onnx.export(norm, (x,), dynamo=True, input_names=["x"])
    model: onnx.ModelProto = program.model_proto
    pool_plane_means(model)
    return model.SerializeToString()


def kinds(model: openvino.Model) -> collections.Counter[str]:
    return collections.Counter(node.get_type_name() for node in model.get_ops())


def run(model: openvino.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(x)[0])


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("values", ["alike but for a few", "heavy tails", "beside a large mean"])
def test_one_operator_that_keeps_its_digits(values: str, eps: float) -> None:
    drawn = np.random.default_rng(0)
    x = {
        "alike but for a few": np.where(drawn.random(SHAPE) < 0.01, 30.0, 1.0),
        "heavy tails": drawn.standard_normal(SHAPE) ** 5,
        "beside a large mean": drawn.standard_normal(SHAPE) + 5,
    }[values].astype(np.float32)
    model = openvino_core().read_model(norm_graph(eps))
    names = model.output(0).get_names()
    assert fuse_norms(model) == 1
    assert kinds(model) == {"Parameter": 1, "Constant": 1, "MVN": 1, "Result": 1}
    assert model.output(0).get_names() == names
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + eps)
    assert np.abs(run(model, x) - exact).max() < 5e-6 * np.abs(exact).max()


@pytest.mark.parametrize(("old", "new"), [([2.0], [3.0]), ([1024.0], [512.0]), ([2, 3], [1, 3])])
def test_what_only_looks_like_one_is_left_alone(old: list[float], new: list[float]) -> None:
    graph = onnx.load_from_string(norm_graph())
    for item in graph.graph.initializer:  # the power, the cells of a map, its axes
        values = onnx.numpy_helper.to_array(item)
        if values.ravel().tolist() == old:
            other = np.array(new, values.dtype).reshape(values.shape)
            item.CopyFrom(onnx.numpy_helper.from_array(other, item.name))
    model = openvino_core().read_model(graph.SerializeToString())
    before = kinds(model)
    assert fuse_norms(model) == 0
    assert kinds(model) == before


def test_a_whole_network_is_the_same_function(tmp_path: Path) -> None:
    detector = random_detector("mobilevitv2_050", 64)
    source = write_onnx(detector, tmp_path / "model.onnx")
    model = openvino_core().read_model(str(source))
    norms = sum(isinstance(module, nn.GroupNorm) for module in detector.modules())
    assert fuse_norms(model) == norms > 0
    assert kinds(model)["MVN"] == norms
    assert kinds(model)["ReduceL2"] == 0
    path = tmp_path / "model.xml"
    openvino.save_model(model, str(path), compress_to_fp16=False)
    crops = random_crops(3, 64)
    ours, theirs = OpenVinoRuntime(path, threads=1).run(crops), OnnxRuntime(source, threads=1).run(crops)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=2e-5)
