"""What the trace loss asks for, by hand, and that it leaves the detector's own answer alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.errors import InputError
from training.networks import Detector, NetworkSpec
from training.traces import CHANNELS, STRIDES, TracingLearner, trace_loss, trace_targets

SIZE = 64


def twins(*, changed: tuple[int, int, int] = (8, -4, 0)) -> Tensor:
    """A grey real [2, 64, 64, 3] and a fake whose left half is changed by so many levels."""
    crops = torch.full((2, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    crops[1, :, : SIZE // 2] = 100 + torch.tensor(changed)
    return crops.to(torch.uint8)


def noise(pairs: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2 * pairs, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def learner() -> TracingLearner:
    torch.manual_seed(3)
    return TracingLearner(Detector(NetworkSpec(name="test_efficientnet", image_size=SIZE)))


# --- targets ---


def test_reals_have_nothing_to_show() -> None:
    assert trace_targets(noise(), (4, 4))[:2].count_nonzero() == 0


def test_a_shift_of_colour_by_hand() -> None:
    wanted = trace_targets(twins(), (8, 8))
    assert wanted.shape == (2, CHANNELS, 8, 8)
    # mean of 8, 4 and 0 levels is 4, from which on a cell is blended in full; a 16th of the levels per colour
    inside = torch.tensor([1.0, 0.5, -0.25, 0.0, 0.0])
    assert torch.allclose(wanted[1, :, 3, 1], inside, atol=1e-5)
    assert torch.allclose(wanted[1, :, 3, 6], torch.zeros(CHANNELS), atol=1e-5)


def test_a_slight_change_is_blended_in_part() -> None:
    wanted = trace_targets(twins(changed=(1, 1, 1)), (8, 8))
    assert wanted[1, 0, 3, 1] == pytest.approx(0.25)


def test_detail_that_was_added_by_hand() -> None:
    """A checkerboard of ±2 levels: each pixel minus its 3x3 mean (5 of one sign, 4 of the other) is 16/9 levels."""
    crops = twins(changed=(0, 0, 0))
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    board = torch.where((rows + columns) % 2 == 0, 102, 98).to(torch.uint8)
    crops[1] = board[:, :, None]
    energy = (16 / 9 / 255) ** 2
    wanted = trace_targets(crops, (8, 8))[1, 4, 4, 4]
    assert float(wanted) == pytest.approx(math.log((energy + 1e-5) / 1e-5), abs=1e-3)
    crops[1] = torch.where((rows + columns) % 2 == 0, 255, 0).to(torch.uint8)[:, :, None]
    assert float(trace_targets(crops, (8, 8))[1, 4, 4, 4]) == 3.0  # the limit


def test_a_fake_equal_to_its_twin_asks_for_nothing() -> None:
    crops = noise(1)[:1].repeat(2, 1, 1, 1)
    maps = [torch.zeros(2, CHANNELS, 4, 4, requires_grad=True)]
    assert trace_targets(crops, (4, 4)).count_nonzero() == 0
    loss = trace_loss(maps, crops)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))


# --- loss ---


def test_the_loss_by_hand() -> None:
    """Zero maps: ln 2 for the first channel; smooth L1 below 1 is half the square, over four channels."""
    crops = torch.full((2, SIZE, SIZE, 3), 100, dtype=torch.uint8)
    crops[1] = 100 + torch.tensor([8, 4, 0], dtype=torch.uint8)
    maps = [torch.zeros(2, CHANNELS, 8, 8), torch.zeros(2, CHANNELS, 2, 2)]
    changes = 0.5 * (0.5**2 + 0.25**2) / 4
    # beyond the picture lie zeros, so that its border holds detail, and more of it where it is brighter
    detail = float((0.5 * trace_targets(crops, (8, 8))[1, 4].square()).mean() / 4)
    assert float(trace_loss(maps[:1], crops)) == pytest.approx(math.log(2) + (changes + detail) / 2, rel=1e-4)
    each = [float(trace_loss([found], crops)) for found in maps]
    assert float(trace_loss(maps, crops)) == pytest.approx(sum(each) / 2)


def test_maps_that_tell_all_cost_least() -> None:
    crops = twins()
    wanted = trace_targets(crops, (8, 8))
    told = wanted.clone()
    told[:, 0] = torch.logit(wanted[:, 0], eps=1e-6)
    assert float(trace_loss([told], crops)) == pytest.approx(0.0, abs=1e-4)
    assert float(trace_loss([-told], crops)) > 1


# --- learner ---


def test_the_detector_answers_as_without_heads(learner: TracingLearner) -> None:
    crops = noise()
    learner.eval()
    logits, maps = learner(crops)
    assert torch.equal(logits, learner.detector(crops))
    assert [tuple(found.shape) for found in maps] == [(4, CHANNELS, SIZE // s, SIZE // s) for s in STRIDES]


def test_the_heads_start_with_an_answer_that_fits_no_picture_in_particular(learner: TracingLearner) -> None:
    _, maps = learner(noise())
    for found in maps:
        assert (found[:, 0] == -1.5).all()
        assert found[:, 1:].count_nonzero() == 0


def test_the_gradient_reaches_heads_and_backbone(learner: TracingLearner) -> None:
    for head in learner.heads:
        torch.nn.init.normal_(head.weight)
    _, maps = learner(noise())
    trace_loss(maps, noise()).backward()
    assert all(head.weight.grad is not None and head.weight.grad.any() for head in learner.heads)
    assert any(p.grad is not None and p.grad.any() for p in learner.detector.backbone.parameters())
    assert learner.detector.head.weight.grad is None


def test_half_precision_maps_are_compared_in_float32(learner: TracingLearner) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits, maps = learner(noise())
    assert {logits.dtype, *(found.dtype for found in maps)} == {torch.float32}


def test_a_network_without_such_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(NetworkSpec(name="test_efficientnet", image_size=SIZE))
    monkeypatch.setattr(detector.backbone, "feature_info", [])
    with pytest.raises(InputError, match="Set trace_loss_weight to 0"):
        TracingLearner(detector)
