"""A network whose values leave float16 is refused by the layer's name; one that fits says how far it is from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.build import Ingredients, build
from export.formats import FORMATS
from export.half_range import HALF_MAX, find_peak
from pipeline.errors import InputError
from tests.unit.export.detectors import random_crops, random_detector
from training.networks import Detector


@pytest.fixture
def detector() -> Detector:
    return random_detector("mobilevitv2_050", 64)


def test_a_network_that_fits_says_where_its_largest_value_is(detector: Detector) -> None:
    crops = random_crops(6, 64)
    peak = find_peak(detector, crops)
    with torch.no_grad():
        last = detector.backbone.forward_features(detector._prepare(torch.from_numpy(crops))).abs().max()
    assert float(last) <= peak.value < HALF_MAX
    assert peak.module.startswith("backbone.")
    assert f"{peak.value:.3g} at {peak.module}" in peak.note


def test_a_layer_that_overflows_is_named(detector: Detector) -> None:
    with torch.no_grad():
        detector.backbone.stages[1][0].conv3_1x1.bn.weight.mul_(1e6)
    with pytest.raises(
        InputError, match=r"cannot be exported in fp16: .*stages\.1\.0\.conv3_1x1.* ends at 65504"
    ):
        find_peak(detector, random_crops(2, 64))


def test_a_product_between_layers_is_seen(detector: Detector) -> None:
    """Value and context fit, their product does not: it is the input of the next convolution only."""
    attention = detector.backbone.stages[2][1].transformer[0].attn
    width = attention.embed_dim
    with torch.no_grad():
        attention.qkv_proj.bias[1:].add_(1e3)
        attention.out_proj.weight.mul_(1e-5)
    with pytest.raises(InputError, match=r"transformer\.0\.attn\.out_proj reaches 1e\+06"):
        find_peak(detector, random_crops(2, 64))
    assert width == attention.out_proj.in_channels


def test_an_infinity_is_refused(detector: Detector) -> None:
    with torch.no_grad():
        detector.backbone.stem.bn.bias[0] = torch.nan
    with pytest.raises(InputError, match="cannot be exported in fp16"):
        find_peak(detector, random_crops(1, 64))


def test_the_network_is_left_alone(detector: Detector) -> None:
    crops = np.zeros((1, 64, 64, 3), np.uint8)
    find_peak(detector, crops)
    assert not any(module._forward_hooks for module in detector.modules())


@pytest.mark.parametrize("name", ["onnx-fp16", "tensorrt-rtx"])
def test_no_format_in_float16_is_made_of_a_network_that_leaves_it(
    detector: Detector, tmp_path: Path, name: str
) -> None:
    with torch.no_grad():
        detector.backbone.stages[1][0].conv3_1x1.bn.weight.mul_(1e6)
    ingredients = Ingredients(detector, tmp_path, {}, gather_ranges=lambda: pytest.fail("needs no ranges"))
    with pytest.raises(InputError, match="cannot be exported in fp16"):
        build(FORMATS[name], ingredients)
