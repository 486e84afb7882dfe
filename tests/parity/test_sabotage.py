"""Each way a conversion can go wrong without a word is caught by the gate, and the broken link is named."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.build import Built, Ingredients
from export.formats import FORMATS
from export.labelled_crops import gather
from export.make_and_prove import make_and_prove
from export.onnx_graph import write_onnx
from export.parity_chain import LARGEST_BATCH, PYTORCH, ParityChain, run_in_batches
from export.parity_gate import broken_bounds, noise_to_lose
from export.parity_inputs import build_inputs
from export.parity_page import rejection_page
from export.prove import ONNX_OFF, PROGRAM, Opened, prove, prove_with
from export.rounding import doubt_of
from export.score_calibration import calibrate
from export.torch_runtimes import EagerRuntime, ProgramRuntime
from pipeline.bundle import describe_file
from pipeline.manifest import Unproven
from pipeline.runtime import Answer, Crops
from pipeline.runtime_onnx import OnnxRuntime
from training.checkpoint import load_detector

SIZE = 64
Damage = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Whole:
    """A sound network with its reference answers, measured once."""

    chain: ParityChain
    onnx: Path


@pytest.fixture(scope="module")
def whole(checkpoint: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    detector, _ = load_detector(checkpoint)
    labelled = gather(prepared, SIZE, images=40)
    inputs = build_inputs(SIZE, labelled)
    reference = run_in_batches(EagerRuntime(detector), inputs.crops)
    calibration, _ = calibrate(labelled, reference.logits[: len(labelled)])
    path = write_onnx(detector, tmp_path_factory.mktemp("sound") / "model.onnx")
    doubt = doubt_of(detector, inputs, reference)
    chain = ParityChain(inputs, calibration, "max-mean", reference, doubt=doubt)
    chain.measure(PROGRAM, ProgramRuntime(detector), "fp32", before=PYTORCH)
    return Whole(chain, path)


def fresh(whole: Whole) -> ParityChain:
    """The chain with only PyTorch and its program measured."""
    chain = copy.copy(whole.chain)
    chain.links, chain.answers = dict(chain.links), dict(chain.answers)
    chain.unsure = copy.deepcopy(chain.unsure)
    return chain


def damaged(whole: Whole, folder: Path, damage: Damage) -> Path:
    model = onnx.load(whole.onnx)
    damage(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "damaged.onnx")
    return folder / "damaged.onnx"


def entry(path: Path, precision: str = "fp32", name: str = "onnx") -> Unproven:
    file = describe_file(path.parent, path)
    return Unproven(name=name, runtime="onnxruntime", precision=precision, files=(file,), reason="")  # type: ignore[arg-type]


def judged(whole: Whole, path: Path) -> tuple[str, str | None, str]:
    """Verdict, first broken link and reason for a file that claims to be the network in fp32."""
    chain = fresh(whole)
    chain.measure(ONNX_OFF, OnnxRuntime(path, threads=1, optimise=False), "fp32", before=PROGRAM)
    verdict = prove_with(chain, entry(path), lambda: OnnxRuntime(path, threads=1), Opened(), before=ONNX_OFF)
    return verdict.verdict, verdict.first_broken, verdict.reason or ""


def weight(model: onnx.ModelProto, kind: str) -> onnx.TensorProto:
    """The first constant that the first node of a kind takes as its weights."""
    node = next(node for node in model.graph.node if node.op_type == kind)
    return next(item for item in model.graph.initializer if item.name in node.input[1:])


def perturb_one_weight(model: onnx.ModelProto) -> None:
    tensor = weight(model, "Conv")
    values = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(np.abs(values).argmax(), values.shape)
    values[place] *= 1.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_channels(model: onnx.ModelProto) -> None:
    """Blue, green, red: the mistake of a converter that thinks in OpenCV's order."""
    tensor = weight(model, "Conv")
    values = numpy_helper.to_array(tensor)
    assert values.shape[1] == 3
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, ::-1]), tensor.name))


def normalise_by_256(model: onnx.ModelProto) -> None:
    """Off by 0.4 %: no picture shows it."""
    for item in model.graph.initializer:
        found = numpy_helper.to_array(item)
        if found.size == 1 and np.isclose(float(found.reshape(-1)[0]), 255.0):
            item.CopyFrom(numpy_helper.from_array(np.full_like(found, 256.0), item.name))
            return
    raise AssertionError("the graph has no 255")


def clip_an_activation(model: onnx.ModelProto) -> None:
    """A range taken too narrow: what lies outside is cut off."""
    nodes = list(model.graph.node)
    place = next(place for place, node in enumerate(nodes) if node.op_type == "Conv")
    made = nodes[place].output[0]
    clipped = f"{made}/clipped"
    for node in nodes[place + 1 :]:
        node.input[:] = [clipped if name == made else name for name in node.input]
    for name, value in (("clip_low", -0.2), ("clip_high", 0.2)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    clip = onnx.helper.make_node("Clip", [made, "clip_low", "clip_high"], [clipped], name="clip")
    model.graph.node.insert(place + 1, clip)


def drop_a_bias(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3)
    tensor = next(item for item in model.graph.initializer if item.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))


def test_the_sound_network_passes(whole: Whole) -> None:
    assert judged(whole, whole.onnx) == ("passed", None, "")


@pytest.mark.parametrize(
    "damage", [perturb_one_weight, swap_channels, normalise_by_256, clip_an_activation, drop_a_bias]
)
def test_damage_to_the_graph_is_caught_where_it_is(whole: Whole, tmp_path: Path, damage: Damage) -> None:
    verdict, first_broken, reason = judged(whole, damaged(whole, tmp_path, damage))
    assert (verdict, first_broken) == ("broken", f"{PROGRAM} -> {ONNX_OFF}")
    assert "max |Δlogit|" in reason


def test_a_flipped_byte_of_the_weights_is_caught(whole: Whole, tmp_path: Path) -> None:
    tensor = weight(onnx.load(whole.onnx), "Conv")
    content = bytearray(whole.onnx.read_bytes())
    # a bit of an exponent: the float changes by a power of two
    content[content.index(numpy_helper.to_array(tensor).tobytes()[:64]) + 3] ^= 0x02
    path = tmp_path / "flipped.onnx"
    path.write_bytes(content)
    verdict, first_broken, _ = judged(whole, path)
    assert (verdict, first_broken) == ("broken", f"{PROGRAM} -> {ONNX_OFF}")


def test_a_file_cut_off_is_caught(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "short.onnx"
    path.write_bytes(whole.onnx.read_bytes()[:-1000])
    verdict = prove_with(
        fresh(whole), entry(path), lambda: OnnxRuntime(path, threads=1), Opened(), before=PYTORCH
    )
    assert verdict.verdict == "broken"
    assert verdict.first_broken == f"{PYTORCH} -> onnx"
    assert "cannot be loaded by ONNX Runtime" in (verdict.reason or "")


class Distorted:
    """A runtime whose answers are changed on the way: what a broken driver, kernel or optimiser does."""

    def __init__(self, path: Path, change: Callable[[Answer, Crops], Answer]) -> None:
        self.inner = OnnxRuntime(path, threads=1)
        self.change = change
        self.label = "distorted"

    def run(self, crops: Crops) -> Answer:
        return self.change(self.inner.run(crops), crops)


def _leaks_between_crops(answer: Answer, crops: Crops) -> Answer:
    """Adds a little of the batch's mean to each crop: nothing is wrong while batches are alike."""
    return Answer(answer.logits + 0.01 * answer.logits.mean(axis=0), answer.evidence)


def _nan_in_large_batches(answer: Answer, crops: Crops) -> Answer:
    logits = answer.logits.copy()
    if len(crops) == LARGEST_BATCH:
        logits[3, 1] = np.nan
    return Answer(logits, answer.evidence)


def _nan_alone(answer: Answer, crops: Crops) -> Answer:
    logits = answer.logits.copy()
    if len(crops) == 1:
        logits[0, 1] = np.nan
    return Answer(logits, answer.evidence)


def _evidence_upside_down(answer: Answer, crops: Crops) -> Answer:
    assert answer.evidence is not None
    return Answer(answer.logits, np.ascontiguousarray(answer.evidence[:, ::-1]))


class _Drifts:
    """Not the same twice."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, answer: Answer, _: Crops) -> Answer:
        self.calls += 1
        return Answer(answer.logits * np.float32(1 + 2e-3 * (self.calls % 2)), answer.evidence)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_leaks_between_crops, "change of a logit with its batch"),
        (_nan_in_large_batches, "crops get NaN or infinite logits"),
        (_nan_alone, "change of p with its batch 1 is above"),
        (_evidence_upside_down, "max |Δevidence|"),
        (_Drifts(), "from run to run"),
    ],
)
def test_a_runtime_that_misbehaves_is_caught(
    whole: Whole, change: Callable[[Answer, Crops], Answer], said: str
) -> None:
    chain = fresh(whole)
    runtime = Distorted(whole.onnx, change)
    verdict = prove_with(chain, entry(whole.onnx), lambda: runtime, Opened(), before=PYTORCH)
    assert (verdict.verdict, verdict.first_broken) == ("broken", f"{PYTORCH} -> onnx")
    assert said in (verdict.reason or "")


def test_a_later_link_is_not_blamed_for_an_earlier_one(whole: Whole, tmp_path: Path) -> None:
    path = damaged(whole, tmp_path, swap_channels)
    chain = fresh(whole)
    chain.measure("onnx", OnnxRuntime(path, threads=1), "fp32", before=PYTORCH)
    verdict = prove_with(
        chain,
        entry(path, "int8", "onnx-int8"),
        lambda: OnnxRuntime(path, threads=1),
        Opened(),
        before="onnx",
    )
    assert (verdict.verdict, verdict.first_broken) == ("broken", f"{PYTORCH} -> onnx")
    assert verdict.links == (PYTORCH, "onnx", "onnx-int8")


def test_the_layer_where_it_leaves_the_sound_graph_is_named(whole: Whole, tmp_path: Path) -> None:
    path = damaged(whole, tmp_path, swap_channels)
    model = onnx.load(path)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    chain = fresh(whole)
    chain.measure("onnx", OnnxRuntime(whole.onnx, threads=1), "fp32", before=PYTORCH)
    item = entry(path, "int8", "onnx-int8")
    verdict = prove(chain, item, tmp_path, Opened(), graph=whole.onnx, threads=1)
    assert (verdict.verdict, verdict.first_broken) == ("broken", "onnx -> onnx-int8")
    assert verdict.drift is not None
    assert verdict.drift.starts_at == f"{first.output[0]} (Conv)"
    assert first.output[0] in rejection_page(verdict, ())


def test_int8_that_is_no_faster_is_not_worth_it(whole: Whole) -> None:
    chain, opened = fresh(whole), Opened()
    prove_with(chain, entry(whole.onnx), lambda: OnnxRuntime(whole.onnx, threads=1), opened, before=PYTORCH)

    def slowly(answer: Answer, crops: Crops) -> Answer:
        return OnnxRuntime(whole.onnx, threads=1).run(crops) if len(crops) == 1 else answer

    runtime = Distorted(whole.onnx, slowly)
    verdict = prove_with(
        chain, entry(whole.onnx, "int8", "onnx-int8"), lambda: runtime, opened, before="onnx"
    )
    assert verdict.verdict == "not worth it"
    assert (verdict.speedup or 1) < 1
    assert "times the speed of fp32 in onnxruntime" in (verdict.reason or "")


def test_every_flip_counts_against_int8_however_near_the_threshold(whole: Whole) -> None:
    chain = fresh(whole)
    chain.measure("onnx-int8", OnnxRuntime(whole.onnx, threads=1), "int8", before=PYTORCH)
    link = chain.links["onnx-int8"]
    first = next(flip for flip in link.flips if flip.on == "faces")
    for flipped, broken in ((0, False), (1, False), (2, True)):
        found = first.model_copy(update={"flips": flipped, "compared": 158, "furthest": 1e-6})
        changed = link.model_copy(update={"flips": (found,)})
        assert bool(broken_bounds(changed)) is broken, flipped


def test_int8_that_is_faster_by_chance_is_not_worth_it(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, opened = fresh(whole), Opened()
    prove_with(chain, entry(whole.onnx), lambda: OnnxRuntime(whole.onnx, threads=1), opened, before=PYTORCH)
    for gain, expected in ((1.04, "not worth it"), (1.06, "passed")):
        monkeypatch.setattr("export.prove.speedup", lambda *_, gain=gain: gain)
        item = entry(whole.onnx, "int8", "onnx-int8")
        found = prove_with(chain, item, lambda: OnnxRuntime(whole.onnx, threads=1), opened, before="onnx")
        assert found.verdict == expected


def test_int8_without_a_layer_in_int8_is_not_worth_it(
    whole: Whole, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, opened = fresh(whole), Opened()
    prove_with(chain, entry(whole.onnx), lambda: OnnxRuntime(whole.onnx, threads=1), opened, before=PYTORCH)
    monkeypatch.setattr("export.prove.speedup", lambda *_: 1.6)  # as bfloat16 between no rounding is
    path = tmp_path / "bundle" / "artefacts" / "onnx-int8" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(whole.onnx.read_bytes())
    for layers, expected in ((0, "not worth it"), (3, "passed")):
        detector, made = load_detector(checkpoint)[0], {"onnx": Built((whole.onnx,))}
        ingredients = Ingredients(
            detector, tmp_path / "bundle" / "artefacts", {}, list, threads=1, built=made
        )  # type: ignore[arg-type]
        made["onnx-int8"] = Built((path,), layers_in_int8=layers)
        monkeypatch.setattr("export.make_and_prove.build", lambda item, given: given.built[item.name])
        _, found = make_and_prove(FORMATS["onnx-int8"], chain, ingredients, opened)
        assert found.verdict == expected
        assert ("int8 by name" in (found.reason or "")) == (layers == 0)


class Weighed(OnnxRuntime):
    """Counts how often it was rid of the memory of its largest batch."""

    given_back = 0

    def give_back(self) -> None:
        self.given_back += 1
        super().give_back()


def test_only_what_int8_is_timed_against_stays_open(whole: Whole) -> None:
    chain, opened = fresh(whole), Opened()
    runtimes = [Weighed(whole.onnx, threads=1) for _ in range(2)]
    half, full = (weakref.ref(runtime) for runtime in runtimes)
    prove_with(chain, entry(whole.onnx), runtimes.pop, opened, before=PYTORCH)
    prove_with(chain, entry(whole.onnx, "fp16", "onnx-fp16"), runtimes.pop, opened, before="onnx")
    kept = full()
    assert opened == {"onnx": kept}
    assert kept is not None
    assert kept.given_back == 1
    assert half() is None


def noisy(amount: float) -> Callable[[Answer, Crops], Answer]:
    """Errors like those of int8: of the crop alone, and as large as asked for."""

    def change(answer: Answer, crops: Crops) -> Answer:
        drawn = [np.random.default_rng(int(crop.sum())).standard_normal(2) for crop in crops]
        return Answer(answer.logits + np.float32(amount) * np.array(drawn, np.float32), answer.evidence)

    return change


def test_int8_that_breaks_by_noise_alone_passes_with_so_much_less_of_it(whole: Whole) -> None:
    amount, missing, tries = 0.5, [], 0
    while tries < 4:
        chain = fresh(whole)
        link = chain.measure("onnx-int8", Distorted(whole.onnx, noisy(amount)), "int8", before=PYTORCH)
        less = noise_to_lose(link)
        if less is None:
            break
        missing.append(less)
        amount *= 10 ** (-(less + 1) / 20)
        tries += 1
    assert missing
    assert missing[0] > 0
    assert not link.broken


@pytest.mark.parametrize("change", [_nan_in_large_batches, _Drifts()])
def test_what_less_noise_cannot_mend_is_not_tried_again(
    whole: Whole, change: Callable[[Answer, Crops], Answer]
) -> None:
    def grossly(answer: Answer, crops: Crops) -> Answer:
        changed = change(answer, crops)
        return Answer(answer.logits + 50 * (changed.logits - answer.logits), answer.evidence)

    chain = fresh(whole)
    link = chain.measure("onnx-int8", Distorted(whole.onnx, grossly), "int8", before=PYTORCH)
    assert link.broken
    assert noise_to_lose(link) is None
