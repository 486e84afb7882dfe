"""Files that survive a crash: self-describing weights, and the state from which a run resumes exactly."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError
from pipeline.storage import write_whole
from training.networks import Detector, NetworkSpec, build_from_spec
from training.weight_files import load_strictly, read_weight_file, tensors_of

FORMAT = "stillface.checkpoint"
SCHEMA_VERSION = 1
_NAME = re.compile(r"^(\d+)_([01]\.\d{4})_val\.pth$")
_STAMP = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?$")


class CheckpointInfo(BaseModel):
    """Everything a checkpoint says of itself, without its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = ""
    """Of the file; empty until it is read back from disk."""
    stage: str
    epoch: int
    """1-based."""
    val_auc: float | None
    """Frame AUC on the self-blended validation set."""
    threshold: float | None
    """p_fake at the equal error rate on that set: the stored operating point."""
    network: NetworkSpec
    config: dict[str, Any]
    """Resolved settings of the run."""
    provenance: dict[str, Any]
    """Versions, git revision, data hash, weights the run started from, parent checkpoint."""


def save_checkpoint(path: Path, detector_state: dict[str, torch.Tensor], info: CheckpointInfo) -> None:
    """Write weights and their description atomically.

    Raises:
        InputError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "info": info.model_dump_json(),
        "model": {key: value.detach().cpu() for key, value in detector_state.items()},
    }
    save_atomically(path, content)


def load_detector(path: Path, device: str | torch.device = "cpu") -> tuple[Detector, CheckpointInfo]:
    """Read one of our checkpoints into an evaluation-mode network on `device`.

    Raises:
        InputError: not one of our checkpoints, damaged, from a newer version, or its weights do not fit its own
            description.
    """
    file = read_weight_file(path)
    content = file.payload
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a stillface checkpoint; give a file such as output/NAME_TIME/weights/12_0.9310_val.pth "
            "written by `stillface train`"
        )
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: written by another stillface (schema {version}, this one reads {SCHEMA_VERSION}); use the "
            "version that wrote it"
        )
    try:
        info = CheckpointInfo.model_validate_json(content["info"]).model_copy(update={"sha256": file.sha256})
    except (ValidationError, KeyError) as error:
        raise InputError(
            f"{path}: its description cannot be read ({error}); use the stillface version that wrote it"
        ) from error
    detector = build_from_spec(info.network)
    load_strictly(detector, tensors_of(content.get("model"), path), source=str(path))
    return detector.to(device).eval(), info


def is_checkpoint(path: Path) -> bool:
    """Whether a weight file is one of our checkpoints.

    Raises:
        InputError: it cannot be read as a weight file at all.
    """
    content = read_weight_file(path).payload
    return isinstance(content, dict) and content.get("format") == FORMAT


def resolve_weights(pattern: str) -> Path:
    """Turn a path or pattern into one file; `BEST.pth` means the best epoch of the newest matching run.

    Raises:
        InputError: nothing matches; the message lists what lies near.
    """
    path = Path(pattern)
    if path.is_file():
        return path
    if path.name != "BEST.pth":
        raise InputError(
            f"{pattern}: no such weights file; give a file, or RUN/weights/BEST.pth for a run's best epoch"
        )
    folders = [Path(path.parent)] if path.parent.is_dir() else _glob(str(path.parent))
    ranked = {folder: ranked_weights(folder) for folder in folders}
    runs = sorted(
        (folder for folder in folders if ranked[folder]), key=lambda weights: started(weights.parent)
    )
    if not runs:
        raise InputError(
            f"{pattern}: no run with saved weights matches; train the stage before first "
            f"(folders that matched: {', '.join(map(str, folders)) or 'none'})"
        )
    return ranked[runs[-1]][0]


def ranked_weights(folder: Path) -> list[Path]:
    """Weights files `{epoch}_{auc}_val.pth` of a run, best AUC first, the later epoch on a tie."""
    named = [(match, path) for path in folder.glob("*_val.pth") if (match := _NAME.match(path.name))]
    named.sort(key=lambda item: (float(item[0][2]), int(item[0][1])), reverse=True)
    return [path for _, path in named]


def started(run: Path) -> tuple[str, int]:
    """When a run folder `NAME_TIME` or `NAME_TIME-2` was made, for sorting; a folder of another name comes first."""
    match = _STAMP.search(run.name)
    return (match[1], int(match[2] or 1)) if match else ("", 0)


def save_atomically(path: Path, content: object) -> None:
    """`torch.save` in one step: other processes, and a resume after a crash, see the old file or the new one.

    Raises:
        InputError: the disk is full or the folder cannot be written; the old file, if any, stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_whole(path, buffer.getbuffer(), durable=True)
    except InputError as error:
        raise InputError(f"{error} The same command then resumes from the last saved step.") from error


def weights_name(epoch: int, val_auc: float) -> str:
    """File name of an epoch's weights: `{epoch}_{auc:.4f}_val.pth`."""
    return f"{epoch}_{val_auc:.4f}_val.pth"


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the best `keep` weights files of a run and return the deleted paths."""
    surplus = ranked_weights(folder)[keep:]
    for path in surplus:
        path.unlink(missing_ok=True)
    return surplus


def drop_later(folder: Path, epochs_done: int) -> None:
    """Delete weights of epochs after `epochs_done`: a resume trains these epochs again."""
    for path in ranked_weights(folder):
        if int(path.name.partition("_")[0]) > epochs_done:
            path.unlink(missing_ok=True)


def _glob(pattern: str) -> list[Path]:
    anchor = Path(Path(pattern).anchor or ".")
    relative = str(Path(pattern).relative_to(anchor)) if Path(pattern).is_absolute() else pattern
    return sorted(path for path in anchor.glob(relative) if path.is_dir())
