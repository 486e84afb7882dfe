"""Int8 graphs keep the detector: the gate holds, sensitive layers stay in float, and the result is reproducible."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.activation_ranges import (
    METHODS,
    SAMPLES_PER_CROP,
    SILU_FLOOR,
    Observed,
    choose_ranges,
    observe,
)
from export.agreement import Agreement, Decisions, Gate, Logits, compare
from export.build import Built, Ingredients, build
from export.formats import FORMATS
from export.int8 import Candidate, Search, quantise_onnx
from export.int8_calibration import Calibration, calibrate
from export.intermediates import logits_of, tensor_values
from export.onnx_graph import write_onnx
from export.qdq import examine
from export.sensitivity import leave_in_float
from pipeline.errors import InputError
from pipeline.runtime import Crops
from pipeline.runtime_onnx import OnnxRuntime
from tests.unit.export.detectors import random_crops, random_detector
from tests.unit.export.planted_graph import SIDE, labelled_crops, plant_outlier

ANY = Gate(min_sqnr_db=-200, max_delta_auc=1, max_flips=1)
"""A gate that lets everything through, so that every layer is quantised."""


@pytest.fixture(scope="module")
def calibration(graph: Path) -> Calibration:
    return calibrate(graph, *labelled_crops(80, seed=1), threads=1)


def test_the_gate_holds_on_crops_that_set_no_ranges(calibration: Calibration, tmp_path: Path) -> None:
    gate = Gate(min_sqnr_db=20, max_delta_auc=0.02, max_flips=0.05)
    result = quantise_onnx(calibration, tmp_path / "int8.onnx", gate=gate)
    assert gate.failures(result.agreement) == []
    assert result.quantised + len(result.kept_float) == 18
    crops, labels = labelled_crops(60, seed=2)
    full, reduced = (OnnxRuntime(path, threads=1).run(crops) for path in (calibration.source, result.path))
    found = compare(full.logits, reduced.logits, labels)
    assert found.sqnr_db > 17
    assert not np.array_equal(full.logits, reduced.logits)
    assert reduced.evidence is not None
    assert {"minmax", "percentile", "entropy", "mse"} <= set(result.tried)


def test_convolutions_run_in_int8_and_the_head_in_float(calibration: Calibration, tmp_path: Path) -> None:
    result = quantise_onnx(calibration, tmp_path / "int8.onnx", methods=("minmax",), gate=ANY)
    assert result.quantised == 17
    assert result.kept_float == calibration.parts.head
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(result.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "fused.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 17
    assert kinds.count("QLinearSigmoid") >= 11
    assert sum("Conv" in kind for kind in kinds) == 18


def test_a_planted_outlier_is_found_and_left_in_float(graph: Path, tmp_path: Path) -> None:
    planted = plant_outlier(graph, tmp_path / "planted.onnx")
    crops, labels = labelled_crops(80, seed=1)
    calibration = calibrate(tmp_path / "planted.onnx", crops, labels, threads=1)
    original = calibrate(graph, crops, labels, threads=1)
    np.testing.assert_allclose(calibration.logits, original.logits, atol=1e-3)
    noise = Search(calibration, "onnxruntime", partial(logits_of, threads=1)).noise("minmax")
    # the layer behind it reads the same tensor
    assert planted in sorted(noise, key=lambda name: -noise[name])[:2]
    result = quantise_onnx(calibration, tmp_path / "int8.onnx", methods=("minmax",), gate=Gate(18, 0.05, 0.1))
    assert planted in result.kept_float
    assert result.agreement.sqnr_db >= 18
    assert any(planted in note for note in result.notes)


def test_a_layer_whose_noise_was_underrated_does_not_stay_to_the_last(graph: Path, tmp_path: Path) -> None:
    planted = plant_outlier(graph, tmp_path / "planted.onnx")
    calibration = calibrate(tmp_path / "planted.onnx", *labelled_crops(80, seed=1), threads=1)
    search = Search(calibration, "onnxruntime", partial(logits_of, threads=1))
    noise = search.noise("minmax")
    calibration.noise["onnxruntime", "minmax"] = {
        name: n if name == planted else 30 * n for name, n in noise.items()
    }
    whole = search.judge(
        search.build("minmax", calibration.parts.products), np.arange(len(calibration.labels))
    )
    gate = Gate(min_sqnr_db=whole.sqnr_db + 3, max_delta_auc=1, max_flips=1)
    chosen, found = search.fit_gate("minmax", gate)
    assert found.sqnr_db >= whole.sqnr_db + 3
    assert planted not in chosen.products
    assert len(chosen.products) > 1


def test_layers_come_back_where_an_attempt_left_too_many_in_float(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pairs(model: onnx.ModelProto) -> int:
        return sum(node.op_type == "DequantizeLinear" for node in model.graph.node)

    def answer(model: onnx.ModelProto, crops: Crops) -> Logits:
        # All together err far more than without any one of them.
        exact = logits_of(calibration.full, crops, threads=1)
        error = exact * (0.2 if pairs(model) == everything else 0.001)
        return np.asarray(exact + error * (-1) ** np.arange(len(exact))[:, None], np.float32)

    def fitted() -> tuple[Candidate, Agreement]:
        search = Search(replace(calibration, answers={}), "onnxruntime", answer)
        return search.fit_gate("minmax", gate)

    everything = pairs(
        Search(calibration, "onnxruntime", answer).build("minmax", calibration.parts.products).model
    )
    gate = Gate(min_sqnr_db=40, max_delta_auc=1, max_flips=1)
    assert not gate.failures(fitted()[1])
    more = calibration.parts.share(fitted()[0].products)
    monkeypatch.setattr("export.int8._RETURNS", 0)
    assert more > calibration.parts.share(fitted()[0].products) + 0.05


def test_noise_of_a_layer_is_also_what_a_sum_loses_that_reads_its_input(tmp_path: Path) -> None:
    detector = random_detector("mobilevitv2_050", 64)
    with torch.no_grad():
        # A branch that adds next to nothing: all that is lost is lost on the way past it.
        detector.backbone.stages[1][1].conv3_1x1.bn.weight.mul_(1e-4)
    source = write_onnx(detector, tmp_path / "faint.onnx")
    calibration = calibrate(source, random_crops(12, 64), np.arange(12) % 2, threads=1)
    search = Search(calibration, "openvino", partial(logits_of, threads=1))
    branch = "backbone.stages.1.1.conv1_1x1.conv/Conv"
    found = search.judge(search.build("minmax", [branch]), np.arange(len(calibration.labels)))
    few = replace(calibration, parts=replace(calibration.parts, products=(branch,)))
    noise = Search(few, "openvino", partial(logits_of, threads=1)).noise("minmax")
    assert noise[branch] > 10 ** (-found.sqnr_db / 10) / 4


def test_less_noise_can_be_asked_for(graph: Path, calibration: Calibration, tmp_path: Path) -> None:
    made = Ingredients(None, tmp_path, {}, gather_ranges=lambda: pytest.fail("they are given"))  # type: ignore[arg-type]
    made.built["onnx"] = Built((graph,))
    made.__dict__["calibration"] = calibration
    first = build(FORMATS["onnx-int8"], made).sqnr_db
    assert first is not None
    made.wanted_db["onnx-int8"] = first + 3
    second = build(FORMATS["onnx-int8"], made).sqnr_db
    assert second is not None
    assert second >= first + 3


def test_two_quantisations_give_the_same_bytes(graph: Path, tmp_path: Path) -> None:
    hashes = set()
    for name in ("one.onnx", "two.onnx"):
        fresh = calibrate(graph, *labelled_crops(40, seed=1), threads=1)
        result = quantise_onnx(fresh, tmp_path / name, methods=("minmax", "mse"), gate=ANY)
        hashes.add(hashlib.sha256(result.path.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_facts_of_the_float_graph_stay_in_the_file(calibration: Calibration, tmp_path: Path) -> None:
    result = quantise_onnx(calibration, tmp_path / "int8.onnx", methods=("minmax",), gate=ANY)
    facts = [
        {item.key: item.value for item in onnx.load(str(p)).metadata_props}
        for p in (calibration.source, result.path)
    ]
    assert facts[0] == facts[1]
    assert "network" in facts[1]


def test_without_byte_dot_products_weights_keep_to_seven_bits(graph: Path, tmp_path: Path) -> None:
    largest = {}
    for reduce in (True, False):
        calibration = calibrate(graph, *labelled_crops(24, seed=1), threads=1, reduce_range=reduce)
        result = quantise_onnx(calibration, tmp_path / "int8.onnx", methods=("minmax",), gate=ANY)
        weights = [
            numpy_helper.to_array(item)
            for item in onnx.load(str(result.path)).graph.initializer
            if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 4
        ]
        assert len(weights) == 17
        largest[reduce] = max(int(np.abs(weight.astype(int)).max()) for weight in weights)
        assert result.reduced_range is reduce
    assert largest == {True: 64, False: 127}


def test_a_graph_that_is_not_faster_is_not_worth_it(calibration: Calibration, tmp_path: Path) -> None:
    search = Search(calibration, "onnxruntime", partial(logits_of, threads=1))
    chosen = Candidate(onnx.ModelProto(), "minmax", calibration.parts.products)
    good = Agreement(sqnr_db=40, delta_auc=0, flips=0, crops=100)
    for ratio in (0.98, 1.03):  # two runs of one file differ by as much
        slow = search.result(tmp_path, "minmax", chosen, good, ratio, Gate())
        assert slow.reasons == (f"it is hardly faster than fp32, or slower ({ratio}x)",)
    assert not search.result(tmp_path, "minmax", chosen, good, 1.5, Gate()).reasons
    bad = Agreement(sqnr_db=12, delta_auc=-0.02, flips=0.03, crops=100)
    reasons = search.result(tmp_path, "minmax", chosen, bad, 1.5, Gate()).reasons
    assert len(reasons) == 3
    assert "SQNR 12.0 dB is below 20" in reasons


@pytest.mark.parametrize(
    ("count", "change", "words"),
    [
        (0, {}, "calibration set is empty"),
        (8, {"labels": np.zeros(8, np.int64)}, "only one class"),
        (8, {"labels": np.zeros(7, np.int64)}, "as many labels"),
        (8, {"labels": np.full(8, 2)}, "labels of 0"),
        (8, {"crops": np.zeros((8, 32, 32, 3), np.uint8)}, f"expected uint8 .N, {SIDE}"),
        (8, {"crops": np.zeros((8, SIDE, SIDE, 3), np.float32)}, "expected uint8"),
        (2, {}, "too few to hold any out"),
    ],
)
def test_unusable_calibration_sets_are_refused(
    graph: Path, count: int, change: dict[str, np.ndarray], words: str
) -> None:
    crops, labels = labelled_crops(count)
    with pytest.raises(InputError, match=words):
        calibrate(graph, change.get("crops", crops), change.get("labels", labels), threads=1)


def test_an_answer_that_is_not_finite_agrees_in_nothing() -> None:
    logits = np.array([[1, -1], [-1, 1]], np.float32)
    found = compare(logits, np.full_like(logits, np.nan), np.array([0, 1]))
    assert Gate().failures(found)
    assert found.flips == 1


def test_the_search_aims_at_more_than_the_gate_asks() -> None:
    aim = Gate().with_margin(1000)
    edge = Agreement(sqnr_db=20.5, delta_auc=0.0045, flips=0.0095, crops=300)
    assert Gate().failures(edge) == []
    assert len(aim.failures(edge)) == 3


@pytest.mark.parametrize("faces", [24, 158, 300, 5000])
def test_a_share_aimed_at_holds_the_gate_when_it_is_counted(faces: int) -> None:
    aim = Gate().with_margin(faces).max_flips
    counted = np.random.default_rng(0).binomial(faces, aim, 20_000)
    assert np.mean(counted <= 0.01 * faces) == pytest.approx(0.8, abs=0.02)


def test_flips_are_expected_where_the_deciding_faces_lie(calibration: Calibration) -> None:
    """The search's own faces may be far from any threshold while the gate's are not, as after much training."""
    search = Search(calibration, "onnxruntime", partial(logits_of, threads=1))
    everything = search.build("minmax", calibration.parts.products)
    own = search.judge(everything, np.arange(len(calibration.labels)))
    margins = calibration.logits[:, 1] - calibration.logits[:, 0]
    near, far = (
        Search(
            replace(calibration, decisions=Decisions(margins.astype(np.float64), np.array(thresholds))),
            "onnxruntime",
            partial(logits_of, threads=1),
        ).judge(everything, np.arange(len(calibration.labels)))
        for thresholds in ([1e3, np.median(margins)], [1e3, -1e3])
    )
    assert far.flips == 0
    assert near.flips > 0
    assert (near.sqnr_db, near.delta_auc) == (own.sqnr_db, own.delta_auc)


def test_a_search_made_anew_asks_for_nothing_twice(calibration: Calibration) -> None:
    asked: list[int] = []

    def answer(model: onnx.ModelProto, crops: Crops) -> Logits:
        asked.append(len(crops))
        return logits_of(model, crops, threads=1)

    fresh = replace(calibration, answers={})
    first = Search(fresh, "onnxruntime", answer).fit_gate(
        "minmax", Gate(min_sqnr_db=10, max_delta_auc=1, max_flips=1)
    )
    count = len(asked)
    second = Search(fresh, "onnxruntime", answer).fit_gate(
        "minmax", Gate(min_sqnr_db=first[1].sqnr_db + 3, max_delta_auc=1, max_flips=1)
    )
    assert count >= 1
    assert 1 <= len(asked) - count == len(set(fresh.answers)) - count
    assert second[1].sqnr_db > first[1].sqnr_db


def test_ranges_by_each_method() -> None:
    bulk = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    values = Observed(-40.0, 60.0, np.append(bulk, np.float32([-40, 60])))
    ranges = {method: choose_ranges({"x": values}, method)["x"] for method in METHODS}
    assert ranges["minmax"] == (-40.0, 60.0)
    for method in ("percentile", "mse", "entropy"):
        low, high = ranges[method]
        assert -40 < low < -2, method
        assert 2 < high < 60, method
    assert choose_ranges({"x": values}, "minmax", {"x"})["x"] == (SILU_FLOOR, 60.0)
    constant = Observed(2.0, 2.0, np.full(10, 2, np.float32))
    assert choose_ranges({"x": constant}, "mse")["x"] == (2.0, 2.0)


def test_ranges_of_values_of_one_sign_are_found_in_silence() -> None:
    values = np.random.default_rng(0).normal(5, 1, 20_000).astype(np.float32)
    for sign in (1, -1):
        observed = Observed(float((sign * values).min()), float((sign * values).max()), sign * values)
        for method in METHODS:
            with np.errstate(all="raise"):
                low, high = choose_ranges({"x": observed}, method)["x"]
            assert low < sign * 5 < high, method


def test_observing_sees_every_value_of_every_crop(calibration: Calibration) -> None:
    names = calibration.parts.tensors
    crops = calibration.held[:3]
    seen = observe(calibration.prepared, names, crops, threads=1)
    values = list(tensor_values(calibration.prepared, names, crops, batch=1, threads=1))
    for name in names:
        whole = np.stack([found[name][0].ravel() for found in values])
        step = max(1, whole.shape[1] // SAMPLES_PER_CROP) | 1
        assert (seen[name].low, seen[name].high) == (whole.min(), whole.max())
        np.testing.assert_array_equal(seen[name].samples, whole[:, ::step].ravel())


def test_layers_left_in_float_are_the_cheapest_that_suffice() -> None:
    noise = {"early": 0.010, "dear": 0.012, "late": 0.001, "tiny": 0.0001}
    costs = {"early": 1.0, "dear": 50.0, "late": 1.0, "tiny": 1.0}
    assert leave_in_float(noise, costs, 1.0) == set()
    assert leave_in_float(noise, costs, 0.0135) == {"early"}
    assert leave_in_float(noise, costs, 0.0015) == {"early", "dear"}
    assert leave_in_float(noise, costs, 0.0) == set(noise)
    # "early" buys more per cost, but "dear" is needed and then suffices
    assert leave_in_float(noise, {**costs, "dear": 2.0}, 0.0112) == {"dear"}


def test_what_can_be_quantised_is_found_by_structure(calibration: Calibration) -> None:
    parts = examine(calibration.prepared.graph)
    assert len(parts.products) == 17
    (head,) = parts.head
    node = next(node for node in calibration.prepared.graph.node if node.name == head)
    weights = next(item for item in calibration.prepared.graph.initializer if item.name == node.input[1])
    assert list(weights.dims[:1]) == [2]
    assert len(parts.before_silu) == 11
    assert all(cost > 0 for cost in parts.costs.values())
