"""Validation: figures against values by hand, the same pairs every time, no mark left on the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from training.index import FaceRecord, read_index
from training.networks import Detector, NetworkSpec
from training.runtime import Runtime
from training.validation import Validation, Validator, measure_validation

CPU = Runtime(torch.device("cpu"), None)


@pytest.fixture(scope="module")
def faces(prepared: Path) -> list[FaceRecord]:
    return [record for record in read_index(prepared) if record.split == "val"]


@pytest.fixture
def make(faces: list[FaceRecord]) -> Callable[..., Validator]:
    def build(**changes: Any) -> Validator:
        settings = {"sizes": (32,), "draws": 2, "batch_size": 4, "seed": 5, "workers": 0, **changes}
        return Validator(faces, runtime=CPU, reference_quirks=False, **settings)

    return build


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(1)
    return Detector(NetworkSpec(name="test_efficientnet", image_size=32, dropout=0.5))


def test_figures_of_four_crops_by_hand() -> None:
    # margins of the reals -2 and 1, of the fakes 0 and 3: three of the four pairs are in order
    margins = torch.tensor([-2.0, 1.0, 0.0, 3.0])
    logits = torch.stack((torch.zeros(4), margins), dim=1)
    teacher = torch.tensor([[0.0, -1.0], [0.0, -1.0], [0.0, 1.0], [0.0, 2.0]])
    result = measure_validation(logits, torch.tensor([0, 0, 1, 1]), teacher)
    assert result.auc == pytest.approx(0.75)
    assert result.eer == pytest.approx(0.5)
    losses = (math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log(2), math.log1p(math.exp(-3)))
    assert result.loss == pytest.approx(sum(losses) / 4)
    assert result.agreement == pytest.approx(2 / 4)  # the second differs, and 0 is not above 0.5

    def kl(target: float, margin: float) -> float:
        q, p = 1 / (1 + math.exp(-target)), 1 / (1 + math.exp(-margin))
        return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))

    by_hand = sum(map(kl, (-1, -1, 1, 2), (-2, 1, 0, 3))) / 4
    assert result.teacher_kl == pytest.approx(by_hand, rel=1e-5)


def test_without_a_teacher_nothing_is_said_of_one() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    result = measure_validation(logits, torch.tensor([0, 1]), None)
    assert set(result.scalars()) == {"val_auc", "val_eer", "val_threshold", "val_loss"}
    assert result.auc == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_leave_the_auc_undefined(bad: float) -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, bad]])
    result = measure_validation(logits, torch.tensor([0, 1]), torch.zeros(2, 2))
    assert (result.auc, result.eer, result.threshold) == (None, None, None)
    assert "val_auc" not in result.scalars()


def test_every_epoch_sees_the_same_pairs(make: Callable[..., Validator], detector: Detector) -> None:
    validator = make()
    first = validator.score(detector, 0)
    assert first[0].shape == (16, 2)  # 4 faces, 2 draws, real and fake
    assert first[1].sum() == 8
    for other in (validator, make(), make(workers=1)):
        for one, two in zip(first, other.score(detector, 0), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(make(seed=6).score(detector, 0)[0], first[0])


def test_the_batch_size_changes_no_figure(make: Callable[..., Validator], detector: Detector) -> None:
    small, large = make(batch_size=2).validate(detector), make(batch_size=64).validate(detector)
    assert small.auc == large.auc
    assert small.loss == pytest.approx(large.loss, rel=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_validating_leaves_no_mark(
    make: Callable[..., Validator], detector: Detector, training: bool, workers: int
) -> None:
    detector.train(training)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    stream = torch.get_rng_state()
    make(workers=workers).validate(detector)
    assert detector.training is training
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_teacher_that_knows_nothing_is_refused(make: Callable[..., Validator], detector: Detector) -> None:
    with pytest.raises(InputError) as caught:
        make(draws=4).gate(detector, 0.9)
    text = str(caught.value)
    assert "below min_teacher_auc 0.9" in text
    assert "0." in text.partition("set is ")[2][:3]
    assert "stillface train teacher" in text


def test_a_teacher_that_passes_is_compared_with_the_student(
    make: Callable[..., Validator], detector: Detector
) -> None:
    validator = make()
    assert 0 <= validator.gate(detector, 0.0) <= 1
    same = validator.validate(detector)
    assert same.agreement == 1.0
    assert same.teacher_kl == pytest.approx(0, abs=1e-6)
    torch.manual_seed(9)
    assert validator.validate(Detector(detector.spec)).teacher_kl != pytest.approx(0, abs=1e-6)


class Broken(nn.Module):
    """Answers NaN."""

    def forward(self, crops: Tensor) -> Tensor:
        return torch.full((len(crops), 2), math.nan)


def test_a_teacher_whose_answers_are_not_finite_is_refused_in_words(make: Callable[..., Validator]) -> None:
    with pytest.raises(InputError, match=r"is undefined \(its answers are not finite\)"):
        make().gate(Broken(), 0.0)  # type: ignore[arg-type]


def test_the_teacher_sees_its_own_size_of_the_same_pairs(
    make: Callable[..., Validator], detector: Detector
) -> None:
    torch.manual_seed(1)
    teacher = Detector(NetworkSpec(name="test_efficientnet", image_size=48))
    validator = make(sizes=(32, 48))
    validator.gate(teacher, 0.0)
    assert isinstance(validator.validate(detector), Validation)
    (batch, *_) = validator.loader
    assert [crop.shape[1] for crop in batch.crops] == [32, 48]
