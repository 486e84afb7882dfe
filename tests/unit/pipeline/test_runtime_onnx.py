"""ONNX Runtime: memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from pipeline.bundle import open_bundle
from pipeline.runtime import GivesBack, open_artefact


def test_memory_of_a_large_batch_is_given_back_and_answers_stay(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    runtime = open_artefact(bundle.folder, bundle.artefact("onnx"), threads=1)
    assert isinstance(runtime, GivesBack)
    side = bundle.manifest.network.image_size
    crops = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    first = runtime.run(crops).logits
    process = psutil.Process()
    before = process.memory_info().rss
    runtime.run(np.zeros((128, side, side, 3), np.uint8))
    taken = process.memory_info().rss - before
    assert taken > 50e6
    runtime.give_back()
    assert process.memory_info().rss - before < 0.3 * taken
    assert np.array_equal(runtime.run(crops).logits, first)
