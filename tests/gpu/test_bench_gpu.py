"""`make bench-gpu` measures on a GPU: PyTorch by CUDA events, with and without CUDA graphs, and its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.table_result import read_table

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("cuda", "cuda-tf32", "cuda-channels-last", "cuda-bf16", "cuda-fp16", "cuda-graph", "cuda-fp16-graph")


def test_every_way_of_pytorch_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    ways = [word for way in (*WAYS, "onnx") for word in ("--way", way)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--out", str(out), *ways]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = read_table(out)
    for way in WAYS:
        row = table.row("stage2", way)
        assert row is not None, [item.reason for item in table.rows if item.way == way]
        assert row.p50 is not None
        assert row.memory["torch_peak"] > row.memory["torch_peak_minus_weights"] > 0
    assert all(item.reason is None and "torch_peak" in item.memory for item in table.training)
