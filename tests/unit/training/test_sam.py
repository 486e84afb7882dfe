"""The rules of a sharpness-aware step, each as a test; rule 5 needs two processes (tests/integration)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from training.networks import build_student
from training.sam import SharpnessAware

torch.set_num_threads(1)

Closure = Callable[[], Tensor]


class Tiny(nn.Module):
    """Convolution, BatchNorm and dropout, as in the real networks; notes the masks dropout draws."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        # No bias: in front of BatchNorm its gradient is rounding noise, which AdamW blows up.
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 2)
        self.masks: list[Tensor] = []

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.norm(self.conv(pictures)).relu().mean((2, 3))
        kept = self.dropout(torch.ones_like(hidden))
        self.masks.append(kept.detach().clone())
        out: Tensor = self.head(hidden * kept)
        return out


def batch(seed: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 6, 6, generator=generator), torch.arange(size) % 2


def tiny(dropout: float = 0.5) -> Tiny:
    torch.manual_seed(1)
    return Tiny(dropout)


def closure_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Closure:
    return lambda: functional.cross_entropy(model(data[0]), data[1])


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def in_pass(number: int, closure: Closure, act: Callable[[], object]) -> Closure:
    """Call `act` before the closure's `number`-th call (from 1)."""
    calls = 0

    def wrapped() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return closure()

    return wrapped


# the step itself


@pytest.mark.parametrize(("adaptive", "gradient_at"), [(False, 2.0 + 0.3), (True, 2.0 + 0.3 * 2.0)])
def test_one_weight_moves_by_the_gradient_at_the_climbed_point(adaptive: bool, gradient_at: float) -> None:
    """Loss 3/2 w² at w = 2: SAM climbs by rho, ASAM by rho·|w|; the gradient there is 3 (w + e)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    step = SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3, adaptive=adaptive)
    report = step.step([lambda: 1.5 * model(torch.ones(1, 1)).pow(2).mean()])
    assert model.weight.item() == pytest.approx(2.0 - 0.1 * 3 * gradient_at)
    assert report.loss == pytest.approx(6.0)
    assert report.sharpness == pytest.approx(1.5 * gradient_at**2 - 6.0)
    assert report.grad_norm == pytest.approx(3 * gradient_at)
    assert report.skipped is None


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_trajectory_equals_pytorch_optimizer(adaptive: bool, base: Any) -> None:
    oracle_sam = pytest.importorskip("pytorch_optimizer").SAM
    ours, theirs = tiny(dropout=0.0), tiny(dropout=0.0)
    extra: dict[str, Any] = {"momentum": 0.9} if base is torch.optim.SGD else {"weight_decay": 0.1}
    plain = base(ours.parameters(), lr=0.01, **extra)
    step = SharpnessAware(ours, plain, rho=0.2, adaptive=adaptive)
    oracle = oracle_sam(theirs.parameters(), base, rho=0.2, adaptive=adaptive, lr=0.01, **extra)
    start = flat(ours)
    for seed in range(15):
        step.step([closure_of(ours, batch(seed))])
        loss = closure_of(theirs, batch(seed))
        torch.autograd.backward(loss())
        oracle.first_step(zero_grad=True)
        torch.autograd.backward(loss())
        oracle.second_step(zero_grad=True)
    assert (flat(ours) - start).norm() > 0.05
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=2e-5, atol=2e-6)


# the rules


def test_rule_02_the_second_pass_leaves_batchnorm_alone() -> None:
    model, twin = tiny(), tiny()
    SharpnessAware(model, sgd(model), rho=0.5).step(
        [closure_of(model, batch(0)), closure_of(model, batch(1))]
    )
    for seed in (0, 1):
        twin(batch(seed)[0])
    assert model.norm.num_batches_tracked is not None
    assert model.norm.num_batches_tracked.item() == 2
    assert_same(dict(model.norm.named_buffers()), dict(twin.norm.named_buffers()))


def test_rule_02_the_second_pass_still_runs_in_training_mode() -> None:
    model = tiny()
    modes: list[bool] = []
    model.norm.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    SharpnessAware(model, sgd(model), rho=0.5).step([closure_of(model, batch())])
    assert modes == [True, True]


def test_rule_02_holds_with_gradient_checkpointing() -> None:
    """A recomputed forward moves BatchNorm once more in the backward pass; that has to be undone as well."""
    nets = [build_student("mobilevitv2_050", image_size=64, pretrained="none")[0] for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    nets[1].set_gradient_checkpointing(True)
    crops = torch.randint(
        0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    for net, rho in zip(nets[:2], (0.05, 0.05), strict=True):
        torch.manual_seed(3)
        SharpnessAware(net, sgd(net), rho=rho).step([closure_of(net, (crops, torch.arange(4) % 2))])
    counters = {int(value) for name, value in nets[1].named_buffers() if name.endswith("num_batches_tracked")}
    assert counters == {1}
    for (name, plain), other in zip(nets[0].named_buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(other, plain, msg=name)
    torch.testing.assert_close(flat(nets[1]), flat(nets[0]))
    # Without the step's care the counters would read 2: the premise of this test.
    nets[2].set_gradient_checkpointing(True)
    torch.autograd.backward(closure_of(nets[2], (crops, torch.arange(4) % 2))())
    assert max(int(v) for n, v in nets[2].named_buffers() if n.endswith("num_batches_tracked")) == 2


def test_rule_03_both_passes_draw_the_same_dropout_masks_and_the_next_step_others() -> None:
    model = tiny()
    step = SharpnessAware(model, sgd(model), rho=0.05)
    closures = [closure_of(model, batch(0)), closure_of(model, batch(1))]
    step.step(closures)
    step.step(closures)
    first, second, first_again, second_again, other = model.masks[:5]
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_rule_04_weights_are_restored_by_copy_to_the_bit() -> None:
    model = tiny(dropout=0.0)
    before = flat(model)
    step = SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=1000.0)
    climbed: list[Tensor] = []
    step.step([in_pass(2, closure_of(model, batch()), lambda: climbed.append(flat(model)))])
    assert torch.equal(flat(model), before)
    # Restoring by subtraction would not have come back, so the assertion above says something.
    assert not torch.equal(climbed[0] - (climbed[0] - before), before)


def test_rule_04_parameters_keep_their_storage() -> None:
    model = tiny()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    SharpnessAware(model, sgd(model), rho=0.05).step([closure_of(model, batch())])
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_rule_06_clipping_acts_on_the_final_gradient_only() -> None:
    model = tiny(dropout=0.0)
    before = flat(model)
    step = SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, clip_norm=1e-3)
    climbed: list[Tensor] = []
    report = step.step([in_pass(2, closure_of(model, batch()), lambda: climbed.append(flat(model)))])
    assert (climbed[0] - before).norm().item() == pytest.approx(0.05, rel=1e-4)
    assert (flat(model) - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-2)
    assert report.grad_norm > 1e-2  # reported as it was before clipping


def test_rule_06_a_loss_scale_changes_nothing() -> None:
    plain, scaled = tiny(), tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    steps = [
        SharpnessAware(plain, sgd(plain), rho=0.1, clip_norm=0.1),
        SharpnessAware(scaled, sgd(scaled), rho=0.1, clip_norm=0.1, scaler=scaler),
    ]
    for seed in range(4):
        reports = []
        for step in steps:
            torch.manual_seed(seed)
            reports.append(step.step([closure_of(step.model, batch(seed))]))
        assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-4)
    torch.testing.assert_close(flat(scaled), flat(plain), rtol=1e-5, atol=1e-6)
    assert scaler.get_scale() == 4096.0  # two growths in four steps: update() ran once per step


@pytest.mark.parametrize("with_scaler", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_rule_07_a_bad_first_pass_changes_nothing_and_the_run_goes_on(with_scaler: bool, rho: float) -> None:
    model = tiny()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if with_scaler else None
    step = SharpnessAware(model, optimizer, rho=rho, scaler=scaler)
    step.step([closure_of(model, batch(0))])
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    calls = len(model.masks)
    report = step.step([closure_of(model, (batch(1)[0] * math.nan, batch(1)[1]))])
    assert report.skipped == "first pass"
    assert report.sharpness is None
    assert math.isnan(report.loss)
    assert len(model.masks) == calls + 1  # no second pass
    assert_same(weights(model), before)
    assert_states_equal(optimizer.state_dict(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    if scaler is not None:
        assert scaler.get_scale() == 512.0
    assert step.step([closure_of(model, batch(2))]).skipped is None
    assert torch.isfinite(flat(model)).all()
    assert not torch.equal(flat(model), torch.cat([before[n].flatten() for n, _ in model.named_parameters()]))


def assert_states_equal(one: dict[str, object], other: dict[str, object]) -> None:
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
    assert one["param_groups"] == other["param_groups"]


def test_rule_07_a_bad_loss_with_finite_gradients_is_skipped_too() -> None:
    model = tiny()
    before = weights(model)
    report = SharpnessAware(model, sgd(model), rho=0.05).step(
        [lambda: closure_of(model, batch())() + torch.tensor(math.inf)]
    )
    assert report.skipped == "first pass"
    assert_same(weights(model), before)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_rule_07_a_finite_loss_with_bad_gradients_is_skipped_too(rho: float) -> None:
    model = tiny()
    before = weights(model)
    report = SharpnessAware(model, sgd(model), rho=rho).step(
        [lambda: closure_of(model, batch())() + (model.head.bias * 0).sum().sqrt()]  # d sqrt(x) at 0
    )
    assert math.isfinite(report.loss)
    assert math.isnan(report.grad_norm)
    assert report.skipped == "first pass"
    assert_same(weights(model), before)


def test_rule_07_one_bad_micro_batch_spoils_the_step() -> None:
    model = tiny()
    before = weights(model)
    closures = [closure_of(model, batch(0)), closure_of(model, (batch(1)[0] * math.inf, batch(1)[1]))]
    assert SharpnessAware(model, sgd(model), rho=0.05).step(closures).skipped == "first pass"
    assert_same(weights(model), before)


def test_rule_08_micro_batches_give_the_step_of_the_whole_batch() -> None:
    whole, parts = (
        tiny(dropout=0.0).eval(),
        tiny(dropout=0.0).eval(),
    )  # eval: BatchNorm would see other batches
    pictures, labels = batch(size=8)
    SharpnessAware(whole, sgd(whole), rho=0.3).step([closure_of(whole, (pictures, labels))])
    halves = [closure_of(parts, (pictures[part], labels[part])) for part in (slice(0, 4), slice(4, 8))]
    report = SharpnessAware(parts, sgd(parts), rho=0.3).step(halves)
    torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-5, atol=1e-7)
    assert report.loss == pytest.approx(
        closure_of(tiny(dropout=0.0).eval(), (pictures, labels))().item(), rel=1e-6
    )


class TwoBranches(nn.Module):
    """A branch that may be left out (its gradient is None then) and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.main = nn.Linear(3, 2)
        self.other = nn.Linear(3, 2)
        self.use_other = True

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.frozen(inputs)
        out: Tensor = self.main(hidden)
        return out + self.other(hidden) if self.use_other else out


def test_rule_09_frozen_layers_stay_and_skipped_branches_are_not_perturbed() -> None:
    torch.manual_seed(0)
    model = TwoBranches()
    model.use_other = False
    before = weights(model)
    inputs, labels = torch.randn(4, 3), torch.arange(4) % 2
    climbed: list[dict[str, Tensor]] = []
    step = SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    step.step([in_pass(2, closure_of(model, (inputs, labels)), lambda: climbed.append(weights(model)))])
    moved = {name for name in before if not torch.equal(climbed[0][name], before[name])}
    assert moved == {"main.weight", "main.bias"}
    after = weights(model)
    assert {name for name in before if not torch.equal(after[name], before[name])} == moved


def test_rule_09_a_branch_left_out_of_the_second_pass_is_restored() -> None:
    torch.manual_seed(0)
    model = TwoBranches()
    before = weights(model)
    data = (torch.randn(4, 3), torch.arange(4) % 2)
    step = SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    step.step([in_pass(2, closure_of(model, data), lambda: setattr(model, "use_other", False))])
    assert torch.equal(model.other.weight, before["other.weight"])
    assert not torch.equal(model.main.weight, before["main.weight"])


def test_rule_09_scope_norm_perturbs_norm_layers_by_type() -> None:
    net, _ = build_student("mobilevitv2_050", image_size=64, pretrained="none")
    before = weights(net)
    crops = torch.randint(
        0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    climbed: list[dict[str, Tensor]] = []
    step = SharpnessAware(net, sgd(net), rho=0.5, scope="norm")
    step.step(
        [in_pass(2, closure_of(net, (crops, torch.arange(4) % 2)), lambda: climbed.append(weights(net)))]
    )
    trained = [name for name, _ in net.named_parameters()]
    moved = {name for name in trained if not torch.equal(climbed[0][name], before[name])}
    norms = (nn.BatchNorm2d, nn.GroupNorm)
    expected = {
        f"{prefix}.{name}"
        for prefix, module in net.named_modules()
        if isinstance(module, norms)
        for name, _ in module.named_parameters(recurse=False)
    }
    assert moved
    assert moved <= expected
    distance = math.sqrt(sum((climbed[0][name] - before[name]).square().sum().item() for name in moved))
    assert distance == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("rho", "perturb"), [(0.0, True), (0.05, False)])
def test_rule_10_no_radius_is_the_plain_step_to_the_bit(base: Any, rho: float, perturb: bool) -> None:
    ours, plain = tiny(), tiny()
    step = SharpnessAware(ours, base(ours.parameters(), lr=0.01), rho=rho, clip_norm=0.5)
    optimizer = base(plain.parameters(), lr=0.01)
    for seed in range(5):
        torch.manual_seed(seed)
        report = step.step([closure_of(ours, batch(seed))], perturb=perturb)
        torch.manual_seed(seed)
        optimizer.zero_grad()
        loss = closure_of(plain, batch(seed))()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        assert (report.loss, report.grad_norm, report.sharpness) == (loss.item(), norm.item(), None)
    assert_same(weights(ours), weights(plain))
    assert_states_equal(step.optimizer.state_dict(), optimizer.state_dict())


def test_rule_10_the_report_is_the_loss_and_its_rise() -> None:
    model = tiny(dropout=0.0).eval()
    start = copy.deepcopy(model)
    climbed: list[nn.Module] = []
    closure = in_pass(2, closure_of(model, batch()), lambda: climbed.append(copy.deepcopy(model)))
    report = SharpnessAware(model, sgd(model), rho=0.5).step([closure])
    low = closure_of(start, batch())().item()
    assert report.loss == pytest.approx(low, rel=1e-6)
    assert report.sharpness == pytest.approx(closure_of(climbed[0], batch())().item() - low, rel=1e-4)
    assert report.sharpness is not None
    assert report.sharpness > 0


# what broke an earlier implementation


@pytest.mark.parametrize("with_scaler", [False, True])
def test_a_bad_second_pass_leaves_weights_where_they_were(with_scaler: bool) -> None:
    """An earlier one went on from w + e(w), and called update() on a scaler without unscale_()."""
    model = tiny()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if with_scaler else None
    step = SharpnessAware(model, optimizer, rho=0.05, scaler=scaler)
    step.step([closure_of(model, batch(0))])
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    pictures, labels = batch(1)
    report = step.step([in_pass(2, closure_of(model, (pictures, labels)), lambda: pictures.mul_(math.nan))])
    assert report.skipped == "second pass"
    assert math.isfinite(report.loss)
    assert report.sharpness is None
    assert_same(weights(model), before)
    assert_states_equal(optimizer.state_dict(), state)
    if scaler is not None:
        assert scaler.get_scale() == 512.0
    assert step.step([closure_of(model, batch(2))]).skipped is None
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("number", [1, 2])
def test_an_exception_in_either_pass_leaves_everything_as_before(
    error: type[BaseException], number: int
) -> None:
    model = tiny()
    optimizer = sgd(model)
    step = SharpnessAware(model, optimizer, rho=0.5)
    step.step([closure_of(model, batch(0))])
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())

    def fail() -> None:
        model(batch(1)[0])  # moves BatchNorm before it fails
        raise error("stop")

    with pytest.raises(error, match="stop"):
        step.step([in_pass(number, closure_of(model, batch(1)), fail)])
    assert_same(weights(model), before)
    assert_states_equal(optimizer.state_dict(), state)


def test_resume_from_plain_state_dicts_is_exact() -> None:
    """A wrapping optimizer lost the base optimizer's moments; here the base's own state is all there is."""

    def start() -> tuple[Tiny, SharpnessAware]:
        model = tiny()
        return model, SharpnessAware(model, torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.1)

    def run(step: SharpnessAware, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            step.step([closure_of(step.model, batch(seed))])

    model, step = start()
    run(step, range(5))
    saved = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    run(step, range(5, 10))
    resumed, again = start()
    resumed.load_state_dict(saved[0])
    again.optimizer.load_state_dict(saved[1])
    run(again, range(5, 10))
    assert_same(weights(resumed), weights(model))


def test_a_lowered_scale_starts_counting_its_growth_anew() -> None:
    model = tiny()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    step = SharpnessAware(model, sgd(model), rho=0.05, scaler=scaler)
    good, bad = closure_of(model, batch(0)), closure_of(model, (batch(1)[0] * math.nan, batch(1)[1]))
    for closure in (good, bad, good):
        step.step([closure])
    assert scaler.get_scale() == 512.0
    step.step([good])
    assert scaler.get_scale() == 1024.0


# bad use


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_radius_that_is_none_is_refused(rho: float) -> None:
    model = tiny()
    with pytest.raises(InputError, match="rho"):
        SharpnessAware(model, sgd(model), rho=rho)


def test_clip_norm_zero_is_refused() -> None:
    model = tiny()
    with pytest.raises(InputError, match="clip_norm"):
        SharpnessAware(model, sgd(model), rho=0.05, clip_norm=0.0)


def test_scope_norm_without_norm_layers_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"norm.*no trainable parameter"):
        SharpnessAware(model, sgd(model), rho=0.05, scope="norm")


def test_half_precision_weights_are_refused() -> None:
    model = nn.Linear(2, 2).bfloat16()
    with pytest.raises(InputError, match=r"bfloat16.*autocast"):
        SharpnessAware(model, sgd(model), rho=0.05)


def test_a_loss_that_does_not_depend_on_the_weights_is_an_error() -> None:
    model = nn.Linear(2, 2)
    free = torch.ones((), requires_grad=True)
    for rho in (0.0, 0.05):
        with pytest.raises(RuntimeError, match="received a gradient"):
            SharpnessAware(model, sgd(model), rho=rho).step([lambda: free * 2])


def test_no_closures_and_losses_per_picture_are_errors() -> None:
    model = tiny()
    step = SharpnessAware(model, sgd(model), rho=0.05)
    with pytest.raises(ValueError, match="at least one closure"):
        step.step([])
    with pytest.raises(ValueError, match=r"one mean loss, given shape \[8\]"):
        step.step([lambda: functional.cross_entropy(model(batch()[0]), batch()[1], reduction="none")])


def test_a_gradient_of_zero_does_not_divide_by_zero() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    report = SharpnessAware(model, sgd(model), rho=0.05).step([lambda: model(torch.ones(1, 1)).pow(2).mean()])
    assert report.skipped is None
    assert model.weight.item() == 0.0
