"""ONNX files in ONNX Runtime on a GPU answer as the fp32 one does on the CPU, in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.onnx_graph import CPU_OPSET, write_onnx
from export.tensorrt_formats import half_onnx
from pipeline.runtime import GivesBack, RunsBeside
from pipeline.runtime_onnx import CUDA, OnnxRuntime
from tests.gpu.shown import BATCHES, crops, p_fake
from training.networks import Detector

pytestmark = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="this ONNX Runtime is built without CUDA"
)


def test_it_answers_as_the_cpu_does(student: Detector, tmp_path: Path) -> None:
    whole, half = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx"
    write_onnx(student, whole, opset=CPU_OPSET)
    half.write_bytes(half_onnx(student, opset=CPU_OPSET).SerializeToString())
    on_cpu = OnnxRuntime(whole)
    for path, bound in ((whole, 1e-3), (half, 1e-2)):
        runtime = OnnxRuntime(path, provider=CUDA)
        assert runtime.label.endswith(" CUDA")
        assert isinstance(runtime, GivesBack)
        assert isinstance(runtime, RunsBeside)
        beside = runtime.beside()
        for count in BATCHES:
            given = crops(count)
            expected = on_cpu.run(given)
            for way in (runtime, beside):
                answer = way.run(given)
                assert answer.logits.shape == (count, 2)
                assert answer.evidence is not None
                assert np.abs(p_fake(answer) - p_fake(expected)).max() <= bound
        runtime.give_back()
        assert np.abs(runtime.run(crops(2)).logits - on_cpu.run(crops(2)).logits).max() <= 0.1
