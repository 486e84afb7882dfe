"""The moving average of the weights, against values computed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.ema import WeightAverage


def module(value: float) -> nn.Module:
    made = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        made[0].weight.fill_(value)
    return made


def test_the_first_updates_are_those_of_the_warm_up() -> None:
    live = module(0.0)
    average = WeightAverage(live, 0.999)
    expected = 0.0
    for update, value in enumerate((11.0, 5.0, -3.0), start=1):
        with torch.no_grad():
            live[0].weight.fill_(value)
        average.update(live)
        decay = (1 + update) / (10 + update)
        expected = decay * expected + (1 - decay) * value
        assert average.weights["0.weight"].item() == pytest.approx(expected)
    # first update: 2/11 of the start and 9/11 of the live weight
    assert average.updates == 3


def test_the_decay_stops_at_the_one_that_was_asked_for() -> None:
    live = module(1.0)
    average = WeightAverage(live, 0.1)  # below the warm-up's first 2/11
    with torch.no_grad():
        live[0].weight.fill_(2.0)
    average.update(live)
    assert average.weights["0.weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    live = module(1.0)
    average = WeightAverage(live, 0.5)
    for _ in range(3):
        live(torch.full((4, 1), 10.0))
    average.update(live)
    assert average.weights["1.num_batches_tracked"].item() == 3
    running, kept = live.state_dict()["1.running_mean"], average.weights["1.running_mean"]
    decay = 2 / 11
    torch.testing.assert_close(kept, (1 - decay) * running)


def test_the_live_module_is_left_alone_and_later_changes_do_not_leak() -> None:
    live = module(1.0)
    before = copy.deepcopy(live.state_dict())
    average = WeightAverage(live, 0.5)
    average.update(live)
    for name, value in live.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        live[0].weight.fill_(100.0)
    assert average.weights["0.weight"].item() == 1.0


def test_a_saved_average_goes_on_to_the_bit() -> None:
    torch.manual_seed(0)
    live = module(1.0)
    straight = WeightAverage(live, 0.9)

    def move() -> None:
        with torch.no_grad():
            live[0].weight.add_(torch.randn(1, 1))

    move()
    straight.update(live)
    saved = copy.deepcopy(straight.state_dict())
    resumed = WeightAverage(module(7.0), 0.9)
    resumed.load_state_dict(saved)
    for _ in range(3):
        move()
        straight.update(live)
        resumed.update(live)
    assert resumed.updates == straight.updates == 4
    for name, value in straight.weights.items():
        assert torch.equal(value, resumed.weights[name])
