"""The table's figures: costs as timm counts them, ratios with intervals, percentiles that samples can carry, plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare import Comparison
from benchmarks.interleaved import ratio, ratio_across
from benchmarks.network_cost import cost_of
from benchmarks.table_heat import milliseconds
from benchmarks.table_plan import choose_ways, entries, named
from benchmarks.table_ratios import agreement, disagreements, disturbed, process_spread, ratios_of
from benchmarks.table_result import Interval, Network, Ratio, Row, Training
from pipeline.errors import InputError
from training.networks import NetworkSpec, build_from_spec


@pytest.mark.parametrize(
    ("name", "size", "parameters", "gmacs", "mactivations"),
    [
        ("mobilevitv2_200", 256, 17_426_379, 7.22, 32.15),  # timm's tables give the last two
        ("tf_efficientnet_b4", 380, 17_552_202, 4.49, 49.49),
    ],
)
def test_cost_is_counted_as_timm_counts(
    name: str, size: int, parameters: int, gmacs: float, mactivations: float
) -> None:
    cost = cost_of(build_from_spec(NetworkSpec(name=name, image_size=size)))
    assert cost.parameters == parameters
    # nearly every convolution is followed by a BatchNorm, for which timm's tables add two per value
    assert cost.gmacs + 2e-3 * cost.mactivations == pytest.approx(gmacs, abs=0.006)
    assert cost.mactivations == pytest.approx(mactivations, abs=0.006)


def test_a_percentile_is_shown_only_where_samples_lie_beyond_it() -> None:
    rounds = [[0.001 * place for place in range(1, 11)] for _ in range(3)]
    assert milliseconds(rounds, 0.5).value == pytest.approx(5.5)  # type: ignore[union-attr]
    assert milliseconds(rounds, 0.9) is not None
    assert milliseconds(rounds[:2], 0.9) is None
    assert milliseconds(rounds, 0.99) is None


def test_heats_are_tied_by_their_anchor() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(1, 0.02, (4, 30))
    drift = 1.7  # the second heat ran while the machine was that much slower
    found = ratio_across(8 * noise[0], 2 * noise[1], 4 * drift * noise[2], 2 * drift * noise[3])
    assert found.low < 2 < found.high
    assert found.high - found.low < 0.1


def test_a_way_that_was_measured_on_a_disturbed_machine_is_told() -> None:
    def row(way: str, *anchor_ms: float) -> Row:
        return Row(network="stage2", way=way, round_ms=(1.0, 1.0, 1.0), anchor_ms=anchor_ms)

    quiet = [
        row("onnx", 64, 65, 80),
        row("openvino", 66, 66, 67),
        Row(network="stage2", way="torch", reason="no"),
    ]
    assert disturbed(quiet) == {}
    assert disturbed([*quiet, row("openvino-int8", 79, 60, 80)]) == {"openvino-int8": pytest.approx(79 / 65)}


@pytest.mark.parametrize(("factor", "flagged"), [(1.0, False), (1.2, True), (1.04, False)])
def test_a_slowdown_of_a_fifth_is_flagged_and_noise_is_not(factor: float, flagged: bool) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(10, 0.5, 20)
    here = factor * rng.normal(10, 0.5, 20)
    for drift in (np.ones(20), np.linspace(1, 3, 20)):
        found = ratio(here * drift, base * drift)
        assert Comparison("net", "onnx", wall=found).is_slower(0.05, "wall") is flagged


def test_runs_that_do_not_agree_are_told() -> None:
    def item(low: float, high: float, way: str = "onnx", what: str = "speed") -> Ratio:
        return Ratio(
            what=what,  # type: ignore[arg-type]
            title="t",
            first="a",
            second="b",
            way=way,
            value=(low + high) / 2,
            low=low,
            high=high,
        )

    assert disagreements([item(1, 1.2)], [item(1.1, 1.3)]) == []
    assert disagreements([item(1, 1.2)], [item(1.3, 1.5, "torch")]) == []
    assert disagreements([item(0.6, 0.6, what="memory")], [item(0.65, 0.65, what="memory")]) == []
    assert disagreements([item(0.6, 0.6, what="memory")], [item(0.7, 0.7, what="memory")])
    (line,) = disagreements([item(1, 1.2)], [item(1.3, 1.5)])
    assert "1.10 (1.00 to 1.20) and 1.40 (1.30 to 1.50)" in line
    told = agreement([item(1, 1.2), item(1, 1.2, "torch")], [item(1.3, 1.5), item(1.1, 1.3, "torch")])
    assert told.startswith(f"of 2 ratios 1 agree (not: {line}). The speeds differ by 27% at the median")


def test_intervals_hold_what_differs_between_processes_of_one_network() -> None:
    """Rows of noise that stays the same in all rounds, as a process's memory layout does."""
    rng = np.random.default_rng(2)
    times = {"teacher": 20.0, "stage1": 10.0, "stage2": 10.0, "demo-stage1": 1.0, "demo-stage2": 1.0}
    networks = [network(key, f"takes {ms}") for key, ms in times.items()]
    held = []
    for _ in range(100):
        rows = [
            Row(
                network=key,
                way=way,
                round_ms=tuple(ms * rng.lognormal(0, 0.03) * rng.lognormal(0, 0.002, 10)),
            )
            for key, ms in times.items()
            for way in ("torch", "onnx", "openvino")
        ]
        found = [
            item for item in ratios_of(networks, rows, ()) if (item.first, item.what) == ("teacher", "speed")
        ]
        held += [item.low < 2 < item.high for item in found]
    assert 0.85 < np.mean(held) < 1  # by the rounds alone, about one in ten


def test_no_network_twice_tells_nothing_about_processes() -> None:
    rows = [Row(network=key, way="onnx", round_ms=(1.0, 1.1)) for key in ("teacher", "stage2")]
    assert process_spread([network("teacher", "b4"), network("stage2", "mobilevit")], rows) is None


def network(key: str, name: str) -> Network:
    return Network(
        key=key, title=key, group="full", name=name, image_size=64, parameters=1, gmacs=1, mactivations=1,
        weights="random", stage="none", val_auc=None, bytes={},
    )  # fmt: skip


def test_on_a_gpu_its_allocator_tells_the_memory_and_no_anchor_on_the_cpu_the_speed() -> None:
    def step(stage: str, peak: int) -> Training:
        took = Interval(value=0.2, low=0.1, high=0.3)
        return Training(
            stage=stage, title=stage, networks="tf_efficientnet_b4 @380", way="cuda-bf16", batch=16,
            step_seconds=took, memory={"torch_peak": peak, "torch_reserved": 3 * peak},
        )  # fmt: skip

    rows = [
        Row(network="teacher", way="cuda", round_ms=(8.0,) * 4, anchor_ms=(1.0,) * 4),
        Row(network="stage2", way="cuda-fp16-graph", round_ms=(2.0,) * 4, anchor_ms=(2.0,) * 4),
    ]
    networks = [network("teacher", "tf_efficientnet_b4"), network("stage2", "mobilevitv2_200")]
    found = ratios_of(networks, rows, [step("teacher", 800), step("stage1", 400)])
    values = {(item.what, item.way): item.value for item in found}
    assert values["training memory", "cuda-bf16"] == 0.5
    assert values["training speed", "cuda-bf16"] == 1
    assert values["speed", "cuda / cuda-fp16-graph"] == pytest.approx(4)


def test_the_plan_has_the_method_s_networks_and_any_rival() -> None:
    plan = {entry.key: entry for entry in entries({}, ["resnet18@96"])}
    assert (plan["teacher"].name, plan["teacher"].image_size) == ("tf_efficientnet_b4", 380)
    assert (plan["stage2"].name, plan["stage2"].image_size) == ("mobilevitv2_200", 256)
    assert plan["student-380"].image_size == plan["teacher"].image_size
    assert (plan["resnet18-96"].name, plan["resnet18-96"].group) == ("resnet18", "rival")
    assert {way.name for way in plan["teacher"].ways(choose_ways(None, gpu=False))} >= {
        "torch-compiled",
        "openvino-bf16",
    }


def test_what_is_no_network_or_no_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NAME@SIZE"):
        entries({}, ["resnet18"])
    with pytest.raises(InputError, match="NAME@SIZE"):
        named(str(tmp_path / "nothing.pth"))
    with pytest.raises(InputError, match="choose from torch"):
        choose_ways(["tortch"], gpu=False)


def test_stillface_bench_forwards() -> None:
    from typer.testing import CliRunner

    from stillface import app

    shown = CliRunner().invoke(app, ["bench", "--help"], terminal_width=120).output
    for command in ("table", "latency", "memory", "compare", "serve", "selfblend", "train-step", "export"):
        assert command in shown
