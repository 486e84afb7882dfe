"""ONNX Runtime: memory, and runs beside each other."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from pipeline.bundle import open_bundle
from pipeline.errors import CannotRunHereError, InputError
from pipeline.runtime import GivesBack, RunsBeside, open_artefact
from pipeline.runtime_onnx import CUDA, OnnxRuntime


def _memory_of_a_large_batch(bundle_folder: Path) -> tuple[int, int, bool]:
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
    runtime.give_back()
    kept = process.memory_info().rss - before
    return taken, kept, np.array_equal(runtime.run(crops).logits, first)


def test_memory_of_a_large_batch_is_given_back_and_answers_stay(bundle_folder: Path) -> None:
    # In a process of its own: in one that ran a thousand tests before, the allocator fills and frees
    # other people's pages meanwhile.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        taken, kept, same = fresh.submit(_memory_of_a_large_batch, bundle_folder).result()
    assert taken > 50e6
    assert kept < 0.3 * taken
    assert same


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_runs_beside_each_other_answer_what_one_alone_does(bundle_folder: Path, threads: int) -> None:
    bundle = open_bundle(bundle_folder)
    runtime = open_artefact(bundle.folder, bundle.artefact("onnx"), threads=threads)
    assert isinstance(runtime, RunsBeside)
    side = bundle.manifest.network.image_size
    crops = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    alone = [runtime.run(crop[None]) for crop in crops]
    ways = [runtime, *(runtime.beside() for _ in range(3))]
    with ThreadPoolExecutor(len(ways)) as pool:
        for _ in range(10):
            answers = pool.map(lambda way, crop: way.run(crop[None]), ways, crops)
            for answer, expected in zip(answers, alone, strict=True):
                assert np.array_equal(answer.logits, expected.logits)
                assert answer.evidence is not None
                assert expected.evidence is not None
                assert np.array_equal(answer.evidence, expected.evidence)
    assert ways[-1].label == runtime.label
    with pytest.raises(InputError, match="expected uint8"):
        ways[-1].run(crops[:, :8])


def test_a_run_beside_that_fails_says_why(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(bundle_folder)
    runtime = OnnxRuntime(bundle.folder / bundle.artefact("onnx").files[0].path, threads=2)
    monkeypatch.setattr("pipeline.runtime_onnx.check_crops", lambda *_: None)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        runtime.beside().run(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_runtime_without_cuda_says_how_to_get_it_and_does_not_fall_back(bundle_folder: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built with CUDA")
    bundle = open_bundle(bundle_folder)
    path = bundle.folder / bundle.artefact("onnx").files[0].path
    with pytest.raises(CannotRunHereError, match=r"built without CUDA.*pip install 'onnxruntime-gpu"):
        OnnxRuntime(path, threads=1, provider=CUDA)
