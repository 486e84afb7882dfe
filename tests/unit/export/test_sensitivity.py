"""What one layer's rounding does to the logits is what it does in the int8 graph, on crops that stand for all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from export.agreement import Decisions
from export.drift import sqnr_db
from export.int8 import Search
from export.int8_calibration import Calibration, calibrate
from export.intermediates import logits_of
from export.sensitivity import choose_tellers, noise_of_each
from pipeline.scoring import p_fake
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
    margins, errors = rng.normal(0, 2, 20_000), rng.normal(0, 0.3, 20_000)
    threshold = float(np.log(0.6 / 0.4))
    count = np.mean((margins >= threshold) != (margins + errors >= threshold))
    few = Decisions(margins[:400], np.array([threshold]))
    assert few.expected_flips(errors[:300]) == pytest.approx(count, rel=0.15)
    assert few.expected_flips(np.zeros(3)) == 0


def test_of_several_thresholds_the_one_with_most_flips_counts() -> None:
    margins = np.array([-4.0, -3.0, 0.0, 0.1, 0.2, 3.0, 4.0, 5.0])
    errors = np.array([0.14, -0.14])
    each = [Decisions(margins, np.array([at])).expected_flips(errors) for at in (-2.0, 0.15)]
    assert each == [0.0, 2 / 16]
    assert Decisions(margins, np.array([-2.0, 0.15])).expected_flips(errors) == max(each)


def test_thresholds_of_scores_stand_where_the_margins_are() -> None:
    logits = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]])
    found = Decisions.by(logits, [0.5, 0.6, 1.0], temperature=2.0)
    assert found.margins.tolist() == [1.0, 0.0, -4.0]
    scores = p_fake(logits, 2.0)
    for margin, score in zip(found.margins, scores, strict=True):
        assert [margin >= at for at in found.thresholds] == [score >= at for at in (0.5, 0.6, 1.0)]
