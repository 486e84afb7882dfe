"""OpenVINO models answer like the ONNX graph, are the same files each time, and really run in int8."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from export.agreement import Agreement, Gate
from export.drift import sqnr_db
from export.int8 import Search
from export.int8_calibration import Calibration, calibrate
from export.intermediates import logits_of
from export.onnx_graph import write_onnx
from export.openvino_formats import Rival, _nncf, choose, quantise_openvino, write_openvino
from pipeline.errors import InputError
from pipeline.runtime_onnx import OnnxRuntime
from pipeline.runtime_openvino import (
    FLOAT_PRECISION_KEY,
    OpenVinoRuntime,
    has_bfloat16,
    openvino_core,
)
from tests.unit.export.detectors import random_crops, random_detector
from tests.unit.export.planted_graph import labelled_crops

ANY = Gate(min_sqnr_db=-200, max_delta_auc=1, max_flips=1)
NEVER = Gate(min_sqnr_db=150)


@pytest.fixture(scope="module")
def calibration(graph: Path) -> Calibration:
    return calibrate(graph, *labelled_crops(48, seed=1), threads=1)


def hashes(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_fp32_answers_like_onnx_runtime_for_any_batch(graph: Path, tmp_path: Path) -> None:
    path, weights = write_openvino(graph, tmp_path / "model.xml")
    assert weights == tmp_path / "model.bin"
    ours, theirs = OpenVinoRuntime(path, threads=1), OnnxRuntime(graph, threads=1)
    for count in (1, 2, 7):
        crops = labelled_crops(count, seed=count)[0]
        found, expected = ours.run(crops), theirs.run(crops)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
        assert found.evidence is not None
        assert expected.evidence is not None
        np.testing.assert_allclose(found.evidence, expected.evidence, atol=1e-3)


def test_weights_are_stored_whole(graph: Path, tmp_path: Path) -> None:
    _, weights = write_openvino(graph, tmp_path / "model.xml")
    assert weights.stat().st_size > 0.9 * graph.stat().st_size


def test_the_same_graph_gives_the_same_files(graph: Path, calibration: Calibration, tmp_path: Path) -> None:
    first = hashes(*write_openvino(graph, tmp_path / "a.xml"))
    assert hashes(*write_openvino(graph, tmp_path / "b.xml")) == first
    int8 = []
    for name in ("c.xml", "d.xml"):
        out = tmp_path / name
        quantise_openvino(calibration, out, methods=("minmax",), gate=ANY)
        int8.append(hashes(out, out.with_suffix(".bin")))
    assert int8[0] == int8[1]


def test_int8_runs_in_int8_although_floats_stay_floats(calibration: Calibration, tmp_path: Path) -> None:
    out = tmp_path / "int8.xml"
    result = quantise_openvino(calibration, out, methods=("minmax",), gate=ANY)
    assert result.quantised == 17
    assert out.with_suffix(".bin").stat().st_size < 0.5 * calibration.source.stat().st_size
    kinds = executed(out)
    in_bytes = [kind for kind, precision in kinds if kind == "Convolution" and precision in ("u8", "i8")]
    assert len(in_bytes) == 17
    assert result.agreement.sqnr_db > 10


def executed(path: Path) -> list[tuple[str, str]]:
    """Operators that the CPU plug-in makes of a model, each with its arithmetic."""
    config = {"INFERENCE_PRECISION_HINT": "f32"}  # as `OpenVinoRuntime` asks
    compiled = openvino_core().compile_model(str(path), "CPU", config)
    facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]


def test_a_mobilevit_in_int8_answers_in_openvino_as_in_onnx_runtime(tmp_path: Path) -> None:
    # Its convolutions before the transformers have no bias, for which OpenVINO's int8 kernels were wrong.
    detector = random_detector("mobilevitv2_050", 64)
    source = write_onnx(detector, tmp_path / "model.onnx")
    calibration = calibrate(source, random_crops(12, 64), np.arange(12) % 2, threads=1)
    out = tmp_path / "int8.xml"
    result = quantise_openvino(calibration, out, methods=("minmax",), gate=ANY)
    assert result.kept_float == calibration.parts.head
    search = Search(calibration, "openvino", partial(logits_of, threads=1))
    graph = search.build("minmax", calibration.parts.products).model
    expected = logits_of(graph, calibration.held, threads=1)
    found = OpenVinoRuntime(out, threads=1).run(calibration.held).logits
    # Rounding to bytes amplifies the last bits of floats, but not to what rounding itself costs.
    assert sqnr_db(calibration.logits, found) > sqnr_db(calibration.logits, expected) - 3
    assert sqnr_db(expected, found) > 5
    # What attention reads was made back into floats by two operators for each of its nine layers.
    kinds = [kind for kind, _ in executed(out)]
    assert "Softmax" in kinds
    assert not {"Subtract", "Convert"} & set(kinds)
    assert kinds.count("MVN") == sum(isinstance(module, nn.GroupNorm) for module in detector.modules())


def test_nncf_competes_in_silence_where_layers_had_to_stay_in_float(
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    everything = quantise_openvino(calibration, tmp_path / "all.xml", methods=("minmax",), gate=ANY)
    assert not any("NNCF" in name for name in everything.tried)
    assert everything.method == "minmax, QDQ, the rest in float32"  # bfloat16 has nothing to win
    gate = replace(ANY, min_sqnr_db=everything.agreement.sqnr_db + 2)
    monkeypatch.setattr("export.openvino_formats._RIVAL_WORK", 1.0)
    alone = quantise_openvino(calibration, tmp_path / "int8.xml", methods=("minmax",), gate=gate)
    assert not any("NNCF" in name for name in alone.tried)
    monkeypatch.setattr("export.openvino_formats._RIVAL_WORK", 0.0)
    result = quantise_openvino(calibration, tmp_path / "int8.xml", methods=("minmax",), gate=gate)
    floats = "bfloat16" if has_bfloat16() else "float32"
    rivals = {f"{by}, the rest in {floats} in OpenVINO" for by in ("minmax, QDQ", "NNCF mixed")}
    assert rivals <= set(result.tried)
    assert len(result.kept_float) > 1
    assert OpenVinoRuntime(tmp_path / "int8.xml", threads=1).run(labelled_crops(2)[0]).logits.shape == (2, 2)
    assert capfd.readouterr().out == ""


def test_nncf_leaves_in_float_what_it_is_told_to(calibration: Calibration) -> None:
    """OpenVINO gives a product's name to the sum with its bias: NNCF left that in float, and quantised the product."""
    inner = calibration.parts.products[2:5]
    quantised: dict[bool, set[str]] = {}
    for told in (True, False):
        model = _nncf(calibration, "mixed", set(inner) if told else set())
        quantised[told] = {
            op.get_friendly_name().removesuffix("/WithoutBiases")
            for op in model.get_ops()
            if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
            and op.input_value(0).get_node().get_type_name() == "FakeQuantize"
        }
    assert set(inner) <= quantised[False]
    assert not set(inner) & quantised[True]
    assert quantised[True]


def test_float_layers_are_computed_as_they_were_proven(
    calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 where the processor has it, in float32 where that does not hold the gate or it has none."""
    everything = quantise_openvino(calibration, tmp_path / "all.xml", methods=("minmax",), gate=ANY)
    some = replace(ANY, min_sqnr_db=everything.agreement.sqnr_db + 2)
    kept, strict = {}, {}
    for has in (True, False):
        monkeypatch.setattr("export.openvino_formats.has_bfloat16", lambda has=has: has)
        result = quantise_openvino(
            calibration, tmp_path / f"{has}.xml", methods=("minmax",), presets=(), gate=some
        )
        kept[has] = result.method
        model = openvino_core().read_model(str(tmp_path / f"{has}.xml"))
        assert model.has_rt_info(FLOAT_PRECISION_KEY) == has
        strict[has] = quantise_openvino(
            calibration, tmp_path / "strict.xml", methods=("minmax",), presets=(), gate=NEVER
        ).method
    assert kept == {True: "minmax, QDQ, the rest in bfloat16", False: "minmax, QDQ, the rest in float32"}
    assert set(strict.values()) == {"minmax, QDQ, the rest in float32"}
    label = OpenVinoRuntime(tmp_path / "True.xml", threads=1).label
    assert label.endswith(" CPU bf16" if has_bfloat16() else " CPU")
    assert OpenVinoRuntime(tmp_path / "True.xml", threads=1, precision="f32").label.endswith(" CPU")
    assert OpenVinoRuntime(tmp_path / "False.xml", threads=1).label.endswith(" CPU")


def test_an_arithmetic_that_is_not_known_is_refused(graph: Path, tmp_path: Path) -> None:
    path, _ = write_openvino(graph, tmp_path / "model.xml")
    known = path.read_text(encoding="utf-8")
    path.write_text(
        known.replace(
            "</rt_info>\n</net>", '<stillface><float_precision value="f8"/></stillface></rt_info></net>'
        ),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="float layers in 'f8'; this stillface knows f32 and bf16"):
        OpenVinoRuntime(path, threads=1)


def test_nncf_is_not_asked_where_nothing_could_stay_in_int8(calibration: Calibration, tmp_path: Path) -> None:
    result = quantise_openvino(calibration, tmp_path / "int8.xml", methods=("minmax",), gate=NEVER)
    assert result.quantised <= 1
    assert result.reasons
    assert not any("NNCF" in name for name in result.tried)


def test_who_wins() -> None:
    def rival(name: str, sqnr: float, ratio: float) -> Rival:
        return Rival(name, Agreement(sqnr_db=sqnr, delta_auc=0, flips=0, crops=100), ratio)

    better, faster = rival("better", 30, 2.0), rival("faster", 25, 2.5)
    assert choose([better, faster], Gate()) is faster
    assert choose([better, rival("hardly faster", 25, 2.05)], Gate()) is better
    assert choose([better, rival("broken", 10, 5.0)], Gate()) is better
    assert choose([rival("worse", 5, 2.0), rival("bad", 10, 2.0)], Gate()).name == "bad"


def test_what_is_no_graph_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no ONNX file"):
        write_openvino(tmp_path / "model.onnx", tmp_path / "model.xml")
    assert not (tmp_path / "model.xml").exists()
