"""Losses against values computed by hand, and the refusal of those that two classes kill."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.errors import InputError
from training.losses import (
    DEFAULT_ALPHA_TABLE,
    alpha_at,
    check_alpha_table,
    check_loss_for_two_classes,
    combine,
    dist_intra,
    distillation_kl,
    hard_loss,
    logit_mse,
    soft_loss,
)

STUDENT = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
TEACHER = torch.tensor([[0.0, 3.0 * math.log(3.0)], [1.0, -1.0]])


def test_hard_loss_is_the_cross_entropy_by_hand() -> None:
    # Row 1: p = (1/2, 1/2), label 1 -> ln 2. Row 2: p_fake = sigmoid(-2), label 1 -> ln(1 + e^2).
    expected = (math.log(2.0) + math.log1p(math.exp(2.0))) / 2
    assert hard_loss(STUDENT, torch.tensor([1, 1])).item() == pytest.approx(expected, rel=1e-6)


def test_kl_is_the_hand_value_with_temperature_squared_and_batch_mean() -> None:
    # At T = 3 the teacher's first row is (1/4, 3/4) and the student's (1/2, 1/2); the second rows agree.
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation_kl(STUDENT, TEACHER, 3.0).item() == pytest.approx(9.0 * divergence / 2, rel=1e-5)


def test_kl_of_teacher_and_student_is_not_symmetric_and_in_the_right_order() -> None:
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    backward = 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)
    assert distillation_kl(STUDENT[:1], TEACHER[:1], 3.0).item() == pytest.approx(9 * forward, rel=1e-5)
    assert distillation_kl(TEACHER[:1], STUDENT[:1], 3.0).item() == pytest.approx(9 * backward, rel=1e-5)


def test_kl_equals_the_bernoulli_divergence_of_the_margins() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    teacher = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    p = torch.sigmoid((student[:, 1] - student[:, 0]) / 3)
    q = torch.sigmoid((teacher[:, 1] - teacher[:, 0]) / 3)
    bernoulli = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean() * 9
    assert distillation_kl(student, teacher, 3.0).item() == pytest.approx(bernoulli.item(), rel=1e-12)


def test_kl_stays_finite_where_the_teacher_is_certain() -> None:
    student = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = distillation_kl(student, torch.tensor([[300.0, -300.0]]), 1.0)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(400.0)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_kl_is_computed_in_float32_from_half_precision_logits() -> None:
    student, teacher = STUDENT.bfloat16(), TEACHER.bfloat16()
    loss = distillation_kl(student, teacher, 3.0)
    assert loss.dtype == torch.float32
    assert loss.item() == distillation_kl(student.float(), teacher.float(), 3.0).item()


def test_logit_mse_is_the_hand_value() -> None:
    assert logit_mse(STUDENT, torch.tensor([[1.0, 3.0], [1.0, -1.0]])).item() == pytest.approx((1 + 9) / 4)


def test_dist_intra_is_the_hand_value() -> None:
    # p_fake over the batch: student (0.2, 0.4, 0.6), teacher (0.1, 0.3, 0.2): Pearson correlation 1/2.
    def logits(probabilities: list[float]) -> torch.Tensor:
        return torch.tensor([[math.log(1 - p), math.log(p)] for p in probabilities])

    loss = dist_intra(logits([0.2, 0.4, 0.6]), logits([0.1, 0.3, 0.2]), 1.0)
    assert loss.item() == pytest.approx(0.5, rel=1e-5)


def test_dist_intra_is_alive_at_two_classes_and_zero_for_an_equal_ranking_of_equal_shape() -> None:
    student = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    teacher = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
    torch.autograd.backward(dist_intra(student, teacher, 3.0))
    assert student.grad is not None
    assert student.grad.abs().max() > 1e-3
    assert dist_intra(teacher, teacher, 3.0).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", ["kl", "logit_mse", "dist_intra"])
def test_gradients_are_right_and_never_reach_the_teacher(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda logits: soft_loss(name, logits, teacher.detach(), temperature=3.0), (student,)
    )
    torch.autograd.backward(soft_loss(name, student, teacher, temperature=3.0))
    assert teacher.grad is None


def test_the_temperature_of_kl_leaves_the_gradient_of_nearly_equal_logits_alone() -> None:
    """Hinton et al. 2015: with T squared outside, the gradient keeps its size as T grows."""
    gradients = []
    for temperature in (50.0, 100.0):
        student = torch.tensor([[0.5, -0.5]], dtype=torch.float64, requires_grad=True)
        teacher = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        torch.autograd.backward(distillation_kl(student, teacher, temperature))
        assert student.grad is not None
        gradients.append(student.grad[0, 0].item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)


def test_combine_weighs_hard_by_alpha_and_soft_by_the_rest() -> None:
    assert combine(torch.tensor(2.0), torch.tensor(10.0), 0.75).item() == pytest.approx(0.75 * 2 + 0.25 * 10)


def test_the_control_run_keeps_the_hard_loss_unscaled() -> None:
    assert combine(torch.tensor(2.0), None, 0.5).item() == 2.0
    with pytest.raises(ValueError, match="leave the teacher out"):
        soft_loss("none", STUDENT, TEACHER, temperature=3.0)


@pytest.mark.parametrize("name", ["dkd", "logit_standardization", "dist_inter"])
def test_losses_that_two_classes_kill_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}.*teaches nothing.*kl, logit_mse, dist_intra, none"):
        check_loss_for_two_classes(name)


def test_the_refused_losses_really_are_dead() -> None:
    """The claim behind the refusal: at two classes their gradient is zero, while KL's is not."""
    teacher = torch.randn(16, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def largest_gradient(loss: str) -> float:
        student = torch.randn(16, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        student.requires_grad_()
        if loss == "logit_standardization":
            rows = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (student, teacher)]
            value = functional.kl_div(
                rows[0].log_softmax(1), rows[1].log_softmax(1), reduction="batchmean", log_target=True
            )
        elif loss == "dist_inter":
            rows = [x.softmax(1) - x.softmax(1).mean(1, keepdim=True) for x in (student, teacher)]
            value = 1 - functional.cosine_similarity(rows[0], rows[1], dim=1).mean()
        else:
            value = distillation_kl(student, teacher, 3.0)
        torch.autograd.backward(value)
        assert student.grad is not None
        return student.grad.abs().max().item()

    assert largest_gradient("logit_standardization") < 1e-9
    assert largest_gradient("dist_inter") < 1e-9
    assert largest_gradient("kl") > 1e-2


def test_an_unknown_loss_names_those_on_offer() -> None:
    with pytest.raises(InputError, match=r"'kld'.*kl, logit_mse"):
        soft_loss("kld", STUDENT, TEACHER, temperature=3.0)


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "message"),
    [
        (torch.zeros(4, 1), torch.zeros(4, 1), 3.0, "one logit"),
        (torch.zeros(4, 2), torch.zeros(3, 2), 3.0, "equal"),
        (torch.zeros(0, 2), torch.zeros(0, 2), 3.0, "equal"),
        (torch.zeros(4, 2), torch.zeros(4, 2), 0.0, "temperature"),
        (torch.zeros(4, 2), torch.zeros(4, 2), float("nan"), "temperature"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distillation_kl(student, teacher, temperature)


def test_dist_intra_needs_two_pictures() -> None:
    with pytest.raises(ValueError, match="two pictures"):
        dist_intra(STUDENT[:1], TEACHER[:1], 3.0)


@pytest.mark.parametrize(
    ("epoch", "alpha"),
    [(1, 0.95), (3, 0.925), (5, 0.90), (7, 0.88), (10, 0.85), (18, 0.69), (20, 0.65), (21, 0.5), (100, 0.5)],
)
def test_the_default_schedule_at_and_between_its_rows(epoch: int, alpha: float) -> None:
    assert alpha_at(epoch) == pytest.approx(alpha)


def test_start_and_end_replace_the_outer_rows() -> None:
    assert alpha_at(1, DEFAULT_ALPHA_TABLE, 0.99, 0.3) == 0.99
    assert alpha_at(3, DEFAULT_ALPHA_TABLE, 0.99, 0.3) == pytest.approx(0.945)
    assert alpha_at(40, DEFAULT_ALPHA_TABLE, 0.99, 0.3) == 0.3


def test_epochs_before_the_first_row_hold_its_value_and_epoch_zero_is_a_mistake() -> None:
    assert alpha_at(1, {4: 0.8, 8: 0.4}) == 0.8
    with pytest.raises(ValueError, match="count from 1"):
        alpha_at(0)


@given(st.dictionaries(st.integers(1, 60), st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 80))
def test_alpha_never_leaves_the_range_of_its_neighbours(rows: dict[int, float], epoch: int) -> None:
    table = dict(sorted(rows.items()))
    check_alpha_table(table)
    assert min(table.values()) - 1e-12 <= alpha_at(epoch, table) <= max(table.values()) + 1e-12
    for row, value in table.items():
        assert alpha_at(row, table) == value


@pytest.mark.parametrize(
    ("table", "start", "end", "message"),
    [
        ({}, None, None, "no rows"),
        ({0: 0.9}, None, None, "start at 1"),
        ({5: 0.9, 1: 0.95}, None, None, "must increase"),
        ({1: 1.2}, None, None, r"1\.2 at epoch 1"),
        ({1: float("nan")}, None, None, "nan at epoch 1"),
        (DEFAULT_ALPHA_TABLE, -0.1, None, r"-0\.1 at epoch 1"),
        (DEFAULT_ALPHA_TABLE, 0.6, None, r"turn the schedule round.*epoch 1: 0\.6"),
        (DEFAULT_ALPHA_TABLE, None, 0.8, r"turn the schedule round.*epoch 21: 0\.8"),
        ({1: 0.5}, 0.9, 0.4, "one row"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(
    table: dict[int, float], start: float | None, end: float | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_alpha_table(table, start, end)
