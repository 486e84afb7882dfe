"""The drift report lists every tensor two graphs share and names the first that moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.drift import EQUAL_DB, drift, first_drifted, sqnr_db
from export.onnx_graph import write_onnx
from export.tensorrt_formats import half_onnx
from pipeline.errors import InputError
from tests.unit.export.detectors import random_crops, random_detector
from tests.unit.export.planted_graph import SIDE, convolutions, labelled_crops, scale_weights


def damaged(graph: Path, out: Path, place: int) -> str:
    """Double one channel of one convolution; returns the convolution's name."""
    model = onnx.load(str(graph))
    node = convolutions(model)[place]
    channels = next(item for item in model.graph.initializer if item.name == node.input[1]).dims[0]
    factor = np.ones(channels, np.float32)
    factor[1] = 2.0
    scale_weights(model, node.input[1], factor[:, None, None, None])
    onnx.save(model, str(out))
    return str(node.name)


def test_a_graph_does_not_drift_from_itself(graph: Path) -> None:
    layers = drift(graph, graph, labelled_crops(2)[0], threads=1)
    assert len(layers) > 30
    assert {layer.sqnr_db for layer in layers} == {EQUAL_DB}
    assert first_drifted(layers) is None


@pytest.mark.parametrize("place", [0, 5, 12])
def test_the_first_tensor_that_moved_is_the_damaged_layers_own(
    graph: Path, tmp_path: Path, place: int
) -> None:
    name = damaged(graph, tmp_path / "damaged.onnx", place)
    layers = drift(graph, tmp_path / "damaged.onnx", labelled_crops(3)[0], threads=1)
    first = first_drifted(layers, below_db=100)
    assert first is not None
    assert (first.node, first.op) == (name, "Conv")
    before = layers[: layers.index(first)]
    assert all(layer.sqnr_db == EQUAL_DB and layer.max_abs == 0 for layer in before)
    assert layers[-1].sqnr_db < EQUAL_DB


def test_top_keeps_the_worst_in_the_graphs_order(graph: Path, tmp_path: Path) -> None:
    damaged(graph, tmp_path / "damaged.onnx", 3)
    crops = labelled_crops(2)[0]
    everything = drift(graph, tmp_path / "damaged.onnx", crops, threads=1)
    worst = drift(graph, tmp_path / "damaged.onnx", crops, threads=1, top=4)
    assert len(worst) == 4
    assert [layer for layer in everything if layer in worst] == worst
    assert max(layer.sqnr_db for layer in worst) <= sorted(layer.sqnr_db for layer in everything)[3]


def test_batches_give_the_same_figures_as_all_at_once(graph: Path, tmp_path: Path) -> None:
    damaged(graph, tmp_path / "damaged.onnx", 2)
    crops = labelled_crops(5)[0]
    once, pieces = (
        drift(graph, tmp_path / "damaged.onnx", crops, threads=1, batch=batch) for batch in (5, 2)
    )
    for one, other in zip(once, pieces, strict=True):
        assert one.tensor == other.tensor
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=0.01)
        assert one.mean_abs == pytest.approx(other.mean_abs, rel=1e-3)


def test_a_value_that_is_not_finite_is_as_bad_as_can_be(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(str(graph))
    weights = convolutions(model)[4].input[1]
    scale_weights(model, weights, np.float32(np.inf))
    onnx.save(model, str(tmp_path / "infinite.onnx"))
    layers = drift(graph, tmp_path / "infinite.onnx", labelled_crops(1)[0], threads=1)
    first = first_drifted(layers)
    assert first is not None
    assert first.node == convolutions(model)[4].name
    assert first.sqnr_db == -EQUAL_DB
    assert first.max_abs == np.inf


def test_sqnr_is_energy_over_energy_of_the_error() -> None:
    assert sqnr_db([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20.0)
    assert sqnr_db([1.0], [1.0]) == EQUAL_DB
    assert sqnr_db([0.0], [1.0]) == -EQUAL_DB
    assert sqnr_db([1.0], [np.nan]) == -EQUAL_DB


def test_bad_input_is_one_sentence(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.onnx does not exist"):
        drift(graph, tmp_path / "missing.onnx", labelled_crops(1)[0])
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputError, match="is no ONNX file"):
        drift(graph, tmp_path / "text.onnx", labelled_crops(1)[0])
    with pytest.raises(InputError, match=f"expected uint8 .N, {SIDE}, {SIDE}, 3"):
        drift(graph, graph, np.zeros((1, 8, 8, 3), np.uint8))


def test_tensors_of_another_form_that_lie_in_another_order_are_left_out(tmp_path: Path) -> None:
    """Half precision is timm's form of the network; once its first softmax was said to have drifted."""
    detector = random_detector("mobilevitv2_050", 192)
    full = write_onnx(detector, tmp_path / "full.onnx")
    half = tmp_path / "half.onnx"
    half.write_bytes(half_onnx(detector, opset=18).SerializeToString())
    layers = drift(full, half, random_crops(2, 192), threads=1)
    assert len(layers) > 20
    assert first_drifted(layers) is None


_MEMORY = """
import resource, sys
import subprocess
import sys
from pathlib import Path
import numpy as np
from export.drift import drift, shared_tensors
from export.intermediates import read_graph, tensor_values

def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

path = Path(sys.argv[1])
crops = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), dtype=np.uint8)
graph = read_graph(path)
names = shared_tensors(graph, graph)
one = sum(v.nbytes for v in next(iter(tensor_values(graph, names, crops[:1], batch=1, threads=1))).values())
before = most()
drift(path, path, crops, threads=1)
print((most() - before) / one)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the most that was resident")
def test_memory_is_that_of_a_few_crops_however_many_are_compared(tmp_path: Path) -> None:
    graph = write_onnx(random_detector("mobilevitv2_050", 256), tmp_path / "full.onnx")
    command = [sys.executable, "-c", _MEMORY, str(graph)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    # two graphs, and of each the batch before and the present one; one crop's tensors were there already
    assert float(told.stdout) < 6
