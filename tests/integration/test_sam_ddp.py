"""SAM in two real processes: who averages which gradient, and that every rank takes the same decision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from training.sam import SharpnessAware

WORLD = 2
RHO = 0.5
LR = 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )


def data(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 2


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    pictures, labels = data(rank, step)
    return functional.cross_entropy(model(pictures), labels)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def everywhere(value: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(value) for _ in range(WORLD)]
    distributed.all_gather(gathered, value)
    return gathered


def assert_same_everywhere(value: Tensor) -> None:
    first, second = everywhere(value)
    assert torch.equal(first, second)


def wrapped() -> DistributedDataParallel:
    return DistributedDataParallel(network())


def base(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR)


def count_reductions(model: DistributedDataParallel) -> list[int]:
    calls: list[int] = []

    def hook(state: None, bucket: Any) -> torch.futures.Future[Tensor]:
        calls.append(1)
        future: torch.futures.Future[Tensor] = allreduce_hook(state, bucket)  # type: ignore[arg-type]
        return future

    hook.__annotations__.clear()  # torch compares them with types, and these are strings
    model.register_comm_hook(None, hook)
    return calls


def each_rank_climbs_alone_and_the_mean_gradient_is_taken(rank: int) -> None:
    model = wrapped()
    climbed: list[Tensor] = []

    def closure() -> Tensor:
        climbed.append(flat(model))
        return loss_of(model, rank, 0)

    SharpnessAware(model, base(model), rho=RHO).step([closure])
    first, second = everywhere(climbed[1])
    assert not torch.allclose(first, second, atol=1e-3)
    assert_same_everywhere(flat(model))
    # m-SAM by hand: every rank's own perturbation, then the mean of the two gradients.
    gradients = []
    for other in range(WORLD):
        twin = network()
        torch.autograd.backward(loss_of(twin, other, 0))
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in twin.parameters() if p.grad is not None))
        with torch.no_grad():
            for parameter in twin.parameters():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=RHO / norm)
        twin.zero_grad()
        torch.autograd.backward(loss_of(twin, other, 0))
        gradients.append(torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]))
    expected = flat(network()) - LR * (gradients[0] + gradients[1]) / 2
    torch.testing.assert_close(flat(model), expected, rtol=1e-4, atol=1e-6)


def a_synchronised_perturbation_is_the_same_everywhere(rank: int) -> None:
    model = wrapped()
    climbed: list[Tensor] = []

    def closure() -> Tensor:
        climbed.append(flat(model))
        return loss_of(model, rank, 0)

    before = flat(model)
    SharpnessAware(model, base(model), rho=RHO, sync_perturbation=True).step([closure])
    assert_same_everywhere(climbed[1])
    assert not torch.equal(climbed[1], before)
    assert_same_everywhere(flat(model))


def gradients_are_reduced_once_a_step(rank: int) -> None:
    for sync, perturb, expected in ((False, True, 1), (True, True, 2), (False, False, 1)):
        model = wrapped()
        step = SharpnessAware(model, base(model), rho=RHO, sync_perturbation=sync)
        calls = count_reductions(model)
        step.step([partial(loss_of, model, rank, number) for number in range(3)], perturb=perturb)
        assert len(calls) == expected, (sync, perturb, len(calls))
        assert_same_everywhere(flat(model))


def ranks_do_not_drift_apart(rank: int) -> None:
    model = wrapped()
    step = SharpnessAware(model, base(model), rho=RHO, adaptive=True, clip_norm=0.5)
    for number in range(50):
        assert step.step([partial(loss_of, model, rank, number)]).skipped is None
    assert_same_everywhere(flat(model))


def one_bad_rank_stops_the_step_on_all(rank: int) -> None:
    for bad_call, name in ((1, "first pass"), (2, "second pass")):
        model = wrapped()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        step = SharpnessAware(model, base(model), rho=RHO, scaler=scaler)
        before = copy.deepcopy(model.state_dict())
        closure = sometimes_infinite(model, rank, bad_call)
        report = step.step([closure])
        assert report.skipped == name
        assert math.isfinite(report.loss) == (rank == 0 or bad_call == 2)
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key
        assert scaler.get_scale() == 512.0
        assert step.step([closure]).skipped is None
        assert_same_everywhere(flat(model))


def sometimes_infinite(model: nn.Module, rank: int, bad_call: int) -> Callable[[], Tensor]:
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        loss = loss_of(model, rank, 0)
        return loss * math.inf if rank == 1 and len(calls) == bad_call else loss

    return closure


CHECKS = (
    each_rank_climbs_alone_and_the_mean_gradient_is_taken,
    a_synchronised_perturbation_is_the_same_everywhere,
    gradients_are_reduced_once_a_step,
    ranks_do_not_drift_apart,
    one_bad_rank_stops_the_step_on_all,
)


def _process(rank: int, meeting: str, done: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    try:
        for check in CHECKS:
            check(rank)
            with Path(f"{done}{rank}").open("a") as file:
                file.write(f"{check.__name__}\n")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_rule_05_in_two_processes(tmp_path: Path) -> None:
    """One pair of processes runs all checks: starting it is the slow part."""
    done = str(tmp_path / "done")
    spawn(_process, args=(f"file://{tmp_path / 'meeting'}", done), nprocs=WORLD, join=True)  # type: ignore[no-untyped-call]
    for rank in range(WORLD):
        assert Path(f"{done}{rank}").read_text().split() == [check.__name__ for check in CHECKS]
