"""`make bench-pytest`: the suite runs, its JSON says what was measured on what, and `make test` leaves it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_suite_says_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-k", "64-onnx] or 64-openvino-int8] or 64-tensorrt-fp16]", f"--benchmark-json={out}"]
    command += [f"--benchmark-storage=file://{tmp_path}", f"--benchmark-histogram={tmp_path / 'histogram'}"]
    environment = {**os.environ, "BENCH_NETWORKS": "mobilevitv2_050@64"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = {item["extra_info"]["way"]: item for item in json.loads(out.read_text())["benchmarks"]}
    assert {"onnx", "openvino-int8"} <= set(found)
    told = found["onnx"]["extra_info"]
    assert told["network"]["name"] == "mobilevitv2_050"
    assert told["network"]["weights"] == "random"
    assert (told["batch"], told["precision"], told["device"]) == (1, "fp32", "cpu")
    assert told["label"].startswith("onnxruntime ")
    assert told["bytes_on_disk"] > 1_000_000
    assert {"processor", "flags", "governor", "gpu", "versions", "git"} <= set(told["machine"])
    assert found["onnx"]["stats"]["rounds"] == 30
    assert list(tmp_path.glob("histogram*.svg"))


def test_make_test_does_not_collect_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]
