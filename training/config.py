"""One schema for a training run: from the JSON file a person writes to what a checkpoint stores."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from pipeline.errors import InputError
from training.losses import (
    DEFAULT_ALPHA_TABLE,
    USES_TEMPERATURE,
    LossName,
    check_alpha_table,
    check_loss_for_two_classes,
)

Stage = Literal["teacher", "stage1", "stage2"]
STAGES: tuple[Stage, ...] = ("teacher", "stage1", "stage2")


class Settings(BaseModel):
    """Every setting of one run. Keys are flat; `for_teacher`, `for_stage1`, `for_stage2` override them per stage."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    data: Path = Path("data/prepared")
    """Folder written by `stillface prepare`."""
    output: Path = Path("output")
    """Parent of the run folders (`output/NAME_TIMESTAMP`)."""

    student: str = "mobilevitv2_200"
    """Student network: any timm name."""
    image_size: int = Field(256, ge=32, le=1024)
    """Side of the student's square input, pixels."""
    pretrained: str = "imagenet"
    """Student's starting weights: `imagenet` (timm's own), `none`, or the path of a file with timm's names."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout before the student's linear head."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the student."""
    gradient_checkpointing: bool = False
    """Recompute the student's activations in the backward pass: less memory, more time."""

    teacher: str = "tf_efficientnet_b4"
    """Teacher network: any timm name."""
    teacher_image_size: int = Field(380, ge=32, le=1024)
    """Side of the teacher's square input, pixels."""
    teacher_weights: str | None = None
    """Stage 2: an SBI file (`FFc23.tar`), one of our checkpoints, or a pattern such as
    `output/teacher_*/weights/BEST.pth`."""
    teacher_pretrained: str = "imagenet"
    """Starting weights of `train teacher`: `imagenet`, `none` or a path."""
    teacher_dropout: float = Field(0.4, ge=0, lt=1)
    """Dropout before the teacher's head while it is trained."""
    teacher_drop_path: float = Field(0.2, ge=0, lt=1)
    """Stochastic depth of the teacher while it is trained."""
    min_teacher_auc: float = Field(0.9, ge=0, le=1)
    """Stage 2 refuses to start below this frame AUC of the teacher on the validation set."""

    pretrained_student_weights: str | None = None
    """Stage 2: stage 1's checkpoint; `BEST.pth` in a pattern picks the best epoch of the newest matching run."""

    loss: LossName = "kl"
    """Stage 2's soft loss: `kl`, `logit_mse`, `dist_intra`, or `none` (the no-KD control)."""
    temperature: float = Field(3.0, gt=0)
    """Temperature T of the soft loss; `kl` is multiplied by T squared (Hinton et al. 2015)."""
    alpha_table: dict[int, float] = Field(default_factory=lambda: dict(DEFAULT_ALPHA_TABLE))
    """Share of the hard loss by epoch (1-based), linear between the rows, constant after the last."""
    alpha_start: float | None = Field(None, ge=0, le=1)
    """Overrides the first row of the table."""
    alpha_end: float | None = Field(None, ge=0, le=1)
    """Overrides the last row of the table."""

    trace_loss_weight: float = Field(0.0, ge=0)
    """Weight of an auxiliary loss, added in every stage: the learner's feature maps must tell where and how a fake
    differs from its real twin. Meant for learning from random weights; 0 (the method): none."""

    epochs: int = Field(100, ge=1)
    """Passes over the training faces."""
    batch_size: int = Field(16, ge=2)
    """Images in a step on one device: half of them real, half self-blended."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimizer step; both SAM passes run over all of them."""
    frames_per_video: int = Field(8, ge=1)
    """Training and validation frames kept per video, evenly spaced."""
    draws_per_face: int = Field(1, ge=1)
    """Self-blended draws of each training face in an epoch; more make epochs longer where faces are few."""
    val_draws: int = Field(1, ge=1)
    """Self-blended draws of each validation face; more give a tighter validation AUC."""
    val_batch_size: int = Field(32, ge=2)
    """Images in a validation batch."""
    reference_quirks: bool = False
    """Reproduce the quirks of the reference generator (see KNOWLEDGE_DISTILLATION_GUIDE.md)."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Base optimizer under SAM."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum (`sgd` only; AdamW uses its default betas)."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of matrices and kernels; biases and norms have none."""
    schedule: Literal["hold_linear", "cosine", "constant"] = "hold_linear"
    """`hold_linear`: constant to `hold_share` of the run, then linear to zero (the method's)."""
    hold_share: float = Field(0.75, ge=0, le=1)
    """Share of the run before `hold_linear` decays."""
    warmup_share: float = Field(0.0, ge=0, lt=1)
    """Share of the run in which the rate rises linearly from zero."""
    sam_rho: float = Field(0.05, ge=0)
    """SAM's neighbourhood radius; 0 turns SAM off (one pass per step)."""
    sam_adaptive: bool = False
    """ASAM: the radius scales with each weight."""
    sam_scope: Literal["all", "norm"] = "all"
    """Perturb all parameters, or only those of normalisation layers (SAM-ON)."""
    sam_start_fraction: float = Field(0.0, ge=0, le=1)
    """Late SAM: plain steps before this share of the run."""
    sam_interval: int = Field(1, ge=1)
    """SAM on every k-th step only."""
    sam_sync_perturbation: bool = False
    """Perturb by the mean gradient of all ranks instead of each rank's own (m-SAM)."""
    clip_norm: float | None = Field(1.0, gt=0)
    """L2 norm to which the final gradient is clipped; null: no clipping."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Exponential moving average of the weights, validated and saved as the model; null: none."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 autocast on CUDA devices that have it, else fp32, without TF32; fp16 only on request."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    threads: int | None = Field(None, ge=1)
    """PyTorch CPU threads; null: all cores, shared between the processes that `torchrun` starts on a machine."""
    workers: int = Field(4, ge=0)
    """Loader processes."""
    seed: int = Field(5, ge=0, lt=2**32)
    """Seeds weights, order and every self-blended sample."""
    deterministic: bool = True
    """Deterministic kernels; needed for bit-exact resume on a GPU."""
    max_bad_steps: int = Field(50, ge=1)
    """Consecutive non-finite steps after which the run stops."""
    keep_best: int = Field(5, ge=1)
    """Checkpoints kept, by validation AUC."""
    save_every_steps: int = Field(200, ge=1)
    """Steps between two saves of the resumable state (it is also saved after every epoch)."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between two lines of the log."""

    @field_validator("batch_size", "val_batch_size")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(
                f"counts images, half of them real and half fake: give an even number, not {value}"
            )
        return value

    @field_validator("alpha_table")
    @classmethod
    def _alpha_rows(cls, value: dict[int, float]) -> dict[int, float]:
        check_alpha_table(value)
        return value

    @field_validator("alpha_end")  # the last of the three, so that the other two are known
    @classmethod
    def _alpha_schedule(cls, value: float | None, info: ValidationInfo) -> float | None:
        if {"alpha_table", "alpha_start"} <= info.data.keys():
            check_alpha_table(info.data["alpha_table"], info.data["alpha_start"], value)
        return value

    @field_validator("loss", mode="before")
    @classmethod
    def _live_loss(cls, value: object) -> object:
        check_loss_for_two_classes(str(value))
        return value


_STUDENT: tuple[Stage, ...] = ("stage1", "stage2")
_STAGES_THAT_READ: dict[str, tuple[Stage, ...]] = {
    **dict.fromkeys(("student", "image_size", "pretrained", "dropout", "drop_path"), _STUDENT),
    **dict.fromkeys(("teacher_pretrained", "teacher_dropout", "teacher_drop_path"), ("teacher",)),
    **dict.fromkeys(("teacher", "teacher_image_size"), ("teacher", "stage2")),
    **dict.fromkeys(("teacher_weights", "min_teacher_auc", "pretrained_student_weights"), ("stage2",)),
    **dict.fromkeys(("loss", "temperature", "alpha_table", "alpha_start", "alpha_end"), ("stage2",)),
}
"""Settings that not every stage reads."""


def load_settings(path: Path, stage: Stage, overrides: list[str] | None = None) -> Settings:
    """Read a JSON config for one stage, with `key=value` overrides on top.

    Raises:
        InputError: the file is missing or not JSON, or keys or values are wrong (all of them are listed at once).
    """
    return settings_from(_read_json(path), stage, parse_overrides(overrides or []), source=str(path))


def settings_from(raw: dict[str, Any], stage: Stage, overrides: dict[str, Any], *, source: str) -> Settings:
    """Merge flat keys, the stage's `for_*` block and overrides, and validate.

    Raises:
        InputError: unknown keys (with the nearest known one) and wrong values, all at once; every stage's block is
            checked, not only the one asked for.
    """
    block_in_override = next((key for key in overrides if key.partition(".")[0] in _BLOCKS), None)
    if block_in_override is not None:
        raise InputError(
            f"--set {block_in_override}=...: --set is for the stage that is run; give the settings themselves, for "
            f"example --set lr=0.001, and keep for_* blocks in {source}"
        )
    flat = {key: value for key, value in raw.items() if key not in _BLOCKS and key != "$schema"}
    problems: list[str] = []
    chosen: Settings | None = None
    for name in STAGES:
        block = raw.get(f"for_{name}", {})
        if not isinstance(block, dict):
            problems.append(f"for_{name}: expected an object of settings, got {block!r}")
            continue
        given = overrides if name == stage else {}
        places = {**{key: f"for_{name}.{key}" for key in block}, **{key: f"--set {key}" for key in given}}
        try:
            settings = Settings.model_validate({**flat, **block, **given})
        except ValidationError as error:
            problems += [_explain(dict(item), places) for item in error.errors()]
        else:
            chosen = settings if name == stage else chosen
    if problems or chosen is None:
        lines = "\n".join(f"  - {line}" for line in dict.fromkeys(problems))
        raise InputError(f"{source}: {len(dict.fromkeys(problems))} problem(s) in the settings:\n{lines}")
    return chosen


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Turn `key=value` strings into settings; a value is JSON where it parses as JSON, else a string."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        key = name.strip()
        if not separator or not key:
            raise InputError(f"--set {pair!r}: expected key=value, for example --set lr=0.001")
        try:
            parsed[key] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key] = text
    return parsed


def check_read_by(stage: Stage, overrides: Iterable[str]) -> None:
    """Refuse settings given for one stage that this stage never reads.

    A config serves all stages, so its flat keys may be of another; what is given by `--set` is meant for this one.

    Raises:
        InputError: names each, and the key that was probably meant.
    """
    idle = [key for key in overrides if key in _STAGES_THAT_READ and stage not in _STAGES_THAT_READ[key]]
    lines = []
    for key in idle:
        own = {"image_size": "teacher_image_size", "student": "teacher"}.get(key, f"teacher_{key}")
        meant = f"; {own} is the teacher's" if stage == "teacher" and own in Settings.model_fields else ""
        lines.append(f"  - {key} is read by {' and '.join(_STAGES_THAT_READ[key])} only{meant}")
    if lines:
        raise InputError("\n".join([f"--set gives {stage} what it does not read:", *lines]))


def without_effect(settings: Settings) -> list[str]:
    """Settings that were given although others switch them off, in words; somebody may believe they count."""
    off = {
        "temperature": ("loss", settings.loss not in USES_TEMPERATURE),
        "alpha_table": ("loss", settings.loss == "none"),
        "alpha_start": ("loss", settings.loss == "none"),
        "alpha_end": ("loss", settings.loss == "none"),
        "momentum": ("optimizer", settings.optimizer != "sgd"),
        "hold_share": ("schedule", settings.schedule != "hold_linear"),
        **{
            key: ("sam_rho", settings.sam_rho == 0) for key in Settings.model_fields if key.startswith("sam_")
        },
    }
    return [
        f"{key} has no effect with {by} {getattr(settings, by)}"
        for key, (by, idle) in off.items()
        if idle and key != by and key in settings.model_fields_set
    ]


def json_schema() -> dict[str, Any]:
    """The JSON Schema that editors use to complete and check a config file."""
    schema = Settings.model_json_schema()
    properties = schema["properties"]
    block = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    for stage in STAGES:
        properties[f"for_{stage}"] = {**block, "description": f"Overrides for `train {stage}`."}
    properties["$schema"] = {"type": "string"}
    return schema


_BLOCKS = frozenset(f"for_{stage}" for stage in STAGES)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such config file; the shipped ones are in configs/ (try configs/demo.json)"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_key_twice)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); compare with configs/config_SBI.json") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a JSON object of settings, got {type(raw).__name__}")
    return raw


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"{twice!r} stands in it twice; one of the two would be ignored")
    return read


def _explain(item: dict[str, Any], places: dict[str, str]) -> str:
    """One problem in words; `places` tells where a key was given if not at the top of the file."""
    first, *rest = (str(part) for part in item["loc"])
    key, where = ".".join((first, *rest)), ".".join((places.get(first, first), *rest))
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [*Settings.model_fields, *_BLOCKS], n=1)
        return f"{where}: unknown key" + (
            f", did you mean {near[0]!r}?" if near else "; see configs/schema.json"
        )
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    return f"{where}: {item['msg']} (given {item['input']!r})"
