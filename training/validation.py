"""The self-blended validation set: drawn once per run, scored after every epoch, and the gate a teacher must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.measures import auc, equal_error_rate
from pipeline.scoring import p_fake
from training.dataset import BlendedFaces, EpochSampler
from training.index import FaceRecord
from training.loader import batches_of, blended_loader
from training.networks import Detector
from training.runtime import Runtime


@dataclass(frozen=True)
class Validation:
    """Figures over the self-blended validation set, frame by frame.

    Attributes:
        auc: Area under the ROC curve; None where a score is not finite.
        eer: Equal error rate.
        threshold: p_fake at the equal error rate.
        loss: Mean cross-entropy.
        teacher_kl: Mean KL(teacher ‖ student) at temperature 1; None without a teacher.
        agreement: Share of crops on which student and teacher decide alike at p_fake 0.5; None without one.
    """

    auc: float | None
    eer: float | None
    threshold: float | None
    loss: float
    teacher_kl: float | None = None
    agreement: float | None = None

    def scalars(self) -> dict[str, float]:
        """The figures under the names of the log; undefined ones are left out."""
        named = {
            "val_auc": self.auc,
            "val_eer": self.eer,
            "val_threshold": self.threshold,
            "val_loss": self.loss,
            "val_teacher_kl": self.teacher_kl,
            "val_agreement": self.agreement,
        }
        return {name: value for name, value in named.items() if value is not None}


class Validator:
    """Scores networks on one fixed set of self-blended pairs.

    The pairs depend on the seed alone, so every epoch and every network sees the same ones. They are drawn anew each
    time rather than kept: at full size they would fill gigabytes.

    Args:
        records: Real faces of the validation split.
        sizes: Student's size first; the teacher's too where there is one.
        draws: Pairs per face.
        batch_size: Images per batch, even.
        seed: Of the run.
        runtime: Where to compute.
        workers: Loader processes.
        reference_quirks: As for training.
    """

    def __init__(
        self,
        records: Sequence[FaceRecord],
        *,
        sizes: tuple[int, ...],
        draws: int,
        batch_size: int,
        seed: int,
        runtime: Runtime,
        workers: int,
        reference_quirks: bool,
    ) -> None:
        faces = BlendedFaces(
            records, sizes=sizes, seed=seed, phase="val", reference_quirks=reference_quirks, draws=draws
        )
        order = EpochSampler(
            len(faces), seed=seed, batch_size=batch_size // 2, shuffle=False, drop_last=False
        )
        self.loader = blended_loader(faces, order, runtime, workers=workers)
        self.runtime = runtime
        self.teacher_logits: Tensor | None = None

    def validate(self, detector: Detector) -> Validation:
        """Score a network; its mode is put back afterwards."""
        logits, labels = self.score(detector, 0)
        return measure_validation(logits, labels, self.teacher_logits)

    def gate(self, teacher: Detector, minimum: float) -> float:
        """Return the teacher's AUC and remember its answers to compare the student with.

        Raises:
            InputError: its AUC is below `minimum`.
        """
        logits, labels = self.score(teacher, -1)
        result = measure_validation(logits, labels, None)
        if result.auc is None or result.auc < minimum:
            found = "undefined (its answers are not finite)" if result.auc is None else f"{result.auc:.4f}"
            raise InputError(
                f"the teacher's AUC on the self-blended validation set is {found}, below min_teacher_auc "
                f"{minimum}: it would teach the student nothing. Check teacher_weights and the data, train one with "
                "`stillface train teacher`, or lower --set min_teacher_auc if you mean it"
            )
        self.teacher_logits = logits
        return result.auc

    @torch.no_grad()
    def score(self, detector: Detector, size_index: int) -> tuple[Tensor, Tensor]:
        """Logits float32 [N, 2] and labels int64 [N] over the set, on the CPU."""
        was_training = detector.training
        detector.eval()
        logits, labels = [], []
        for batch in batches_of(self.loader):
            with self.runtime.autocast():
                answer = detector(batch.crops[size_index].to(self.runtime.device, non_blocking=True))
            logits.append(answer.float().cpu())
            labels.append(batch.labels)
        detector.train(was_training)
        return torch.cat(logits), torch.cat(labels)


def measure_validation(logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Validation:
    """Figures of one network over the set; a score that is not finite leaves AUC and EER undefined, never 0.5."""
    loss = float(functional.cross_entropy(logits, labels))
    if not torch.isfinite(logits).all():
        return Validation(None, None, None, loss)
    scores, truth = p_fake(logits.numpy()), labels.numpy()
    rate, threshold = equal_error_rate(scores, truth) or (None, None)
    area = auc(scores, truth)
    if teacher is None:
        return Validation(area, rate, threshold, loss)
    kl = functional.kl_div(
        logits.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
    )
    agreement = (logits.argmax(1) == teacher.argmax(1)).float().mean()
    return Validation(area, rate, threshold, loss, float(kl), float(agreement))
