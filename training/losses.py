"""The losses of both stages, their mixing over the epochs, and a refusal of those that two classes kill.

With two classes a teacher tells one number per picture, the margin between its logits. Losses that look at
the other classes, or that standardise each row, have nothing left to say then: they are finite, and their
gradient is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import InputError

LossName = Literal["kl", "logit_mse", "dist_intra", "none"]
"""Distillation losses on offer; "none" is the control run without a teacher's say."""

AlphaTable = Mapping[int, float]
"""Weight of the hard loss by 1-based epoch, epochs increasing."""

DEFAULT_ALPHA_TABLE: Final[AlphaTable] = {1: 0.95, 5: 0.90, 10: 0.85, 15: 0.75, 20: 0.65, 21: 0.50}
"""The method's schedule: labels lead at first, then the teacher has half of the say."""

USES_TEMPERATURE: Final[frozenset[str]] = frozenset({"kl", "dist_intra"})
"""Losses for which a temperature means something; elsewhere a temperature that is set should be refused."""

_DEAD: Final[Mapping[str, str]] = {
    "dkd": "decoupled KD splits the loss into target and non-target classes; at two classes the non-target "
    "part is identically zero and the rest is `kl`",
    "logit_standardization": "standardising a row of two logits always gives (+0.71, -0.71), so there is "
    "nothing for the student to learn from and no gradient is left",
    "dist_inter": "the correlation between two rows of two probabilities is +1 or -1 whatever the network "
    "says, so its gradient is zero",
}


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits [N, 2] against labels int64 [N], in float32 at least."""
    return functional.cross_entropy(_full(logits), labels)


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened distributions, averaged over the batch.

    L = T² · 1/N · Σ_i Σ_c q_ic · (log q_ic − log p_ic), p = softmax(student/T), q = softmax(teacher/T)
    (Hinton, Vinyals and Dean 2015; T² keeps the gradient's size independent of T). No gradient reaches the
    teacher.

    Args:
        student_logits: [N, C], C ≥ 2.
        teacher_logits: [N, C].
        temperature: T > 0.

    Raises:
        ValueError: Shapes differ, one class only, an empty batch, or T ≤ 0.
    """
    _check(student_logits, teacher_logits, temperature)
    student = functional.log_softmax(_full(student_logits) / temperature, dim=1)
    teacher = functional.log_softmax(_full(teacher_logits.detach()) / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean squared difference of the logits [N, C] (Ba and Caruana 2014); needs no temperature.

    Raises:
        ValueError: Shapes differ, one class only, or an empty batch.
    """
    _check(student_logits, teacher_logits, 1.0)
    return functional.mse_loss(_full(student_logits), _full(teacher_logits.detach()))


def dist_intra(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · (1 − correlation over the batch of student's and teacher's p(class)), mean over classes.

    The intra-class half of DIST (Huang et al. 2022): only how the teacher ranks the pictures of a batch
    counts, not its confidence. Lies in 0..2·T².

    Raises:
        ValueError: Shapes differ, one class only, T ≤ 0, or fewer than two pictures.
    """
    _check(student_logits, teacher_logits, temperature)
    if student_logits.shape[0] < 2:
        raise ValueError("dist_intra correlates over the batch and needs at least two pictures")
    student = _centred((_full(student_logits) / temperature).softmax(dim=1))
    teacher = _centred((_full(teacher_logits.detach()) / temperature).softmax(dim=1))
    correlation = functional.cosine_similarity(student, teacher, dim=0, eps=1e-8)
    return (1 - correlation).mean() * temperature**2


def soft_loss(name: str, student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return the named distillation loss; `temperature` counts for those in `USES_TEMPERATURE`.

    Raises:
        InputError: An unknown or dead name.
        ValueError: "none" (the control run has no teacher to ask), or what the loss itself refuses.
    """
    check_loss_for_two_classes(name)
    if name == "kl":
        return distillation_kl(student_logits, teacher_logits, temperature)
    if name == "logit_mse":
        return logit_mse(student_logits, teacher_logits)
    if name == "dist_intra":
        return dist_intra(student_logits, teacher_logits, temperature)
    raise ValueError(
        "the control run `none` has no soft loss: leave the teacher out and use the hard loss alone"
    )


def combine(hard: Tensor, soft: Tensor | None, alpha: float) -> Tensor:
    """Return α · hard + (1 − α) · soft; without a soft loss the hard loss alone, at full size.

    The control run keeps the hard loss unscaled: scaled by α it would also train at a smaller learning rate.
    """
    return hard if soft is None else alpha * hard + (1 - alpha) * soft


def check_loss_for_two_classes(name: str) -> None:
    """Refuse a distillation loss that is unknown, or finite but dead for the two classes real and fake.

    Raises:
        InputError: With the reason and the names on offer.
    """
    offered = ", ".join(get_args(LossName))
    if name in _DEAD:
        raise InputError(
            f"Distillation loss {name!r} teaches nothing here: {_DEAD[name]}. Use one of {offered}."
        )
    if name not in get_args(LossName):
        raise InputError(f"Unknown distillation loss {name!r}. Use one of {offered}.")


def check_alpha_table(table: AlphaTable, start: float | None = None, end: float | None = None) -> None:
    """Refuse a schedule that cannot be meant, with its first and last weight replaced by `start` and `end`.

    Raises:
        InputError: No rows, epochs below 1 or not increasing, a weight outside 0..1, or a `start` or `end`
            that turns a falling (or rising) schedule round or says two things about a single row.
    """
    if not table:
        raise InputError('alpha_table has no rows. Give epochs and weights such as {"1": 0.95, "21": 0.5}.')
    epochs = list(table)
    if epochs[0] < 1 or any(later <= earlier for earlier, later in pairwise(epochs)):
        raise InputError(f"alpha_table's epochs must increase and start at 1 or later, given {epochs}.")
    changed = _with_ends(table, start, end)
    for epoch, alpha in (*table.items(), *changed.items()):
        if not 0 <= alpha <= 1:
            raise InputError(
                f"Alpha is {alpha} at epoch {epoch}, expected 0..1 (the share of the hard loss)."
            )
    if len(table) == 1 and start is not None and end is not None and start != end:
        raise InputError(f"alpha_table has one row, which cannot be {start} and {end}. Give it two.")
    if _direction(table) is not None and _direction(changed) != _direction(table):
        raise InputError(
            f"alpha_start={start}, alpha_end={end} turn the schedule round: {_shown(changed)}. "
            "Give all rows as alpha_table instead."
        )


def alpha_at(
    epoch: int, table: AlphaTable = DEFAULT_ALPHA_TABLE, start: float | None = None, end: float | None = None
) -> float:
    """Return the hard loss's weight in a 1-based epoch: linear between the rows, constant outside them.

    Args:
        epoch: From 1 on.
        table: As `check_alpha_table` accepts it.
        start: Replaces the first row's weight.
        end: Replaces the last row's weight.

    Raises:
        ValueError: An epoch below 1.

    Example:
        >>> alpha_at(3), alpha_at(21), alpha_at(80)
        (0.925, 0.5, 0.5)
    """
    if epoch < 1:
        raise ValueError(f"epochs count from 1, given {epoch}")
    rows = list(_with_ends(table, start, end).items())
    if epoch <= rows[0][0]:
        return rows[0][1]
    for (left, before), (right, after) in pairwise(rows):
        if epoch == right:
            return after
        if epoch < right:
            return before + (after - before) * (epoch - left) / (right - left)
    return rows[-1][1]


def _with_ends(table: AlphaTable, start: float | None, end: float | None) -> dict[int, float]:
    rows = dict(table)
    epochs = list(rows)
    if start is not None:
        rows[epochs[0]] = start
    if end is not None:
        rows[epochs[-1]] = end
    return rows


def _direction(table: AlphaTable) -> Literal["falls", "rises"] | None:
    values = list(table.values())
    if values == sorted(values, reverse=True):
        return "falls"
    return "rises" if values == sorted(values) else None


def _shown(table: AlphaTable) -> str:
    return ", ".join(f"epoch {epoch}: {alpha:g}" for epoch, alpha in table.items())


def _full(values: Tensor) -> Tensor:
    """Raise half precision to float32 (a softmax in bf16 keeps 8 bits); leave float64 alone."""
    return values if values.dtype == torch.float64 else values.float()


def _centred(probabilities: Tensor) -> Tensor:
    return probabilities - probabilities.mean(dim=0, keepdim=True)


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[0] == 0:
        raise ValueError(
            f"expected two equal [N, C] shapes, given {list(student.shape)} and {list(teacher.shape)}"
        )
    if student.shape[1] < 2:
        raise ValueError(
            "a softmax over one logit is always 1, so a distillation loss on it is identically zero"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, given {temperature}")
