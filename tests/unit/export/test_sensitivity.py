"""What one layer's rounding does to the logits is what it does in the int8 graph, on crops that stand for all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from export.agreement import expected_flips
from export.drift import sqnr_db
from export.int8 import Calibration, Search, calibrate
from export.intermediates import logits_of
from export.sensitivity import choose_tellers, noise_of_each
from tests.unit.export.planted_graph import labelled_crops


@pytest.fixture(scope="module")
def calibration(graph: Path) -> Calibration:
    return calibrate(graph, *labelled_crops(48, seed=1), threads=1)


def test_a_layers_noise_is_what_the_int8_graph_has_with_that_layer_alone(calibration: Calibration) -> None:
    """Where only inputs are rounded, rounding the output too made the first layer look the worst of all."""
    search = Search(calibration, "openvino", partial(logits_of, threads=1))
    crops, full = calibration.held, calibration.logits
    products = calibration.parts.products
    noise = noise_of_each(
        calibration.prepared,
        products,
        search.ranges("minmax", ()),
        crops,
        np.ones(len(crops)),
        outputs=False,
        weight_levels=63 if calibration.reduce_range else 127,
        threads=1,
    )
    assert set(noise) == set(products)
    for name in products:
        alone = logits_of(search.build("minmax", [name]).model, crops, threads=1)
        assert -10 * np.log10(noise[name]) == pytest.approx(sqnr_db(full, alone), abs=0.5), name


def test_rounding_outputs_too_is_more_noise(calibration: Calibration) -> None:
    search = Search(calibration, "onnxruntime", partial(logits_of, threads=1))
    found = [
        noise_of_each(
            calibration.prepared,
            calibration.parts.products,
            search.ranges("minmax", ()),
            calibration.held[:4],
            np.ones(4),
            outputs=outputs,
            weight_levels=127,
            threads=1,
        )
        for outputs in (False, True)
    ]
    assert sum(found[1].values()) > 1.2 * sum(found[0].values())


def test_tellers_stand_for_all_crops() -> None:
    errors = np.append(np.full(96, 0.01), [3.0, 2.0, 9.0, 5.0])
    tellers = choose_tellers(errors, 8)
    assert {96, 97, 98, 99} <= set(tellers.places.tolist())
    assert len(set(tellers.places.tolist())) == 8
    assert tellers.weights.sum() == 100
    assert (tellers.weights * errors[tellers.places]).sum() == pytest.approx(errors.sum())
    few = choose_tellers(errors[:5], 8)
    assert few.places.tolist() == [0, 1, 2, 3, 4]
    assert few.weights.tolist() == [1.0] * 5


def test_expected_flips_are_what_a_count_comes_to_on_many_crops() -> None:
    rng = np.random.default_rng(0)
    logits, error = rng.normal(0, 2, 20_000), rng.normal(0, 0.3, 20_000)
    scores, changed = (1 / (1 + np.exp(-values)) for values in (logits, logits + error))
    count = np.mean((scores >= 0.6) != (changed >= 0.6))
    few = slice(0, 400)
    assert expected_flips(scores[few], changed[few], 0.6) == pytest.approx(count, rel=0.15)
    assert expected_flips(scores[few], scores[few], 0.6) == 0
    sure = np.array([0.0, 1.0, 0.2, 0.8])
    assert expected_flips(sure, sure, 0.5) == 0
