"""int8 ranges for TensorRT are measured, and the method that keeps the logits is taken."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from export.activation_ranges import METHODS
from export.tensorrt_int8 import quantise
from pipeline.errors import InputError
from tests.unit.export.drawn_graph import CONVOLUTIONS, draw_graph, drawn_crops


@pytest.mark.parametrize("half", [False, True])
def test_the_method_with_the_best_logits_is_taken(half: bool) -> None:
    chosen = quantise(draw_graph(half=half), drawn_crops(10), threads=1)
    assert chosen.convolutions == CONVOLUTIONS[1:]
    assert set(chosen.sqnr) == set(METHODS)
    assert chosen.sqnr[chosen.method] == max(chosen.sqnr.values()) > 20
    assert [node.op_type for node in chosen.model.graph.node].count("QuantizeLinear") == 2
    onnx.checker.check_model(chosen.model, full_check=True)
    assert "2 convolutions in symmetric int8" in chosen.notes[0]
    assert "10 crops" in chosen.notes[1]


def test_what_disturbs_the_logits_most_stays_in_float() -> None:
    model, crops = draw_graph(), drawn_crops(10)
    every = quantise(model, crops, threads=1, min_sqnr_db=-200)
    assert every.kept_float == ()
    assert every.sqnr_db == every.sqnr[every.method]
    fewer = quantise(model, crops, threads=1, min_sqnr_db=every.sqnr_db + 0.5)
    assert len(fewer.kept_float) == 1
    assert {*fewer.kept_float, *fewer.convolutions} == set(every.convolutions)
    assert fewer.sqnr_db > every.sqnr_db + 0.5
    assert fewer.kept_float[0] in fewer.notes[2]
    never = quantise(model, crops, threads=1, min_sqnr_db=200)
    assert len(never.convolutions) == 1


def test_without_crops_there_are_no_ranges() -> None:
    with pytest.raises(InputError, match="int8 ranges need crops"):
        quantise(draw_graph(), np.zeros((0, 32, 32, 3), np.uint8))
