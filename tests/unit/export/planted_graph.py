"""A small trained-like network as ONNX, labelled crops it can tell apart, and ways to damage its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from export.onnx_graph import write_onnx
from training.networks import Detector, NetworkSpec

SIDE = 64


def write_small(path: Path) -> Path:
    """Random weights whose BatchNorm statistics fit, and a head that follows one feature."""
    torch.manual_seed(0)
    detector = Detector(NetworkSpec(name="test_efficientnet", image_size=SIDE))
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    crops, labels = labelled_crops(64)
    with torch.no_grad():
        detector.train()(torch.from_numpy(crops))
        detector.eval()
        features = detector.backbone.forward_head(
            detector.backbone.forward_features(detector._prepare(torch.from_numpy(crops))), pre_logits=True
        )
        means = [features[torch.from_numpy(labels) == label].mean(0) for label in (0, 1)]
        direction = means[1] - means[0]
        direction /= direction.norm() ** 2
        detector.head.weight.copy_(torch.stack([-direction, direction]))
        middle = ((means[0] + means[1]) / 2) @ direction
        detector.head.bias.copy_(torch.stack([middle, -middle]))
    return write_onnx(detector, path)


def labelled_crops(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Smooth pictures; the fakes carry a fine pattern."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(40, 216, (count, 4, 4, 3)).astype(np.float64)
    crops = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    labels = np.arange(count) % 2
    pattern = 30 * (np.indices((SIDE, SIDE)).sum(0) % 2 - 0.5)
    strength = generator.uniform(0.6, 1.4, count) * labels
    crops += strength[:, None, None, None] * pattern[None, :, :, None]
    return np.clip(crops, 0, 255).astype(np.uint8), labels.astype(np.int64)


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def scale_weights(model: onnx.ModelProto, name: str, factor: NDArray[np.float32]) -> None:
    """Multiply an initializer in place."""
    stored = next(item for item in model.graph.initializer if item.name == name)
    changed = (numpy_helper.to_array(stored) * factor).astype(np.float32)
    stored.CopyFrom(numpy_helper.from_array(changed, name))


def plant_outlier(source: Path, out: Path) -> str:
    """Blow up one channel between two convolutions a thousandfold and shrink it again: the same in float, not in int8.

    Returns:
        The name of the convolution whose output has the outlier.
    """
    model = onnx.load(str(source))
    makers = {node.output[0]: node for node in convolutions(model)}
    users = [node.input[0] for node in model.graph.node]
    second = next(
        node
        for node in convolutions(model)[2:]
        if node.input[0] in makers and users.count(node.input[0]) == 1
    )
    first = makers[second.input[0]]
    channels = next(item for item in model.graph.initializer if item.name == first.input[1]).dims[0]
    factor = np.ones(channels, np.float32)
    factor[0] = 1000.0
    scale_weights(model, first.input[1], factor[:, None, None, None])
    scale_weights(model, first.input[2], factor)
    scale_weights(model, second.input[1], 1 / factor[None, :, None, None])
    onnx.save(model, str(out))
    return str(first.name)
