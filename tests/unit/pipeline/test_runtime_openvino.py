"""OpenVINO: what it leaves of the process that it runs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.runtime_openvino import OpenVinoRuntime
from tests.conftest import ROOT

pytest.importorskip("openvino")

_IN_A_PROCESS_OF_ITS_OWN = """
import os, signal, sys
from pathlib import Path
from pipeline.runtime_openvino import OpenVinoRuntime

heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
first = OpenVinoRuntime(Path(sys.argv[1]), threads=1)
second = OpenVinoRuntime(Path(sys.argv[1]), threads=1)
del first   # as when a bundle is swapped
del second
os.kill(os.getpid(), signal.SIGUSR1)
assert heard == [signal.SIGUSR1]
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A network of ours in the least form: crops uint8 [N, 8, 8, 3] -> logits, the mean colour times a matrix."""
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "weights")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    nodes = [
        helper.make_node("Cast", ["crops"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    crops = helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    made = helper.make_graph(nodes, "least", [crops], [logits], [weights, axes])
    path = tmp_path / "least.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("for_one", [True, False])
def test_one_crop_and_several_get_the_same_answers_in_any_order(graph: Path, for_one: bool) -> None:
    runtime = OpenVinoRuntime(graph, threads=1, for_one=for_one)
    crops = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    expected = np.repeat(crops.mean((1, 2)).sum(1, keepdims=True), 2, axis=1)
    for start, stop in ((0, 5), (0, 1), (1, 3), (3, 4), (4, 5), (0, 5)):
        logits = runtime.run(crops[start:stop]).logits
        np.testing.assert_allclose(logits, expected[start:stop], rtol=1e-5)


def test_one_crop_is_answered_by_a_program_that_knows_every_shape(graph: Path) -> None:
    def takes(runtime: OpenVinoRuntime) -> list[str]:
        requests = (runtime._one, runtime._any)
        return [str(request.get_compiled_model().inputs[0].get_partial_shape()) for request in requests]

    assert takes(OpenVinoRuntime(graph, threads=1)) == ["[1,8,8,3]", "[?,8,8,3]"]
    assert takes(OpenVinoRuntime(graph, threads=1, for_one=False)) == ["[?,8,8,3]", "[?,8,8,3]"]


def test_signals_are_heard_after_a_runtime_is_gone(graph: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS_OF_ITS_OWN, str(graph)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr


_WATCHED = """
import sys, time
from pathlib import Path

seen = []
sys.addaudithook(lambda event, _: event in ("os.fork", "socket.getaddrinfo", "socket.connect") and seen.append(event))
from pipeline.runtime_openvino import OpenVinoRuntime
OpenVinoRuntime(Path(sys.argv[1]), threads=1)
if len(sys.argv) > 2:
    import nncf
time.sleep(1)  # reports are sent by a thread
assert not seen, seen
"""


@pytest.mark.parametrize("also", [(), ("nncf",)], ids=["serving", "export"])
def test_nobody_is_told_that_it_is_used(graph: Path, tmp_path: Path, also: tuple[str, ...]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # on build servers it keeps silent by itself
    silent = ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "NNCF_DEV")
    elsewhere = {name: value for name, value in os.environ.items() if name not in silent}
    ended = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(graph), *also],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**elsewhere, "HOME": str(home)},
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert not (home / "intel").exists()
