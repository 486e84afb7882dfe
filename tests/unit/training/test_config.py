"""Settings: every mistake told at once and in words, every setting read somewhere."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import training
from pipeline.errors import InputError
from training.__main__ import run_stage
from training.config import (
    STAGES,
    Settings,
    Stage,
    check_read_by,
    json_schema,
    load_settings,
    parse_overrides,
    settings_from,
    without_effect,
)
from training.losses import alpha_at

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.json") if path.name != "schema.json")


def read(raw: dict[str, Any], stage: Stage = "stage1", **overrides: Any) -> Settings:
    return settings_from(raw, stage, overrides, source="my.json")


def refusal(raw: dict[str, Any], stage: Stage = "stage1", **overrides: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(raw, stage, **overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("epoch", "epochs"),
        ("learning_rate_", None),
        ("batchsize", "batch_size"),
        ("alpha", "alpha_end"),
        ("for_stage3", "for_stage"),
        ("teacher_weight", "teacher_weights"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(key: str, meant: str | None) -> None:
    text = refusal({key: 1})
    assert f"{key}: unknown key" in text
    assert f"did you mean '{meant}" in text if meant else "see configs/schema.json" in text


def test_all_mistakes_are_told_at_once_wherever_they_stand() -> None:
    text = refusal(
        {
            "epoch": 3,
            "lr": -1,
            "batch_size": 7,
            "alpha_table": {"5": 0.1, "1": 0.2},
            "for_teacher": {"sam_roh": 0.1},
            "for_stage2": {"loss": "dkd", "temperature": "warm"},
        },
        val_batch_size=9,
    )
    assert "8 problem(s)" in text
    assert text.startswith("my.json: ")
    for part in (
        "epoch: unknown key",
        "lr: Input should be greater than 0 (given -1)",
        "batch_size: counts images",
        "alpha_table: alpha_table's epochs must increase",
        "for_teacher.sam_roh: unknown key, did you mean 'sam_rho'?",
        "for_stage2.loss: Distillation loss 'dkd' teaches nothing here",
        "for_stage2.temperature: ",
        "--set val_batch_size: counts images, half of them real and half fake: give an even number, not 9",
    ):
        assert f"  - {part}" in text


@pytest.mark.parametrize("stage", STAGES)
def test_a_block_is_checked_whatever_stage_is_asked_for(stage: Stage) -> None:
    assert "for_stage2.lr: " in refusal({"for_stage2": {"lr": 0}}, stage)
    assert "for_teacher: expected an object of settings, got 3" in refusal({"for_teacher": 3}, stage)


def test_overrides_win_over_the_block_and_the_block_over_the_file() -> None:
    raw = {"lr": 0.1, "epochs": 7, "seed": 1, "for_stage2": {"lr": 0.2, "epochs": 8}}
    settings = read(raw, "stage2", lr=0.3)
    assert (settings.lr, settings.epochs, settings.seed) == (0.3, 8, 1)
    assert read(raw, "stage1").lr == 0.1


@pytest.mark.parametrize("key", ["for_stage2", "for_stage2.lr"])
def test_set_is_for_the_stage_that_is_run(key: str) -> None:
    text = refusal({}, **{key: 1})
    assert f"--set {key}=" in text
    assert "--set lr=0.001" in text


def test_overrides_are_json_where_they_can_be() -> None:
    pairs = [
        "lr=1e-3",
        "epochs=3",
        "ema_decay=null",
        "deterministic=false",
        "teacher_weights=a=b.pth",
        " student = mobilevitv2_050",
        'alpha_table={"1": 0.9}',
    ]
    assert parse_overrides(pairs) == {
        "lr": 0.001,
        "epochs": 3,
        "ema_decay": None,
        "deterministic": False,
        "teacher_weights": "a=b.pth",
        "student": " mobilevitv2_050",
        "alpha_table": {"1": 0.9},
    }


@pytest.mark.parametrize("pair", ["lr", "=3", ""])
def test_an_override_without_a_key_or_value_shows_how(pair: str) -> None:
    with pytest.raises(InputError, match=r"expected key=value, for example --set lr=0\.001"):
        parse_overrides([pair])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dkd", "non-target part is identically zero"),
        ("logit_standardization", "nothing for the student to learn from"),
        ("dist_inter", "its gradient is zero"),
        ("hinton", "Use one of kl, logit_mse, dist_intra, none"),
    ],
)
def test_losses_that_teach_nothing_are_refused_with_the_reason(name: str, reason: str) -> None:
    assert reason in refusal({"loss": name})


@pytest.mark.parametrize("key", ["batch_size", "val_batch_size"])
def test_odd_batches_are_refused(key: str) -> None:
    assert f"{key}: counts images, half of them real and half fake" in refusal({key: 5})
    assert getattr(read({key: 6}), key) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["lr", "temperature", "sam_rho", "weight_decay", "clip_norm"])
def test_numbers_must_be_finite(key: str, value: float) -> None:
    assert f"{key}: " in refusal({key: value})


def test_the_table_and_both_ends_are_honoured() -> None:
    settings = read({"alpha_table": {"1": 0.95, "3": 0.8, "5": 0.5}, "alpha_start": 0.9, "alpha_end": 0.4})
    values = [
        alpha_at(epoch, settings.alpha_table, settings.alpha_start, settings.alpha_end)
        for epoch in range(1, 7)
    ]
    assert values == pytest.approx([0.9, 0.85, 0.8, 0.6, 0.4, 0.4])


def test_an_end_that_turns_the_schedule_round_is_refused() -> None:
    assert "turn the schedule round" in refusal({"alpha_end": 0.99})
    assert "turn the schedule round" in refusal({"alpha_start": 0.1})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("stage", STAGES)
def test_the_committed_configs_are_good_for_every_stage(path: Path, stage: Stage) -> None:
    settings = load_settings(path, stage)
    assert without_effect(settings) == []


def test_what_a_stage_does_not_read_cannot_be_set_for_it() -> None:
    check_read_by("teacher", ["lr", "teacher_pretrained", "teacher_image_size"])
    check_read_by("stage2", ["loss", "teacher", "image_size"])
    with pytest.raises(InputError) as caught:
        check_read_by("teacher", ["pretrained", "lr", "image_size", "loss"])
    assert str(caught.value).splitlines() == [
        "--set gives teacher what it does not read:",
        "  - pretrained is read by stage1 and stage2 only; teacher_pretrained is the teacher's",
        "  - image_size is read by stage1 and stage2 only; teacher_image_size is the teacher's",
        "  - loss is read by stage2 only",
    ]
    with pytest.raises(InputError, match="temperature is read by stage2 only"):
        run_stage("stage1", ROOT / "configs" / "demo.json", "x", ["temperature=2"], "auto")


def test_the_committed_config_of_the_method_says_what_the_method_says() -> None:
    path = ROOT / "configs" / "config_SBI.json"
    first, second = load_settings(path, "stage1"), load_settings(path, "stage2")
    assert (first.lr, first.batch_size, first.epochs, first.image_size) == (1e-4, 16, 100, 256)
    assert (second.lr, second.batch_size, second.temperature) == (5e-5, 8, 3)
    assert (first.optimizer, first.momentum, first.sam_rho, first.clip_norm) == ("sgd", 0.9, 0.05, 1)
    # stage 2 starts from stage 1 by itself
    assert second.pretrained_student_weights == "output/pretrain_mobilevit_*/weights/BEST.pth"
    # the teacher sees 380 px, where the published one has its padding
    assert (second.teacher, second.teacher_image_size) == ("tf_efficientnet_b4", 380)


def test_the_committed_schema_is_the_models() -> None:
    assert json.loads((ROOT / "configs" / "schema.json").read_text()) == json.loads(json.dumps(json_schema()))


def test_the_schema_describes_every_setting_and_refuses_others() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    for stage in STAGES:
        assert schema["properties"][f"for_{stage}"]["additionalProperties"] is False
    undescribed = [
        name for name in Settings.model_fields if not schema["properties"][name].get("description")
    ]
    assert undescribed == []


def test_every_setting_is_read_somewhere() -> None:
    """A setting that is ignored is a bug."""
    read_names: set[str] = set()
    for path in Path(training.__file__).parent.glob("*.py"):
        if path.name in ("config.py", "demo.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == "settings":
                read_names.add(node.attr)
    assert sorted(Settings.model_fields.keys() - read_names) == []


def test_settings_that_others_switch_off_are_said() -> None:
    settings = read(
        {
            "loss": "logit_mse",
            "temperature": 4,
            "optimizer": "adamw",
            "momentum": 0.8,
            "schedule": "cosine",
            "hold_share": 0.5,
            "sam_rho": 0,
            "sam_interval": 2,
        }
    )
    assert without_effect(settings) == [
        "temperature has no effect with loss logit_mse",
        "momentum has no effect with optimizer adamw",
        "hold_share has no effect with schedule cosine",
        "sam_interval has no effect with sam_rho 0.0",
    ]
    assert without_effect(read({"optimizer": "adamw", "sam_rho": 0})) == []


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read({}).lr = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object of settings, got list"),
        ('{"lr": 1, "lr": 2}', "'lr' stands in it twice"),
        ('{"for_stage1": {"lr": 1, "seed": 1, "lr": 2}}', "'lr' stands in it twice"),
        ('{"lr": NaN}', "lr: "),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_settings(path, "stage1")
    assert str(path) in str(caught.value)


def test_a_missing_file_points_to_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such config file.*configs/demo\.json"):
        load_settings(tmp_path / "none.json", "stage1")


def test_a_file_in_another_encoding_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes('{"data": "Köln"}'.encode("latin-1"))
    with pytest.raises(InputError, match="not valid JSON"):
        load_settings(path, "stage1")
