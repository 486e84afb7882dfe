"""A saved torch-tensorrt program answers as the network on the CPU does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.torch_tensorrt_program import TorchTensorRtRuntime, build_program, open_torch_tensorrt
from pipeline.errors import CannotRunHereError
from training.networks import Detector, NetworkSpec


def test_a_saved_program_answers_as_the_network_does(tmp_path: Path) -> None:
    try:
        open_torch_tensorrt()
    except CannotRunHereError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    detector = Detector(NetworkSpec(name="mobilevitv2_050", image_size=128)).eval()
    built = build_program(detector, tmp_path / "program.pt2", profile=(1, 4, 8))
    assert built.facts.weight_layer_types["Half"] > 50
    runtime = TorchTensorRtRuntime(built.path, built.facts)
    for count in (1, 2, 7, 8, 5):
        given = np.random.default_rng(count).integers(0, 256, (count, 128, 128, 3), dtype=np.uint8)
        answer = runtime.run(given)
        with torch.no_grad():
            logits, evidence = detector.forward_with_evidence(torch.from_numpy(given))
        assert np.abs(answer.logits - logits.numpy()).max() < 2e-2
        assert answer.evidence is not None
        assert answer.evidence.shape == tuple(evidence.shape)
    foreign = built.facts.model_copy(update={"device": "another GPU"})
    with pytest.raises(CannotRunHereError, match="was not built for this machine"):
        TorchTensorRtRuntime(built.path, foreign)
