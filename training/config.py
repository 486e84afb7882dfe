"""One schema for a training run: from the JSON file a person writes to what a checkpoint stores."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import InputError
from training.losses import DEFAULT_ALPHA_TABLE, LossName, check_alpha_table, check_loss_for_two_classes

Stage = Literal["teacher", "stage1", "stage2"]
STAGES: tuple[Stage, ...] = ("teacher", "stage1", "stage2")


class Settings(BaseModel):
    """Every setting of one run. Keys are flat; `for_teacher`, `for_stage1`, `for_stage2` override them per stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
    """`auto`: bf16 autocast on CUDA devices that have it, else fp32; fp16 only on request."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    threads: int | None = Field(None, ge=1)
    """PyTorch CPU threads; null: the cores less the loader's workers, at least one."""
    workers: int = Field(4, ge=0)
    """Loader processes."""
    seed: int = Field(5, ge=0)
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

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        if self.batch_size % 2 or self.val_batch_size % 2:
            raise ValueError(
                "batch_size and val_batch_size count images, half real and half fake: give even numbers"
            )
        check_alpha_table(self.alpha_table, self.alpha_start, self.alpha_end)
        return self

    @field_validator("loss", mode="before")
    @classmethod
    def _live_loss(cls, value: object) -> object:
        check_loss_for_two_classes(str(value))
        return value


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
    flat = {key: value for key, value in raw.items() if key not in _BLOCKS and key != "$schema"}
    problems: list[str] = []
    chosen: Settings | None = None
    for name in STAGES:
        block = raw.get(f"for_{name}", {})
        if not isinstance(block, dict):
            problems.append(f"for_{name}: expected an object of settings, got {block!r}")
            continue
        merged = {**flat, **block, **(overrides if name == stage else {})}
        try:
            settings = Settings.model_validate(merged)
        except ValidationError as error:
            problems += _explain(error, f"for_{name}." if block else "", block)
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
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise InputError(f"--set {pair!r}: expected key=value, for example --set lr=0.001")
        try:
            parsed[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key.strip()] = text
    return parsed


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
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); compare with configs/config_SBI.json") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a JSON object of settings, got {type(raw).__name__}")
    return raw


def _explain(error: ValidationError, prefix: str, block: dict[str, Any]) -> list[str]:
    return [_explain_one(dict(item), prefix, block) for item in error.errors()]


def _explain_one(item: dict[str, Any], prefix: str, block: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    where = f"{prefix}{key}" if key.split(".")[0] in block else key
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [*Settings.model_fields, *_BLOCKS], n=1)
        return f"{where}: unknown key" + (
            f", did you mean {near[0]!r}?" if near else "; see configs/schema.json"
        )
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message} (given {item['input']!r})" if key else message
