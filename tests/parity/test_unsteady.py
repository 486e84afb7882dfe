"""A network whose answers to drawn images hang on the last bit of its weights passes, and damage to it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.labelled_crops import LabelledCrops
from export.onnx_graph import write_onnx
from export.parity_chain import PYTORCH, ParityChain
from export.parity_inputs import ParityInputs, build_inputs
from export.parity_page import allowance_note
from export.parity_report import LinkReport
from export.rounding import doubt_of
from export.score_calibration import calibrate
from export.torch_runtimes import EagerRuntime, answer_all
from pipeline.runtime import Answer, Crops
from pipeline.runtime_onnx import OnnxRuntime
from tests.parity.test_sabotage import (
    Damage,
    Distorted,
    clip_an_activation,
    drop_a_bias,
    normalise_by_256,
    perturb_one_weight,
    swap_channels,
)
from tests.unit.export.test_score_calibration import crops
from training.networks import Detector, NetworkSpec

SIZE = 64


@dataclass(frozen=True)
class Unsteady:
    """The network, what it is shown and its answers."""

    detector: Detector
    inputs: ParityInputs
    reference: Answer
    onnx: Path

    def chain(self, *, doubt: bool) -> ParityChain:
        labelled = self.inputs.labelled
        assert labelled is not None
        calibration, _ = calibrate(labelled, self.reference.logits[: len(labelled)])
        ask = doubt_of(self.detector, self.inputs, self.reference) if doubt else None
        return ParityChain(self.inputs, calibration, "max-mean", self.reference, doubt=ask)

    def judged(self, path: Path, *, doubt: bool) -> LinkReport:
        return self.chain(doubt=doubt).measure("onnx", OnnxRuntime(path, threads=1), "fp32", before=PYTORCH)


def smooth_faces() -> LabelledCrops:
    """Pictures of little contrast and no texture, which leave many a channel almost unused."""
    rows, columns = np.indices((SIZE, SIZE))
    rng = np.random.default_rng(0)
    slopes, levels = rng.uniform(-0.25, 0.25, (16, 2, 1, 1, 3)), rng.uniform(60, 200, (16, 1, 1, 3))
    faces = levels + slopes[:, 0] * rows[..., None] + slopes[:, 1] * columns[..., None]
    return replace(crops(np.repeat([0, 1], 8), 2), crops=np.asarray(faces, np.uint8))


@pytest.fixture(scope="module")
def unsteady(tmp_path_factory: pytest.TempPathFactory) -> Unsteady:
    """BatchNorm divides by what such pictures left in a channel, so that texture comes out a thousand times larger."""
    labelled = smooth_faces()
    torch.manual_seed(0)
    detector = Detector(NetworkSpec(name="tf_efficientnet_b0", image_size=SIZE))
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
        detector(torch.from_numpy(labelled.crops))
        detector.head.weight.mul_(0.5)  # the faces' own rounding stays well below 1e-4
    inputs = build_inputs(SIZE, labelled)
    reference = answer_all(EagerRuntime(detector), inputs.crops)
    path = write_onnx(detector, tmp_path_factory.mktemp("unsteady") / "model.onnx")
    return Unsteady(detector, inputs, reference, path)


def test_it_is_as_unsteady_as_said(unsteady: Unsteady) -> None:
    drawn = unsteady.reference.logits[unsteady.inputs.labelled_count :]
    assert np.abs(drawn).max() > 300
    assert np.abs(unsteady.reference.logits[:16]).max() < 10
    double = Detector(unsteady.detector.spec).double().eval()
    double.load_state_dict(unsteady.detector.state_dict())
    exact = answer_all(EagerRuntime(double), unsteady.inputs.crops)
    off = np.abs(exact.logits - unsteady.reference.logits).max(axis=1)
    assert off[16:].max() > 1e-3 * np.abs(drawn).max()
    assert off[:16].max() < 1e-4


def test_what_pytorch_itself_does_not_know_is_not_asked_of_others(unsteady: Unsteady) -> None:
    strict, link = (unsteady.judged(unsteady.onnx, doubt=doubt) for doubt in (False, True))
    assert "max |Δlogit|, as of logits of 5," in "; ".join(strict.broken)
    assert link.broken == ()
    assert link.allowed is not None
    assert 0 < link.allowed.max_abs <= link.allowed.most + 1e-4
    assert link.faces is not None
    assert link.faces.max_abs < 1e-4
    assert f"onnx: {link.allowed.crops} drawn images, off by up to" in allowance_note((link,))
    assert allowance_note((strict,)) == ""


@pytest.mark.parametrize(
    "damage", [perturb_one_weight, swap_channels, normalise_by_256, clip_an_activation, drop_a_bias]
)
def test_damage_is_still_caught(unsteady: Unsteady, tmp_path: Path, damage: Damage) -> None:
    model = onnx.load(unsteady.onnx)
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    assert "max |Δlogit|" in "; ".join(unsteady.judged(tmp_path / "damaged.onnx", doubt=True).broken)


@pytest.mark.parametrize(
    ("logit", "evidence", "said"), [(2e-4, 0.0, "max |Δlogit|"), (0.0, 0.1, "its largest value on faces")]
)
def test_faces_are_allowed_nothing(unsteady: Unsteady, logit: float, evidence: float, said: str) -> None:
    """Neither of their logits nor of their evidence, which is nothing beside that of a drawn image."""

    def off_on_a_face(answer: Answer, shown: Crops) -> Answer:
        assert answer.evidence is not None
        face = (shown == unsteady.inputs.crops[3]).all(axis=(1, 2, 3))
        moved = np.where(face[:, None], np.float32(logit), np.float32(0))
        return Answer(answer.logits + moved, answer.evidence + np.float32(evidence) * face[:, None, None])

    runtime = Distorted(unsteady.onnx, off_on_a_face)
    link = unsteady.chain(doubt=True).measure("onnx", runtime, "fp32", before=PYTORCH)
    assert [said in sentence for sentence in link.broken] == [True]
