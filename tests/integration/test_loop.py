"""The loop on tiny networks: what a step computes, what is logged, what is kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import training.loop as loop
from pipeline.errors import InputError
from training.checkpoint import load_detector, ranked_weights, resolve_weights
from training.config import Settings, Stage
from training.loop import Run, fit, lr_factor
from training.progress import Progress
from training.run_folder import STATE
from training.run_log import RunLog, read_log
from training.runtime import start_runtime
from training.stage_networks import build_networks
from training.stages import assemble, build_validator, read_faces, train

Make = Callable[..., Settings]
TIMING = {"time", "images_per_second", "data_wait_s"}


@contextmanager
def a_run(stage: Stage, settings: Settings, folder: Path) -> Iterator[Run]:
    """A run that stands at its first step, to be looked into while it goes."""
    with start_runtime(settings) as runtime:
        networks = build_networks(stage, settings, runtime)
        train_faces, val_faces = read_faces(settings)
        validator = build_validator(val_faces, networks, settings, runtime)
        progress = Progress(None, settings.epochs)
        run = assemble(stage, settings, runtime, folder, networks, train_faces, validator, progress, {})
        with RunLog.open(folder, tensorboard=False) as run.log:
            yield run


def steps(folder: Path) -> list[dict[str, Any]]:
    """The log's steps without what differs between two equal runs."""
    events = [event for event in read_log(folder) if event["kind"] == "step"]
    return [{key: value for key, value in event.items() if key not in TIMING} for event in events]


def epochs(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_log(folder) if event["kind"] == "epoch"]


def notes(folder: Path) -> list[str]:
    return [event["text"] for event in read_log(folder) if event["kind"] == "note"]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    differing = [name for name, value in one.items() if not torch.equal(value, two[name])]
    assert differing == []


@pytest.fixture
def teacher(tiny: Make, tmp_path: Path) -> str:
    """A teacher that `train teacher` has trained for one epoch."""
    return str(train("teacher", tiny(epochs=1, output=tmp_path / "teachers"), "teacher"))


# --- a step ---


@pytest.mark.parametrize("stage", ["teacher", "stage1"])
def test_a_seed_gives_the_same_losses_and_another_seed_others(tiny: Make, stage: Stage) -> None:
    def losses(name: str, **changes: Any) -> list[float]:
        folder = train(stage, tiny(drop_path=0.1, teacher_drop_path=0.1, **changes), name).parent.parent
        return [event["loss"] for event in steps(folder)][:5]

    first = losses("one")
    assert len(first) == 5
    assert all(math.isfinite(loss) for loss in first)
    assert losses("two") == first
    assert losses("three", seed=6) != first


@pytest.mark.parametrize(("rho", "passes"), [(0.05, 2), (0.0, 1)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_rule_01_the_teacher_answers_once_however_often_the_student_is_asked(
    tiny: Make, tmp_path: Path, teacher: str, rho: float, passes: int, accumulate: int
) -> None:
    settings = tiny(epochs=1, teacher_weights=teacher, sam_rho=rho, accumulate=accumulate)
    with a_run("stage2", settings, tmp_path / "run") as run:
        assert run.teacher is not None
        asked: dict[str, list[tuple[bool, bool, tuple[int, ...]]]] = {"teacher": [], "student": []}

        def note(who: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
                asked[who].append((module.training, output.requires_grad, tuple(inputs[0].shape)))

            return hook

        run.teacher.register_forward_hook(note("teacher"))
        run.learner.register_forward_hook(note("student"))
        before = state(run.teacher)
        loop.train_epoch(run, lambda: 0)
        assert asked["teacher"] == [(False, False, (4, 48, 48, 3))] * 3
        assert asked["student"] == [(True, True, (4, 32, 32, 3))] * (3 * passes)
        assert_equal(state(run.teacher), before)
        assert not any(parameter.grad is not None for parameter in run.teacher.parameters())
        assert run.position.step == math.ceil(3 / accumulate)


def test_teacher_and_student_see_the_very_same_crops(tiny: Make, tmp_path: Path, teacher: str) -> None:
    settings = tiny(epochs=1, teacher_weights=teacher, image_size=48)
    with a_run("stage2", settings, tmp_path / "run") as run:
        seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
        assert run.teacher is not None
        run.teacher.register_forward_hook(lambda _m, inputs, _o: seen["teacher"].append(inputs[0]))
        run.learner.register_forward_hook(lambda _m, inputs, _o: seen["student"].append(inputs[0]))
        loop.train_epoch(run, lambda: 0)
        for mine, first, second in zip(
            seen["teacher"], seen["student"][::2], seen["student"][1::2], strict=True
        ):
            assert torch.equal(mine, first)
            assert torch.equal(mine, second)


def test_alpha_follows_the_table_and_the_total_is_the_mix(tiny: Make, teacher: str) -> None:
    settings = tiny(
        epochs=4,
        teacher_weights=teacher,
        alpha_table={1: 0.9, 3: 0.5},
        alpha_start=0.8,
        alpha_end=0.6,
        temperature=2.0,
    )
    folder = train("stage2", settings, "x").parent.parent
    alphas = {event["epoch"]: event["alpha"] for event in steps(folder)}
    assert alphas == pytest.approx({1: 0.8, 2: 0.7, 3: 0.6, 4: 0.6})
    for event in steps(folder):
        mixed = event["alpha"] * event["loss_hard"] + (1 - event["alpha"]) * event["loss_soft"]
        assert event["loss"] == pytest.approx(mixed, rel=1e-5)
    assert {"val_teacher_kl", "val_agreement"} <= epochs(folder)[0].keys()


@pytest.mark.parametrize("name", ["kl", "logit_mse", "dist_intra"])
def test_every_soft_loss_trains(tiny: Make, teacher: str, name: str) -> None:
    folder = train("stage2", tiny(epochs=1, teacher_weights=teacher, loss=name), "x").parent.parent
    assert all(event["loss_soft"] > 0 for event in steps(folder))


@pytest.mark.parametrize("stage", ["teacher", "stage1", "stage2"])
def test_the_trace_loss_is_added_in_every_stage_and_its_heads_stay_behind(
    tiny: Make, teacher: str, stage: Stage
) -> None:
    best = train(stage, tiny(epochs=1, teacher_weights=teacher, trace_loss_weight=2.0), "x")
    for event in steps(best.parent.parent):
        own = event["loss_hard"]
        if stage == "stage2":
            own = event["alpha"] * own + (1 - event["alpha"]) * event["loss_soft"]
        assert event["loss"] == pytest.approx(own + 2 * event["loss_trace"], rel=1e-5)
    plain = train(stage, tiny(epochs=1, teacher_weights=teacher), "plain")
    (one, _), (two, _) = load_detector(best), load_detector(plain)
    assert one.state_dict().keys() == two.state_dict().keys()
    assert not torch.equal(one.backbone.conv_stem.weight, two.backbone.conv_stem.weight)
    assert "trace_heads" in torch.load(best.parent.parent / STATE, weights_only=True)


def test_the_heads_of_the_trace_loss_learn(tiny: Make, tmp_path: Path) -> None:
    with a_run("stage1", tiny(trace_loss_weight=1.0, optimizer="adamw"), tmp_path) as run:
        assert run.tracing is not None
        before = state(run.tracing.heads)
        fit(run)
        after = state(run.tracing.heads)
    assert not any(torch.equal(value, after[name]) for name, value in before.items())


def test_the_control_takes_the_same_steps_without_a_teacher(tiny: Make, teacher: str) -> None:
    with_teacher = train("stage2", tiny(teacher_weights=teacher), "kd").parent.parent
    control = train("stage2", tiny(loss="none"), "control").parent.parent
    one, two = steps(with_teacher), steps(control)
    assert [(event["step"], event["epoch"], event["lr"]) for event in one] == [
        (event["step"], event["epoch"], event["lr"]) for event in two
    ]
    # the same pictures, weights and masks: before the first step the hard losses agree
    assert one[0]["loss_hard"] == two[0]["loss"]
    assert "alpha" not in two[0]
    assert "val_agreement" not in epochs(control)[0]


def test_late_and_sparse_sam(tiny: Make) -> None:
    def sharp(name: str, **changes: Any) -> list[int]:
        folder = train("stage1", tiny(**changes), name).parent.parent
        return [event["step"] for event in steps(folder) if "sharpness" in event]

    assert sharp("always") == [1, 2, 3, 4, 5, 6]
    assert sharp("late", sam_start_fraction=0.5) == [4, 5, 6]
    assert sharp("never", sam_start_fraction=1) == []
    assert sharp("sparse", sam_interval=2) == [1, 3, 5]
    assert sharp("off", sam_rho=0) == []


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_micro_batches_make_fewer_steps_and_none_is_lost(tiny: Make, accumulate: int) -> None:
    folder = train("stage1", tiny(accumulate=accumulate), "x").parent.parent
    per_epoch = math.ceil(3 / accumulate)
    assert [event["step"] for event in steps(folder)] == list(range(1, 2 * per_epoch + 1))


def test_workers_change_no_bit(tiny: Make) -> None:
    found = []
    for workers in (0, 2):
        settings = tiny(workers=workers, drop_path=0.2, optimizer="adamw", ema_decay=0.9)
        folder = train("stage1", settings, f"with_{workers}").parent.parent
        found.append((torch.load(folder / STATE)["model"], steps(folder)))
    assert_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


# --- learning rate ---


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("hold_linear", {0: 1, 0.5: 1, 0.75: 1, 0.8: 0.8, 0.875: 0.5, 1: 0}),
        ("cosine", {0: 1, 0.25: 0.8535534, 0.5: 0.5, 0.75: 0.1464466, 1: 0}),
        ("constant", {0: 1, 0.5: 1, 1: 1}),
    ],
)
def test_schedules_by_hand(schedule: str, values: dict[float, float]) -> None:
    settings = Settings.model_validate({"schedule": schedule})
    for share, factor in values.items():
        assert lr_factor(share, settings) == pytest.approx(factor, abs=1e-6)


def test_the_warm_up_rises_from_nearly_nothing_and_the_schedule_follows() -> None:
    settings = Settings(schedule="cosine", warmup_share=0.2)
    assert lr_factor(0, settings) == 0.001
    assert lr_factor(0.05, settings) == pytest.approx(0.25)
    assert lr_factor(0.2, settings) == pytest.approx(1)
    assert lr_factor(0.6, settings) == pytest.approx(0.5)
    assert lr_factor(1, settings) == pytest.approx(0)


def test_holding_to_the_end_never_decays() -> None:
    assert lr_factor(1.0, Settings(hold_share=1)) == 1


def test_the_log_tells_the_rate_of_the_method(tiny: Make) -> None:
    """Constant to three quarters of the run, then linear to zero."""
    folder = train("stage1", tiny(epochs=4, lr=0.01), "x").parent.parent
    rates = [event["lr"] for event in steps(folder)]
    # 12 steps; those at shares 0/12 ... 9/12 hold, 10/12 and 11/12 have 2/3 and 1/3 left
    assert rates == pytest.approx([0.01] * 10 + [0.01 * 2 / 3, 0.01 / 3])


# --- steps that are not finite ---


def poison(run: Run, calls: set[int]) -> None:
    """Make the learner answer NaN in these calls of its forward."""
    count = 0

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return output * math.nan if count in calls and torch.is_grad_enabled() else output

    run.learner.register_forward_hook(hook)


@pytest.mark.parametrize(("call", "named"), [(3, "first pass"), (4, "second pass")])
def test_a_step_that_is_not_finite_is_skipped_counted_and_logged(
    tiny: Make, tmp_path: Path, call: int, named: str
) -> None:
    folder = tmp_path / "run"
    with a_run("stage1", tiny(epochs=1, ema_decay=0.5, momentum=0.9), folder) as run:
        poison(run, {call})
        assert run.average is not None
        batches = [group for group, _ in loop.grouped(run.loader, 1)]
        reports, snapshots = [], []
        for group in batches:
            report = loop.train_step(run, group)[1]
            run.position.step += 1
            loop.count_skips(run, report)
            reports.append(report.skipped)
            snapshots.append((state(run.learner), run.average.updates))
        assert reports == [None, named, None]
        assert_equal(snapshots[0][0], snapshots[1][0])
        assert [updates for _, updates in snapshots] == [1, 1, 2]
        assert not torch.equal(snapshots[1][0]["head.weight"], snapshots[2][0]["head.weight"])
        assert (run.position.skipped, run.position.skipped_in_a_row) == (1, 0)
        assert all(torch.isfinite(value).all() for value in snapshots[2][0].values())
    assert notes(folder) == [f"step skipped: not finite in the {named}"]


def test_a_run_goes_on_after_a_bad_step_and_says_how_many(tiny: Make, tmp_path: Path) -> None:
    with a_run("stage1", tiny(), tmp_path) as run:
        poison(run, {1})
        fit(run)
        assert run.position.skipped == 1
    assert [event["skipped"] for event in steps(tmp_path)] == [1] * 6
    assert steps(tmp_path)[0]["not_finite"] == {"loss": "nan", "grad_norm": "nan"}
    assert len(ranked_weights(tmp_path / "weights")) == 2


def test_too_many_bad_steps_in_a_row_stop_the_run_with_advice(tiny: Make, tmp_path: Path) -> None:
    with a_run("stage1", tiny(epochs=9, max_bad_steps=4), tmp_path) as run:
        poison(run, set(range(3, 99)))  # the first step is good
        with pytest.raises(InputError) as caught:
            fit(run)
        assert run.position.step == 5
        assert all(torch.isfinite(value).all() for value in run.learner.state_dict().values())
    text = str(caught.value)
    assert "4 steps in a row" in text
    assert "lower --set lr (now 0.01)" in text
    assert "--resume never" in text


def test_a_network_whose_answers_are_not_finite_is_not_kept(tiny: Make, tmp_path: Path) -> None:
    with a_run("stage1", tiny(epochs=1), tmp_path) as run:
        run.learner.register_forward_hook(
            lambda module, _inputs, output: output if module.training else output * math.nan
        )
        fit(run)
    assert ranked_weights(tmp_path / "weights") == []
    assert any("weights not kept" in note for note in notes(tmp_path))
    assert "val_auc" not in epochs(tmp_path)[0]


# --- what is kept ---


def test_the_average_is_what_is_validated_and_saved_while_the_live_weights_go_on(
    tiny: Make, tmp_path: Path
) -> None:
    settings = tiny(epochs=2, ema_decay=0.9, lr=0.1)
    validated: list[dict[str, Tensor]] = []
    with a_run("stage1", settings, tmp_path) as run:
        assert run.average is not None
        real = run.validator.validate
        run.validator.validate = lambda network: (validated.append(state(network)), real(network))[1]  # type: ignore[method-assign]
        fit(run)
        last = max(ranked_weights(tmp_path / "weights"), key=lambda path: int(path.name.partition("_")[0]))
        saved, told = load_detector(last)
        assert_equal(saved.state_dict(), validated[-1])
        assert_equal(saved.state_dict(), run.average.weights)
        assert not torch.equal(saved.state_dict()["head.weight"], run.learner.state_dict()["head.weight"])
        again = real(saved)
        assert again.auc == told.val_auc == pytest.approx(epochs(tmp_path)[-1]["val_auc"])
        assert told.threshold == epochs(tmp_path)[-1]["val_threshold"]
    kept = torch.load(tmp_path / STATE)
    assert_equal(kept["model"], state(run.learner))
    assert_equal(kept["average"]["state"], run.average.weights)


def test_the_live_weights_come_back_when_validation_fails(tiny: Make, tmp_path: Path) -> None:
    with a_run("stage1", tiny(epochs=1, ema_decay=0.9), tmp_path) as run:
        loop.train_epoch(run, lambda: 0)
        before = state(run.learner)

        def broken(_: nn.Module) -> Any:
            assert not torch.equal(run.learner.state_dict()["head.weight"], before["head.weight"])
            raise InputError("a crop is broken")

        run.validator.validate = broken  # type: ignore[method-assign]
        with pytest.raises(InputError, match="a crop is broken"):
            loop.validate_and_keep(run)
        assert_equal(state(run.learner), before)


def test_the_five_best_of_seven_epochs_are_kept_under_the_methods_names(tiny: Make) -> None:
    best = train("stage1", tiny(epochs=7, keep_best=5, lr=0.05), "pretrain_mobilevit")
    folder = best.parent
    aucs = {event["epoch"]: event["val_auc"] for event in epochs(folder.parent)}
    assert len(aucs) == 7
    wanted = sorted(aucs, key=lambda epoch: (round(aucs[epoch], 4), epoch), reverse=True)[:5]
    names = [path.name for path in ranked_weights(folder)]
    assert names == [f"{epoch}_{aucs[epoch]:.4f}_val.pth" for epoch in wanted]
    assert all(re.fullmatch(r"\d+_[01]\.\d{4}_val\.pth", path.name) for path in folder.iterdir())
    pattern = str(folder.parent.parent / "pretrain_mobilevit_*" / "weights" / "BEST.pth")
    assert resolve_weights(pattern) == best == folder / names[0]


def test_a_finished_run_holds_all_that_was_promised(tiny: Make) -> None:
    folder = train("stage1", tiny(log_every_steps=10), "x").parent.parent
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "tensorboard",
        "curves.png",
        "done.json",
        "state",
        "weights",
    }
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert steps(folder) == []  # a line on every tenth step, and there were six
    assert len(epochs(folder)) == 2
    assert not list(folder.rglob(".part-*"))
