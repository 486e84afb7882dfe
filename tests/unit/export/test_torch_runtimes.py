"""PyTorch's own answers: many crops at once get the answers that each gets alone."""

from __future__ import annotations

import numpy as np
import torch

from export.torch_runtimes import EagerRuntime, answer_all
from tests.unit.export.detectors import random_crops, random_detector


def test_many_crops_get_the_answers_they_get_alone_and_threads_are_put_back() -> None:
    runtime, crops = EagerRuntime(random_detector("test_efficientnet", 48)), random_crops(11, 48)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = answer_all(runtime, crops)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert together.logits.shape == (11, 2)
    assert together.evidence is not None
    for place in (0, 5, 10):
        alone = runtime.run(crops[place : place + 1])
        assert alone.evidence is not None
        np.testing.assert_allclose(together.logits[place], alone.logits[0], atol=1e-5)
        np.testing.assert_allclose(together.evidence[place], alone.evidence[0], atol=1e-4)
