"""The cheaper form of MobileViTv2 is the same function, step by step, and really is cheaper."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.models.mobilevit import MobileVitV2Block
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export.convolutions import absorb_affine, cheaper_merged, fold_batchnorm, is_pointwise, merge
from export.graph import ExportGraph
from export.mobilevit import LeanAttention, LeanBlock, PlainNorm
from export.plane_means import pool_plane_means
from tests.unit.export.detectors import random_crops, random_detector
from training.networks import Detector


@pytest.fixture(scope="module")
def student() -> Detector:
    return random_detector("mobilevitv2_050", 128)


def differ(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, of values beyond 1 as a share of the largest."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


@torch.no_grad()
@pytest.mark.parametrize("native_group_norm", [False, True])
@pytest.mark.parametrize(("simplified", "merging"), [(False, False), (True, False), (True, True)])
def test_every_form_is_the_same_function(
    student: Detector, simplified: bool, merging: bool, native_group_norm: bool
) -> None:
    graph = ExportGraph(student, native_group_norm=native_group_norm, simplified=simplified, merging=merging)
    crops = torch.from_numpy(random_crops(3, 128))
    for ours, theirs in zip(graph(crops), student.forward_with_evidence(crops), strict=True):
        assert differ(ours, theirs) < 1e-5


def test_the_simple_form_costs_a_sixth_less(student: Detector) -> None:
    crops = torch.from_numpy(random_crops(1, 128))

    def products(**form: bool) -> int:
        graph = ExportGraph(student, **form)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            graph(crops)
        return counter.get_total_flops()

    given, unmerged, lean = products(simplified=False), products(merging=False), products()
    assert lean < unmerged < given
    assert lean < 0.86 * given


@torch.no_grad()
def test_a_block_is_the_same_function(student: Detector) -> None:
    block = next(module for module in student.backbone.modules() if isinstance(module, MobileVitV2Block))
    block = copy.deepcopy(block)
    x = torch.randn(2, block.conv_kxk.conv.in_channels, 12, 16)
    assert differ(LeanBlock(copy.deepcopy(block), native_group_norm=False)(x), block(x)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10), (2, 2)])
def test_attention_on_the_whole_map_is_attention_over_patches(
    student: Detector, height: int, width: int
) -> None:
    layer = next(m for m in student.backbone.modules() if isinstance(m, MobileVitV2Block)).transformer[0]
    x = torch.randn(2, layer.attn.embed_dim, height, width)
    normed = layer.norm1(x)
    channels = x.shape[1]
    patches = normed.reshape(2, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    folded = layer.attn(patches.reshape(2, channels, 4, -1))
    folded = folded.reshape(2, channels, 2, 2, height // 2, width // 2).permute(0, 1, 4, 2, 5, 3)
    lean = LeanAttention(layer.attn, layer.norm1, (2, 2))
    ours = lean(PlainNorm(layer.norm1, native=False)(x))
    assert differ(ours, folded.reshape(2, channels, height, width)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_batchnorm_becomes_part_of_its_convolution(bias: bool) -> None:
    conv, norm = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias), nn.BatchNorm2d(8, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.normal_()  # type: ignore[union-attr]
    norm.running_var.uniform_(0.1, 3)  # type: ignore[union-attr]
    x = torch.randn(2, 6, 9, 9)
    assert differ(fold_batchnorm(conv, norm)(x), norm.eval()(conv(x))) < 1e-6


@torch.no_grad()
def test_scale_and_shift_of_a_norm_become_part_of_the_convolution_after_it() -> None:
    norm, conv = nn.GroupNorm(1, 6), nn.Conv2d(6, 5, 1)
    norm.weight.normal_()
    norm.bias.normal_()
    x = torch.randn(2, 6, 4, 4)
    plain = nn.GroupNorm(1, 6, affine=False)(x)
    assert differ(absorb_affine(norm, conv)(plain), conv(norm(x))) < 1e-6


@pytest.mark.parametrize("values", ["alike but for a few", "heavy tails", "beside a large mean"])
def test_a_norm_of_a_large_map_keeps_its_digits_in_onnx_runtime(tmp_path: Path, values: str) -> None:
    drawn = np.random.default_rng(0)
    shape = (1, 256, 32, 32)
    x = {
        "alike but for a few": np.where(drawn.random(shape) < 0.01, 30.0, 1.0),
        "heavy tails": drawn.standard_normal(shape) ** 5,
        "beside a large mean": drawn.standard_normal(shape) + 5,
    }[values].astype(np.float32)
    path = tmp_path / "norm.onnx"
    norm = PlainNorm(nn.GroupNorm(1, 256), native=False)
    program: Any = torch.onnx.export(norm, (torch.from_numpy(x),), dynamo=True, input_names=["x"])
    model = program.model_proto
    pool_plane_means(model)
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0]
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    assert np.abs(found - exact).max() < 5e-6 * np.abs(exact).max()


@torch.no_grad()
def test_two_convolutions_become_one() -> None:
    first, second = nn.Conv2d(6, 9, 1), nn.Conv2d(9, 12, 1, bias=False)
    x = torch.randn(2, 6, 4, 4)
    assert differ(merge(first, second)(x), second(first(x))) < 1e-6


def test_no_merging_where_it_costs_more() -> None:
    assert not cheaper_merged(nn.Conv2d(192, 32, 1), nn.Conv2d(32, 192, 1))
    assert cheaper_merged(nn.Conv2d(256, 512, 1), nn.Conv2d(512, 1024, 1))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 4, 1), True),
        (nn.Conv2d(4, 4, 3), False),
        (nn.Conv2d(4, 4, 1, stride=2), False),
        (nn.Conv2d(4, 4, 1, groups=4), False),
        (nn.Conv2d(4, 4, 1, padding=1), False),
        (nn.Identity(), False),
    ],
)
def test_only_matrix_products_are_merged(module: nn.Module, expected: bool) -> None:
    assert is_pointwise(module) is expected
